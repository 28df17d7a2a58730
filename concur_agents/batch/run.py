"""`run_agents`: a batch from synchronous code, with a governor made for it if there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar, overload

from concur_agents.batch.outcome import Outcome
from concur_agents.batch.pool import AgentPool
from concur_agents.errors import ConfigError
from concur_agents.governor import Governor
from concur_agents.runtime.waiter import running_loop

T = TypeVar("T")
R = TypeVar("R")


@overload
def run_agents(
    fn: Callable[..., Coroutine[Any, Any, R]],
    items: Iterable[T],
    *,
    governor: Governor | None = None,
    url: str | None = None,
    limit: float | None = None,
    **options: Any,
) -> list[Outcome[T, R]]: ...


@overload
def run_agents(
    fn: Callable[..., R],
    items: Iterable[T],
    *,
    governor: Governor | None = None,
    url: str | None = None,
    limit: float | None = None,
    **options: Any,
) -> list[Outcome[T, R]]: ...


def run_agents(
    fn: Callable[..., Any],
    items: Iterable[T],
    *,
    governor: Governor | None = None,
    url: str | None = None,
    limit: float | None = None,
    **options: Any,
) -> list[Outcome[T, Any]]:
    """Runs `fn(item)` for each item under a governor, from synchronous code.

        outcomes = run_agents(solve, issues, url="http://localhost:8000", journal="runs.jsonl")

    Args:
        fn: the agent, `async def` or plain.
        items: what the agents are given, one each.
        governor: an existing one; None: one is made from `url` or `limit` and closed at the end.
        url: see `Governor`.
        limit: see `Governor`.
        **options: those of `AgentPool`.

    Returns:
        How each agent ended, in the order of the items. After Ctrl-C: only those that started.

    Raises:
        ConfigError: an event loop runs in this thread, or options contradict each other.
    """
    if running_loop() is not None:
        raise ConfigError(
            "run_agents starts an event loop and one already runs in this thread: use "
            "`async with AgentPool(...)` instead"
        )
    if governor is not None and (url is not None or limit is not None):
        raise ConfigError("give a governor, or the url or limit to make one from, but not both")

    async def main(governor: Governor) -> list[Outcome[T, Any]]:
        async with AgentPool(governor, **options) as pool:
            return await pool.in_order(fn, items)

    if governor is not None:
        return asyncio.run(main(governor))
    with Governor(url, limit=limit) as made:
        return asyncio.run(main(made))
