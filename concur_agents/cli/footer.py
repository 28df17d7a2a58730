"""Fixed rows at the bottom of a terminal, below the output of another program.

The other program keeps its terminal (colours, progress bars, input): only the scrolling region
shrinks, and drawing the rows below it puts the cursor back.
"""

from __future__ import annotations

import os
from typing import TextIO

from rich.console import RenderableType

from concur_agents.cli.console import Console

LEAST_ABOVE = 10
"""Least rows left for the program."""


class Footer:
    """Fixed rows, from the first `draw` until `close`.

    Args:
        stream: the terminal.
        rows: their number.
    """

    def __init__(self, stream: TextIO, rows: int) -> None:
        self._stream = stream
        self._rows = rows
        self._size: os.terminal_size | None = None

    @staticmethod
    def fits(stream: TextIO, rows: int) -> bool:
        """Whether `stream` is a terminal with enough rows and this process in the foreground."""
        try:
            descriptor = stream.fileno()
            if not os.isatty(descriptor) or os.environ.get("TERM") in (None, "dumb"):
                return False
            in_front = os.tcgetpgrp(descriptor) == os.getpgrp()
            return in_front and os.get_terminal_size(descriptor).lines >= rows + LEAST_ABOVE
        except (OSError, ValueError, AttributeError):  # not every system knows process groups
            return False

    def draw(self, picture: RenderableType) -> None:
        """Replaces the rows, cut to fit."""
        size = os.get_terminal_size(self._stream.fileno())
        if size.lines < self._rows + LEAST_ABOVE:
            self.close()
            return
        if size != self._size:
            self.close()
            self._open(size)
        console = Console(
            file=self._stream, width=size.columns - 1, height=size.lines, force_terminal=True
        )
        with console.capture() as captured:
            console.print(picture)
        lines = captured.get().splitlines()[: self._rows]
        lines += [""] * (self._rows - len(lines))
        top = size.lines - self._rows + 1
        drawn = [f"\x1b[{top + row};1H\x1b[0m\x1b[2K{line}" for row, line in enumerate(lines)]
        # In one write, because the program may write at the same moment.
        self._write("\x1b7" + "".join(drawn) + "\x1b8")

    def close(self) -> None:
        """Gives the whole terminal back; a second call does nothing."""
        if self._size is None:
            return
        top = self._size.lines - self._rows + 1
        self._size = None
        self._write(f"\x1b7\x1b[r\x1b[{top};1H\x1b[J\x1b8")

    def _open(self, size: os.terminal_size) -> None:
        self._size = size
        above = size.lines - self._rows
        # Makes room below the cursor, and saves it, because setting the region moves it.
        self._write("\n" * self._rows + f"\x1b[{self._rows}A\x1b7\x1b[1;{above}r\x1b8")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
