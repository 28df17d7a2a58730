"""`run_agents`: a batch from synchronous code."""

from __future__ import annotations

import asyncio

import pytest

import concur_agents as ca
from concur_agents import Governor, run_agents


async def work(item):
    await asyncio.sleep(1)
    if isinstance(item, str) and item.startswith("bad"):
        raise ValueError(item)
    return f"{item} done"


def test_run_agents_needs_no_event_loop_and_keeps_the_order():
    outcomes = run_agents(lambda x: x * 2, [3, 1, 2], limit=2)
    assert [(o.key, o.value) for o in outcomes] == [("3", 6), ("1", 2), ("2", 4)]
    with Governor(limit=1) as gov:
        outcomes = run_agents(work, ["bad"], governor=gov)
        assert outcomes[0].status == "error"
        assert not gov.snapshot().closed


def test_run_agents_says_what_to_do_where_it_cannot_run():
    async def main():
        run_agents(work, [], limit=1)

    with pytest.raises(ca.ConfigError, match="use `async with AgentPool"):
        asyncio.run(main())
    with pytest.raises(ca.ConfigError, match="not both"):
        run_agents(work, [], governor=Governor(limit=1), limit=2)
