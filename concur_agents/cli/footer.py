"""Rows at the bottom of a terminal that stay, below what another program writes above them.

The other program keeps the terminal as it is (colours, progress bars, input): only the region that
scrolls is made smaller, and the rows below it are drawn with the cursor put back.
"""

from __future__ import annotations

import os
from typing import TextIO

from rich.console import Console, RenderableType

LEAST_ABOVE = 10
"""Rows that must be left for the program."""


class Footer:
    """So many rows, from the first `draw` until `close`.

    Args:
        stream: the terminal.
        rows: how many.
    """

    def __init__(self, stream: TextIO, rows: int) -> None:
        self._stream = stream
        self._rows = rows
        self._size: os.terminal_size | None = None

    @staticmethod
    def fits(stream: TextIO, rows: int) -> bool:
        """Whether this is a terminal with room for it, which is ours to draw on."""
        try:
            descriptor = stream.fileno()
            if not os.isatty(descriptor) or os.environ.get("TERM") in (None, "dumb"):
                return False
            in_front = os.tcgetpgrp(descriptor) == os.getpgrp()
            return in_front and os.get_terminal_size(descriptor).lines >= rows + LEAST_ABOVE
        except (OSError, ValueError, AttributeError):  # not every system can tell
            return False

    def draw(self, picture: RenderableType) -> None:
        """Shows something in place of what was shown before; cut to fit."""
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
        # In one piece: the program may be writing at this very moment.
        self._write("\x1b7" + "".join(drawn) + "\x1b8")

    def close(self) -> None:
        """Gives the whole terminal back; calling it again does nothing."""
        if self._size is None:
            return
        top = self._size.lines - self._rows + 1
        self._size = None
        self._write(f"\x1b7\x1b[r\x1b[{top};1H\x1b[J\x1b8")

    def _open(self, size: os.terminal_size) -> None:
        self._size = size
        above = size.lines - self._rows
        # Room below the cursor; setting the region moves it, so it is kept and put back.
        self._write("\n" * self._rows + f"\x1b[{self._rows}A\x1b7\x1b[1;{above}r\x1b8")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
