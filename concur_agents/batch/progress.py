"""How far a batch has come, shown on a terminal or as log lines."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

from concur_agents._outside import is_from_handler

logger = logging.getLogger("concur_agents")

REPORT_EVERY_S = 0.5
"""Time [s] between updates of the progress."""

PLAIN_EVERY_S = 10.0
"""Without a terminal: the shortest time [s] between two lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The agents of a pool, counted by what they do.

    Attributes:
        total: all agents of the batch; None: unknown, or endless.
        ok: have finished.
        errors: have failed.
        cancelled: were cancelled, or dropped by draining.
        cached: were taken from the journal.
        running: have a place and run.
        paused: wait at a boundary.
        queued: wait to be let in.
    """

    total: int | None = None
    ok: int = 0
    errors: int = 0
    cancelled: int = 0
    cached: int = 0
    running: int = 0
    paused: int = 0
    queued: int = 0

    @property
    def done(self) -> int:
        """Agents that have ended, in any way."""
        return self.ok + self.errors + self.cancelled + self.cached

    def __str__(self) -> str:
        of = "" if self.total is None else f" of {self.total}"
        parts = [f"{self.done}{of} done", f"{self.running} running"]
        for name in ("paused", "queued", "cached", "errors", "cancelled"):
            count = getattr(self, name)
            if count:
                parts.append(f"{count} {name}")
        return ", ".join(parts)


class Reporter(Protocol):
    """Shows the progress of a pool. It runs on the pool's event loop, so it must be quick."""

    def update(self, progress: Progress) -> object:
        """Takes the newest counts."""
        ...

    def close(self) -> object:
        """Ends: the batch is over."""
        ...


def default_reporter(stream: TextIO | None = None) -> Reporter:
    """A bar on a terminal with rich installed, else plain lines; both on stderr."""
    stream = sys.stderr if stream is None else stream
    if stream.isatty() and importlib.util.find_spec("rich") is not None:
        return BarReporter(stream)
    return PlainReporter(stream)


async def report(reporter: Reporter, progress: Callable[[], Progress]) -> None:
    """Shows the progress until it is cancelled."""
    try:
        try:
            while True:
                reporter.update(progress())
                await asyncio.sleep(REPORT_EVERY_S)
        finally:
            reporter.update(progress())
            reporter.close()
    except Exception as error:  # because the reporter may be the user's own
        if is_from_handler(error):
            raise
        logger.exception("the reporter failed, and the progress is no longer shown")


class PlainReporter:
    """Prints a line now and then, and one at the end."""

    def __init__(self, stream: TextIO, every_s: float = PLAIN_EVERY_S) -> None:
        self._stream = stream
        self._every_s = every_s
        self._next_s = time.monotonic() + every_s
        self._last: Progress | None = None
        self._shown: Progress | None = None

    def update(self, progress: Progress) -> None:
        """Takes the newest counts."""
        self._last = progress
        if time.monotonic() >= self._next_s:
            self._show()

    def close(self) -> None:
        """Ends: the batch is over."""
        self._show()

    def _show(self) -> None:
        self._next_s = time.monotonic() + self._every_s
        if self._last is not None and self._last != self._shown:
            self._shown = self._last
            print(f"agents: {self._last}", file=self._stream, flush=True)


class BarReporter:
    """Shows a bar at the bottom of a terminal. Needs rich."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        self._bar: Any = RichProgress(
            TextColumn("agents"),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=Console(file=stream),
        )
        self._task = self._bar.add_task("", total=None)
        self._bar.start()

    def update(self, progress: Progress) -> None:
        """Takes the newest counts."""
        self._bar.update(
            self._task,
            total=progress.total,
            completed=progress.done,
            description=str(progress),
        )

    def close(self) -> None:
        """Ends: the batch is over."""
        self._bar.stop()
