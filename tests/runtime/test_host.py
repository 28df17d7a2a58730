"""The governor on an event loop whose clock jumps: every second in here is virtual."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
from pathlib import PurePosixPath
from uuid import UUID

import pytest

import concur_agents as ca
from concur_agents.core import Limit, Reading, Usage
from concur_agents.testing import ManualClock, ScriptedProbe, assert_idle, run, virtual_governor


async def live(governor, name, *, steps=2, step_s=1.0, tool_s=1.0, **options):
    """An agent as users write them; returns its stats."""
    async with governor.agent(name, **options) as agent:
        for _ in range(steps):
            async with agent.step() as step:
                await asyncio.sleep(step_s)
                step.record(Usage(100, 10, 0))
            await asyncio.sleep(tool_s)
    return agent.stats


def record(governor, *kinds):
    events = []
    governor.on_event(lambda e: events.append(e) if not kinds or e.kind in kinds else None)
    return events


# Entry and leaving


def test_agents_beyond_the_limit_wait_until_one_leaves():
    async def main():
        async with virtual_governor(limit=2) as gov:
            stats = await asyncio.gather(*(live(gov, f"a{i}") for i in range(6)))
            assert [s.queued_s for s in stats] == [0, 0, 4, 4, 8, 8]
            assert [s.running_s for s in stats] == [4] * 6
            assert {s.steps for s in stats} == {2}
            assert stats[0].prompt_tokens == 200
            assert_idle(gov)

    run(main())


def test_a_place_is_held_for_life_and_not_per_call():
    """A limiter around calls would let the second agent in during the first one's tool."""

    async def main():
        async with virtual_governor(limit=1) as gov:
            events = record(gov, "admitted", "left")
            await asyncio.gather(live(gov, "first", tool_s=60), live(gov, "second"))
            assert [(e.kind, e.agent) for e in events] == [
                ("admitted", "first"),
                ("left", "first"),
                ("admitted", "second"),
                ("left", "second"),
            ]

    run(main())


def test_an_agent_that_raises_passes_its_place_on_and_its_error_is_unchanged():
    async def main():
        async with virtual_governor(limit=1) as gov:
            error = KeyError("mine")

            async def broken():
                async with gov.agent("broken") as agent, agent.step():
                    raise error

            task = asyncio.ensure_future(broken())
            await live(gov, "next")
            with pytest.raises(KeyError) as caught:
                await task
            assert caught.value is error
            assert_idle(gov)

    run(main())


def test_two_living_agents_cannot_have_one_id_and_the_first_is_not_disturbed():
    async def main():
        async with virtual_governor(limit=2) as gov:
            async with gov.agent("issue-17") as agent:
                with pytest.raises(ca.ConfigError, match="'issue-17' is alive already: ids must"):
                    async with gov.agent("issue-17", detached=True):
                        pass
                assert agent.state == "acting"
            async with gov.agent("issue-17"):  # after it has left, the id is free
                pass
            assert_idle(gov)

    run(main())


def test_an_agent_is_entered_once():
    async def main():
        async with virtual_governor(limit=2) as gov:
            agent = gov.agent("a")
            async with agent:
                pass
            with pytest.raises(ca.ConfigError, match="entered once"):
                async with agent:
                    pass

    run(main())


def test_a_call_before_the_agent_was_let_in_says_what_to_do():
    async def main():
        async with virtual_governor(limit=2) as gov:
            with pytest.raises(ca.ConfigError, match="inside its `async with`"):
                await gov.agent("a").gate()
            assert not gov.snapshot().closed

    run(main())


@pytest.mark.parametrize("said", [17, UUID(int=17), PurePosixPath("a/b"), ("task", 3), b"x", True])
def test_what_has_a_text_can_be_an_id_a_group_and_a_tool(said):
    """Rows have ints, tasks have UUIDs, files have paths. It was a ConfigError."""
    gov = ca.Governor(limit=1)
    with gov.agent(said, group=said) as agent:
        assert agent.id == str(said)
        with agent.tool(said):
            pass
    assert list(gov.tool_times()) == [str(said)]


def test_higher_priority_goes_first():
    async def main():
        async with virtual_governor(limit=1) as gov:
            events = record(gov, "admitted")
            await asyncio.gather(
                live(gov, "holder"), live(gov, "low"), live(gov, "high", priority=5)
            )
            assert [e.agent for e in events] == ["holder", "high", "low"]

    run(main())


# Pausing


def test_when_the_limit_falls_agents_pause_at_their_boundaries_and_come_back(timetable):
    async def main():
        async with virtual_governor(law=timetable((0, 4), (10, 1), (30, 4))) as gov:
            events = record(gov, "paused", "resumed")
            running = peak = 0

            async def agent(name):
                nonlocal running, peak
                async with gov.agent(name) as agent:
                    for _ in range(15):
                        async with agent.step():
                            if 12 < asyncio.get_running_loop().time() < 30:
                                running += 1
                                peak = max(peak, running)
                                await asyncio.sleep(1)
                                running -= 1
                            else:
                                await asyncio.sleep(1)
                        await asyncio.sleep(0.5)
                return agent.stats

            stats = await asyncio.gather(*(agent(f"a{i}") for i in range(4)))
            assert peak == 1
            assert sum(s.pauses for s in stats) == len([e for e in events if e.kind == "paused"])
            paused = [s for s in stats if s.pauses]
            assert len(paused) >= 3
            assert all(s.paused_s > 10 for s in paused[:2])
            assert all(s.running_s == pytest.approx(22.5) for s in stats)
            assert_idle(gov)

    run(main())


def test_a_fading_claim_lets_the_next_one_in_with_no_other_event(timetable):
    """The wake timer: nobody steps, leaves or polls at the instant the claim has faded enough."""

    async def main():
        rows = (0, Limit(tokens=1500, hold_s_per_token=0.01))
        async with virtual_governor(law=timetable(rows), poll_interval_s=1e6) as gov:
            events = record(gov, "admitted")

            async def idler():
                async with gov.agent("idler") as agent:
                    async with agent.step() as step:
                        step.record(Usage(1000, 0))
                    await asyncio.sleep(1000)

            async def newcomer():
                await asyncio.sleep(1)
                async with gov.agent("newcomer", prompt_tokens=1000) as agent:
                    return agent.stats.queued_s

            task = asyncio.ensure_future(idler())
            queued_s = await newcomer()
            # 1000 tokens fade with tau = 10 s until they fit beside 1000 + the expected output.
            assert 1 < queued_s < 20
            assert events[-1].at_s == pytest.approx(1 + queued_s)
            task.cancel()

    run(main())


@pytest.mark.parametrize("limit", [1, 2])
def test_max_wait_lets_the_overdue_agent_take_the_place_of_one_at_its_boundary(limit):
    """Found here: at limit 1 nobody ever gave way."""

    async def main():
        async with virtual_governor(limit=limit, max_wait_s=10.0) as gov:
            overdue = record(gov, "overdue")

            async def agent(name):
                async with gov.agent(name) as a:
                    for _ in range(30):
                        async with a.step() as step:
                            await asyncio.sleep(1)
                            step.record(Usage(10, 1))

            await asyncio.gather(*(agent(name) for name in "abc"))
            assert gov.snapshot().overdue_total > 2
            assert overdue
            # At limit 1 two are overdue at once; the first of them runs a step before the second.
            assert all(10 <= e.waited_s <= 13.001 - limit for e in overdue)

    run(main())


def test_off_gives_the_place_to_somebody_else_meanwhile():
    async def main():
        async with virtual_governor(limit=1) as gov:
            events = record(
                gov, "admitted", "suspended", "resume_asked", "paused", "resumed", "left"
            )

            async def with_long_tool():
                async with gov.agent("long") as agent:
                    async with agent.step():
                        await asyncio.sleep(1)
                    async with agent.suspended():
                        await asyncio.sleep(10)
                    async with agent.step():
                        await asyncio.sleep(1)

            await asyncio.gather(with_long_tool(), live(gov, "short", steps=10))
            story = [(e.kind, e.agent, e.at_s) for e in events]
            assert story == [
                ("admitted", "long", 0),
                ("suspended", "long", 1),
                ("admitted", "short", 1),
                ("resume_asked", "long", 11),
                ("paused", "long", 11),
                ("left", "short", 21),
                ("resumed", "long", 21),
                ("left", "long", 22),
            ]
            assert_idle(gov)

    run(main())


def test_off_with_a_call_in_flight_gives_the_place_back_when_that_call_ends():
    async def main():
        async with virtual_governor(limit=1) as gov:
            async with gov.agent("a") as agent:
                step = await agent.gate()
                async with agent.suspended():
                    assert gov.snapshot().active == 1
                    step.end()
                    assert gov.snapshot().active == 0
                    assert (gov.snapshot().suspended, agent.state) == (1, "suspended")
                assert agent.state == "acting"
            assert_idle(gov)

    run(main())


def test_after_a_suspension_it_is_the_same_agent_and_goes_before_new_ones():
    """Found by reading: it left and arrived anew, behind all who had come meanwhile."""

    async def main():
        async with virtual_governor(limit=1) as gov:
            order = []
            gov.on_event(lambda e: order.append(e.agent) if e.kind == "step_began" else None)

            async def with_long_tool():
                async with gov.agent("long") as agent:
                    async with agent.step() as step:
                        step.record(Usage(1000, 10, 0))
                    async with agent.suspended():
                        await asyncio.sleep(5)
                        assert gov.snapshot().done_total == 0
                        assert gov.explain("long") == "long: suspended: its place is free meanwhile"
                    async with agent.step():
                        await asyncio.sleep(1)

            async def at(time_s, name):
                await asyncio.sleep(time_s)
                await live(gov, name, steps=1, step_s=9, tool_s=0)

            await asyncio.gather(with_long_tool(), at(1, "second"), at(2, "third"))
            assert order == ["long", "second", "long", "third"]
            assert gov.snapshot().done_total == 3
            assert_idle(gov)

    run(main())


def test_an_agent_nested_in_one_that_is_off_never_waits_for_its_parent():
    """A place of its own would be out of reach: its parent is open, and waits for it."""

    async def main():
        async with virtual_governor(limit=1, max_open=1) as gov:
            async with gov.agent("parent") as parent, parent.suspended():
                other = asyncio.ensure_future(live(gov, "other", detached=True))
                await asyncio.sleep(1)
                async with gov.agent("child") as child:
                    async with child.step():
                        await asyncio.sleep(1)
                    assert gov.snapshot().active == 1
                assert (gov.snapshot().active, parent.state) == (0, "suspended")
            await other
            assert_idle(gov)

    run(main())


def test_an_agent_that_leaves_while_off_leaves_nothing_behind():
    async def main():
        async with virtual_governor(limit=1) as gov:
            async with gov.agent("a") as agent:
                suspended = agent.suspended()
                await suspended.__aenter__()
            await suspended.__aexit__()
            assert_idle(gov)

    run(main())


def test_tool_times_are_learned_by_name():
    async def main():
        async with virtual_governor(limit=1) as gov, gov.agent("a") as agent:
            for took_s in (2, 4):
                async with agent.tool("pytest"):
                    await asyncio.sleep(took_s)
            with pytest.raises(LookupError), agent.tool("grep"):
                raise LookupError
            times = gov.tool_times()
            assert (times["pytest"].calls, times["pytest"].mean_s) == (2, 3.0)
            assert times["pytest"].longest_s == 4.0
            assert times["grep"].calls == 1

    run(main())


def test_tool_times_are_bounded_where_each_command_is_a_tool():
    async def main():
        async with virtual_governor(limit=1) as gov, gov.agent("a") as agent:
            for number in range(1_500):
                with agent.tool(f"python -c 'print({number})'"):
                    pass
            times = gov.tool_times()
            assert len(times) == 1_001
            assert times["(other tools)"].calls == 500

    run(main())


def test_a_checkpoint_is_a_boundary_and_nothing_more(timetable, watched):
    law = watched(timetable((0, 2), (5, 1)))

    async def main():
        async with (
            virtual_governor(law=law) as gov,
            gov.agent("other"),
            gov.agent("a", detached=True) as agent,
        ):
            events = record(gov, "step_began", "step_ended", "step_withdrawn")
            await agent.checkpoint()
            assert agent.state == "acting"
            assert [e.kind for e in events] == ["step_began", "step_withdrawn"]
            assert agent.stats.steps == 0
            await asyncio.sleep(10)
            assert (law.steps, law.overloads) == (0, 0)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(agent.checkpoint(), 3)
            assert agent.state in ("paused", "queued")

    run(main())


# Cancellation


def test_cancelled_in_the_queue_it_is_forgotten():
    async def main():
        async with virtual_governor(limit=1) as gov:
            holder = asyncio.ensure_future(live(gov, "holder", steps=5))
            waiter = asyncio.ensure_future(live(gov, "waiter"))
            await asyncio.sleep(1)
            waiter.cancel()
            await asyncio.sleep(0)
            assert gov.snapshot().queued == 0
            await holder
            assert_idle(gov)

    run(main())


def test_granted_and_cancelled_in_the_same_tick_the_place_goes_to_the_next():
    async def main():
        async with virtual_governor(limit=1) as gov:
            released = asyncio.Event()

            async def holder():
                async with gov.agent("holder"):
                    await released.wait()

            tasks = [asyncio.ensure_future(holder())]
            await asyncio.sleep(1)
            tasks += [asyncio.ensure_future(live(gov, name)) for name in ("second", "third")]
            await asyncio.sleep(1)
            released.set()
            await asyncio.sleep(0)  # holder leaves, and "second" is granted its place now
            assert gov.snapshot().active == 1
            assert not tasks[1].done()
            tasks[1].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert tasks[1].cancelled()
            assert tasks[2].result().steps == 2
            assert_idle(gov)

    run(main())


def test_a_step_granted_and_cancelled_in_the_same_tick_was_no_step_and_no_failure(
    timetable, watched
):
    law = watched(timetable((0, 2), (5, 1)))

    async def main():
        async with (
            virtual_governor(law=law) as gov,
            gov.agent("a") as agent,
            gov.agent("other", detached=True) as other,
        ):
            async with agent.step() as step:
                step.record(Usage(100, 10, 0))
            await asyncio.sleep(6)
            call = asyncio.ensure_future(agent.checkpoint())
            await asyncio.sleep(1)
            assert agent.state == "paused"
            other.close()
            assert agent.state == "reasoning"
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            assert agent.state == "acting"
            assert agent.stats.steps == 1
            await asyncio.sleep(2)
            assert (law.steps, law.overloads) == (1, 0)

    run(main())


def test_a_paused_call_that_is_cut_by_a_timeout_leaves_its_agent_paused_and_alive(timetable):
    async def main():
        async with virtual_governor(law=timetable((0, 2), (5, 1), (60, 2))) as gov:

            async def victim():
                async with gov.agent("victim") as agent:
                    await asyncio.sleep(10)
                    with pytest.raises(TimeoutError):
                        await asyncio.wait_for(agent.gate(), 5)
                    assert agent.state in ("paused", "queued")
                    async with agent.step():  # it tries again, and gets its turn
                        await asyncio.sleep(1)
                    assert asyncio.get_running_loop().time() >= 60
                    return agent.stats.paused_s

            other = asyncio.ensure_future(live(gov, "other", steps=1, step_s=100))
            paused_s = await victim()
            assert 49 < paused_s < 52
            other.cancel()
            await asyncio.gather(other, return_exceptions=True)
            assert_idle(gov)

    run(main())


def test_let_in_while_nobody_asks_any_more_an_agent_is_acting(timetable):
    """Or it would count as reasoning for ever and could never be paused again."""

    async def main():
        async with (
            virtual_governor(law=timetable((0, 2), (5, 1), (20, 2))) as gov,
            gov.agent("other"),
            gov.agent("victim", detached=True) as agent,
        ):
            await asyncio.sleep(10)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(agent.gate(), 5)
            await asyncio.sleep(15)
            assert agent.state == "acting"
            assert gov.snapshot().reasoning == 0

    run(main())


@pytest.mark.parametrize("cut_s", [x / 4 for x in range(60)])
def test_cancelled_at_any_await_the_place_goes_on_and_nothing_stays(cut_s, timetable):
    """Entry, boundary, call, tool, nested agent, off: at each of them, and in the same tick."""

    async def main():
        law = timetable((0, 2), (3, 1), (6, 2), (9, 1), (12, 3))
        async with virtual_governor(law=law, poll_interval_s=0.5) as gov:

            async def victim():
                async with gov.agent("victim") as agent:
                    for _ in range(3):
                        async with agent.step() as step:
                            await asyncio.sleep(0.5)
                            step.record(Usage(50, 5))
                        async with gov.agent() as child, child.step():
                            await asyncio.sleep(0.5)
                        async with agent.suspended():
                            await asyncio.sleep(0.5)
                        await asyncio.gather(*(one_call(agent) for _ in range(2)))

            async def one_call(agent):
                async with agent.step():
                    await asyncio.sleep(0.5)

            others = [asyncio.ensure_future(live(gov, f"o{i}", steps=3)) for i in range(3)]
            task = asyncio.ensure_future(victim())
            await asyncio.sleep(cut_s)
            task.cancel()
            for other in others:
                assert (await other).steps == 3
            await asyncio.gather(task, return_exceptions=True)
            assert_idle(gov)

    run(main())


def test_ten_thousand_agents_that_finish_fail_and_are_cancelled_leave_no_trace():
    async def main():
        rng = random.Random(7)
        async with virtual_governor(limit=100) as gov:

            async def agent(i):
                async with gov.agent(f"a{i}") as agent:
                    for _ in range(rng.randint(0, 2)):
                        async with agent.step() as step:
                            await asyncio.sleep(rng.random())
                            if rng.random() < 0.1:
                                raise ValueError("mine")
                            step.record({"prompt_tokens": 10, "completion_tokens": 1})

            tasks = [asyncio.ensure_future(agent(i)) for i in range(10_000)]
            for _ in range(40):
                await asyncio.sleep(1)
                for task in rng.sample(tasks, 50):
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert_idle(gov)
            # Those cancelled before their first line never arrived; all others have left.
            assert 9_000 < gov.snapshot().done_total <= 10_000

    run(main())


# Families


def test_parallel_calls_of_one_agent_share_its_place():
    async def main():
        async with virtual_governor(limit=1) as gov, gov.agent("a") as agent:

            async def call():
                async with agent.step():
                    await asyncio.sleep(1)

            await asyncio.gather(*(call() for _ in range(5)))
            assert asyncio.get_running_loop().time() == 1.0
            assert agent.state == "acting"
            assert agent.stats.steps == 5

    run(main())


def test_all_branches_of_a_paused_agent_wait_and_go_on_together(timetable):
    async def main():
        async with virtual_governor(law=timetable((0, 2), (5, 1), (20, 2))) as gov:
            went = []

            async def branch(agent):
                async with agent.step():
                    went.append(asyncio.get_running_loop().time())

            async with (
                gov.agent("other") as other,
                other.step(),
                gov.agent("a", detached=True) as agent,
            ):
                await asyncio.sleep(10)
                await asyncio.gather(*(branch(agent) for _ in range(3)))
                assert len(went) == 3
                assert set(went) == {went[0]}
                assert went[0] >= 20
                assert agent.stats.pauses == 1
                assert agent.state == "acting"
            assert_idle(gov)

    run(main())


def test_one_branch_cancelled_the_others_still_get_their_turn(timetable):
    async def main():
        async with virtual_governor(law=timetable((0, 2), (5, 1), (20, 2))) as gov:

            async def branch(agent):
                async with agent.step():
                    await asyncio.sleep(1)
                return True

            async with gov.agent("other"), gov.agent("a", detached=True) as agent:
                await asyncio.sleep(10)
                tasks = [asyncio.ensure_future(branch(agent)) for _ in range(3)]
                await asyncio.sleep(1)
                tasks[0].cancel()
                assert await asyncio.gather(*tasks[1:]) == [True, True]
                assert agent.state == "acting"
            assert_idle(gov)

    run(main())


def test_a_nested_agent_shares_its_parents_place_even_at_limit_one():
    async def main():
        async with virtual_governor(limit=1) as gov:
            async with gov.agent("parent"):
                async with gov.agent("child") as child:
                    assert ca.current_agent() is child
                    async with gov.agent("grandchild") as grandchild, grandchild.step():
                        await asyncio.sleep(1)
                    assert gov.snapshot().active == 1
                assert ca.current_agent().id == "parent"
            assert ca.current_agent() is None
            assert_idle(gov)

    run(main())


def test_a_nested_agent_that_leaves_in_the_middle_of_a_call_does_not_pin_its_parent():
    async def main():
        async with virtual_governor(limit=1) as gov:
            async with gov.agent("parent") as parent:
                async with gov.agent("child") as child:
                    await child.gate()
                assert parent.state == "acting"
            assert_idle(gov)

    run(main())


def test_a_step_that_its_agent_leaves_open_has_ended_for_those_who_watch():
    """Found by reading: a step began and never ended, and a span of it was never closed."""

    async def main():
        async with virtual_governor(limit=1) as gov:
            events = record(gov, "step_began", "step_ended", "left")
            async with gov.agent("a") as agent:
                step = await agent.gate()
            step.end()
            assert [e.kind for e in events] == ["step_began", "step_ended", "left"]
            assert agent.stats.steps == 1
            assert_idle(gov)

    run(main())


def test_a_detached_agent_takes_a_place_of_its_own():
    async def main():
        async with virtual_governor(limit=1) as gov:
            async with gov.agent("parent"):
                task = asyncio.ensure_future(live(gov, "detached", detached=True))
                await asyncio.sleep(1)
                assert gov.snapshot().queued == 1
            await task
            assert_idle(gov)

    run(main())


def test_two_governors_nest_without_mixing_up_their_agents():
    async def main():
        async with (
            virtual_governor(limit=1) as small,
            virtual_governor(limit=1) as big,
            small.agent("s") as s,
            big.agent("b") as b,
        ):
            assert (small.current_agent(), big.current_agent()) == (s, b)
            assert ca.current_agent() is b
            async with small.agent("nested"):  # finds its parent past the other governor's
                assert small.snapshot().active == 1

    run(main())


def test_a_task_that_outlives_its_agent_is_nobodys_and_is_not_held_up():
    async def main():
        async with virtual_governor(limit=1) as gov:
            seen = []

            async def orphan(agent):
                await asyncio.sleep(5)
                seen.append(ca.current_agent())
                async with agent.step():
                    pass

            async with gov.agent("a") as agent:
                task = asyncio.ensure_future(orphan(agent))
            async with gov.agent("b"):
                await task
            assert seen == [None]
            assert_idle(gov)

    run(main())


# The seam of the adapters


def test_gating_twice_for_one_call_by_two_layers_is_one_step():
    """A callback hook and an HTTP client may both gate the same call."""

    async def main():
        async with virtual_governor(limit=1) as gov, gov.agent("a") as agent:
            outer = await agent.gate(source="hook")
            inner = await agent.gate(source="http")
            agent.done({"prompt_tokens": 7, "completion_tokens": 2}, inner)
            assert agent.state == "reasoning"
            agent.done(None, outer)
            assert agent.state == "acting"
            assert (agent.stats.steps, agent.stats.prompt_tokens) == (1, 7)

    run(main())


def test_a_call_that_was_abandoned_is_over_when_its_task_makes_the_next(timetable):
    """A stream that was broken off and is still referenced: no seam sees its end."""

    async def main():
        async with virtual_governor(limit=1) as gov, gov.agent("a") as agent:
            first = await agent.gate(source="http")
            second = await agent.gate(source="http")
            assert agent.stats.steps == 1
            agent.done(None, second)
            assert agent.state == "acting"
            agent.done({"prompt_tokens": 5, "completion_tokens": 5}, first)  # too late, harmless
            assert agent.stats.steps == 2
            assert agent.state == "acting"

    run(main())


def test_done_without_a_step_ends_a_call_and_never_one_too_many():
    async def main():
        async with virtual_governor(limit=1) as gov, gov.agent("a") as agent:
            await agent.gate()
            agent.done(Usage(3, 4))
            agent.done()
            assert (agent.stats.steps, agent.stats.completion_tokens) == (1, 4)
            assert agent.state == "acting"

    run(main())


def test_an_agent_can_be_run_piece_by_piece():
    """What an adapter does around each item of a generator."""

    async def main():
        async with virtual_governor(limit=1) as gov:
            agent = gov.agent("a")
            await agent.open()
            assert ca.current_agent() is None
            with agent.active():
                assert ca.current_agent() is agent
            assert ca.current_agent() is None
            agent.close()
            agent.close()
            assert agent.left

    run(main())


# Watching


def test_events_come_in_order_and_a_failing_watcher_is_logged_once(caplog):
    async def main():
        async with virtual_governor(limit=1) as gov:

            def broken(event):
                raise RuntimeError("watcher")

            gov.on_event(broken)
            events = record(gov)
            await asyncio.gather(live(gov, "a", steps=1), live(gov, "b", steps=1))
            assert [(e.kind, e.agent) for e in events] == [
                ("arrived", "a"),
                ("admitted", "a"),
                ("step_began", "a"),
                ("arrived", "b"),
                ("step_ended", "a"),
                ("left", "a"),
                ("admitted", "b"),
                ("step_began", "b"),
                ("step_ended", "b"),
                ("left", "b"),
            ]
            assert events[4].usage == Usage(100, 10, 0)
            assert events[6].waited_s == 2.0
        assert caplog.text.count("an event watcher failed") == 1

    run(main())


def test_a_watcher_may_call_the_governor_and_unsubscribe():
    async def main():
        async with virtual_governor(limit=1) as gov:
            seen = []

            def watch(event):
                seen.append((event.kind, gov.snapshot().active, gov.explain("a")))
                if event.kind == "admitted":
                    unsubscribe()

            unsubscribe = gov.on_event(watch)
            await live(gov, "a")
            assert [s[:2] for s in seen] == [("arrived", 1), ("admitted", 1)]

    run(main())


def test_a_long_wait_is_logged_with_its_reason(caplog):
    async def main():
        async with virtual_governor(limit=1) as gov:
            await asyncio.gather(live(gov, "holder", step_s=200), live(gov, "waiter"))

    run(main())
    lines = [r.message for r in caplog.records if "a long wait" in r.message]
    facts = [r.concur for r in caplog.records if "a long wait" in r.message]
    assert [fact["event"] for fact in facts] == ["long_wait"] * len(lines)
    assert all(fact["waited_s"] >= 60 and fact["agent"] in fact["why"] for fact in facts)
    assert 2 <= len(lines) <= 4  # after 60 s, and each time it has doubled
    assert "waiter" in lines[0]


def test_a_dead_lock_ends_a_test_in_virtual_time():
    """Found here: time went on for ever, from one look at the long wait to the next."""

    async def main():
        async with (
            virtual_governor(limit=1) as gov,
            gov.agent("a"),
            gov.agent("b", detached=True),
        ):
            pass

    with pytest.raises(RuntimeError, match="dead-lock"):
        run(main())


def test_status_line_and_explanation_can_be_read():
    async def main():
        async with virtual_governor(limit=1) as gov:
            async with gov.agent("a") as agent:
                task = asyncio.ensure_future(live(gov, "b", detached=True))
                await asyncio.sleep(1)
                assert repr(gov) == "<Governor fixed: 1 active, 0 paused, 1 queued>"
                assert repr(agent) == "<Agent 'a' acting, 0 steps>"
                assert "queued" in gov.explain("b")
                assert gov.explain("nobody") == "nobody: not here"
            await task
            assert repr(agent) == "<Agent 'a' left, 0 steps>"

    run(main())


# Reading the engine


def test_readings_reach_the_law_and_the_snapshot(timetable):
    async def main():
        probe = ScriptedProbe(lambda s: Reading(at_s=s, capacity_tokens=1000.0), loop_time())
        async with virtual_governor(probe=probe, law=timetable((0, 2), (5, 3))) as gov:
            changes = record(gov, "limit_changed")
            assert probe.reads == 0  # nothing is read before there is an agent
            await live(gov, "a", steps=5)
            snapshot = gov.snapshot()
            assert 9 <= probe.reads <= 12
            assert snapshot.capacity_tokens == 1000.0
            assert snapshot.last_reading is not None
            assert snapshot.blind_s <= 1.0
            assert [(e.limit.agents, e.reason) for e in changes] == [(3, "row 1")]

    run(main())


def loop_time():
    return asyncio.get_running_loop().time


def test_an_outage_holds_the_limit_backs_off_and_ends_without_a_trace(caplog):
    async def main():
        def script(s):
            return None if 5 <= s < 20 else Reading(at_s=s, kv_usage=0.3)

        probe = ScriptedProbe(script, loop_time())
        async with virtual_governor(
            probe=probe, law=ca.make_law("cache_aimd", start=3.0), blind_after_s=60
        ) as gov:
            events = record(gov, "poll_failed", "poll_recovered", "polled")
            work = asyncio.gather(*(live(gov, f"a{i}", steps=10) for i in range(6)))
            await asyncio.sleep(15)
            dark = gov.snapshot()
            assert dark.poll_failures_total > 2
            assert dark.poll_error == "the script says that this reading fails"
            assert 9 <= dark.blind_s <= 11
            assert dark.limit.agents == 3
            await work
            failures = [e.at_s for e in events if e.kind == "poll_failed"]
            gaps = [b - a for a, b in itertools.pairwise(failures)]
            assert len(failures) < 9
            assert gaps[-1] > 2 * gaps[0]
            recovered = [e for e in events if e.kind == "poll_recovered"]
            assert len(recovered) == 1
            assert recovered[0].at_s < 20 + 10 + 1
            assert gov.snapshot().poll_error is None

    run(main())
    assert caplog.text.count("cannot read the engine") == 1
    facts = [r.concur for r in caplog.records if hasattr(r, "concur")]
    failed = next(fact for fact in facts if fact["event"] == "poll_failed")
    assert failed["error"]


def test_in_virtual_time_an_outage_is_the_same_story_each_time():
    """Found by reading: the readings that follow a failed one came after a random time."""

    async def main():
        loop = asyncio.get_running_loop()
        probe = ScriptedProbe(lambda now: None if now < 40 else Reading(at_s=now), loop.time)
        async with virtual_governor(probe=probe, law="working_set") as gov, gov.agent("a"):
            events = record(gov, "poll_failed", "polled")
            await asyncio.sleep(60)
            return [(event.kind, event.at_s) for event in events]

    assert run(main()) == run(main())


def test_long_blind_the_safe_limit_applies_and_nobody_is_stuck():
    async def main():
        probe = ScriptedProbe([None], loop_time())
        law = ca.make_law("cache_aimd", start=20.0)
        async with virtual_governor(probe=probe, law=law, blind_after_s=10, blind_agents=2) as gov:
            work = asyncio.gather(*(live(gov, f"a{i}", steps=20) for i in range(20)))
            await asyncio.sleep(5)
            assert gov.snapshot().active == 20
            await asyncio.sleep(25)
            assert gov.snapshot().active == 2
            assert gov.snapshot().reason == "blind"
            assert {s.steps for s in await work} == {20}

    run(main())


def test_a_probe_of_the_users_that_raises_anything_is_an_outage_and_no_more(caplog):
    async def main():
        class Broken:
            def read(self):
                raise ZeroDivisionError("mine")

        async with virtual_governor(probe=Broken(), law=ca.make_law("cache_aimd")) as gov:
            assert (await live(gov, "a")).steps == 2
            assert gov.snapshot().poll_error == "mine"
            assert not gov.snapshot().closed

    run(main())
    assert "ZeroDivisionError" in caplog.text


def test_check_tells_before_the_start_whether_the_engine_can_be_read():
    probe = ScriptedProbe([Reading(at_s=0.0), None], ManualClock())
    gov = ca.Governor(probe=probe, law=ca.make_law("cache_aimd"))
    assert gov.check() == Reading(at_s=0.0)
    with pytest.raises(ca.ProbeError, match="this reading fails"):
        gov.check()
    with pytest.raises(ca.ConfigError, match="no endpoint"):
        ca.Governor(limit=3).check()


# Failing open


def test_closing_lets_everybody_through_and_refuses_new_agents():
    async def main():
        async with virtual_governor(limit=1) as gov:
            tasks = [asyncio.ensure_future(live(gov, f"a{i}")) for i in range(3)]
            await asyncio.sleep(1)
            gov.close()
            gov.close()
            for task in tasks:
                assert (await task).steps == 2
            assert asyncio.get_running_loop().time() == 5.0
            with pytest.raises(ca.ClosedError, match="'late' comes after"):
                async with gov.agent("late"):
                    pass
            assert gov.snapshot().closed
            assert_idle(gov)

    run(main())


def test_a_bug_in_a_law_stops_no_agent_and_comes_out_of_the_with_block(timetable, caplog):
    async def main():
        law = timetable((0, 1))

        class Broken(type(law)):
            def decide(self, state, snapshot):
                if snapshot.at_s > 2:
                    raise AssertionError("a bug")
                return state

        async with virtual_governor(law=Broken(law.rows)) as gov:
            stats = await asyncio.gather(*(live(gov, f"a{i}") for i in range(4)))
            assert {s.steps for s in stats} == {2}
            assert gov.snapshot().closed

    with pytest.raises(AssertionError, match="a bug"):
        run(main())
    assert caplog.text.count("governs no more") == 1


def test_the_users_error_is_not_hidden_by_a_bug_of_ours(timetable):
    async def main():
        law = timetable((0, 1))

        class Broken(type(law)):
            def decide(self, state, snapshot):
                raise AssertionError("a bug")

        async with virtual_governor(law=Broken(law.rows)) as gov:
            await live(gov, "a")
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(main())


def test_an_abandoned_agent_leaves_when_it_is_collected():
    async def main():
        async with virtual_governor(limit=1) as gov:
            agent = gov.agent("abandoned")
            await agent.open()
            await agent.gate()
            task = asyncio.ensure_future(live(gov, "next"))
            await asyncio.sleep(1)
            assert gov.snapshot().queued == 1
            del agent
            gc.collect()
            assert (await task).steps == 2
            assert_idle(gov)

    run(main())


# Options


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "needs something to go by"),
        ({"limit": -3}, "at least 1 agent, got -3"),
        ({"limit": 0}, "at least 1 agent, got 0"),
        ({"limit": True}, "at least 1 agent, got True"),
        ({"limit": 3, "law": "cache_aimd"}, "leave one of them out"),
        ({"law": "cache_aimd"}, "no endpoint"),
        ({"url": "http://127.0.0.1:1", "law": "fixt"}, "fixed"),
        ({"limit": 3, "poll_interval_s": 0}, "poll_interval_s must be above 0 s, got 0"),
        ({"limit": 3, "max_wait_s": -1}, "max_wait_s"),
        ({"limit": 3, "max_open": 0}, "max_open"),
        ({"limit": 3, "ungoverned": "maybe"}, "'pass', 'agent' or 'error', got 'maybe'"),
        ({"limit": 3, "api_key": "k"}, "give the url too"),
        ({"url": "http://127.0.0.1:1", "probe": object()}, "either a url or a probe"),
        ({"url": "no url"}, "no url"),
        ({"url": 8}, "a fixed cap is limit=8"),
        ({"url": object()}, "an address or a list of addresses"),
    ],
)
def test_options_that_cannot_be_used_say_what_is_wrong(options, says):
    with pytest.raises(ca.ConfigError, match=says):
        ca.Governor(**options)


def test_a_call_in_an_agent_of_another_governor_is_told_so(caplog):
    """As with `run_agents(url=...)` and a client that was made with a governor of its own."""
    other, strict = ca.Governor(limit=1), ca.Governor(limit=1, ungoverned="error")
    with ca.Governor(limit=1).agent("issue-17"):
        other.meet_ungoverned("chat")
        other.meet_ungoverned("chat")
        with pytest.raises(ca.UngovernedError, match="'issue-17' of another governor"):
            strict.meet_ungoverned("chat")
    assert caplog.text.count("'issue-17' of another governor") == 1
    assert "outside of any agent" not in caplog.text


def test_calls_outside_of_any_agent_warn_once_or_raise(caplog):
    gov = ca.Governor(limit=1)
    gov.meet_ungoverned("chat.completions.create")
    gov.meet_ungoverned("chat.completions.create")
    assert caplog.text.count("outside of any agent") == 1
    with pytest.raises(ca.UngovernedError, match=r"responses\.create was called outside"):
        ca.Governor(limit=1, ungoverned="error").meet_ungoverned("responses.create")
    caplog.clear()
    ca.Governor(limit=1, ungoverned="agent").meet_ungoverned("x")
    assert not caplog.text
