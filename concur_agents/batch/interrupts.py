"""Ctrl-C during a batch: the first one drains it, the second one cancels it."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


class Interrupts:
    """Handles Ctrl-C (SIGINT) while a batch runs. Only the main thread can do that.

    Args:
        on_interrupt: called on the event loop with the number of the interrupt, 1 or 2.
        is_busy: whether there is anything to interrupt. If not, and from the third Ctrl-C on, the
            handler from before is called.
    """

    def __init__(self, on_interrupt: Callable[[int], object], is_busy: Callable[[], bool]) -> None:
        self._on_interrupt = on_interrupt
        self._is_busy = is_busy
        self._loop: asyncio.AbstractEventLoop | None = None
        self._former: Any = None
        self.seen = 0
        """Interrupts so far."""

    def install(self) -> None:
        """Begins to handle Ctrl-C, if this is the main thread. Needs a running loop."""
        if threading.current_thread() is threading.main_thread():
            self._loop = asyncio.get_running_loop()
            self._former = signal.signal(signal.SIGINT, self._handle)

    def remove(self) -> None:
        """Restores the handler from before."""
        # None: that handler was not installed from Python, and Python cannot restore it
        if self._former is not None:
            signal.signal(signal.SIGINT, self._former)
            self._former = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Runs in the main thread, between any two of its instructions."""
        self.seen += 1
        if self.seen > 2 or not self._is_busy():
            if callable(self._former):
                self._former(number, frame)
        elif self._loop is not None:
            self._loop.call_soon_threadsafe(self._on_interrupt, self.seen)
