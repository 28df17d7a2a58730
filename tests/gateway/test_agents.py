"""Agents are opened by their first request, keep their place, and end."""

import asyncio

import pytest

from concur_agents.gateway.agents import Agents
from concur_agents.gateway.identity import Identity
from concur_agents.testing import assert_idle, run, virtual_governor


def in_virtual_time(limit=1):
    """Runs a test with a governor and its agents."""

    def wrap(test):
        def wrapped():
            async def main():
                async with virtual_governor(limit=limit) as governor:
                    agents = Agents(governor, asyncio.get_running_loop().time)
                    await test(governor, agents)
                    agents.end_all()
                    assert_idle(governor)

            run(main())

        wrapped.__name__ = test.__name__
        return wrapped

    return wrap


def who(name, parent=None):
    return Identity(name, "path", parent)


@in_virtual_time()
async def test_an_agent_keeps_its_place_between_its_calls(governor, agents):
    living = agents.meet(who("a"))
    assert living.let_in.is_set()
    agents.leave(living)
    assert governor.snapshot().active == 1
    assert agents.meet(who("a")) is living
    agents.leave(living)


@in_virtual_time()
async def test_the_next_agent_is_let_in_when_one_ends(governor, agents):
    first, second = agents.meet(who("a")), agents.meet(who("b"))
    assert not second.let_in.is_set()
    agents.leave(first)
    assert agents.end("a")
    await asyncio.wait_for(second.let_in.wait(), 1)
    assert not agents.end("a")
    agents.leave(second)


@in_virtual_time()
async def test_an_agent_that_hangs_up_in_the_queue_leaves(governor, agents):
    """A place that nothing waits for any more would be let in and be lost."""
    first, second = agents.meet(who("a")), agents.meet(who("b"))
    agents.meet(who("b"))
    agents.leave(second)
    assert governor.snapshot().queued == 1
    agents.leave(second)
    assert governor.snapshot().queued == 0
    assert len(agents) == 1
    agents.leave(first)


@in_virtual_time()
async def test_a_child_that_hangs_up_in_the_queue_takes_its_parent_with_it(governor, agents):
    """The parent was opened for it alone."""
    first, child = agents.meet(who("a")), agents.meet(who("c", parent="p"))
    assert len(agents) == 3
    agents.leave(child)
    assert len(agents) == 1
    assert governor.snapshot().queued == 0
    agents.leave(first)


@in_virtual_time()
async def test_a_child_shares_the_place_of_its_parent(governor, agents):
    child = agents.meet(who("c", parent="p"))
    assert child.let_in.is_set()
    parent = agents.meet(who("p"))
    assert child.parent is parent
    assert governor.snapshot().active == 1
    agents.leave(child)
    agents.leave(parent)


@in_virtual_time()
async def test_a_parent_ends_with_its_children(governor, agents):
    agents.leave(agents.meet(who("c", parent="p")))
    assert len(agents) == 2
    assert agents.end("p")
    assert len(agents) == 0


@in_virtual_time()
async def test_silent_agents_end_and_those_in_a_call_do_not(governor, agents):
    busy = agents.meet(who("busy", parent="p"))
    await asyncio.sleep(601)
    assert agents.end_idle() == []
    agents.leave(busy)
    await asyncio.sleep(599)
    assert agents.end_idle() == []
    await asyncio.sleep(2)
    assert sorted(agents.end_idle()) in (["p"], ["busy", "p"])
    assert len(agents) == 0


@in_virtual_time(limit=100)
async def test_the_bound_follows_the_gaps_of_agents(governor, agents):
    for _ in range(40):
        agents.leave(agents.meet(who("a")))
        await asyncio.sleep(20)
    assert agents.idle.ended_s == pytest.approx(160)


@in_virtual_time()
async def test_an_agent_that_comes_back_was_ended_too_early(governor, agents):
    for _ in range(33):
        agents.leave(agents.meet(who("a")))
        await asyncio.sleep(700)
        agents.end_idle()
    assert agents.idle.ended_s == 3600


@in_virtual_time()
async def test_an_agent_that_has_said_its_end_may_come_back_at_any_time(governor, agents):
    for _ in range(33):
        agents.leave(agents.meet(who("a")))
        agents.end("a")
        await asyncio.sleep(3000)
    assert agents.idle.ended_s == 600


@in_virtual_time()
async def test_a_silent_agent_gives_its_place_to_one_that_waits(governor, agents):
    """With a cap, agents that have ended without a word would block all others for minutes."""
    agents.leave(agents.meet(who("silent")))
    waiting = agents.meet(who("waiting"))
    await asyncio.sleep(9)
    agents.give_way()
    assert not waiting.let_in.is_set()
    await asyncio.sleep(2)
    agents.give_way()
    await asyncio.wait_for(waiting.let_in.wait(), 1)
    back = agents.meet(who("silent"))
    step = asyncio.create_task(back.agent.gate())
    await asyncio.sleep(1)
    assert not step.done(), "it asks for its place again"
    agents.leave(waiting)
    agents.end("waiting")
    (await step).end()
    agents.leave(back)
    assert governor.snapshot().active == 1


@in_virtual_time()
async def test_agents_end_with_their_process(governor, agents):
    living = agents.meet(who("process-1"), process=1)
    agents.end_processes(lambda pid: False)
    assert len(agents) == 1, "its call is still in flight"
    agents.leave(living)
    agents.end_processes(lambda pid: True)
    assert len(agents) == 1
    agents.end_processes(lambda pid: False)
    assert len(agents) == 0


@in_virtual_time()
async def test_guesses_are_counted(governor, agents):
    agents.leave(agents.meet(Identity("guess~1", "guess")))
    agents.leave(agents.meet(who("c", parent="guess~1")))
    assert (len(agents), agents.guessed()) == (2, 1)
