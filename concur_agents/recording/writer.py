"""Writing: lines go into files in a thread of their own."""

from __future__ import annotations

import io
import logging
import os
import queue
import threading
import weakref
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from concur_agents.errors import ConfigError
from concur_agents.recording.codec import dump, line_dict
from concur_agents.recording.model import VERSION, Happening, Header, Line, RecordedCall
from concur_agents.recording.tracker import Tracker

logger = logging.getLogger("concur_agents")

MAX_BYTES = 256 * 2**20
"""Default bound on the size of a recording [bytes]: days of a hundred agents."""

PARTS = 8
"""A recording is kept in up to so many files, and the oldest one makes room for a new one."""


class Recorder:
    """Writes lines to a file, in a thread of its own; never slows or stops who hands them over.

    When a file has reached its share of `max_bytes` it becomes `PATH.1`, that one `PATH.2`, and so
    on; the oldest goes. A disk that fails ends the recording, with one line in the log.

    Args:
        path: the file; `{pid}` in it stands for this process. One that exists is moved aside, to
            `PATH.old`.
        header: the first line.
        max_bytes: bound on the size of all files together [bytes].

    Raises:
        ConfigError: the file cannot be written, or `max_bytes` is too small to be of use.
    """

    def __init__(
        self, path: str | os.PathLike[str], header: Header, *, max_bytes: int = MAX_BYTES
    ) -> None:
        if max_bytes < 64 * 1024:
            raise ConfigError(f"max_bytes must be at least 65,536 bytes, got {max_bytes}")
        self.path = Path(str(os.fspath(path)).replace("{pid}", str(os.getpid())))
        tape = _Tape(self.path, header, max_bytes // PARTS)
        self._lines = tape.lines
        self._thread = threading.Thread(target=tape.run, name="concur-recorder", daemon=True)
        self._thread.start()
        # Runs when this is dropped, and at the latest when the interpreter ends.
        self._finish = weakref.finalize(self, _finish, tape.lines, self._thread, os.getpid())

    def note(self, line: Line) -> None:
        """Takes a line. From any thread, at any time; neither blocks nor raises."""
        self._lines.put(line)

    def flush(self, timeout_s: float = 10.0) -> None:
        """Waits until what was handed over so far has been written."""
        written = threading.Event()
        self._lines.put(written)
        if self._thread.is_alive():
            written.wait(timeout_s)

    def close(self) -> None:
        """Writes what is left, and ends; calling it again does nothing."""
        self._finish()

    def __enter__(self) -> Recorder:  # noqa: PYI034  (nobody derives from it)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Recorder {self.path}>"


def _finish(lines: queue.SimpleQueue[Any], thread: threading.Thread, pid: int) -> None:
    if os.getpid() == pid and thread.is_alive():  # a forked child has no such thread
        lines.put(None)
        if thread is not threading.current_thread():
            thread.join(10.0)


class _Tape:
    """The files, and the thread's side of a `Recorder`."""

    def __init__(self, path: Path, header: Header, part_bytes: int) -> None:
        self.lines: queue.SimpleQueue[Line | threading.Event | None] = queue.SimpleQueue()
        self._path = path
        self._header = header
        self._part_bytes = part_bytes
        self._tracker = Tracker(header.agents)
        self._now = header.now
        self._size = 0
        try:
            for old in (path, *older(path)):
                if old.exists():
                    old.replace(old.with_name(old.name + ".old"))
            self._file = self._open(header)
        except OSError as error:
            raise ConfigError(
                f"cannot write the recording {path}: {error.strerror}; does its folder exist, and "
                "may you write there?"
            ) from error

    def run(self) -> None:
        """Writes until told to stop."""
        try:
            while self._write(self.lines.get()):
                pass
        except OSError as error:
            logger.error("recording to %s ends here: %s", self._path, error)
        finally:
            with suppress(OSError):
                self._file.close()
            self._drain()

    def _write(self, first: Line | threading.Event | None) -> bool:
        """Writes a line and all that have come meanwhile; False: that was the last."""
        taken: list[Line | threading.Event | None] = [first]
        with suppress(queue.Empty):
            while taken[-1] is not None and len(taken) < 1000:
                taken.append(self.lines.get_nowait())
        text = bytearray()
        for line in taken:
            if isinstance(line, RecordedCall | Happening):
                raw = dump(line_dict(line))
                if self._size + len(text) + len(raw) > self._part_bytes:
                    self._append(text)
                    self._turn_over()
                    text.clear()
                text += raw
                self._tracker.take(line)
                self._now = line.now
        self._append(text)
        for event in taken:
            if isinstance(event, threading.Event):
                event.set()
        return taken[-1] is not None

    def _append(self, text: bytearray) -> None:
        _write_all(self._file, bytes(text))
        self._size += len(text)

    def _turn_over(self) -> None:
        """Begins the next file."""
        self._file.close()
        files = older(self._path)
        files[-1].unlink(missing_ok=True)
        for young, old in reversed(list(zip((self._path, *files), files, strict=False))):
            if young.exists():
                young.replace(old)
        passed_s = self._now - self._header.now
        header = {item.name: getattr(self._header, item.name) for item in fields(Header)}
        header |= {
            "part": self._header.part + 1,
            "now": self._now,
            "unix_s": self._header.unix_s + passed_s,
            "agents": tuple(self._tracker.agents.values()),
        }
        self._header = Header(**header)
        self._file = self._open(self._header)

    def _open(self, header: Header) -> io.FileIO:
        # Unbuffered: what has been written is with the operating system, also after `kill -9`.
        # For the owner's eyes: ids may tell more than others should know.
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        file = io.FileIO(descriptor, "w")
        text = dump({"concur_recording": VERSION, **asdict(header)})
        _write_all(file, text)
        self._size = len(text)
        return file

    def _drain(self) -> None:
        """Nobody waits for a line that will not be written."""
        while True:
            try:
                line = self.lines.get_nowait()
            except queue.Empty:
                return
            if isinstance(line, threading.Event):
                line.set()


def _write_all(file: io.FileIO, text: bytes) -> None:
    rest = memoryview(text)
    while rest:
        rest = rest[file.write(rest) :]


def older(path: Path) -> list[Path]:
    """Where files go that are full, youngest first."""
    return [path.with_name(f"{path.name}.{number}") for number in range(1, PARTS)]
