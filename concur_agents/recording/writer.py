"""Writing a recording: a thread of its own puts the lines into files."""

from __future__ import annotations

import io
import logging
import os
import queue
import stat
import threading
import weakref
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from concur_agents.errors import ConfigError
from concur_agents.recording.codec import dump, header_dict, line_dict
from concur_agents.recording.model import Happening, Header, Line, RecordedCall
from concur_agents.recording.tracker import Tracker

logger = logging.getLogger("concur_agents")

MAX_BYTES = 256 * 2**20
"""Default bound on the size of a recording [bytes]: enough for days of a hundred agents."""

PARTS = 8
"""Most files of a recording; the oldest is deleted to make room for a new one."""


class Recorder:
    """Writes lines to a file in a thread of its own; it never blocks or fails the caller.

    A file that reaches its share of `max_bytes` becomes `PATH.1`, the former `PATH.1` becomes
    `PATH.2`, and so on; the oldest is deleted. If the disk fails, the recording ends with one line
    in the log.

    Args:
        path: the file; `{pid}` in it stands for the process id. An existing file moves to
            `PATH.old`.
        header: the first line.
        max_bytes: bound on the size of all files together [bytes].

    Raises:
        ConfigError: the file cannot be written, or is there and is no regular file; `max_bytes` is
            below 65,536.
    """

    def __init__(
        self, path: str | os.PathLike[str], header: Header, *, max_bytes: int = MAX_BYTES
    ) -> None:
        if max_bytes < 64 * 1024:
            raise ConfigError(f"max_bytes must be at least 65,536 bytes, got {max_bytes}")
        self.path = Path(str(os.fspath(path)).replace("{pid}", str(os.getpid())))
        files = _Files(self.path, header, max_bytes // PARTS)
        self._lines = files.lines
        self._thread = threading.Thread(target=files.run, name="concur-recorder", daemon=True)
        self._thread.start()
        # Runs when the recorder is dropped, at the latest when the interpreter ends.
        self._finish = weakref.finalize(self, _finish, files.lines, self._thread, os.getpid())

    def note(self, line: Line) -> None:
        """Takes a line, from any thread; neither blocks nor raises."""
        if self._thread.is_alive():  # or the lines would pile up
            self._lines.put(line)

    def flush(self, timeout_s: float = 10.0) -> None:
        """Waits until every line so far is written, but at most `timeout_s` [s]."""
        written = threading.Event()
        self._lines.put(written)
        if self._thread.is_alive():
            written.wait(timeout_s)

    def close(self) -> None:
        """Writes the remaining lines and ends; a second call does nothing."""
        self._finish()

    def __enter__(self) -> Recorder:  # noqa: PYI034  (it has no subclasses)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Recorder {self.path}>"


def _finish(lines: queue.SimpleQueue[Any], thread: threading.Thread, pid: int) -> None:
    if os.getpid() == pid and thread.is_alive():  # because a forked child has no such thread
        lines.put(None)
        if thread is not threading.current_thread():
            thread.join(10.0)


class _Files:
    """The files of a `Recorder`, and what its thread does."""

    def __init__(self, path: Path, header: Header, part_bytes: int) -> None:
        self.lines: queue.SimpleQueue[Line | threading.Event | None] = queue.SimpleQueue()
        self._path = path
        self._header = header
        self._part_bytes = part_bytes
        self._tracker = Tracker(header.agents)
        self._now = header.now
        self._size = 0
        try:
            _check_files(path)
            for old in (path, *older(path)):
                if old.exists():
                    old.replace(_put_aside(old))
            self._file = self._open(header)
        except ConfigError:
            raise
        except (OSError, ValueError) as error:  # the latter where no file can have that name
            why = getattr(error, "strerror", None) or "no file can have this name"
            raise ConfigError(
                f"cannot write the recording {str(path)!r}: {why}; does its folder exist, and "
                "may this process write there?"
            ) from error

    def run(self) -> None:
        """Writes until the recorder is closed or the disk fails."""
        try:
            while self._write(self.lines.get()):
                pass
        except OSError as error:
            logger.error("recording to %s ends here: %s", self._path, error)
        except Exception:
            logger.exception(
                "recording to %s ends here, by an error of ours: please report this", self._path
            )
        finally:
            with suppress(OSError):
                self._file.close()
            self._drain()

    def _write(self, first: Line | threading.Event | None) -> bool:
        """Writes a line and those that have queued up since; False: it was the last."""
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
        """Starts the next file."""
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
        # Unbuffered, because then the operating system has every line, even after `kill -9`. Only
        # the owner may read it, because ids can be confidential. It is always a new file, so that
        # nothing which another user has put there meanwhile is written to.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(self._path, flags, 0o600)
        file = io.FileIO(descriptor, "w")
        text = dump(header_dict(header))
        _write_all(file, text)
        self._size = len(text)
        return file

    def _drain(self) -> None:
        """Releases each `flush` that waits for a line that will not be written."""
        while True:
            try:
                line = self.lines.get_nowait()
            except queue.Empty:
                return
            if isinstance(line, threading.Event):
                line.set()


def _check_files(path: Path) -> None:
    """Refuses to move what is no recording out of the way: a device, a folder, a link, a pipe."""
    for file in (path, *older(path), *(_put_aside(old) for old in (path, *older(path)))):
        try:
            mode = file.lstat().st_mode
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(mode):
            raise ConfigError(
                f"cannot record to {path}: {file} is {_kind(mode)}, not a regular file; name a "
                "file that is new, or an earlier recording"
            )


def _put_aside(path: Path) -> Path:
    return path.with_name(path.name + ".old")


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISLNK, "a link"), (stat.S_ISFIFO, "a pipe"))
    return next((name for is_kind, name in kinds if is_kind(mode)), "a device or a socket")


def _write_all(file: io.FileIO, text: bytes) -> None:
    rest = memoryview(text)
    while rest:
        rest = rest[file.write(rest) :]


def older(path: Path) -> list[Path]:
    """The names of full files, youngest first."""
    return [path.with_name(f"{path.name}.{number}") for number in range(1, PARTS)]
