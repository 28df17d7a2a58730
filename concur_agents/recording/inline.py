"""The report of a recording inside of a notebook."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path

from concur_agents._text import printable
from concur_agents.recording.page import page
from concur_agents.recording.reader import Recording
from concur_agents.recording.timeline_builder import read_timeline


class Report:
    """What `concur report` writes, as the last line of a cell: `Report("run.jsonl")`.

    Args:
        recording: the file that `record=` wrote.
        height: height of the frame [pixels].

    Raises:
        RecordingError: it is no recording.
    """

    def __init__(self, recording: str | os.PathLike[str], *, height: int = 700) -> None:
        path = Path(recording)
        self._name = printable(path.name)
        self._height = height
        self.html = page(read_timeline(Recording(path)), title=self._name)
        """The whole page."""

    def __repr__(self) -> str:
        return f"<Report of {self._name}: {len(self.html):,} characters of HTML>"

    def _repr_html_(self) -> str:
        # In a frame of its own, because its scripts and its style are those of a whole page.
        return (
            f'<iframe srcdoc="{escape(self.html)}" sandbox="allow-scripts" '
            f'style="width:100%;height:{self._height}px;border:0"></iframe>'
        )
