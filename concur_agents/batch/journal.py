"""The journal of a batch: one JSON line per agent that has ended, so that no agent runs twice.

The first line marks the file as a journal; each further line says how one agent ended:

    {"concur_journal": 1}
    {"key": "issue-17", "status": "ok", "value": {"patch": "..."}, "steps": 31, ...}
    {"key": "issue-18", "status": "error", "error": "TimeoutError('...')", ...}

A line is written in one piece before the caller gets the result, so a crash of this process, even
`kill -9`, loses no finished agent. The file is forced to the disk once a second and at the end: a
power cut may lose the last second. On opening, a last line that a crash has torn is cut off.

A journal can be read by its owner alone, also one that was made with another mode, and errors are
kept without the keys in their texts.
"""

from __future__ import annotations

import io
import json
import logging
import os
import stat
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from concur_agents._outside import is_from_handler
from concur_agents.errors import JournalError
from concur_agents.recording import scrub
from concur_agents.runtime.session import AgentStats

logger = logging.getLogger("concur_agents")

VERSION = 1
FLUSH_S = 1.0
"""The longest time [s] until a line is forced to the disk."""

LONGEST_ERROR = 2_000
"""Characters of an error that are kept: one may quote the whole answer of a server."""

_MARGIN = 300
"""Levels: a result is written if it could be read so much deeper in the stack than here."""


class Journal:
    """Results by key, kept in a file. Use as a context manager.

    Args:
        path: the file; created if it does not exist.
        dump: turns a result into a JSON value; None: results are JSON values. JSON turns tuples
            into lists.
        load: turns that value into the result again.

    Raises:
        JournalError: the file is not a journal, is broken in the middle, or is in use.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        dump: Callable[[Any], Any] | None = None,
        load: Callable[[Any], Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self._dump = dump
        self._load = load
        self._complained = False
        self._synced_s = 0.0
        self._size = 0  # bytes of whole lines
        self._finished: dict[str, Any] = {}
        self._is_foreign = False  # in a child process, which shares the file but must not write it
        try:
            if self.path.exists() and not stat.S_ISREG(self.path.stat().st_mode):
                raise JournalError(
                    f"{self.path} is not a file and cannot be a journal: give another path"
                )
            # Unbuffered, so that a line is with the operating system once it is written, and no
            # rest of it can fail to be written later.
            self._file = io.FileIO(self.path, "a+", opener=partial(os.open, mode=0o600))
        except OSError as error:
            raise JournalError(
                f"cannot open the journal {self.path}: {error.strerror}; does its folder exist, "
                "and may you write there?"
            ) from error
        try:
            self._lock()
            _journals.add(self)
            self._read()
            self._make_private()
        except BaseException:
            self._file.close()
            raise

    def __contains__(self, key: str) -> bool:
        return key in self._finished

    def __len__(self) -> int:
        return len(self._finished)

    def value(self, key: str) -> Any:
        """The result of a finished key."""
        value = self._finished[key]
        return value if self._load is None else self._load(value)

    def write(
        self,
        key: str,
        status: str,
        *,
        value: Any = None,
        error: BaseException | None = None,
        stats: AgentStats | None = None,
    ) -> None:
        """Writes how an agent ended. On return the line is with the operating system.

        A result that JSON cannot hold is not kept, and its agent runs again next time; the first
        one is logged.

        Raises:
            JournalError: the file cannot be written.
        """
        line: dict[str, Any] = {"key": key, "status": status}
        if status == "ok":
            line["value"] = value
        if error is not None:
            line["error"] = _text_of(error)
        if stats is not None:
            line.update(asdict(stats))
        line["at_s"] = round(time.time(), 3)
        try:
            if status == "ok" and self._dump is not None:
                line["value"] = self._dump(value)
            text = json.dumps(line)
            # A line that is nested too deep for the parser would close the whole journal.
            json.loads("[" * _MARGIN + text + "]" * _MARGIN)
        except Exception as caught:  # because `dump` is the user's own
            if is_from_handler(caught):
                raise
            if not self._complained:
                self._complained = True
                logger.error(
                    "the result of %r cannot be kept in the journal, and its agent would run "
                    "again: give AgentPool a `dump` that turns it into JSON (%s; logged once)",
                    key,
                    "it is nested too deep" if isinstance(caught, RecursionError) else caught,
                )
            line["status"], line["value"] = "unsaved", None
            text = json.dumps(line)
        self._append(text)
        if line["status"] == "ok":
            self._finished[key] = line["value"]

    def close(self) -> None:
        """Forces everything to the disk and closes the file; calling it again does nothing.

        Raises:
            JournalError: the file cannot be written.
        """
        if not self._file.closed:
            try:
                self._sync()
            except OSError as error:
                raise self._write_error(error) from error
            finally:
                self._file.close()

    def __enter__(self) -> Journal:  # noqa: PYI034  (it has no subclasses)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows: two processes on one journal are not noticed there
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise JournalError(
                f"another process or pool is writing the journal {self.path}: wait for it, or "
                "give this one another journal"
            ) from error

    def _make_private(self) -> None:
        """Takes the rights of others from a journal that an earlier version or a copy has made."""
        mode = stat.S_IMODE(os.fstat(self._file.fileno()).st_mode)
        if os.name == "nt" or not mode & 0o077:
            return
        try:
            os.fchmod(self._file.fileno(), mode & 0o600)
        except OSError as error:  # another user's file, or a file system without modes
            logger.warning(
                "other users may be able to read the journal %s (mode %o), and it cannot be changed"
                ": %s. Give another path if its results are private",
                self.path,
                mode,
                error.strerror,
            )

    def _read(self) -> None:
        header = json.dumps({"concur_journal": VERSION})
        self._file.seek(0)
        raw = b"\n"
        for number, raw in enumerate(io.BytesIO(self._file.readall()), 1):
            line = self._parse(raw)
            is_torn = line is None and not raw.endswith(b"\n")
            if is_torn and (number > 1 or header.encode().startswith(raw)):
                break
            if line is None or (number == 1 and line.get("concur_journal") != VERSION):
                raise JournalError(self._complaint(number, raw))
            if number > 1:
                self._take(number, raw, line)
            self._size += len(raw)
        if self._file.tell() > self._size:
            logger.warning(
                "the last line of the journal %s was torn by a crash and is cut off; its agent "
                "will run again",
                self.path,
            )
            self._file.truncate(self._size)
        elif not raw.endswith(b"\n"):  # the line is whole, but its newline is missing
            self._append("")
        if self._size == 0:
            self._append(header)

    def _take(self, number: int, raw: bytes, line: dict[str, Any]) -> None:
        key, status = line.get("key"), line.get("status")
        if not isinstance(key, str) or not isinstance(status, str):
            raise JournalError(self._complaint(number, raw))
        if status == "ok":
            self._finished[key] = line.get("value")

    def _complaint(self, number: int, raw: bytes) -> str:
        shown = raw[:60].decode("utf-8", "replace").rstrip()
        if number == 1:
            return (
                f"{self.path} is not a journal of an AgentPool (it begins with {shown!r}) and is "
                "left unchanged: give another path"
            )
        return (
            f"line {number} of the journal {self.path} is broken ({shown!r}): delete that line "
            "(its agent then runs again), or move the file away"
        )

    @staticmethod
    def _parse(raw: bytes) -> dict[str, Any] | None:
        try:
            line = json.loads(raw)
        except RecursionError:  # written by an earlier version, or lower in the stack
            line = _parse_with_empty_stack(raw)
        except ValueError:
            return None
        return line if isinstance(line, dict) else None

    def _append(self, text: str) -> None:
        line = memoryview(text.encode() + b"\n")
        written = 0
        try:
            while written < len(line):
                written += self._file.write(line[written:])
            self._size += written
            if time.monotonic() - self._synced_s >= FLUSH_S:
                self._sync()
        except (OSError, ValueError) as error:
            with suppress(OSError, ValueError):  # because half a line must not precede a whole one
                self._file.truncate(self._size)
            raise self._write_error(error) from error

    def _sync(self) -> None:
        self._synced_s = time.monotonic()
        os.fsync(self._file.fileno())

    def _after_fork(self) -> None:
        """In a child process: the lock is the parent's, and ends with the parent."""
        self._is_foreign = True
        self._file.close()

    def _write_error(self, error: Exception) -> JournalError:
        if self._is_foreign:
            return JournalError(
                f"the journal {self.path} belongs to the process that this one was forked from"
            )
        return JournalError(f"cannot write the journal {self.path}: {error}; is the disk full?")


def _text_of(error: BaseException) -> str:
    try:
        text = repr(error)
    except Exception as caught:  # because the error may be the user's own
        if is_from_handler(caught):
            raise
        text = type(error).__name__
    return scrub(text, LONGEST_ERROR)


def _parse_with_empty_stack(raw: bytes) -> Any:
    """As `json.loads`, in a thread; None: nested too deep even there."""
    found: list[Any] = []

    def parse() -> None:
        with suppress(ValueError, RecursionError):
            found.append(json.loads(raw))

    thread = threading.Thread(target=parse)
    thread.start()
    thread.join()
    return found[0] if found else None


_journals: weakref.WeakSet[Journal] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for journal in list(_journals):
        journal._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
