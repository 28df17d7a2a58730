"""The governor's own thread: reads the engine and wakes agents that only time kept.

It is a daemon, starts when the first agent needs it, keeps nothing alive (a governor that is
dropped ends it), and sleeps until something is due: the next reading, the next fading claim, or a
nudge because something has become due earlier than thought.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable

from tenacity import RetryCallState, Retrying, wait_exponential, wait_random

LONGEST_BACKOFF_S = 10.0
"""An engine that comes back is seen after this long at the latest."""


class PollThread:
    """A thread that calls `beat` whenever it is due, from the first nudge on.

    Args:
        beat: a bound method, held weakly: does what is due and returns how long to rest [s]. The
            thread ends when its object is gone.
        end: called by the thread when it ends.
    """

    def __init__(self, beat: Callable[[], float | None], end: Callable[[], object]) -> None:
        # put() of a SimpleQueue may be called from anywhere, finalisers and signal handlers
        # included, where a Condition could dead-lock.
        self._mailbox = mailbox = queue.SimpleQueue[bool]()
        self._beat = weakref.WeakMethod(beat, lambda _: mailbox.put(False))
        self._end = end
        # Agents that come at once nudge at once. The first of them starts the thread. No lock: an
        # exception of a signal handler right after `acquire` would leave it locked for good.
        self._first: dict[str, threading.Thread] = {}
        self._running: dict[str, threading.Thread] = {}

    @property
    def thread(self) -> threading.Thread | None:
        """The thread; None: it has not been needed yet."""
        return self._running.get("is") or self._first.get("is")

    def nudge(self) -> None:
        """Something is due, for the first time or earlier than thought.

        Raises:
            RuntimeError: there can be no more threads; the next nudge tries again.
        """
        if self.thread is not None:
            self._mailbox.put(True)
            return
        thread = threading.Thread(
            target=_run,
            args=(self._beat, self._mailbox, self._end, self._running),
            name="concur-poller",
            daemon=True,
        )
        try:
            if self._first.setdefault("is", thread) is thread:
                thread.start()
            else:
                self._mailbox.put(True)
        except BaseException:  # perhaps it runs, if a signal handler raised: see `_run`
            if self._first.get("is") is thread:
                del self._first["is"]
            raise

    def stop(self, timeout_s: float = 0.0) -> None:
        """Ends the thread, and waits so long for it."""
        self._mailbox.put(False)
        thread = self.thread
        if timeout_s <= 0 or thread is None or thread is threading.current_thread():
            return
        if thread.is_alive():  # not while another thread is about to start it
            thread.join(timeout_s)


def _run(
    ref: weakref.WeakMethod[Callable[[], float | None]],
    mailbox: queue.SimpleQueue[bool],
    end: Callable[[], object],
    running: dict[str, threading.Thread],
) -> None:
    me = threading.current_thread()
    if running.setdefault("is", me) is not me:
        mailbox.put(True)  # because a nudge has started this thread
        return
    going_on = True
    while going_on:
        beat = ref()
        if beat is None:
            break
        rest_s = beat()
        del beat  # or the wait below would keep its object alive
        try:
            going_on = mailbox.get(timeout=rest_s)
            while going_on and not mailbox.empty():
                going_on = mailbox.get_nowait()
        except queue.Empty:
            continue
    end()


class Backoff:
    """How long to wait between readings: the interval, and longer after each failure in a row.

    Args:
        interval_s: between two readings that succeed [s].
        jitter: wait a little longer at random after a failure: many governors may watch one
            server, and they should not all come back at once.
    """

    def __init__(self, interval_s: float, *, jitter: bool = True) -> None:
        self._interval_s = interval_s
        # Not `wait_exponential_jitter`: tenacity renamed its first argument within our range.
        spread = wait_random(0, interval_s / 4 if jitter else 0)
        self._wait = wait_exponential(interval_s, max(LONGEST_BACKOFF_S, interval_s)) + spread
        self._state = RetryCallState(Retrying(), None, (), {})

    def after(self, failures: int) -> float:
        """Time [s] until the next reading, after so many failures in a row."""
        if failures == 0:
            return self._interval_s
        self._state.attempt_number = failures
        return float(self._wait(self._state))
