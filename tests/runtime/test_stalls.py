"""What a program had before, around the gate: each program finishes, and the log names the cause.

The agents hold a semaphore, a thread or a place elsewhere while they wait for the governor, and the
agents that may run wait for that (fault B).
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

import concur_agents as ca
from concur_agents.core import Reading, Usage
from concur_agents.runtime.ticker import STALLED
from concur_agents.testing import ScriptedProbe, assert_idle, run, virtual_governor

AGENTS, STEPS = 8, 20


async def finish(gov, one_step, *, agents=AGENTS, steps=STEPS, most_s=7_200):
    """Runs the agents to their end; returns the steps done and the stalls."""
    done = 0

    async def solve(i):
        nonlocal done
        async with gov.agent(f"a{i}") as agent:
            for n in range(steps):
                await one_step(agent, n)
                done += 1

    async with asyncio.timeout(most_s):
        await asyncio.gather(*(solve(i) for i in range(agents)))
    assert_idle(gov)
    assert done == agents * steps
    return gov.snapshot().stalls_total


def semaphore_around(places, prompt_tokens=1_000):
    sem = asyncio.Semaphore(places)

    async def one_step(agent, n):
        async with sem, agent.step() as step:
            await asyncio.sleep(0.05)
            step.record(Usage((n + 1) * prompt_tokens, 100, None))

    return one_step


def assert_said_once(caplog):
    assert caplog.text.count("a stall: agents waited") == 1
    assert "hold a semaphore" in STALLED


def test_a_semaphore_around_the_step(caplog):
    async def main():
        async with virtual_governor(limit=2, max_wait_s=0.5) as gov:
            assert await finish(gov, semaphore_around(2))

    run(main())
    assert_said_once(caplog)


@pytest.mark.parametrize("reports", [{}, {"kv_usage": 0.9, "running": 4, "waiting": 2}])
def test_the_default_law_where_neither_capacity_nor_cached_tokens_are_reported(caplog, reports):
    async def main():
        clock = asyncio.get_running_loop().time
        probe = ScriptedProbe(lambda now: Reading(at_s=now, **reports), clock)
        async with virtual_governor(probe=probe) as gov:
            return await finish(gov, semaphore_around(4, 10_000), agents=40)

    assert run(main())
    assert_said_once(caplog)


def test_the_blind_limit_with_a_semaphore(caplog):
    async def main():
        clock = asyncio.get_running_loop().time
        probe = ScriptedProbe(
            lambda now: Reading(at_s=now, capacity_tokens=10**6) if now < 1 else None, clock
        )
        options = {"blind_after_s": 2.0, "blind_agents": 1}
        async with virtual_governor(probe=probe, **options) as gov:
            return await finish(gov, semaphore_around(2), steps=200)

    assert run(main())
    assert_said_once(caplog)


def test_a_small_pool_of_threads_for_the_calls(caplog):
    async def main():
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(2) as threads:

            async def one_step(agent, n):
                def call():
                    with agent.step():
                        pass

                await loop.run_in_executor(threads, call)

            async with virtual_governor(limit=2, max_wait_s=0.5) as gov:
                # No bound: the clock jumps to the next timer while a thread is at work.
                return await finish(gov, one_step, most_s=None)

    assert run(main())
    assert_said_once(caplog)


def test_a_limiter_of_pydantic_ai(caplog):
    models = pytest.importorskip("pydantic_ai.models.concurrency")
    pydantic_ai = pytest.importorskip("pydantic_ai")
    wrapper = pytest.importorskip("pydantic_ai.models.wrapper")
    test_model = pytest.importorskip("pydantic_ai.models.test")

    class Governed(wrapper.WrapperModel):
        async def request(self, *args, **kwargs):
            async with ca.current_agent().step():
                await asyncio.sleep(0.05)
                return await super().request(*args, **kwargs)

    async def main():
        model = models.ConcurrencyLimitedModel(Governed(test_model.TestModel()), limiter=2)
        thinker = pydantic_ai.Agent(model)

        async def one_step(agent, n):
            await thinker.run("think")

        async with virtual_governor(limit=2, max_wait_s=0.5) as gov:
            assert await finish(gov, one_step)

    run(main())
    assert_said_once(caplog)


@pytest.mark.parametrize("opposite", [False, True], ids=["one order", "opposite orders"])
@pytest.mark.parametrize("options", [{}, {"max_wait_s": 0.5}], ids=["unbounded", "bounded"])
def test_two_governors_one_inside_the_other(caplog, opposite, options):
    """In opposite orders each half of the agents holds what the other half waits for."""

    async def main():
        async with (
            virtual_governor(limit=2, **options) as first,
            virtual_governor(limit=2, **options) as second,
        ):

            async def solve(i):
                outer, inner = (second, first) if opposite and i % 2 else (first, second)
                async with outer.agent(f"a{i}") as one, inner.agent(f"a{i}") as two:
                    for _ in range(STEPS):
                        async with one.step(), two.step():
                            await asyncio.sleep(0.05)

            async with asyncio.timeout(7_200):
                await asyncio.gather(*(solve(i) for i in range(AGENTS)))
            assert_idle(first)
            assert_idle(second)
            return first.snapshot().stalls_total + second.snapshot().stalls_total

    stalls = run(main())
    if opposite or options:
        assert stalls
        assert "a stall: agents waited" in caplog.text
