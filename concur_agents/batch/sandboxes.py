"""Sandboxes made ready before their agents are let in: at most a few beyond the open agents.

A container takes seconds to start and an agent that waits for it holds a place meanwhile.  So the
next few agents of the queue get theirs while they wait.  An agent that is let in before its turn
keeps its place until its own is made, or every agent of the queue would be opened meanwhile.  The
place is free while a sandbox is taken down, and the agent remains open until then: there are never
more sandboxes than open agents plus `prepared`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

from concur_agents.errors import ConfigError
from concur_agents.runtime.agent import Agent
from concur_agents.runtime.host import Host

T = TypeVar("T")
S = TypeVar("S")

Prepare = Callable[[T], S] | Callable[[T], Awaitable[S]]
Cleanup = Callable[[S], None] | Callable[[S], Awaitable[None]]


class Sandboxes(Generic[T, S]):
    """Makes a sandbox for each item, in order, and takes it down when its agent has ended.

        sandboxes = ca.Sandboxes(start_container, stop_container)
        async with sandboxes.agent(gov, issue, id=issue.id) as (agent, sandbox):
            ...

    Args:
        prepare: makes the sandbox of an item, `async def` or plain; a plain one gets a thread.
        cleanup: takes a sandbox down, likewise; None: there is nothing to do.
        prepared: most sandboxes that are made, or are ready, for agents not yet let in.

    Raises:
        ConfigError: `prepared` is below 0.
    """

    def __init__(
        self, prepare: Prepare[T, S], cleanup: Cleanup[S] | None = None, *, prepared: int = 2
    ) -> None:
        if prepared < 0:
            raise ConfigError(f"prepared must be at least 0 sandboxes, got {prepared}")
        self.prepare, self.cleanup = prepare, cleanup
        self._prepared = prepared
        self._ahead = 0  # made for agents not yet let in
        self._waiting: list[Sandbox[T, S]] = []
        self._ending: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def agent(
        self,
        governor: Host,
        item: T,
        *,
        id: object = None,  # noqa: A002  (the word that users know it by)
        priority: int = 0,
        **options: Any,
    ) -> AsyncIterator[tuple[Agent, S]]:
        """An agent and its sandbox, as a block; what `prepare` or `cleanup` raises is raised here.

        Args:
            governor: lets the agent in.
            item: what the sandbox is for.
            id: as for `Governor.agent`.
            priority: likewise; sandboxes are made in this order, too.
            options: likewise.
        """
        sandbox = self.expect(item, priority)
        agent = governor.agent(id, priority=priority, **options)
        try:
            async with agent:
                try:
                    yield agent, await sandbox.enter()
                finally:
                    await sandbox.leave(agent)
        finally:
            await sandbox.leave()

    def expect(self, item: T, priority: int = 0) -> Sandbox[T, S]:
        """The sandbox of an agent that stands in the queue; to be ended with `leave`."""
        sandbox = Sandbox(self, item, priority)
        self._waiting.append(sandbox)
        self._look()
        return sandbox

    async def close(self) -> None:
        """Waits until those whose agents have ended are taken down."""
        if self._ending:
            await asyncio.wait(self._ending)

    def _look(self) -> None:
        """The next ones of the queue are made, as far as there may be more."""
        while self._waiting and self._ahead < self._prepared:
            sandbox = max(self._waiting, key=lambda waiting: waiting.priority)
            self._waiting.remove(sandbox)
            self._ahead += 1
            sandbox.is_ahead = True
            sandbox.make()

    def _release(self, sandbox: Sandbox[T, S]) -> None:
        """It no longer counts as one made ahead."""
        if sandbox.is_ahead:
            sandbox.is_ahead = False
            self._ahead -= 1
            self._look()


class Sandbox(Generic[T, S]):
    """The sandbox of one agent, from the queue to its end. Made by `Sandboxes.expect`."""

    def __init__(self, sandboxes: Sandboxes[T, S], item: T, priority: int) -> None:
        self.priority = priority
        self.is_ahead = False
        self._sandboxes = sandboxes
        self._item = item
        self._making: asyncio.Task[S] | None = None
        self._ending: asyncio.Task[None] | None = None

    def make(self) -> None:
        """Begins to make it."""
        self._making = asyncio.ensure_future(_called(self._sandboxes.prepare, self._item))
        self._making.add_done_callback(_seen)

    async def enter(self) -> S:
        """Its agent has been let in: the sandbox, made by now or in a moment.

        Raises:
            BaseException: what `prepare` raises.
        """
        if self._making is None:
            self._sandboxes._waiting.remove(self)
            self.make()
        else:
            self._sandboxes._release(self)
        assert self._making is not None
        return await asyncio.shield(self._making)  # because `leave` takes down what it makes

    async def leave(self, agent: Agent | None = None) -> None:
        """Its agent has ended, or never begins. Only the first call does anything.

        Args:
            agent: gives its place back meanwhile, and remains open; None: it has none.

        Raises:
            BaseException: what `cleanup` raises.
        """
        if self._ending is not None:
            return
        if self._making is None:
            self._sandboxes._waiting.remove(self)
            return
        if agent is not None:
            agent.suspended().__enter__()  # for good: it leaves afterwards
        self._ending = asyncio.ensure_future(self._end(self._making))
        self._ending.add_done_callback(_seen)
        self._sandboxes._ending.add(self._ending)
        self._ending.add_done_callback(self._sandboxes._ending.discard)
        await asyncio.shield(self._ending)

    async def _end(self, making: asyncio.Task[S]) -> None:
        try:
            if _is_async(self._sandboxes.prepare):  # what a thread goes on to make would be lost
                making.cancel()
            await asyncio.wait([making])
            if making.cancelled() or making.exception() is not None:
                return
            if self._sandboxes.cleanup is not None:
                await _called(self._sandboxes.cleanup, making.result())
        finally:
            self._sandboxes._release(self)


async def _called(fn: Callable[[Any], Any], given: Any) -> Any:
    if _is_async(fn):
        return await fn(given)
    value = await asyncio.to_thread(fn, given)
    return await value if inspect.isawaitable(value) else value


def _is_async(fn: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(
        getattr(fn, "__call__", None)  # noqa: B004  (an object with an async __call__)
    )


def _seen(task: asyncio.Task[Any]) -> None:
    """Its error is raised where its agent waits for it, and asyncio need not report it again."""
    if not task.cancelled():
        task.exception()
