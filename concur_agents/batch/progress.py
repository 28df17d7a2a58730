"""How far a batch has come: a bar on a terminal or in a notebook, else lines."""

from __future__ import annotations

import asyncio
import importlib
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
    """A bar in a notebook, or on a terminal with rich installed; else plain lines on stderr."""
    if stream is None and (display := notebook_display()) is not None:
        return NotebookReporter(display)
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


class NotebookReporter:
    """Shows a bar below the cell of a notebook.

    Args:
        display: IPython's function `display`.
    """

    def __init__(self, display: Callable[..., Any]) -> None:
        self._display = display
        self._shown: Any = None  # the handle of what is displayed

    def update(self, progress: Progress) -> None:
        """Takes the newest counts."""
        if self._shown is None:
            self._shown = self._display(_NotebookBar(progress), display_id=True)
        else:
            self._shown.update(_NotebookBar(progress))

    def close(self) -> None:
        """Ends: the bar stays as it is."""


@dataclass(frozen=True, slots=True)
class _NotebookBar:
    progress: Progress

    def _repr_html_(self) -> str:
        total, done = self.progress.total, self.progress.done
        share = "" if total is None else f' max="{total}" value="{done}"'
        return f"agents <progress{share}></progress> {self.progress}"

    def __repr__(self) -> str:
        return f"agents: {self.progress}"


def notebook_display() -> Callable[..., Any] | None:
    """IPython's `display`, if this is the kernel of a notebook; else None."""
    ipython = sys.modules.get("IPython")  # a kernel has imported it
    shell = None if ipython is None else ipython.get_ipython()
    if not hasattr(shell, "kernel"):  # None, or IPython on a terminal
        return None
    display: Callable[..., Any] = importlib.import_module("IPython.display").display
    return display
