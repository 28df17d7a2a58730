"""Plain functions as agents: each in a thread of its own."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import time

import concur_agents as ca
from concur_agents import AgentPool, Governor


async def work(item):
    await asyncio.sleep(1)
    if isinstance(item, str) and item.startswith("bad"):
        raise ValueError(item)
    return f"{item} done"


async def collect(pool, fn, items):
    return {o.key: o async for o in pool.as_completed(fn, items)}


def test_plain_functions_run_in_threads_of_their_own_once_they_are_let_in():
    marker = contextvars.ContextVar("marker", default="unset")
    inside = peak = 0
    lock = threading.Lock()

    def solve(item):
        nonlocal inside, peak
        assert threading.current_thread().name == f"agent {item}"
        assert ca.current_agent().id == str(item)
        with lock:
            inside += 1
            peak = max(peak, inside)
        with ca.current_agent().step():
            time.sleep(0.005)
        with lock:
            inside -= 1
        return marker.get()

    async def main():
        marker.set("carried")
        before = threading.active_count()
        with Governor(limit=3) as gov:
            async with AgentPool(gov, look_ahead=50) as pool:
                results = await pool.map(solve, range(40))
                assert threading.active_count() <= before + 3 + 1
            assert gov.snapshot().active == 0
        assert results == ["carried"] * 40
        assert peak <= 3

    asyncio.run(main())


def test_a_plain_function_that_returns_a_coroutine_is_an_agent_too():
    async def main():
        with Governor(limit=1) as gov:
            async with AgentPool(gov) as pool:
                assert await pool.map(lambda x: work(x + x), ["a"]) == ["aa done"]

    asyncio.run(main())


def test_a_cancelled_agent_in_a_thread_ends_at_its_next_boundary_and_keeps_its_place_till_then():
    go_on, ended, swallowed = threading.Event(), threading.Event(), []

    def stubborn(item):
        agent = ca.current_agent()
        try:
            with agent.step():
                go_on.wait(10)  # a call in flight, which nothing can interrupt
            try:
                with agent.step():
                    swallowed.append("went on")
            except Exception:
                swallowed.append("caught")
        finally:
            ended.set()

    async def main():
        with Governor(limit=1) as gov:
            async with AgentPool(gov) as pool:
                task = pool.submit(stubborn, "a")
                while task.status != "reasoning":
                    await asyncio.sleep(0.005)
                task.cancel()
                assert (await task.outcome()).status == "cancelled"
                assert gov.snapshot().active == 1
                go_on.set()
                assert await asyncio.to_thread(ended.wait, 10)
                while gov.snapshot().active:
                    await asyncio.sleep(0.005)
        assert not swallowed

    asyncio.run(main())


def test_a_cancelled_agent_that_waits_in_a_thread_wakes_up_and_goes():
    async def main():
        with Governor(limit=1) as gov:
            ended = threading.Event()

            def at_the_gate(item):
                agent = ca.current_agent()
                try:
                    with agent.suspended():
                        other.open_sync()
                    agent.checkpoint_sync()
                finally:
                    ended.set()

            other = gov.agent("other", detached=True)
            async with AgentPool(gov) as pool:
                task = pool.submit(at_the_gate, "a")
                while gov.explain("a").split(": ")[1] != "queued":
                    await asyncio.sleep(0.005)
                task.cancel()
                await task.outcome()
                assert await asyncio.to_thread(ended.wait, 10)
                other.close()
                while gov.snapshot().active or gov.snapshot().queued:
                    await asyncio.sleep(0.005)

    asyncio.run(main())


def test_system_exit_in_one_agents_thread_is_its_error_and_ends_no_other_agent():
    async def main():
        with Governor(limit=2) as gov:
            async with AgentPool(gov) as pool:
                outcomes = await collect(pool, lambda x: sys.exit(3) if x == "a" else x, "ab")
                assert outcomes["a"].status == "error"
                assert "SystemExit(3)" in str(outcomes["a"].error)
                assert outcomes["b"].value == "b"

    asyncio.run(main())
