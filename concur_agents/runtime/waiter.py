"""How a caller waits for its ticket, and how any thread wakes it.

There is one waiter per wait. It belongs to one event loop or to one thread; the governor that
wakes it belongs to none. This is why a governor can serve several loops and threads at once.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import contextlib
import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol

from concur_agents._outside import is_from_handler
from concur_agents.errors import GateError

_LONGEST_S = threading.TIMEOUT_MAX


class Waiter(Protocol):
    """A sleeper that wakes when its ticket is granted."""

    def wake(self) -> bool:
        """Ends the wait; from any thread, never blocks. False: there is none left to wake."""
        ...


class LoopWaiter:
    """A coroutine that waits on its own event loop. To be made on that loop's thread."""

    __slots__ = ("_future", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._future: asyncio.Future[None] = loop.create_future()

    async def wait(self) -> None:
        """Returns when woken; raises `CancelledError` as any await does."""
        await self._future

    def wake(self) -> bool:
        """Ends the wait; from any thread, never blocks. False: the loop is closed."""
        if running_loop() is self._loop:
            self._finish()
            return True
        try:
            self._loop.call_soon_threadsafe(self._finish)
        except RuntimeError as error:  # closed: the coroutine will never run again
            if is_from_handler(error):
                raise
            return False
        return True

    def _finish(self) -> None:
        if not self._future.done():
            self._future.set_result(None)


class ThreadWaiter:
    """A thread that sleeps. Ctrl-C gets through to the main thread while it does.

    A bare lock, because an exception of a signal handler inside of `threading.Event.set` can leave
    the event locked for good.
    """

    __slots__ = ("_asleep",)

    def __init__(self) -> None:
        self._asleep = threading.Lock()
        self._asleep.acquire()

    def wait(self, most_s: float | None = None) -> bool:
        """Returns True when woken, False after `most_s` [s]; None: no bound."""
        return self._asleep.acquire(timeout=-1 if most_s is None else min(most_s, _LONGEST_S))

    def wake(self) -> bool:
        """Ends the wait; from any thread, never blocks."""
        try:
            self._asleep.release()
        except RuntimeError as error:  # awake already
            if is_from_handler(error):
                raise
        return True


class CallWaiter:
    """No sleeper: a function is called. It must neither block nor raise."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call

    def wake(self) -> bool:
        """Makes the call."""
        self._call()
        return True


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs in this thread right now, if any."""
    # Not `get_running_loop`, because to raise and to catch costs as much as a decision.
    return asyncio._get_running_loop()


def asyncio_loop() -> asyncio.AbstractEventLoop:
    """The asyncio loop that runs here.

    Raises:
        GateError: none does.
    """
    loop = running_loop()
    if loop is None:
        raise GateError(
            f"`async with` needs asyncio, and {foreign_loop() or 'no event loop'} runs here: run "
            "the agent with plain `with` in a thread, as with `trio.to_thread.run_sync`"
        )
    return loop


def foreign_loop() -> str | None:
    """The library of an event loop other than asyncio's that runs in this thread; None: none.

    Libraries that are not loaded run nothing, so none is imported for this.
    """
    trio, sniffio = sys.modules.get("trio"), sys.modules.get("sniffio")
    with contextlib.suppress(Exception):  # because an old version may have no such function
        if trio is not None and trio.lowlevel.in_trio_run():
            return "trio"
    # Its thread-local and not its context variable, which `bind` carries into other threads.
    name = getattr(getattr(sniffio, "thread_local", None), "name", None)
    return name if isinstance(name, str) and name != "asyncio" else None


def is_thread_needed() -> bool:
    """Whether work is waiting for this thread to become free: one of asyncio's default executor.

    That is where synchronous pieces of asynchronous agents run, all of them in a handful of
    threads.
    """
    thread: Any = threading.current_thread()
    if not thread.name.startswith("asyncio_"):
        return False
    # Not promised by Python, and the only way to know. Without it no thread counts as needed.
    queues: Any = getattr(concurrent.futures.thread, "_threads_queues", {})
    work = queues.get(thread)
    return work is not None and not work.empty()
