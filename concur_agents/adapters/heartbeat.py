"""Reports a pause to the frameworks whose timers run during it.

LangGraph's idle timeouts would cancel a node that waits, so its runtime gets a heartbeat. Inspect's
working limit would count the wait, so Inspect gets its length. Neither is imported here, because a
framework that is not loaded has no timers.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

from concur_agents._outside import is_from_handler

INTERVAL_S = 0.25
"""Time [s] between heartbeats: idle timeouts are whole seconds, and a heartbeat costs little."""

_SHORTEST_REPORT_S = 0.001


class during_wait:  # noqa: N801  (reads as what it is: a block)
    """A block in which an agent may wait, on an event loop."""

    __slots__ = ("_beat", "_began_s", "_handle", "_loop", "_report")

    def __init__(self) -> None:
        self._beat: Callable[[], Any] | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._report: Callable[[float], Any] | None = None

    def __enter__(self) -> None:
        inspect_ai = sys.modules.get("inspect_ai._util.working")
        if inspect_ai is not None:
            self._report = getattr(inspect_ai, "report_sample_waiting_time", None)
            self._began_s = time.monotonic()
        langgraph = sys.modules.get("langgraph.runtime")
        if langgraph is None:
            return
        try:
            self._beat = langgraph.get_runtime().heartbeat
        except Exception as error:  # RuntimeError or KeyError: this is no node
            if is_from_handler(error):
                raise
            return
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_later(INTERVAL_S, self._send)

    def _send(self) -> None:
        if self._beat is not None:
            self._beat()
        self._handle = self._loop.call_later(INTERVAL_S, self._send)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._handle is not None:
            self._handle.cancel()
        if self._report is not None:
            waited_s = time.monotonic() - self._began_s
            if waited_s > _SHORTEST_REPORT_S:
                with suppress(Exception):  # because it is not public, and may change
                    self._report(waited_s)
