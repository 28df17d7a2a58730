"""What trainers do at awkward moments: holds that nest or break off, groups that are odd."""

import asyncio

import pytest

from concur_agents.batch import AgentPool
from concur_agents.core import Fleet, Reading, Regulator, Usage, make_law
from concur_agents.errors import ConfigError
from concur_agents.governor import Governor
from concur_agents.testing import assert_idle, run, virtual_governor

USAGE = Usage(1_000, 100, 900)


async def stand_at_boundary(agent):
    async with agent.step() as step:
        step.record(USAGE)


def test_holds_may_nest_and_the_outer_one_counts():
    async def main():
        async with virtual_governor(limit=4) as gov, gov.agent("a") as agent:
            async with gov.hold():
                async with gov.hold(timeout_s=5):
                    waiting = asyncio.ensure_future(stand_at_boundary(agent))
                    await asyncio.sleep(1)
                await asyncio.sleep(10)
                assert not waiting.done()
            await waiting
            assert agent.stats.paused_s == 11

    run(main())


@pytest.mark.parametrize("error", [asyncio.CancelledError, KeyError])
def test_an_update_that_breaks_off_lets_agents_go_on(error):
    async def main():
        async with virtual_governor(limit=4) as gov, gov.agent("a") as agent:
            waiting = asyncio.ensure_future(update(gov, agent))
            with pytest.raises(error):
                await waiting
            await stand_at_boundary(agent)
            assert agent.stats.paused_s == 0

    async def update(gov, agent):
        async with gov.hold():
            await asyncio.sleep(1)
            raise error

    run(main())


def test_agents_that_are_cancelled_while_they_are_held_leave():
    async def main():
        async with virtual_governor(limit=2) as gov:
            async with gov.hold():
                tasks = [asyncio.ensure_future(rollout(gov, n)) for n in range(4)]
                await asyncio.sleep(1)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            assert_idle(gov)

    async def rollout(gov, number):
        async with gov.agent(f"a{number}", group="g") as agent:
            await stand_at_boundary(agent)

    run(main())


@pytest.mark.parametrize("flushed_first", [True, False])
def test_a_flush_within_a_hold_teaches_no_small_pool(flushed_first):
    """All come back at once after the block and miss whole: the cache was emptied, not small."""
    law = make_law("working_set")
    regulator = Regulator(law)
    agents = [f"a{n}" for n in range(8)]
    for agent in agents:
        regulator.arrive(agent, 0.0)
    for second in range(4):
        for agent in agents:
            regulator.begin_step(agent, 10.0 * (second + 1))
        for agent in agents:
            cached = 10_000 if second else 0
            regulator.end_step(agent, 10.0 * (second + 1) + 1.0, Usage(10_000, 0, cached))
        regulator.tick(Reading(at_s=10.0 * second + 12.0), 10.0 * second + 12.0)
    before = regulator.state.limit.tokens
    if flushed_first:
        regulator.flushed(45.0)
    regulator.hold("update", 46.0, 60.0)
    for agent in agents:
        assert regulator.begin_step(agent, 50.0) == []
    if not flushed_first:
        regulator.flushed(51.0)
    assert set(regulator.end_hold("update", 52.0)) == set(agents)
    for agent in agents:
        regulator.end_step(agent, 53.0, Usage(10_000, 0, 0))
    regulator.tick(Reading(at_s=54.0), 54.0)
    assert regulator.last_snapshot.learned_tokens is None
    assert regulator.state.limit.tokens >= before


def test_a_pool_that_is_down_may_be_flushed():
    fleet = Fleet(make_law("fixed", agents=1), ["left", "right"])
    for second in range(60):
        fleet.tick(None, float(second), "left")
        fleet.tick(Reading(at_s=float(second)), float(second), "right")
    assert fleet.is_down("left")
    assert fleet.flushed(60.0, "left") == []
    assert fleet.flushed(60.0) == []
    assert fleet.arrive("a", 61.0) == ["a"]


def test_a_pool_that_does_not_exist_cannot_be_flushed():
    with Governor(limit=4) as gov, pytest.raises(ConfigError, match="nowhere"):
        gov.flushed("nowhere")


def test_a_group_of_one_is_an_agent_like_others():
    async def main():
        async with virtual_governor(limit=1) as gov:
            await asyncio.gather(*(rollout(gov, n) for n in range(3)))
            assert_idle(gov)

    async def rollout(gov, number):
        async with gov.agent(f"a{number}", group=f"prompt-{number}") as agent:
            await stand_at_boundary(agent)

    run(main())


def test_a_group_larger_than_the_pool_comes_in_as_far_as_there_is_room_and_ends():
    async def main():
        async with virtual_governor(law=make_law("working_set", start_tokens=4_000)) as gov:
            most = 0

            async def rollout(number):
                nonlocal most
                async with gov.agent(f"a{number}", group="prompt", prompt_tokens=1_000) as agent:
                    for turn in range(3):
                        async with agent.step(1_000 * (turn + 1)) as step:
                            most = max(most, gov.snapshot().active)
                            await asyncio.sleep(1)
                            step.record(Usage(1_000 * (turn + 1), 100, 1_000 * turn))

            await asyncio.gather(*map(rollout, range(20)))
            assert 1 <= most < 20
            assert_idle(gov)

    run(main())


def test_members_that_are_cancelled_before_the_first_is_in_leave_their_group_whole():
    async def main():
        async with virtual_governor(limit=1) as gov:
            order = []

            async def rollout(name, group):
                async with gov.agent(name, group=group, detached=True) as agent:
                    order.append(name)
                    await stand_at_boundary(agent)
                    await asyncio.sleep(1)

            async with gov.agent("first"):
                tasks = {}
                for name in ("g0", "other", "g1", "g2"):
                    tasks[name] = asyncio.ensure_future(rollout(name, name[0]))
                    await asyncio.sleep(0)
                await asyncio.sleep(1)
                tasks["g0"].cancel()
                await asyncio.gather(tasks["g0"], return_exceptions=True)
            del tasks["g0"]
            await asyncio.gather(*tasks.values())
            assert order == ["g1", "g2", "other"], "the group keeps the place of its first"
            assert_idle(gov)

    run(main())


def test_a_sample_that_comes_again_may_have_another_priority():
    """Its weights are older now."""

    async def main():
        async with virtual_governor(limit=1) as gov:
            order = []

            async def rollout(name, priority):
                async with gov.agent(name, priority=priority, detached=True) as agent:
                    order.append(name)
                    await stand_at_boundary(agent)

            await rollout("again", 0)
            async with gov.agent("first"):
                tasks = [asyncio.ensure_future(rollout("new", 0))]
                await asyncio.sleep(0)
                tasks += [asyncio.ensure_future(rollout("again", 1))]
                await asyncio.sleep(0)
            await asyncio.gather(*tasks)
            assert order == ["again", "again", "new"]

    run(main())


def test_a_sandbox_that_is_never_ready_holds_up_its_own_agent_alone():
    """Its place is lost until it is cancelled, and taking it down does not wait for it."""

    async def main():
        async with virtual_governor(limit=2) as gov:
            made, gone = [], []

            async def prepare(item):
                if item == 0:
                    await asyncio.Event().wait()
                made.append(item)
                return item

            async def cleanup(sandbox):
                gone.append(sandbox)

            async def work(item, sandbox):
                await asyncio.sleep(1)
                return sandbox

            async with AgentPool(gov, prepare=prepare, cleanup=cleanup, prepared=0) as pool:
                tasks = [pool.submit(work, item) for item in range(4)]
                done = [await task for task in tasks[1:]]
                assert done == [1, 2, 3]
                tasks[0].cancel()
            assert sorted(made) == sorted(gone) == [1, 2, 3]
            assert_idle(gov)

    run(main())


def test_a_sandbox_whose_making_is_cancelled_from_within_costs_its_agent_alone():
    async def main():
        async with virtual_governor(limit=1) as gov:

            async def prepare(item):
                if item == 1:
                    raise asyncio.CancelledError
                return item

            async def work(item, sandbox):
                return sandbox

            async with AgentPool(gov, prepare=prepare) as pool:
                outcomes = await pool.in_order(work, range(3))
            assert [outcome.status for outcome in outcomes] == ["ok", "cancelled", "ok"]
            assert_idle(gov)

    run(main())
