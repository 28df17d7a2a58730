"""pydantic-ai: each run of an agent is a governed agent.

    agent = Agent(model, max_concurrency=limiter(gov))

pydantic-ai asks such a limiter once per run. Give the model a governed client too (an
`OpenAIProvider(openai_client=AsyncOpenAI(governor=gov, ...))`), so that the agent can be paused
before each call. With the limiter alone only the start of a run waits.
"""

from __future__ import annotations

import asyncio
import weakref
from contextvars import ContextVar
from typing import Any

from concur_agents.adapters.agents import open_agent
from concur_agents.runtime.agent import Agent, Governing
from concur_agents.runtime.context import current

try:
    from pydantic_ai.concurrency import AbstractConcurrencyLimiter
except ModuleNotFoundError as error:
    raise ImportError(
        'pydantic-ai is not installed: pip install "pydantic-ai-slim[openai]"', name=error.name
    ) from error

_held: ContextVar[tuple[Agent, ...]] = ContextVar("concur_agents_pydantic_ai", default=())


def limiter(governor: Governing, *, priority: int = 0) -> AbstractConcurrencyLimiter:
    """For `max_concurrency=` of a pydantic-ai agent: one run, one agent.

    Args:
        governor: lets the runs in.
        priority: of the agents; higher goes first.
    """
    return Limiter(governor, priority)


class Limiter(AbstractConcurrencyLimiter):
    """Opens an agent for each run. Made by `limiter`."""

    def __init__(self, governor: Governing, priority: int) -> None:
        self._governor = governor
        self._priority = priority
        self._open: dict[Agent, asyncio.Task[Any] | None] = {}

    async def acquire(self, source: str) -> None:
        """Waits until the run may start. A run inside another run shares its place."""
        name = source.partition(":")[2] or source
        agent = await open_agent(self._governor, name, priority=self._priority)
        self._open[agent] = asyncio.current_task()
        _held.set((*_held.get(), agent))
        # Never reset, because an agent that has left is no longer current anywhere.
        current.set(weakref.ref(agent))

    def release(self) -> None:
        """The run is over. This may be another task, which has read a streamed answer."""
        held = [agent for agent in _held.get() if agent in self._open]
        if held:
            agent = held[-1]
            _held.set(tuple(other for other in _held.get() if other is not agent))
        else:
            ended = (a for a, task in self._open.items() if task is None or task.done())
            agent = next(ended, next(iter(self._open)))
        del self._open[agent]
        agent.close()
