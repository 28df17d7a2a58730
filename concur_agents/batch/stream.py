"""One batch of a pool: items go in as agents can use them, outcomes come out as agents end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

from concur_agents.batch.outcome import Outcome, Run

T = TypeVar("T")

BACKLOG = 256
"""Outcomes that the caller has not taken yet; at this many, no new agents start."""


class Stream:
    """The agents of one call of `AgentPool.as_completed` or `AgentPool.map`.

    Args:
        items: what the agents are given, one each.
        start: starts the agent for an item, given the item's number in the batch.
        is_full: whether enough agents stand in the queue.
        raises: the first error ends the batch.
    """

    def __init__(
        self,
        items: Iterable[Any] | AsyncIterable[Any],
        start: Callable[[Any, int], Run],
        is_full: Callable[[], bool],
        *,
        raises: bool,
    ) -> None:
        self._items = items
        self._start = start
        self._is_full = is_full
        self._raises = raises
        self._ended: asyncio.Queue[Run | None] = asyncio.Queue()
        self._room = asyncio.Event()
        self._runs: set[Run] = set()
        self._feeding = asyncio.ensure_future(self._feed())
        self._feeding.add_done_callback(lambda _: self._ended.put_nowait(None))

    async def outcomes(self) -> AsyncGenerator[tuple[int, Outcome[Any, Any]]]:
        """The number of an item and how its agent ended, as the agents end.

        Raises:
            BaseException: the first error, if `raises`; and whatever `items` raises, after the
                running agents have ended.
        """
        feeding = self._feeding
        while self._runs or not feeding.done() or not self._ended.empty():
            run = await self._ended.get()
            self.look()
            if run is None or run.outcome is None:
                continue
            if self._raises and run.outcome.error is not None:
                raise run.outcome.error
            yield run.index, run.outcome
        if not feeding.cancelled() and (error := feeding.exception()) is not None:
            raise error

    def look(self) -> None:
        """Something has changed, so that there may be room for another agent."""
        self._room.set()

    def drain(self) -> None:
        """Takes no further items."""
        self._feeding.cancel()

    async def stop(self) -> None:
        """Takes no further items, and cancels the agents."""
        self._feeding.cancel()
        await asyncio.wait([self._feeding])
        await cancel(self._runs)

    async def _feed(self) -> None:
        """Starts an agent per item, and pulls the next item only when an agent could use it."""
        index = 0
        async with aclosing(_each(self._items)) as items:
            async for item in items:
                run = self._start(item, index)
                index += 1
                self._runs.add(run)
                assert run.task is not None
                run.task.add_done_callback(partial(self._end, run))
                await asyncio.sleep(0)  # the agent takes its place now, or joins the queue
                while self._is_full() or self._ended.qsize() >= BACKLOG:
                    self._room.clear()
                    await self._room.wait()

    def _end(self, run: Run, _: object) -> None:
        self._runs.discard(run)
        self._ended.put_nowait(run)


async def cancel(runs: Iterable[Run]) -> None:
    """Cancels agents and waits for their end."""
    tasks = [run.task for run in runs if run.task is not None]
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


async def _each(items: Iterable[T] | AsyncIterable[T]) -> AsyncGenerator[T]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
