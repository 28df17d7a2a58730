"""Recorded metrics pages as a probe, for tests and for replays."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from concur_agents.core.types import Reading
from concur_agents.errors import ProbeError
from concur_agents.probes.page import PageReading, parse_page

SUFFIXES: Final = (".prom", ".prom.gz", ".txt", ".json")


class ReplayProbe:
    """Gives one recorded page per reading, in order.

    Args:
        pages: the texts of the pages, or a folder of files (`*.prom`, `*.prom.gz`, `*.txt`,
            `*.json`), read in the order of their names.
        interval_s: time between two pages, without a clock [s].
        start_s: time of the first page, without a clock [s].
        clock: gives `at_s` instead [s].
        loop: start again after the last page.

    Raises:
        ProbeError: there is no page.
    """

    def __init__(
        self,
        pages: Iterable[str] | Path,
        *,
        interval_s: float = 1.0,
        start_s: float = 0.0,
        clock: Callable[[], float] | None = None,
        loop: bool = False,
    ) -> None:
        self._pages = _load(pages) if isinstance(pages, Path) else list(pages)
        if not self._pages:
            raise ProbeError(f"no recorded pages in {pages!r}; looked for {', '.join(SUFFIXES)}")
        self._clock = clock
        self._interval_s, self._start_s = interval_s, start_s
        self._loop = loop
        self._read_total = 0

    def __len__(self) -> int:
        return len(self._pages)

    def read(self) -> Reading:
        """The next page.

        Raises:
            ProbeError: no page is left, or this page cannot be read (the next one may).
        """
        return self.read_page().reading

    def read_page(self) -> PageReading:
        """The next page with everything that it reports; raises like `read`."""
        position = self._read_total
        if position >= len(self._pages) and not self._loop:
            raise ProbeError(
                f"the recording has ended: {position} of {len(self._pages)} pages read"
            )
        self._read_total += 1
        at_s = self._clock() if self._clock else self._start_s + position * self._interval_s
        return parse_page(self._pages[position % len(self._pages)], at_s)

    def __repr__(self) -> str:
        return f"<ReplayProbe {self._read_total} of {len(self._pages)} pages read>"


def load_page(path: Path) -> str:
    """The text of one recorded page, gzipped or not."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ProbeError(f"recorded page {path} cannot be read: {error}") from error
    return content.decode("utf-8", "replace")


def _load(directory: Path) -> list[str]:
    try:
        paths = sorted(p for p in directory.iterdir() if p.name.endswith(SUFFIXES))
    except OSError as error:
        raise ProbeError(f"recorded pages in {directory} cannot be listed: {error}") from error
    return [load_page(path) for path in paths]
