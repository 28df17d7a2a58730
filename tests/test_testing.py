"""What `concur_agents.testing` gives to users: their tests must fail when something is wrong."""

import asyncio

import pytest

import concur_agents as ca
from concur_agents.testing import ManualClock, assert_idle, run, virtual_governor


def test_a_governor_that_was_used_and_left_is_idle():
    async def main():
        async with virtual_governor(limit=1) as governor:
            assert_idle(governor)
            async with governor.agent("a") as agent, agent.step():
                await asyncio.sleep(1)
            assert_idle(governor)
        assert_idle(governor)

    run(main())


def test_an_agent_that_was_never_closed_is_named():
    with ca.Governor(limit=2, clock=ManualClock(), background=False) as governor:
        agent = governor.agent("issue-17")
        agent.arrive(lambda: None)
        with pytest.raises(AssertionError, match=r"alive=1 .*active=1 .*: issue-17 \(acting\)"):
            assert_idle(governor)
        agent.close()
        assert_idle(governor)


def test_a_child_that_outlives_its_parent_is_named():
    with ca.Governor(limit=2, clock=ManualClock(), background=False) as governor:
        with governor.agent("parent"):
            child = governor.agent("child")
            child.arrive(lambda: None)
        with pytest.raises(AssertionError, match=r"child \("):
            assert_idle(governor)
        child.close()
        assert_idle(governor)


def test_a_waiter_is_left_until_it_is_cancelled():
    async def main():
        async with virtual_governor(limit=1) as governor, governor.agent("first"):
            waits = asyncio.ensure_future(governor.agent("second", detached=True).__aenter__())
            await asyncio.sleep(1)
            with pytest.raises(AssertionError, match=r"alive=2 waiters=1 .*second \(queued\)"):
                assert_idle(governor)
            waits.cancel()
            await asyncio.sleep(1)
            with pytest.raises(AssertionError, match=r"alive=1 active=1"):
                assert_idle(governor)

    run(main())


def test_of_many_that_are_left_a_few_are_named():
    with ca.Governor(limit=99, clock=ManualClock(), background=False) as governor:
        agents = [governor.agent(f"agent {n}") for n in range(20)]
        for agent in agents:
            agent.arrive(lambda: None)
        with pytest.raises(AssertionError, match=r"alive=20 .*agent 4 \(acting\), \.\.\.$"):
            assert_idle(governor)
        for agent in agents:
            agent.close()


def test_after_the_end_an_agent_that_lives_on_is_still_found():
    with ca.Governor(limit=1, clock=ManualClock(), background=False) as governor:
        agent = governor.agent("a")
        agent.arrive(lambda: None)
    with pytest.raises(AssertionError, match="alive=1"):
        assert_idle(governor)
    agent.close()
    assert_idle(governor)
