"""A drop-in for `ThreadPoolExecutor` in which each task is an agent.

    with gov.executor() as pool:                       # was: with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(solve, issue) for issue in issues]

A task gets its thread when the governor lets its agent in, so queued tasks hold no threads. The
threads are those of a `ThreadPoolExecutor`: this file decides when a task goes to them.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from typing import Any, ParamSpec, TypeVar

from concur_agents._outside import finishing, is_from_outside
from concur_agents.errors import ClosedError, ConfigError
from concur_agents.runtime.agent import Agent
from concur_agents.runtime.host import Host
from concur_agents.runtime.waiter import ThreadWaiter

P = ParamSpec("P")
R = TypeVar("R")

_UNBOUNDED = 1_000_000
"""Threads: `ThreadPoolExecutor` wants a number, and the governor is the bound."""


class GovernedExecutor(ThreadPoolExecutor):
    """Runs each submitted task as an agent. Made by `Governor.executor`.

    Args:
        governor: lets the agents in.
        max_workers: at most this many threads, whatever the governor allows; None: no bound.
        thread_name_prefix: as for `ThreadPoolExecutor`.
        initializer: called in each thread at its start. If it raises, the executor is broken.
        initargs: its arguments.

    Raises:
        ConfigError: `max_workers` is out of its range.
        TypeError: `initializer` cannot be called.
    """

    def __init__(
        self,
        governor: Host,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        if max_workers is not None and max_workers < 1:
            raise ConfigError(
                f"max_workers must be greater than 0: at least 1 thread, got {max_workers}"
            )
        super().__init__(max_workers or _UNBOUNDED, thread_name_prefix, initializer, initargs)
        self._governor = governor
        self._most_tasks = max_workers
        # No Condition: an exception of a signal handler can leave one locked for good.
        self._lock = threading.RLock()
        self._idle_waiters: deque[ThreadWaiter] = deque()  # those who wait until no task is left
        self._backlog: deque[_Task] = deque()  # beyond max_workers: not arrived yet
        self._tasks: set[_Task] = set()  # arrived and not over
        self._ready: deque[_Task] = deque()  # let in, and not in a thread yet
        self._working = 0  # threads that look into `_ready` again
        self._shut = False
        self._broken_by: BrokenExecutor | None = None
        self._here = _Here()
        _executors.add(self)

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Queues `fn(*args, **kwargs)` as an agent; it runs in a copy of this context.

        Raises:
            ClosedError: the executor has been shut down, or the interpreter ends. A RuntimeError.
            BrokenExecutor: the initializer has failed.
        """
        task = _Task(self, lambda: fn(*args, **kwargs))
        try:
            self._submit(task)
        except BaseException as error:  # refused; or an exception from outside
            if task.fail(error):
                self.over(task)
            raise
        return task.future

    def _submit(self, task: _Task) -> None:
        with self._lock:
            if self._broken_by is not None:
                raise self._broken_by
            if self._shut or _exit.has_begun:
                what = "this executor has been shut down" if self._shut else "the interpreter ends"
                raise ClosedError(f"{what}: cannot schedule new futures after shutdown")
            if self._most_tasks is not None and len(self._tasks) >= self._most_tasks:
                self._backlog.append(task)
                return
            self._tasks.add(task)
        self._launch(task)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes no new tasks; otherwise as `ThreadPoolExecutor.shutdown`."""
        with self._lock:
            self._shut = True
            unwanted = [*self._backlog, *self._tasks] if cancel_futures else []
            is_over = not self._tasks and not self._backlog
        for task in unwanted:
            task.future.cancel()
        if wait:
            self.wait_for_tasks()
        if wait or is_over:  # else the last task does it: the others still need threads
            super().shutdown(wait=wait)

    # For its tasks, and for the end of the interpreter

    def wait_for_tasks(self) -> None:
        """Returns when no task runs or waits."""
        while True:
            with self._lock:
                if not self._tasks and not self._backlog:
                    return
                waiter = ThreadWaiter()
                self._idle_waiters.append(waiter)
            waiter.wait()

    def let_in(self, task: _Task) -> None:
        """A task that had to wait has been let in."""
        let_in = self._here.let_in
        let_in.append(task)
        if len(let_in) > 1:  # a task that fails lets in the next one: one by one, and not nested
            return
        self._start_all(let_in)

    @finishing
    def _start_all(self, let_in: deque[_Task]) -> None:
        while let_in:
            if not self.start(let_in[0]):
                self.over(let_in[0])
            let_in.popleft()

    def start(self, task: _Task) -> bool:
        """A task has its place and gets a thread; False: there is none, and the task has failed."""
        with self._lock:
            error: RuntimeError | None = self._broken_by
            if error is None and not task.is_ready:  # or an exception from outside cut this off
                task.is_ready = True
                self._ready.append(task)
        here = self._here
        if error is None and here.is_ending and not here.has_more:
            here.has_more = True  # because this thread is just becoming free
            return True
        if error is None:
            try:
                super().submit(self._work).add_done_callback(self._check)
            except RuntimeError as caught:  # no more threads; broken; the interpreter ends
                error = caught
            else:
                return True
            with self._lock:
                if task not in self._ready or (
                    self._working and not isinstance(error, BrokenExecutor)
                ):
                    return True  # a thread that works already takes it
                self._ready.remove(task)
        task.fail(error)
        return False

    def over(self, task: _Task) -> None:
        """A task has ended or was cancelled; the next of the backlog arrives."""
        following = self._next_after(task)
        if following is not None:
            self._launch(following)

    def claim(self, task: _Task) -> bool:
        """Whether a task may run: its thread or a cancelling one asks, and the first gets a yes."""
        with self._lock:
            if task.is_claimed:
                return False
            task.is_claimed = True
        return task.future.set_running_or_notify_cancel()

    # Inside

    def _launch(self, task: _Task) -> None:
        """A task arrives; if it fails at that, so does the next one, and so on."""
        following: _Task | None = task
        try:
            while following is not None and not following.arrive(self._governor):
                following = self._next_after(following)
        except BaseException as error:  # from outside
            if following is not None and following.fail(error):
                self.over(following)
            raise

    def _next_after(self, task: _Task) -> _Task | None:
        following = None
        with self._lock:
            self._tasks.discard(task)
            while self._backlog and len(self._tasks) < (self._most_tasks or 0):
                candidate = self._backlog.popleft()
                if not candidate.future.cancelled():
                    following = candidate
                    self._tasks.add(following)
                    break
            is_over = not self._tasks and not self._backlog
            frees_threads = self._shut and is_over and self._broken_by is None
            while is_over and self._idle_waiters:
                self._idle_waiters.popleft().wake()
        if frees_threads:
            super().shutdown(wait=False)
        return following

    def _work(self) -> None:
        """Runs in a thread: the tasks that are ready, and those that their ends let in."""
        with self._lock:
            self._working += 1
        while True:
            with self._lock:
                if not self._ready:
                    self._working -= 1
                    return
                task = self._ready.popleft()
            self._run(task)
            del task  # because the thread may wait before it has another one

    def _run(self, task: _Task) -> None:
        finish = task.run()
        here = self._here
        here.is_ending, here.has_more = True, False
        try:
            finish()
        finally:
            here.is_ending = False
            del finish, task  # a traceback holds this frame too, as the caller of its own

    def _check(self, work: Future[None]) -> None:
        """If the initializer has failed, every task that has not begun fails with it."""
        error = None if work.cancelled() else work.exception()
        if not isinstance(error, BrokenExecutor):
            return
        with self._lock:
            self._broken_by = error
            waiting = [*self._backlog, *self._tasks]
            self._backlog.clear()
            self._ready.clear()
        for task in waiting:
            if not task.is_claimed:
                task.fail(error)
                self._next_after(task)


class _Here(threading.local):
    """The state of one thread of the executor."""

    is_ending = False  # its task is over and is leaving its place
    has_more = False  # a task has become ready meanwhile, and waits for this thread

    def __init__(self) -> None:
        self.let_in: deque[_Task] = deque()  # by what this thread does just now


class _Task:
    """One submitted call."""

    def __init__(self, executor: GovernedExecutor, call: Callable[[], Any]) -> None:
        self._executor = executor
        self._call: Callable[[], Any] | None = call
        self._context: Context | None = copy_context()
        self._agent: Agent | None = None
        self.is_ready = False
        self.is_claimed = False
        self.future: _Cancellable = _Cancellable(self)

    def arrive(self, governor: Host) -> bool:
        """Joins the queue; it starts when the governor lets its agent in. False: it has failed."""
        executor, context = self._executor, self._context
        if context is None:
            return False  # cancelled meanwhile
        agent = self._agent = context.run(governor.agent)
        try:
            is_in = agent.arrive(lambda: executor.let_in(self))
        except BaseException as error:
            if is_from_outside(error):
                raise
            self.fail(error)
            return False
        if self._context is None:  # cancelled before it had an agent to withdraw
            agent.close()
            return False
        return not is_in or executor.start(self)

    def run(self) -> Callable[[], None]:
        """Does the work; returns the function to call once the thread can take another task."""
        context, agent, call = self._context, self._agent, self._call
        if context is None or agent is None or call is None or not self._executor.claim(self):
            return self.withdraw
        try:
            return partial(self._end, self.future.set_result, context.run(_run_as, agent, call))
        except BaseException as error:
            return partial(self._end, self.future.set_exception, error)
        finally:
            del self, call  # the error's traceback holds this frame: it must not hold the error

    def withdraw(self) -> None:
        """The task was cancelled before it began."""
        self._executor.claim(self)
        self._leave()
        self._executor.over(self)

    def fail(self, error: BaseException) -> bool:
        """The task could not begin; False: it has begun, or was cancelled."""
        future = self.future
        if not self._executor.claim(self):
            return False
        self._leave()
        future.set_exception(error)
        return True

    def _end(self, settle: Callable[[Any], None], what: Any) -> None:
        self._leave()
        settle(what)
        self._executor.over(self)

    def _leave(self) -> None:
        """Gives the place back, and keeps nothing: the caller may keep the future for long."""
        self._call = self._context = None
        self.future.release()
        if self._agent is not None:
            self._agent.close()


def _run_as(agent: Agent, call: Callable[[], Any]) -> Any:
    with agent.active():
        return call()


class _Cancellable(Future[Any]):
    """A future that takes its agent out of the queue when it is cancelled."""

    def __init__(self, task: _Task) -> None:
        super().__init__()
        self._task: _Task | None = task

    def cancel(self) -> bool:
        """As `Future.cancel`."""
        task, was_cancelled = self._task, self.cancelled()
        is_cancelled = super().cancel()
        if is_cancelled and not was_cancelled and task is not None:
            task.withdraw()
        return is_cancelled

    def release(self) -> None:
        """Its task is over."""
        self._task = None


# The end of the interpreter


class _Exit:
    has_begun = False


_exit = _Exit()
_executors: weakref.WeakSet[GovernedExecutor] = weakref.WeakSet()


def _at_exit() -> None:
    """As with `ThreadPoolExecutor`: no new tasks, and those that were submitted are done."""
    _exit.has_begun = True
    for executor in list(_executors):
        executor.wait_for_tasks()


# Not promised by Python, and what `concurrent.futures` uses itself: `atexit` comes too late, when
# the threads are gone. Registered after it, this runs before its threads are asked to end.
_register: Any = getattr(threading, "_register_atexit", None)
if _register is not None:
    with suppress(RuntimeError):  # the interpreter ends already
        _register(_at_exit)
