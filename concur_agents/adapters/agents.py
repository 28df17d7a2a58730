"""Opens agents for adapters: with a name from the framework, and around generators."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from typing import Any

from concur_agents.adapters import heartbeat
from concur_agents.errors import ConfigError
from concur_agents.runtime.agent import Agent, Governing

_MOST_NAMESAKES = 100_000


async def open_agent(governor: Governing, name: str | None, **options: Any) -> Agent:
    """An agent that has been let in. If a living agent has its name, a number is added."""
    for candidate in _names(name):
        agent = governor.agent(candidate, **options)
        try:
            with heartbeat.during_wait():
                await agent.open()
        except ConfigError:
            continue
        return agent
    return await _unnamed(governor, options)


def open_agent_sync(governor: Governing, name: str | None, **options: Any) -> Agent:
    """As `open_agent`, in a thread."""
    for candidate in _names(name):
        agent = governor.agent(candidate, **options)
        try:
            agent.open_sync()
        except ConfigError:
            continue
        return agent
    agent = governor.agent(None, **options)
    agent.open_sync()
    return agent


async def _unnamed(governor: Governing, options: dict[str, Any]) -> Agent:
    agent = governor.agent(None, **options)
    await agent.open()
    return agent


def _names(name: str | None) -> Iterator[str]:
    if name is not None:
        yield name
        for number in itertools.islice(itertools.count(2), _MOST_NAMESAKES):
            yield f"{name}#{number}"


def run_in(agent: Agent, items: Iterator[Any]) -> Generator[Any, Any, Any]:
    """The items of an iterator; the agent is the current one while an item is made.

    The context variable is set around each item and not across a `yield`, because it would leak
    into the consumer. The agent leaves at the end, also if the generator is dropped.
    """
    try:
        while True:
            with agent.active():
                try:
                    item = next(items)
                except StopIteration as end:
                    return end.value
            yield item
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            with agent.active():
                close()
        agent.close()


async def run_in_async(agent: Agent, items: AsyncIterator[Any]) -> AsyncGenerator[Any, Any]:
    """As `run_in`, for an asynchronous iterator."""
    try:
        while True:
            with agent.active():
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    return
            yield item
    finally:
        aclose = getattr(items, "aclose", None)
        if aclose is not None:
            with agent.active():
                await aclose()
        agent.close()
