"""Reading a recording from disk, with all its files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from concur_agents._text import wire_id
from concur_agents.errors import RecordingError
from concur_agents.recording.checks import (
    count_of,
    dict_of,
    line_of,
    name_of,
    number_of,
    state_of,
    text_of,
)
from concur_agents.recording.codec import parse
from concur_agents.recording.format_1 import upgrade_header
from concur_agents.recording.model import FORMAT, Header, Line, Standing
from concur_agents.recording.writer import older

MOST_UNIX_S = 253_402_300_800
"""The end of the year 9999, where dates end."""


class Recording:
    """A recording on disk, with all its files. Iterating gives its lines, oldest first.

    Raises:
        RecordingError: the file is missing, is not a recording, or is of an unknown format; also
            while iterating, at a line that cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            files = [file for file in reversed(older(self.path)) if file.is_file()]
            self._files = [*files, self.path]
            headers = [_read_header(file) for file in self._files]
        except OSError as error:
            raise RecordingError(
                f"cannot read the recording {self.path}: {error.strerror}"
            ) from error
        # Files of an earlier recording may lie beside it; only the unbroken run before PATH counts.
        while headers[0][1].part + len(headers) - 1 != headers[-1][1].part:
            del headers[0], self._files[0]
        self.format, self.header = headers[0]
        """Format and header of the oldest file that is still there."""

    @property
    def is_whole(self) -> bool:
        """Whether it holds every call since the Regulator's start, so that it can be replayed."""
        return self.header.from_start and self.header.part == 0

    def __iter__(self) -> Iterator[Line]:
        for file in self._files:
            yield from _lines_of(file, self.format)

    def follow(self, rest: Callable[[], object]) -> Iterator[Line | None]:
        """Its lines, then those that are still being written; None: there is none yet.

        Args:
            rest: called after each None, to pass some time.
        """
        last = self._files[-1]
        for file in self._files[:-1]:
            yield from _lines_of(file, self.format)
        while True:
            with last.open("rb") as lines:
                inode = os.fstat(lines.fileno()).st_ino
                begun = b""
                next(lines, None)
                while True:
                    raw = lines.readline()
                    begun += raw
                    if begun.endswith(b"\n"):
                        try:
                            line = parse(begun, self.format)
                        except ValueError:
                            raise RecordingError(
                                f"{last} has a line that is not a line of a recording"
                            ) from None
                        begun = b""
                        if line is not None:
                            yield line
                        continue
                    if self._has_moved(inode):
                        break
                    yield None
                    rest()

    def _has_moved(self, inode: int) -> bool:
        """Whether a new file has taken the place of the last one, which is then complete."""
        try:
            return self._files[-1].stat().st_ino != inode
        except OSError:
            return False

    def __repr__(self) -> str:
        return f"<Recording {self.path}: {self.header.law.get('name')}, {len(self._files)} files>"


def _lines_of(file: Path, version: int) -> Iterator[Line]:
    with file.open("rb") as lines:
        next(lines, None)
        for number, raw in enumerate(lines, 2):
            try:
                line = parse(raw, version)
            except ValueError:
                if raw.endswith(b"\n"):
                    raise RecordingError(
                        f"line {number} of {file} is not a line of a recording"
                    ) from None
                return  # torn by a crash, or being written now
            if line is not None:
                yield line


def _read_header(file: Path) -> tuple[int, Header]:
    """Format and header of a file."""
    with file.open("rb") as lines:
        first = lines.readline()
    try:
        found = dict_of(json.loads(first))
        version = found.pop("concur_recording")
        if version not in (1, FORMAT):
            raise RecordingError(
                f"{file} is a recording of format {version!r:.40}; this version reads 1 "
                f"and {FORMAT}"
            )
        if version == 1:
            found = upgrade_header(found)
        return version, _header_of(found)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RecordingError(
            f"{file} is not a recording of a Governor (it begins with {first[:40]!r})"
        ) from error


def _header_of(found: dict[str, Any]) -> Header:
    for key in ("start_s", "now", "unix_s"):
        number_of(found[key])
    if not 0 <= found["unix_s"] < MOST_UNIX_S:
        raise ValueError(f"unix_s is {found['unix_s']}")
    count_of(found.get("part", 0))
    pools = dict_of(found["regulator"]).get("pools")
    if pools is not None:
        found["regulator"]["pools"] = [line_of(text_of(pool)) for pool in pools]
    for law in (found["law"], found.get("shadow")):
        if law is not None:
            law["name"] = line_of(text_of(dict_of(law)["name"]))
    dict_of(found["law"])
    for key in ("url", "version", "python"):
        if key in found:
            found[key] = line_of(found[key])
    found["agents"] = tuple(_standing_of(dict_of(who)) for who in found.get("agents", ()))
    return Header(**found)


def _standing_of(found: dict[str, Any]) -> Standing:
    who = Standing(**found)
    who.id, who.parent = wire_id(text_of(who.id)), name_of(who.parent)
    state_of(who.state)
    who.pool = line_of(who.pool)
    for value in (who.arrived_s, who.since_s, who.priority):
        number_of(value)
    for value in (who.calls, who.waiting_calls, who.steps, who.prompt_tokens):
        count_of(value)
    for value in (who.cached_tokens, who.footprint_tokens):
        count_of(value)
    return who
