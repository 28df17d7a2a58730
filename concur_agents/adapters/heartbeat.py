"""A pause is not idleness: tells LangGraph so, whose idle timeouts would cancel a waiting node.

Nothing here imports LangGraph; where nobody has, there is nobody to tell.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

INTERVAL_S = 0.25
"""Idle timeouts are given in seconds; a quarter of one is often enough and costs nothing."""


class during_wait:  # noqa: N801  (reads as what it is: a block)
    """A block in which LangGraph's runtime, if this is one of its nodes, hears from us."""

    __slots__ = ("_beat", "_handle", "_loop")

    def __init__(self) -> None:
        self._beat: Callable[[], Any] | None = None
        self._handle: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        module = sys.modules.get("langgraph.runtime")
        if module is None:
            return
        try:
            self._beat = module.get_runtime().heartbeat
        except Exception:  # outside of a node: LangGraph raises RuntimeError or KeyError
            return
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_later(INTERVAL_S, self._tell)

    def _tell(self) -> None:
        if self._beat is not None:
            self._beat()
        self._handle = self._loop.call_later(INTERVAL_S, self._tell)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._handle is not None:
            self._handle.cancel()
