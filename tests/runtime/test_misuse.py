"""A wrong argument is its caller's error, and nobody else's: the governor goes on governing.

Found by reading: such a value failed under the governor's lock, where every exception is taken for
a bug of ours, upon which everybody passes for good.
"""

from __future__ import annotations

import asyncio
import math
from unittest.mock import Mock

import numpy as np
import pytest

import concur_agents as ca
from concur_agents.core import Usage, make_law
from concur_agents.runtime import checks
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


class Nameless:
    def __str__(self):
        raise RuntimeError


def test_what_has_no_text_counts_as_no_name_and_is_said_once(caplog):
    async def main():
        async with virtual_governor(limit=1) as gov:
            async with gov.agent(Nameless(), group=Nameless()) as agent, agent.tool(Nameless()):
                assert agent.id == "agent-1"
            async with gov.agent(10**10_000):  # Python writes no int of so many digits
                pass
            async with gov.agent(Nameless()) as agent:
                assert agent.id == "agent-3"
            assert list(gov.tool_times()) == ["tool"]
            assert_idle(gov)

    checks._warn_nameless.cache_clear()
    run(main())
    said = [text for text in caplog.messages if "agent's id is of type Nameless" in text]
    assert len(said) == 1


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


class Hostile:
    """Raises whatever is asked of it."""

    def __getattr__(self, name):
        raise RuntimeError(name)

    def __eq__(self, other):
        raise RuntimeError

    def __hash__(self):
        raise RuntimeError

    def __repr__(self):
        raise RuntimeError


NONSENSE = [10**400, -(10**400), 1j, np.array([1, 2]), [1], {"a": 1}, Hostile(), Mock(), type]


@pytest.mark.parametrize("said", NONSENSE, ids=lambda said: type(said).__name__)
def test_whatever_is_handed_in_is_read_or_refused_at_the_door_and_the_governor_goes_on(said):
    """A size of 10**400 tokens raised an OverflowError, and a group that is a list, like a pool
    that cannot be compared, ended the governor for good."""

    async def main():
        async with virtual_governor(limit=1) as gov:
            for options in ({"prompt_tokens": said}, {"priority": said}, {"timeout_s": said}):
                if not isinstance(said, Mock):  # a Mock is the number 1, if it is asked
                    with pytest.raises(ca.ConfigError):
                        gov.agent("b", **options)
            with pytest.raises(ca.ConfigError):
                gov.flushed(said)
            async with gov.agent(said, group=said) as agent, agent.tool(said):
                assert isinstance(agent.id, str)
            async with gov.agent("a") as agent:
                with pytest.raises(ca.ConfigError):
                    agent.step(prefix=[("a", said)] if not isinstance(said, Mock) else said)
                with pytest.raises(ca.ConfigError):
                    agent.step(prefix=[(said, -1)])
            assert not gov.snapshot().closed
            assert_idle(gov)

    run(main())


@pytest.mark.parametrize("said", NONSENSE, ids=lambda said: type(said).__name__)
def test_the_end_of_a_call_never_raises_whatever_it_is_told(said):
    """`overloaded=` that cannot be true or false ended the governor for good."""

    async def main():
        async with virtual_governor(limit=1) as gov:
            async with gov.agent("a") as agent:
                await agent.gate()
                agent.done(said, overloaded=said, retry_after_s=said)
                step = await agent.gate()
                step.record(said)
                step.refused(said)
                step.finish(overloaded=said, retry_after_s=said)
            assert not gov.snapshot().closed
            assert_idle(gov)

    run(main())


def test_an_id_that_overrides_what_text_does_is_a_plain_text():
    class Loud(str):
        __slots__ = ()

        def isprintable(self):
            raise RuntimeError

        def encode(self, *_):
            raise RuntimeError

    async def main():
        options = {"group": Loud("g")}
        async with virtual_governor(limit=1) as gov, gov.agent(Loud("a"), **options) as agent:
            assert type(agent.id) is str
            assert "a" in gov.explain("a")

    run(main())
