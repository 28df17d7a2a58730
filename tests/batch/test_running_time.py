"""A limit on running time: neither the queue nor a pause counts."""

from __future__ import annotations

import asyncio

import pytest

from concur_agents import AgentPool
from concur_agents.testing import run, virtual_governor


async def collect(pool, fn, items):
    return {o.key: o async for o in pool.as_completed(fn, items)}


def test_the_time_limit_counts_running_time_and_neither_queue_nor_pause():
    async def main():
        async with virtual_governor(limit=1) as gov, AgentPool(gov, timeout_s=10) as pool:

            async def exact(item, agent):
                await asyncio.sleep(9)
                return item

            outcomes = await collect(pool, exact, ["a", "b", "c"])  # the last one queues for 18 s
            assert {o.status for o in outcomes.values()} == {"ok"}

            async def too_long(item):
                await asyncio.sleep(11)

            outcome = await pool.submit(too_long, "d").outcome()
            assert isinstance(outcome.error, TimeoutError)
            assert "'d' ran for more than 10 s (queue and pauses not" in str(outcome.error)
            assert outcome.stats.running_s == pytest.approx(10, abs=0.06)
            assert gov.snapshot().active == 0

    run(main())


def test_the_time_limit_does_not_count_a_pause(timetable):
    async def main():
        law = timetable((0, 2), (5, 1), (100, 2))
        async with virtual_governor(law=law) as gov, AgentPool(gov, timeout_s=30) as pool:

            async def hog(item, agent):
                async with agent.step():  # in a call, so that nothing is taken for a stall
                    await asyncio.sleep(25)

            async def paused(item, agent):
                await asyncio.sleep(10)
                async with agent.suspended():
                    pass
                async with agent.step():
                    await asyncio.sleep(10)
                return agent.stats.paused_s

            pool.submit(hog, "hog")
            paused_s = await pool.submit(paused, "paused")
            assert paused_s == pytest.approx(15)

    run(main())


def test_an_agents_own_timeout_error_is_its_own():
    async def main():
        async with virtual_governor(limit=1) as gov, AgentPool(gov, timeout_s=10) as pool:

            async def own(item):
                raise TimeoutError("mine")

            outcome = await pool.submit(own, "a").outcome()
            assert str(outcome.error) == "mine"

    run(main())
