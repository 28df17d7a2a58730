"""A drop-in for `ThreadPoolExecutor` in which each task is an agent.

    with gov.executor() as pool:                       # was: with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(solve, issue) for issue in issues]

A task gets its thread when the governor lets its agent in, so queued tasks hold no threads.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextvars import Context, copy_context
from typing import Any, ParamSpec, TypeVar

from concur_agents.errors import ClosedError, ConfigError
from concur_agents.runtime.agent import Agent
from concur_agents.runtime.host import Host

P = ParamSpec("P")
R = TypeVar("R")


class GovernedExecutor(Executor):
    """Runs each submitted task as an agent. Made by `Governor.executor`.

    Args:
        governor: lets the agents in.
        max_workers: at most this many threads, whatever the governor allows; None: no bound.

    Raises:
        ConfigError: `max_workers` is out of its range.
    """

    def __init__(self, governor: Host, max_workers: int | None = None) -> None:
        if max_workers is not None and max_workers < 1:
            raise ConfigError(f"max_workers must be at least 1 thread, got {max_workers}")
        self._governor = governor
        self._max_workers = max_workers
        self._changed = threading.Condition(threading.RLock())
        self._backlog: deque[_Task] = deque()  # beyond max_workers: not arrived yet
        self._tasks: set[_Task] = set()  # arrived and not over
        self._shut = False
        self._here = _Here()

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Queues `fn(*args, **kwargs)` as an agent; it runs in a copy of this context.

        Raises:
            ClosedError: the executor has been shut down.
        """
        task = _Task(self, lambda: fn(*args, **kwargs))
        with self._changed:
            if self._shut:
                raise ClosedError("this executor has been shut down and takes no new tasks")
            if self._max_workers is not None and len(self._tasks) >= self._max_workers:
                self._backlog.append(task)
                return task.future
            self._tasks.add(task)
        task.arrive(self._governor)
        return task.future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes no new tasks; otherwise as `ThreadPoolExecutor.shutdown`."""
        with self._changed:
            self._shut = True
            unwanted = [*self._backlog, *self._tasks] if cancel_futures else []
        for task in unwanted:
            task.future.cancel()
        if wait:
            with self._changed:
                self._changed.wait_for(lambda: not self._tasks and not self._backlog)

    # For its tasks

    def start(self, task: _Task) -> None:
        """A task has been let in: it gets the thread that has just become free, or a new one."""
        if self._here.is_ending and self._here.following is None:
            self._here.following = task
            return
        try:
            threading.Thread(target=self._work, args=(task,), name="concur-task").start()
        except RuntimeError as error:  # no more threads
            task.fail(error)

    def over(self, task: _Task) -> None:
        """A task has ended or was cancelled; the next of the backlog arrives."""
        following = None
        with self._changed:
            self._tasks.discard(task)
            while self._backlog and len(self._tasks) < (self._max_workers or 0):
                candidate = self._backlog.popleft()
                if not candidate.future.cancelled():
                    following = candidate
                    self._tasks.add(following)
                    break
            self._changed.notify_all()
        if following is not None:
            following.arrive(self._governor)

    def claim(self, task: _Task) -> bool:
        """Whether a task may run: its thread or a cancelling one asks, and the first gets a yes."""
        with self._changed:
            if task.is_claimed:
                return False
            task.is_claimed = True
        return task.future.set_running_or_notify_cancel()

    def _work(self, first: _Task) -> None:
        """The body of a thread: runs tasks for as long as the end of one lets another one in."""
        here = self._here
        task: _Task | None = first
        while task is not None:
            finish = task.run()
            here.is_ending = True
            finish()
            here.is_ending = False
            task = here.take()


class _Here(threading.local):
    """The state of one thread of the executor."""

    is_ending = False  # its task is over and is leaving its place
    following: _Task | None = None

    def take(self) -> _Task | None:
        """The task that it runs next; None: no task."""
        task, self.following = self.following, None
        return task


class _Task:
    """One submitted call."""

    def __init__(self, executor: GovernedExecutor, call: Callable[[], Any]) -> None:
        self._executor = executor
        self._call = call
        self._context: Context = copy_context()
        self._agent: Agent | None = None
        self.is_claimed = False
        self.future: Future[Any] = _Cancellable(self)

    def arrive(self, governor: Host) -> None:
        """Joins the queue; the task starts when the governor lets its agent in."""
        agent = self._agent = self._context.run(governor.agent)
        try:
            is_in = agent.arrive(lambda: self._executor.start(self))
        except BaseException as error:
            self.fail(error)
            return
        if is_in:
            self._executor.start(self)

    def run(self) -> Callable[[], None]:
        """Does the work; returns the function to call once the thread can take another task."""
        if not self._executor.claim(self):
            return self.withdraw
        result, error = None, None
        try:
            result = self._context.run(self._run_as_agent)
        except BaseException as caught:
            error = caught

        def finish() -> None:
            self._leave()
            if error is None:
                self.future.set_result(result)
            else:
                self.future.set_exception(error)
            self._executor.over(self)

        return finish

    def withdraw(self) -> None:
        """The task was cancelled before it began."""
        self._executor.claim(self)
        self._leave()
        self._executor.over(self)

    def fail(self, error: BaseException) -> None:
        """The task could not begin."""
        self._leave()
        if self._executor.claim(self):
            self.future.set_exception(error)
        self._executor.over(self)

    def _run_as_agent(self) -> Any:
        assert self._agent is not None
        with self._agent.active():
            return self._call()

    def _leave(self) -> None:
        if self._agent is not None:
            self._agent.close()


class _Cancellable(Future[Any]):
    """A future that takes its agent out of the queue when it is cancelled."""

    def __init__(self, task: _Task) -> None:
        super().__init__()
        self._task = task

    def cancel(self) -> bool:
        """As `Future.cancel`."""
        was_cancelled = self.cancelled()
        is_cancelled = super().cancel()
        if is_cancelled and not was_cancelled:
            self._task.withdraw()
        return is_cancelled
