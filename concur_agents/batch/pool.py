"""AgentPool: runs an agent for each item of a batch, as many at once as the governor lets in.

    async with AgentPool(gov, journal="runs.jsonl", progress=True) as pool:
        async for outcome in pool.as_completed(solve_issue, issues):
            print(outcome.key, outcome.status)

Agents may be `async def` or plain functions; a plain one gets a thread when it is let in. An agent
that fails does not affect the others. Items are pulled as agents can use them, a result is in the
journal before the caller gets it, and Ctrl-C lets the running agents finish.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Sized
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

from concur_agents.batch.interrupts import Interrupts
from concur_agents.batch.journal import Journal
from concur_agents.batch.keys import Keys
from concur_agents.batch.outcome import AgentTask, Outcome, Run
from concur_agents.batch.progress import Progress, Reporter, default_reporter, report
from concur_agents.batch.runs import Runs
from concur_agents.batch.sandboxes import Cleanup, Prepare, Sandboxes
from concur_agents.batch.stream import Stream
from concur_agents.errors import ClosedError, ConfigError
from concur_agents.runtime.host import Host

logger = logging.getLogger("concur_agents")

T = TypeVar("T")
R = TypeVar("R")

LOOK_AHEAD = 16
"""Agents that stand in the queue: enough that a free place is taken at once, and that the governor
has a choice which agent to let in first."""


class AgentPool:
    """Runs agents under a governor; an async context manager, structured like a task group.

    On leaving the block it waits for all agents; if the block raises, it cancels them.

    Args:
        governor: lets them in. It stays open after the pool.
        journal: file that keeps the results of finished agents; None: nothing is kept.
        key: names an item by a string, an int, a UUID or a path; needed with a journal unless items
            are such themselves or have a `key`, `id` or `instance_id`. The same name again is
            numbered: `t1`, `t1#2`, ...
        timeout_s: longest running time [s] of an agent; its queue and pauses do not count.
            None: no limit.
        prepare: makes a sandbox for an item before its agent is let in, `async def` or plain. The
            agent gets it if it has a parameter `sandbox`. What it raises is that agent's error.
        cleanup: takes the sandbox down when the agent has ended, likewise.
        prepared: most sandboxes beyond those of the open agents.
        on_error: "collect" errors as outcomes, or "raise" the first one and cancel the rest.
        progress: True: a bar (or plain lines) on stderr; or a reporter of your own.
        look_ahead: agents that may stand in the queue at once; no further items are pulled.
        interrupts: the first Ctrl-C drains (no new agents start, the running ones finish), the
            second one cancels. Only in the main thread.
        dump: turns a result into a JSON value, for the journal.
        load: turns that value into the result again.

    Raises:
        ConfigError: an option is out of its range.
        JournalError: the file is not a journal, is broken, or is in use.
    """

    def __init__(
        self,
        governor: Host,
        *,
        journal: str | Path | None = None,
        key: Callable[[Any], object] | None = None,
        timeout_s: float | None = None,
        prepare: Prepare[Any, Any] | None = None,
        cleanup: Cleanup[Any] | None = None,
        prepared: int = 2,
        on_error: Literal["collect", "raise"] = "collect",
        progress: bool | Reporter = False,
        look_ahead: int = LOOK_AHEAD,
        interrupts: bool = True,
        dump: Callable[[Any], Any] | None = None,
        load: Callable[[Any], Any] | None = None,
    ) -> None:
        if timeout_s is not None and not timeout_s > 0:
            raise ConfigError(f"timeout_s must be above 0 s, got {timeout_s}")
        if on_error not in ("collect", "raise"):
            raise ConfigError(f"on_error must be 'collect' or 'raise', got {on_error!r}")
        if look_ahead < 1:
            raise ConfigError(f"look_ahead must be at least 1 agent, got {look_ahead}")
        if prepare is None and cleanup is not None:
            raise ConfigError("cleanup takes down what prepare has made, and there is no prepare")
        self.governor = governor
        self._sandboxes: Sandboxes[Any, Any] | None = None
        if prepare is not None:
            self._sandboxes = Sandboxes(prepare, cleanup, prepared=prepared)
        self._journal_path = journal
        self._dump, self._load = dump, load
        self._keys = Keys(key, are_kept=journal is not None)
        self._raises = on_error == "raise"
        self._progress = progress
        self._look_ahead = look_ahead
        self._interrupts = Interrupts(self._interrupt, self._is_busy) if interrupts else None
        self._state: Literal["new", "open", "draining", "closed"] = "new"
        self.interrupted = False
        """Whether Ctrl-C ended the batch early."""
        self._reporting: asyncio.Task[None] | None = None
        self._streams: set[Stream] = set()
        self._runs = Runs(
            governor, timeout_s=timeout_s, sandboxes=self._sandboxes, moved=self._look
        )
        self._total: int | None = 0

    # For users

    @overload
    def submit(
        self,
        fn: Callable[..., Coroutine[Any, Any, R]],
        /,
        *args: Any,
        key: str | None = None,
        priority: int = 0,
        **kwargs: Any,
    ) -> AgentTask[R]: ...

    @overload
    def submit(
        self,
        fn: Callable[..., R],
        /,
        *args: Any,
        key: str | None = None,
        priority: int = 0,
        **kwargs: Any,
    ) -> AgentTask[R]: ...

    def submit(
        self,
        fn: Callable[..., Any],
        /,
        *args: Any,
        key: str | None = None,
        priority: int = 0,
        **kwargs: Any,
    ) -> AgentTask[Any]:
        """Starts one agent. If `fn` has a parameter `agent`, it gets the agent there.

        Args:
            fn: the agent, `async def` or plain.
            *args: its arguments.
            key: its name; None: made from the first argument, else made up. The same name again
                is numbered: `t1`, `t1#2`, ...
            priority: higher goes first.
            **kwargs: its keyword arguments.

        Raises:
            ClosedError: the pool is not open, or is draining.
            ConfigError: there is a journal and no key.
        """
        self._check_open()
        item = args[0] if len(args) == 1 and not kwargs else args
        name = self._keys.of(item) if key is None else self._keys.unique(key)
        if self._total is not None:
            self._total += 1
        run = Run(name, item, fn, args, kwargs, priority)
        return AgentTask(run, self._runs.start(run))

    @overload
    def as_completed(
        self,
        fn: Callable[..., Coroutine[Any, Any, R]],
        items: Iterable[T] | AsyncIterable[T],
    ) -> AsyncIterator[Outcome[T, R]]: ...

    @overload
    def as_completed(
        self,
        fn: Callable[..., R],
        items: Iterable[T] | AsyncIterable[T],
    ) -> AsyncIterator[Outcome[T, R]]: ...

    async def as_completed(
        self,
        fn: Callable[..., Any],
        items: Iterable[T] | AsyncIterable[T],
    ) -> AsyncIterator[Outcome[T, Any]]:
        """Runs `fn(item)` for each item and yields the outcomes as the agents end.

        Items are pulled one by one as places come free. Leaving the loop early cancels the rest.

        Raises:
            BaseException: the first error, with `on_error="raise"`; and whatever `items` raises,
                after the running agents have ended.
        """
        async with self._stream(fn, items) as outcomes:
            async for _, outcome in outcomes:
                yield outcome

    @overload
    async def map(
        self,
        fn: Callable[..., Coroutine[Any, Any, R]],
        items: Iterable[T] | AsyncIterable[T],
        *,
        return_exceptions: bool = False,
    ) -> list[R]: ...

    @overload
    async def map(
        self,
        fn: Callable[..., R],
        items: Iterable[T] | AsyncIterable[T],
        *,
        return_exceptions: bool = False,
    ) -> list[R]: ...

    async def map(
        self,
        fn: Callable[..., Any],
        items: Iterable[T] | AsyncIterable[T],
        *,
        return_exceptions: bool = False,
    ) -> list[Any]:
        """Runs `fn(item)` for each item and returns the results in the order of the items.

        An agent that fails does not stop the others: its error is raised when all have ended
        (at once, with `on_error="raise"`), or is put in the list if `return_exceptions`.
        """
        results: list[Any] = []
        for outcome in await self.in_order(fn, items):
            try:
                results.append(outcome.result())
            except (Exception, asyncio.CancelledError) as error:
                if not return_exceptions:
                    raise
                results.append(error)
        return results

    async def in_order(
        self,
        fn: Callable[..., Any],
        items: Iterable[T] | AsyncIterable[T],
    ) -> list[Outcome[T, Any]]:
        """Runs `fn(item)` for each item and returns the outcomes in the order of the items.

        Raises:
            BaseException: as `as_completed`.
        """
        async with self._stream(fn, items) as outcomes:
            ended = {index: outcome async for index, outcome in outcomes}
        return [ended[index] for index in sorted(ended)]

    async def drain(self) -> None:
        """Starts no new agents, drops the queued ones, and waits for the running ones to finish."""
        self._begin_drain()
        await self._runs.wait()

    def progress(self) -> Progress:
        """Where the pool stands."""
        return self._runs.progress(self._total)

    def __repr__(self) -> str:
        return f"<AgentPool {self._state}: {self.progress()}>"

    # Open and closed

    async def __aenter__(self) -> Self:
        if self._state != "new":
            raise ClosedError("this pool was used before: make a new AgentPool for each batch")
        if self._journal_path is not None:
            self._runs.journal = Journal(self._journal_path, dump=self._dump, load=self._load)
        self._state = "open"
        if self._progress is not False:
            reporter = default_reporter() if self._progress is True else self._progress
            self._reporting = asyncio.ensure_future(report(reporter, self.progress))
        if self._interrupts is not None:
            self._interrupts.install()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            for stream in list(self._streams):  # the caller left a loop over as_completed early
                self._streams.discard(stream)
                await stream.stop()
            if error is None:
                await self._runs.wait()
        finally:
            self._state = "closed"
            await self._runs.cancel()
            if self._sandboxes is not None:
                await self._sandboxes.close()
            if self._reporting is not None:
                self._reporting.cancel()
                with suppress(asyncio.CancelledError):
                    await self._reporting
            if self._interrupts is not None:
                self._interrupts.remove()
            self._runs.close_journal()
        if self._interrupts is not None and self._interrupts.seen > 1:
            raise KeyboardInterrupt
        if self._runs.journal_error is not None and error is None:
            raise self._runs.journal_error

    def _check_open(self) -> None:
        if self._state == "new":
            raise ClosedError("the pool is not open yet: use it inside `async with AgentPool(...)`")
        if self._state != "open":
            raise ClosedError(f"the pool is {self._state} and starts no new agents")

    def _begin_drain(self) -> None:
        if self._state == "open":
            self._state = "draining"
        for stream in self._streams:
            stream.drain()
        self._runs.request_cancel(only_queued=True)

    def _look(self) -> None:
        for stream in self._streams:
            stream.look()

    # Ctrl-C

    def _is_busy(self) -> bool:
        return bool(self._runs or self._streams)

    def _interrupt(self, number: int) -> None:
        self.interrupted = True
        if number == 1:
            logger.warning(
                "Ctrl-C: no new agents start, and the %d running agents finish; press it again to "
                "cancel them",
                self._runs.inside,
            )
            self._begin_drain()
        else:
            logger.warning("Ctrl-C again: the running agents are cancelled")
            self._begin_drain()
            self._runs.request_cancel()

    # A batch

    @asynccontextmanager
    async def _stream(
        self, fn: Callable[..., Any], items: Iterable[Any] | AsyncIterable[Any]
    ) -> AsyncIterator[AsyncIterator[tuple[int, Outcome[Any, Any]]]]:
        """The outcomes of `fn(item)` for each item, with the item's number, as the agents end."""

        def start(item: Any, index: int) -> Run:
            run = Run(self._keys.of(item), item, fn, (item,), {}, index=index)
            self._runs.start(run)
            return run

        def is_full() -> bool:
            return self._runs.queued >= self._look_ahead

        self._check_open()
        if self._total is not None:
            self._total = self._total + len(items) if isinstance(items, Sized) else None
        stream = Stream(items, start, is_full, raises=self._raises)
        self._streams.add(stream)
        try:
            async with aclosing(stream.outcomes()) as outcomes:
                yield outcomes
        finally:
            self._streams.discard(stream)
            await stream.stop()
