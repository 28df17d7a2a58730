"""AgentPool: runs an agent for each item of a batch, as many at once as the governor lets in.

    async with AgentPool(gov, journal="runs.jsonl", progress=True) as pool:
        async for outcome in pool.as_completed(solve_issue, issues):
            print(outcome.key, outcome.status)

The agents may be `async def` or plain functions; the latter run in a thread each, which they get
when they are let in and not before. One that fails concerns nobody else. Items are pulled as they
can be used, results are in the journal before anybody sees them, and Ctrl-C lets the running
finish.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import signal
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Sized,
)
from contextlib import aclosing, asynccontextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Generic, Literal, Self, TypeAlias, TypeVar, cast

from concur_agents.batch.journal import Journal
from concur_agents.batch.progress import Progress, Reporter, default_reporter
from concur_agents.errors import ClosedError, ConfigError, JournalError
from concur_agents.governor import Governor
from concur_agents.runtime.agent import Agent
from concur_agents.runtime.session import AgentStats
from concur_agents.runtime.waiter import running_loop

logger = logging.getLogger("concur_agents")

T = TypeVar("T")
R = TypeVar("R")

Status: TypeAlias = Literal["ok", "error", "cancelled", "cached"]

LOOK_AHEAD = 16
"""Agents that stand ready in the queue: enough that a place never lies idle, and that the governor
has some choice of whom to let in first."""

BACKLOG = 256
"""Outcomes that nobody has taken yet, beyond which no new agents are started."""

SHORTEST_TIMER_S = 0.05
"""How closely a running-time limit is kept while an agent stands still close to its end."""

REPORT_EVERY_S = 0.5
"""How often [s] the progress is shown."""

_NATURAL_KEYS = ("key", "id", "instance_id")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T, R]):
    """How one agent ended.

    Attributes:
        key: its name.
        item: what it was given.
        status: "ok", "error", "cancelled", or "cached": finished in an earlier run.
        value: what it returned, if "ok" or "cached".
        error: what it raised, if "error"; a `TimeoutError` if its running time was up.
        stats: its times and tokens; None: it did not run.
    """

    key: str
    item: T
    status: Status
    value: R | None = None
    error: BaseException | None = None
    stats: AgentStats | None = None

    def result(self) -> R:
        """What it returned.

        Raises:
            BaseException: what the agent raised; `asyncio.CancelledError` if it was cancelled.
        """
        if self.status == "cancelled":
            raise asyncio.CancelledError(f"agent {self.key!r} was cancelled")
        if self.error is not None:
            raise self.error
        return cast("R", self.value)


class AgentTask(Generic[R]):
    """An agent that was submitted. Await it for its result."""

    def __init__(self, run: _Run, task: asyncio.Task[Outcome[Any, R]]) -> None:
        self._run = run
        self._task = task

    @property
    def key(self) -> str:
        """Its name."""
        return self._run.key

    @property
    def status(self) -> str:
        """'queued', 'reasoning', 'acting' or 'paused'; once it has ended, that of its outcome."""
        if self._run.outcome is not None:
            return self._run.outcome.status
        return (self._run.agent and self._run.agent.state) or "queued"

    def done(self) -> bool:
        """Whether it has ended."""
        return self._task.done()

    def cancel(self) -> None:
        """Ends it. One in a thread ends at its next boundary."""
        self._task.cancel()

    async def outcome(self) -> Outcome[Any, R]:
        """Waits for its end, whatever that is."""
        await asyncio.wait([self._task])
        assert self._run.outcome is not None
        return self._run.outcome

    def __await__(self) -> Generator[Any, None, R]:
        outcome = yield from self._task.__await__()
        return outcome.result()

    def __repr__(self) -> str:
        return f"<AgentTask {self.key!r} {self.status}>"


@dataclass(slots=True, eq=False)
class _Run:
    """One agent of the pool on its way."""

    key: str
    item: Any
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    priority: int = 0
    index: int = 0
    agent: Agent | None = None
    stage: Literal["queued", "in", "over"] = "queued"
    task: asyncio.Task[Outcome[Any, Any]] | None = None
    outcome: Outcome[Any, Any] | None = None


@dataclass(slots=True, eq=False)
class _Stream:
    """One batch that is being fed and harvested."""

    ended: asyncio.Queue[tuple[_Run, Outcome[Any, Any]] | None]
    room: asyncio.Event  # it may be worth looking whether another agent could start
    runs: set[_Run]
    feed: asyncio.Task[None] | None = None


class AgentPool:
    """Runs agents under a governor; an async context manager, structured like a task group.

    On leaving the block it waits for what was submitted; if the block raises, it cancels it.

    Args:
        governor: lets them in. It stays open after the pool.
        journal: file that remembers finished agents; None: nothing is remembered.
        key: names an item; needed with a journal unless items are strings, numbers or have a
            `key`, `id` or `instance_id`.
        timeout_s: longest running time [s] of an agent; its queue and pauses do not count.
        on_error: "collect" errors as outcomes, or "raise" the first one and cancel the rest.
        progress: True: a bar (or plain lines) on stderr; or a reporter of your own.
        look_ahead: agents that may stand in the queue at once; items beyond are not even pulled.
        interrupts: the first Ctrl-C drains (starts nobody new, lets the running finish), the
            second cancels. Only in the main thread.
        dump: turns a result into what JSON can hold, for the journal.
        load: the way back.

    Raises:
        ConfigError: an option is out of its range.
        JournalError: the journal is not one, is broken, or is in use.
    """

    def __init__(
        self,
        governor: Governor,
        *,
        journal: str | Path | None = None,
        key: Callable[[Any], str] | None = None,
        timeout_s: float | None = None,
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
        self.governor = governor
        self._journal_path = journal
        self._dump, self._load = dump, load
        self._key = key
        self._timeout_s = timeout_s
        self._raises = on_error == "raise"
        self._progress = progress
        self._look_ahead = look_ahead
        self._interrupts = interrupts
        self._journal: Journal | None = None
        self._journal_error: JournalError | None = None
        self._state: Literal["new", "open", "draining", "closed"] = "new"
        self.interrupted = False
        """Whether Ctrl-C ended the batch early."""
        self._interrupts_seen = 0
        self._old_handler: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reporting: asyncio.Task[None] | None = None
        self._runs: set[_Run] = set()
        self._streams: set[_Stream] = set()
        self._made_up = 0
        self._queued = 0
        self._counts: dict[Status, int] = {"ok": 0, "error": 0, "cancelled": 0, "cached": 0}
        self._total: int | None = 0

    # What users call

    def submit(
        self,
        fn: Callable[..., Coroutine[Any, Any, R]] | Callable[..., R],
        /,
        *args: Any,
        key: str | None = None,
        priority: int = 0,
        **kwargs: Any,
    ) -> AgentTask[R]:
        """Starts one agent. If `fn` has a parameter `agent`, it is handed the agent.

        Args:
            fn: the agent, `async def` or plain.
            *args: what it is given.
            key: its name; None: made from the first argument, else made up.
            priority: higher goes first.
            **kwargs: what else it is given.

        Raises:
            ClosedError: the pool is not open, or drains.
            ConfigError: with a journal: there is no key.
        """
        self._check_open()
        item = args[0] if len(args) == 1 and not kwargs else args
        name = key if key is not None else self._name(item)
        if self._total is not None:
            self._total += 1
        run = _Run(name, item, fn, args, kwargs, priority)
        return AgentTask(run, self._start(run))

    async def as_completed(
        self,
        fn: Callable[..., Coroutine[Any, Any, R]] | Callable[..., R],
        items: Iterable[T] | AsyncIterable[T],
    ) -> AsyncIterator[Outcome[T, R]]:
        """Runs `fn(item)` for each item and yields how each ended, as they end.

        Items are pulled one by one as places come free. Leaving the loop early cancels the rest.

        Raises:
            BaseException: with `on_error="raise"` the first error; and whatever `items` raises,
                after those that are running have ended.
        """
        async with aclosing(self._harvest(fn, items)) as harvest:
            async for _, outcome in harvest:
                yield outcome

    async def map(
        self,
        fn: Callable[..., Coroutine[Any, Any, R]] | Callable[..., R],
        items: Iterable[T] | AsyncIterable[T],
        *,
        return_exceptions: bool = False,
    ) -> list[R]:
        """Runs `fn(item)` for each item and returns the results in the order of the items.

        An agent that fails does not stop the others: its error is raised when all have ended
        (with `on_error="raise"`: at once), or stands in the list if `return_exceptions`.
        """
        results: list[Any] = []
        for outcome in await self._in_order(fn, items):
            try:
                results.append(outcome.result())
            except (Exception, asyncio.CancelledError) as error:
                if not return_exceptions:
                    raise
                results.append(error)
        return results

    async def drain(self) -> None:
        """Starts nobody new, drops those in the queue, and waits for the running to finish."""
        self._begin_drain()
        await self._wait()

    def progress(self) -> Progress:
        """Where the pool stands."""
        inside = [run.agent for run in self._runs if run.stage == "in" and run.agent is not None]
        paused = sum(agent.state == "paused" for agent in inside)
        return Progress(
            total=self._total,
            ok=self._counts["ok"],
            errors=self._counts["error"],
            cancelled=self._counts["cancelled"],
            cached=self._counts["cached"],
            running=len(inside) - paused,
            paused=paused,
            queued=self._queued,
        )

    def __repr__(self) -> str:
        return f"<AgentPool {self._state}: {self.progress()}>"

    # Its life

    async def __aenter__(self) -> Self:
        if self._state != "new":
            raise ClosedError("this pool was used before: make a new AgentPool for each batch")
        if self._journal_path is not None:
            self._journal = Journal(self._journal_path, dump=self._dump, load=self._load)
        self._state = "open"
        self._loop = asyncio.get_running_loop()
        if self._progress is not False:
            reporter = default_reporter() if self._progress is True else self._progress
            self._reporting = asyncio.ensure_future(self._report(reporter))
        self._mind_ctrl_c()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            for stream in list(self._streams):  # a loop over as_completed was left early
                await self._stop(stream)
            if error is None:
                await self._wait()
        finally:
            self._state = "closed"
            await _cancel(self._runs)
            if self._reporting is not None:
                self._reporting.cancel()
                with suppress(asyncio.CancelledError):
                    await self._reporting
            self._forget_ctrl_c()
            if self._journal is not None:
                try:
                    self._journal.close()
                except JournalError as trouble:
                    self._journal_error = self._journal_error or trouble
        if self._interrupts_seen > 1:
            raise KeyboardInterrupt
        if self._journal_error is not None and error is None:
            raise self._journal_error

    def _check_open(self) -> None:
        if self._state == "new":
            raise ClosedError("the pool is not open yet: use it inside `async with AgentPool(...)`")
        if self._state != "open":
            raise ClosedError(f"the pool is {self._state} and starts nobody new")

    def _begin_drain(self) -> None:
        if self._state == "open":
            self._state = "draining"
        for stream in self._streams:
            if stream.feed is not None:
                stream.feed.cancel()
        for run in self._runs:
            if run.stage == "queued" and run.task is not None:
                run.task.cancel()

    async def _wait(self) -> None:
        while self._runs:
            await asyncio.wait([run.task for run in self._runs if run.task is not None])

    async def _report(self, reporter: Reporter) -> None:
        try:
            try:
                while True:
                    reporter.update(self.progress())
                    await asyncio.sleep(REPORT_EVERY_S)
            finally:
                reporter.update(self.progress())
                reporter.close()
        except Exception:  # a reporter may be the user's own
            logger.exception("the progress is not shown any more, since its reporter failed")

    # Ctrl-C

    def _mind_ctrl_c(self) -> None:
        if self._interrupts and threading.current_thread() is threading.main_thread():
            self._old_handler = signal.signal(signal.SIGINT, self._on_ctrl_c)

    def _forget_ctrl_c(self) -> None:
        # None: the handler was not installed from Python, and cannot be put back from there
        if self._old_handler is not None:
            signal.signal(signal.SIGINT, self._old_handler)
            self._old_handler = None

    def _on_ctrl_c(self, number: int, frame: FrameType | None) -> None:
        """In the main thread, between any two of its instructions."""
        self._interrupts_seen += 1
        if self._interrupts_seen > 2 or not (self._runs or self._streams):
            if callable(self._old_handler):
                self._old_handler(number, frame)
        elif self._loop is not None:
            self._loop.call_soon_threadsafe(self._interrupt)

    def _interrupt(self) -> None:
        self.interrupted = True
        if self._interrupts_seen == 1:
            running = sum(run.stage == "in" for run in self._runs)
            logger.warning(
                "Ctrl-C: no new agents start, and the %d that run are finished; press it again to "
                "cancel them",
                running,
            )
            self._begin_drain()
        else:
            logger.warning("Ctrl-C again: the running agents are cancelled")
            self._begin_drain()
            for run in self._runs:
                if run.task is not None:
                    run.task.cancel()

    # A batch

    async def _harvest(
        self, fn: Callable[..., Any], items: Iterable[Any] | AsyncIterable[Any]
    ) -> AsyncGenerator[tuple[_Run, Outcome[Any, Any]]]:
        self._check_open()
        if self._total is not None:
            self._total = self._total + len(items) if isinstance(items, Sized) else None
        stream = _Stream(asyncio.Queue(), asyncio.Event(), set())
        feed = stream.feed = asyncio.ensure_future(self._feed(fn, items, stream))
        feed.add_done_callback(lambda _: stream.ended.put_nowait(None))
        self._streams.add(stream)
        try:
            while stream.runs or not feed.done() or not stream.ended.empty():
                ended = await stream.ended.get()
                stream.room.set()
                if ended is None:
                    continue
                if self._raises and ended[1].error is not None:
                    raise ended[1].error
                yield ended
            if not feed.cancelled() and (error := feed.exception()) is not None:
                raise error
        finally:
            await self._stop(stream)

    async def _in_order(
        self, fn: Callable[..., Any], items: Iterable[Any] | AsyncIterable[Any]
    ) -> list[Outcome[Any, Any]]:
        ended: dict[int, Outcome[Any, Any]] = {}
        async with aclosing(self._harvest(fn, items)) as harvest:
            async for run, outcome in harvest:
                ended[run.index] = outcome
        return [ended[index] for index in sorted(ended)]

    async def _feed(
        self, fn: Callable[..., Any], items: Iterable[Any] | AsyncIterable[Any], stream: _Stream
    ) -> None:
        """Starts an agent per item, and pulls the next item only when it could be of use."""

        def end(run: _Run, _: object) -> None:
            stream.runs.discard(run)
            assert run.outcome is not None
            stream.ended.put_nowait((run, run.outcome))

        index = 0
        async with aclosing(_each(items)) as source:
            async for item in source:
                run = _Run(self._name(item), item, fn, (item,), {}, index=index)
                index += 1
                stream.runs.add(run)
                self._start(run).add_done_callback(partial(end, run))
                await asyncio.sleep(0)  # it takes its place now, or joins the queue
                while self._queued >= self._look_ahead or stream.ended.qsize() >= BACKLOG:
                    stream.room.clear()
                    await stream.room.wait()

    async def _stop(self, stream: _Stream) -> None:
        self._streams.discard(stream)
        if stream.feed is not None:
            stream.feed.cancel()
            await asyncio.wait([stream.feed])
        await _cancel(stream.runs)

    def _name(self, item: Any) -> str:
        if self._key is not None:
            name: object = self._key(item)
            if not isinstance(name, str):
                raise ConfigError(f"key must return a string, got {name!r} for {item!r:.100}")
            return name
        if isinstance(item, str | int) and not isinstance(item, bool):
            return str(item)
        for attribute in _NATURAL_KEYS:
            value = (
                item.get(attribute) if isinstance(item, dict) else getattr(item, attribute, None)
            )
            if isinstance(value, str | int) and not isinstance(value, bool):
                return str(value)
        if self._journal is not None:
            raise ConfigError(
                f"the journal needs a name for {item!r:.100}, to know it again next time: give "
                "AgentPool a key, such as key=lambda item: item.url"
            )
        self._made_up += 1
        return f"agent-{self._made_up}"

    # One agent

    def _start(self, run: _Run) -> asyncio.Task[Outcome[Any, Any]]:
        self._runs.add(run)
        self._queued += 1
        task = run.task = asyncio.ensure_future(self._live(run))
        task.add_done_callback(partial(self._end, run))
        return task

    def _end(self, run: _Run, task: asyncio.Task[Outcome[Any, Any]]) -> None:
        self._runs.discard(run)
        if run.outcome is None:  # cancelled before its first line
            self._conclude(run, "cancelled")

    async def _live(self, run: _Run) -> Outcome[Any, Any]:
        """From the queue to the journal. Raises nothing that an agent could raise."""
        try:
            if self._journal is not None and run.key in self._journal:
                return self._conclude(run, "cached", value=self._journal.value(run.key))
            value = await self._run(run)
        except asyncio.CancelledError:
            return self._conclude(run, "cancelled")
        except Exception as error:
            return self._conclude(run, "error", error=error)
        else:
            return self._conclude(run, "ok", value=value)

    async def _run(self, run: _Run) -> Any:
        agent = run.agent = self.governor.agent(run.key, priority=run.priority)
        call = _call_of(run, agent)
        await agent.open()
        thread: _Thread | None = None
        try:
            self._move(run, "in")
            with agent.active():
                async with _running_time(agent, self._timeout_s):
                    if _is_async(run.fn):
                        return await call()
                    thread = _Thread(agent, call)
                    value = await thread.result()
                    return await value if inspect.isawaitable(value) else value
        finally:
            if thread is None or not thread.abandoned:
                agent.close()

    def _move(self, run: _Run, stage: Literal["in", "over"]) -> None:
        if run.stage == "queued":
            self._queued -= 1
        run.stage = stage
        for stream in self._streams:
            stream.room.set()

    def _conclude(
        self,
        run: _Run,
        status: Status,
        *,
        value: Any = None,
        error: BaseException | None = None,
    ) -> Outcome[Any, Any]:
        self._move(run, "over")
        self._counts[status] += 1
        stats = None if run.agent is None else run.agent.stats
        if self._journal is not None and status in ("ok", "error"):
            try:
                self._journal.write(run.key, status, value=value, error=error, stats=stats)
            except JournalError as trouble:
                if self._journal_error is None:
                    self._journal_error = trouble
                    logger.error("%s; the batch goes on, and its results are not kept", trouble)
        run.outcome = Outcome(run.key, run.item, status, value, error, stats)
        return run.outcome


def run_agents(
    fn: Callable[..., Coroutine[Any, Any, R]] | Callable[..., R],
    items: Iterable[T],
    *,
    governor: Governor | None = None,
    url: str | None = None,
    limit: float | None = None,
    **options: Any,
) -> list[Outcome[T, R]]:
    """Runs `fn(item)` for each item under a governor, from synchronous code.

        outcomes = run_agents(solve, issues, url="http://localhost:8000", journal="runs.jsonl")

    Args:
        fn: the agent, `async def` or plain.
        items: what to give them, one each.
        governor: an existing one; None: one is made from `url` or `limit` and closed at the end.
        url: see `Governor`.
        limit: see `Governor`.
        **options: those of `AgentPool`.

    Returns:
        How each ended, in the order of the items. After Ctrl-C: of those that were started.

    Raises:
        ConfigError: an event loop runs in this thread; or options contradict each other.
    """
    if running_loop() is not None:
        raise ConfigError(
            "run_agents starts an event loop of its own and one runs here already: use "
            "`async with AgentPool(...)` instead"
        )
    if governor is not None and (url is not None or limit is not None):
        raise ConfigError("give a governor, or the url or limit to make one from, but not both")

    async def main(governor: Governor) -> list[Outcome[T, R]]:
        async with AgentPool(governor, **options) as pool:
            return await pool._in_order(fn, items)

    if governor is not None:
        return asyncio.run(main(governor))
    with Governor(url, limit=limit) as made:
        return asyncio.run(main(made))


class _Thread:
    """An agent's function in a thread of its own, with the context it would have had here."""

    def __init__(self, agent: Agent, call: Callable[[], Any]) -> None:
        self._agent = agent
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[Any] = self._loop.create_future()
        self._lock = threading.Lock()
        self._over = False
        self.abandoned = False
        """Nobody waits for it any more: it ends at its next boundary, and leaves by itself."""
        # A daemon, so that an abandoned one cannot hold up the exit of the interpreter.
        threading.Thread(
            target=copy_context().run, args=(self._run,), name=f"agent {agent.id}", daemon=True
        ).start()

    async def result(self) -> Any:
        """What the function returned or raised. Cancelled: expels the agent and goes."""
        try:
            return await self._future
        except asyncio.CancelledError:
            with self._lock:
                self.abandoned = not self._over
            if self.abandoned:
                self._agent.expel()
            raise

    def _run(self) -> None:
        value: Any = None
        error: BaseException | None = None
        try:
            value = self._call()
        except BaseException as caught:
            error = caught
        with self._lock:
            self._over = True
            abandoned = self.abandoned
        if abandoned:
            self._agent.close()
            return
        with suppress(RuntimeError):  # the loop is closed: nobody is there to be told
            self._loop.call_soon_threadsafe(self._finish, value, error)

    def _finish(self, value: Any, error: BaseException | None) -> None:
        if self._future.done():
            return
        if error is None:
            self._future.set_result(value)
        elif isinstance(error, Exception | asyncio.CancelledError):
            self._future.set_exception(error)
        else:  # SystemExit and the like would end the loop and everybody else's agents with it
            self._future.set_exception(RuntimeError(f"the agent's thread raised {error!r}"))


@asynccontextmanager
async def _running_time(agent: Agent, limit_s: float | None) -> AsyncIterator[None]:
    """Ends the block when the agent has run for so long; its queue and pauses do not count."""
    if limit_s is None:
        yield
        return
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None
    scope = asyncio.timeout(None)

    def check() -> None:
        nonlocal timer
        left_s = limit_s - agent.stats.running_s
        if left_s <= 0:
            scope.reschedule(loop.time())
        else:  # if it stands still meanwhile, there will be as much left then
            timer = loop.call_later(max(left_s, SHORTEST_TIMER_S), check)

    try:
        async with scope:
            check()
            yield
    except TimeoutError as error:
        if not scope.expired():
            raise  # the agent's own
        raise TimeoutError(
            f"agent {agent.id!r} ran for more than {limit_s:g} s (queue and pauses not counted)"
        ) from error
    finally:
        if timer is not None:
            timer.cancel()


async def _cancel(runs: Iterable[_Run]) -> None:
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


def _call_of(run: _Run, agent: Agent) -> Callable[[], Any]:
    kwargs = run.kwargs
    if _wants_agent(run):
        kwargs = {**kwargs, "agent": agent}
    return partial(run.fn, *run.args, **kwargs)


def _wants_agent(run: _Run) -> bool:
    """Whether the function has a parameter `agent` that the caller has left free."""
    try:
        signature = inspect.signature(run.fn)
        taken = signature.bind_partial(*run.args, **run.kwargs).arguments
    except (TypeError, ValueError):  # a builtin without signature; or a wrong call, which will say
        return False
    return "agent" in signature.parameters and "agent" not in taken


def _is_async(fn: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(
        getattr(fn, "__call__", None)  # noqa: B004  (an object with an async __call__)
    )
