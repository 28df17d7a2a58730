"""One reading of the engine in a thread of its own.

A server can take as long as it likes over an answer: it can send one byte a second, and a name
server can say nothing. The thread that keeps time must not wait for it, so a reading has its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Attempt(Generic[T]):
    """A reading under way, or over.

    The thread is a daemon and keeps alive only what `read` and `done` refer to.

    Args:
        read: reads the engine, or asks it something; may raise.
        done: called in the thread once `over` is true.
        due_s: when the reading counts as failed [s].

    Raises:
        RuntimeError: no more threads can be started.
    """

    def __init__(self, read: Callable[[], T], done: Callable[[], object], *, due_s: float) -> None:
        self.due_s = due_s
        self.over = False
        """Whether `result` or `error` is there."""
        self.abandoned = False
        """Whether it was counted as failed while it was under way."""
        self.result: T | None = None
        self.error: BaseException | None = None
        self._read = read
        self._done = done
        self._thread = threading.Thread(target=self._run, name="concur-reading", daemon=True)
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Waits for the end of the thread, for at most this long [s]."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            self.result = self._read()
        except BaseException as error:  # a probe may be the user's own
            self.error = error
        self.over = True
        self._done()
