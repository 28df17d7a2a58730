"""A wrong argument is its caller's error, and nobody else's: the governor goes on governing.

Found by reading: such a value failed under the governor's lock, where every exception is taken for
a bug of ours, upon which everybody passes for good.
"""

from __future__ import annotations

import asyncio
import math

import pytest

import concur_agents as ca
from concur_agents.core import Usage, make_law
from concur_agents.testing import assert_idle, run, virtual_governor


@pytest.mark.parametrize("tokens", ["9000", -1, math.nan, math.inf, object()])
def test_a_prompt_size_that_is_none(tokens):
    async def main():
        async with virtual_governor(limit=1) as gov:
            with pytest.raises(ca.ConfigError, match="prompt_tokens must be"):
                gov.agent("b", prompt_tokens=tokens)
            async with gov.agent("a") as agent:
                with pytest.raises(ca.ConfigError, match="prompt_tokens must be"):
                    agent.step(tokens)
                with pytest.raises(ca.ConfigError, match="prompt_tokens must be"):
                    await agent.gate(prompt_tokens=tokens)
            assert not gov.snapshot().closed
            assert_idle(gov)

    run(main())


@pytest.mark.parametrize(
    "prefix",
    [
        "system prompt",
        42,
        [("system prompt",)],
        ["system prompt"],
        [(["not", "hashable"], 500)],
        [("system prompt", "500")],
        [("system prompt", -1)],
        [("system prompt", math.nan)],
        [("a", 500), ("b", 400)],
        [("a", 500), ("a", 600)],
    ],
)
def test_a_prefix_that_is_none(prefix):
    async def main():
        async with virtual_governor(limit=1) as gov:
            async with gov.agent("a") as agent:
                with pytest.raises(ca.ConfigError, match="prefix must be"):
                    agent.step(prefix=prefix)
            assert not gov.snapshot().closed
            assert_idle(gov)

    run(main())


def test_a_prefix_may_be_any_sequence_also_one_that_is_used_up():
    async def main():
        async with (
            virtual_governor(limit=2) as gov,
            gov.agent("a") as a,
            gov.agent("b", detached=True) as b,
        ):
            for agent, prefix in (
                (a, iter([("system", 500), (("task", 7), 900.0)])),
                (b, [["system", 500], [("task", 7), 900]]),
            ):
                async with agent.step(2_000, prefix=prefix) as step:
                    step.record(Usage(2_000, 0))
            assert gov._monitor.sessions.regulator._sizes.prefixes.charged_tokens == 900

    run(main())


@pytest.mark.parametrize("priority", ["high", None, 0.5, math.inf])
def test_a_priority_that_is_no_whole_number(priority):
    async def main():
        async with virtual_governor(limit=1) as gov:
            with pytest.raises(ca.ConfigError, match="priority must be a whole number, got "):
                gov.agent("a", priority=priority)
            async with gov.agent("b"):
                pass
            assert not gov.snapshot().closed

    run(main())


def test_a_tool_without_a_name():
    async def main():
        async with virtual_governor(limit=1) as gov, gov.agent("a") as agent:
            with pytest.raises(ca.ConfigError, match="name of a tool must be a string"):
                agent.tool(["pytest"])
            assert not gov.snapshot().closed

    run(main())


def test_a_retry_after_that_is_none_is_no_time(watched):
    """`done` never raises: it stands in `finally` blocks."""
    law = watched(make_law("fixed", agents=1))

    async def main():
        async with virtual_governor(law=law) as gov:
            async with gov.agent("a") as agent:
                for said in (None, "soon", math.nan, -5):
                    await agent.gate()
                    agent.done(overloaded=True, retry_after_s=said)
                    step = await agent.gate()
                    step.refused(said)
                    step.end()
                await asyncio.sleep(2)
            assert law.overloads == 8
            assert {snapshot.retry_after_s for snapshot in law.seen} == {0.0}
            assert not gov.snapshot().closed
            assert_idle(gov)

    run(main())
