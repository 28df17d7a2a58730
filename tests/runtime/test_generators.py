"""Agents entered in async generators: a context variable alone loses them, or mixes them up."""

import asyncio
import gc
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

import pytest

from concur_agents.runtime import generators
from concur_agents.testing import assert_idle, run, virtual_governor

LIMIT = 2


async def calls(gov, name, seen):
    """An agent that yields after each of three calls, and notes as whom it runs."""
    async with gov.agent(name) as agent:
        for n in range(3):
            async with agent.step():
                await asyncio.sleep(1)
            seen.append((name, gov.current_agent().id))
            yield n


async def in_one_task(*streams):
    for _ in range(3):
        for stream in streams:
            await anext(stream)


async def in_tasks_of_their_own(*streams):
    for _ in range(3):
        await asyncio.gather(*(asyncio.create_task(anext(stream)) for stream in streams))


HOW = pytest.mark.parametrize("how", [in_one_task, in_tasks_of_their_own])


@HOW
def test_each_generator_runs_as_its_own_agent(how):
    """In tasks of their own the later calls were ungoverned; in one task A's counted for B."""

    async def main():
        seen = []
        async with virtual_governor(limit=LIMIT) as gov:
            async with aclosing(calls(gov, "A", seen)) as a, aclosing(calls(gov, "B", seen)) as b:
                await how(a, b)
                assert {who.agent: who.parent for who in gov.agents()} == {"A": None, "B": None}
            assert_idle(gov)
        assert len(seen) == 6
        assert all(name == current for name, current in seen)
        assert not generators._held

    run(main())


@HOW
def test_no_generator_passes_the_limit(how):
    """B was nested in A, and so shared its place: with a limit of one, two ran at once."""

    async def main():
        async with virtual_governor(limit=1) as gov:
            a, b = calls(gov, "A", []), calls(gov, "B", [])
            first = asyncio.create_task(how(a, b))
            await asyncio.sleep(10)
            assert gov.snapshot().active == 1
            assert gov.snapshot().queued == 1
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await a.aclose()
            await b.aclose()
            assert_idle(gov)

    run(main())


def test_an_agent_inside_the_block_is_nested_also_in_a_later_task():
    async def stream(gov):
        async with gov.agent("A"):
            yield 1
            async with gov.agent("inner"):
                yield 2

    async def main():
        async with virtual_governor(limit=1) as gov:
            items = stream(gov)
            await asyncio.create_task(anext(items))
            await asyncio.create_task(anext(items))
            assert {who.agent: who.parent for who in gov.agents()} == {"A": None, "inner": "A"}
            await items.aclose()

    run(main())


def test_a_generator_inside_an_agent_is_nested_in_it_and_found_in_later_tasks():
    async def main():
        seen = []
        async with virtual_governor(limit=1) as gov, gov.agent("outer"):
            await in_tasks_of_their_own(calls(gov, "A", seen), calls(gov, "B", seen))
            assert {who.agent: who.parent for who in gov.agents()} == {
                "outer": None, "A": "outer", "B": "outer",
            }  # fmt: skip
        assert all(name == current for name, current in seen)

    run(main())


def test_sub_agents_of_tasks_that_a_generator_starts_are_nested_in_it():
    """They are in another task, and hold no place of their own: with one they would dead-lock."""

    async def work(gov, name):
        async for _ in calls(gov, name, []):
            pass

    async def stream(gov):
        async with gov.agent("A"):
            await asyncio.gather(work(gov, "x"), work(gov, "y"))
            yield 1

    async def main():
        async with virtual_governor(limit=1) as gov:
            async for _ in stream(gov):
                pass
            assert asyncio.get_running_loop().time() < 10

    run(main())


def test_a_context_manager_made_of_a_generator_is_as_it_was():
    @asynccontextmanager
    async def session(gov):
        async with gov.agent("A") as agent:
            yield agent

    async def main():
        async with virtual_governor(limit=1) as gov, session(gov):
            assert gov.current_agent().id == "A"
            async with gov.agent("sub"):
                assert gov.current_agent().id == "sub"
            assert not generators._held

    run(main())


def test_an_exit_stack_in_a_generator_is_found_too():
    async def stream(gov):
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(gov.agent("A"))
            for n in range(2):
                yield n, gov.current_agent().id

    async def main():
        async with virtual_governor(limit=1) as gov:
            items = stream(gov)
            assert await asyncio.create_task(anext(items)) == (0, "A")
            assert await asyncio.create_task(anext(items)) == (1, "A")
            await items.aclose()

    run(main())


def test_a_generator_that_is_dropped_leaves_nothing():
    async def main():
        async with virtual_governor(limit=1) as gov:
            items = calls(gov, "A", [])
            await asyncio.create_task(anext(items))
            del items
            gc.collect()
            await asyncio.sleep(1)
            assert_idle(gov)
            assert not generators._held

    run(main())
