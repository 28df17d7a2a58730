"""Batches as type checkers see them: an agent is `async def` or plain; nothing runs this file."""

from typing import assert_type

import concur_agents as ca


async def solve(issue: str, agent: ca.Agent) -> int:
    """An asynchronous agent."""
    return len(agent.id + issue)


def solve_in_a_thread(issue: str) -> str:
    """A plain one."""
    return issue


async def a_batch(gov: ca.Governor) -> None:
    """Results have the type that the agent returns, awaited."""
    async with ca.AgentPool(gov) as pool:
        async for outcome in pool.as_completed(solve, ["issue-1"]):
            assert_type(outcome, ca.Outcome[str, int])
        assert_type(await pool.map(solve, ["issue-1"]), list[int])
        assert_type(await pool.map(solve_in_a_thread, ["issue-1"]), list[str])
        assert_type(pool.submit(solve, "issue-2"), ca.AgentTask[int])
        assert_type(pool.submit(solve_in_a_thread, "issue-2"), ca.AgentTask[str])


def from_synchronous_code() -> None:
    """The same without an event loop."""
    url = "http://localhost:8000"
    assert_type(ca.run_agents(solve, ["issue-1"], url=url), list[ca.Outcome[str, int]])
    assert_type(ca.run_agents(solve_in_a_thread, ["issue-1"], limit=8), list[ca.Outcome[str, str]])
