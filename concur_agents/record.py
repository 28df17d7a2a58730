"""The flight recorder: every call of a Regulator with all its inputs, one JSON line each.

The Regulator is pure, so a recording is enough to have every decision again, exactly: `replay`
drives a fresh one with the recorded calls and compares the answers. The same lines tell who was
where when, which is what `concur explain`, `report` and `watch` read.

    {"concur_recording": 1, "law": {"name": "working_set", ...}, "start_s": 0.0, ...}
    {"call": "begin_step", "now": 12.5, "agent": "issue-17", "prompt_tokens": 9000, "let_in": []}
    {"call": "tick", "now": 13.0, "reading": {...}, "let_in": ["issue-17"], "reason": "grow", ...}
    {"event": "tool_began", "now": 13.1, "agent": "issue-3", "reason": "pytest"}

It holds ids, counts and times; prompts, answers and keys never reach it, and the names of shared
prefixes, which a caller may have made from a prompt, are kept as digests. A line is handed over
under the governor's lock and written by a thread of the recorder's own, a moment later.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import platform
import queue
import re
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from concur_agents._version import __version__
from concur_agents.core import (
    Chain,
    Law,
    LawState,
    Limit,
    Reading,
    Regulator,
    Snapshot,
    Usage,
    View,
    make_law,
)
from concur_agents.errors import ConfigError, RecordingError

logger = logging.getLogger("concur_agents")

VERSION = 1
"""Of the format. A reader takes files of its own version only."""

MAX_BYTES = 256 * 2**20
"""Default bound on the size of a recording [bytes]: days of a hundred agents."""

PARTS = 8
"""A recording is kept in up to so many files, and the oldest one makes room for a new one."""

CALLS = (
    "arrive",
    "begin_step",
    "end_step",
    "retry_step",
    "withdraw_step",
    "suspend",
    "resume",
    "leave",
    "tick",
    "advance",
    "ask",
)
"""The door of the Regulator; "ask" is a line of questions only."""

QUESTIONS = ("view", "explain", "next_wake")
"""What may be asked of it. An answer decides nothing, but to give it the Regulator sums up fading
claims as of that instant, and sums of another order round otherwise. So they are noted, too.
"""

_MOST_QUESTIONS = 64

Question: TypeAlias = tuple[str, float, str | None]
"""One of `QUESTIONS`, when [s], and about whom."""

AgentState: TypeAlias = Literal["queued", "reasoning", "acting", "paused", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadow:
    """A law that decides beside the one in force, from the same snapshots, without effect."""

    law: str
    """Its name."""
    state: LawState


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """What is known at a tick beyond the call itself."""

    state: dict[str, Any]
    """`LawState.to_dict()` of the law in force."""
    view: View
    snapshot: Snapshot | None
    """What the law was shown; None: it was not asked (the poll failed)."""
    shadow: dict[str, Any] | None
    """`LawState.to_dict()` of the shadow law."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of the Regulator."""

    name: str
    now: float
    agent: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Its other arguments; those that were left out are missing."""
    let_in: tuple[str, ...] = ()
    """Its answer."""
    error: str | None = None
    """What it raised instead; the name of the exception."""
    reason: str | None = None
    """The code of the decision in force, where it has changed since the call before."""
    tick: Tick | None = None
    asked: tuple[Question, ...] = ()
    """What was asked since the call before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """Something that is no call of the Regulator: a tool, a failed poll, the end."""

    kind: str
    now: float
    agent: str | None = None
    reason: str = ""
    waited_s: float | None = None


Line: TypeAlias = Call | Happening


@dataclass(slots=True)
class Standing:
    """Where one agent stands, as far as the lines tell."""

    id: str
    arrived_s: float
    parent: str | None = None
    priority: int = 0
    state: AgentState = "queued"
    since_s: float = 0.0
    """When it came into this state."""
    calls: int = 0
    """Its calls in flight."""
    asked: int = 0
    """Its calls that wait."""
    is_off: bool = False
    """It has given its place back, as far as its calls allow."""
    steps: int = 0
    prompt_tokens: int = 0
    """Sum over its steps."""
    cached_tokens: int = 0
    """Sum over its steps, where the server said so."""
    footprint_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The first line of a file."""

    start_s: float
    """The Regulator's start on the host's clock [s]."""
    now: float
    """When this file was begun, on the same clock [s]."""
    unix_s: float
    """The same instant as time since 1970 [s]."""
    law: dict[str, Any]
    """`name`, and `config`: its fields, or None if they cannot be written as JSON."""
    regulator: dict[str, Any]
    """Its other options."""
    part: int = 0
    """Number of this file, from 0."""
    from_start: bool = True
    """Nothing had happened when the recording began."""
    shadow: dict[str, Any] | None = None
    url: str | None = None
    version: str = __version__
    python: str = field(default_factory=platform.python_version)
    pid: int = field(default_factory=os.getpid)
    agents: tuple[Standing, ...] = ()
    """Who was there when this file was begun."""

    def make_law(self) -> Law:
        """The recorded law.

        Raises:
            RecordingError: it is not one of ours.
        """
        try:
            return _law_of(self.law)
        except (ValueError, TypeError, KeyError) as error:
            raise RecordingError(
                f"the recorded law {self.law.get('name')!r} cannot be made here ({error}): "
                "name another law"
            ) from error


class Roster:
    """Who stands where, followed line by line."""

    def __init__(self, agents: Iterable[Standing] = ()) -> None:
        self.agents: dict[str, Standing] = {who.id: who for who in agents}

    def take(self, line: Line) -> list[tuple[Standing, AgentState, float]]:
        """Follows one line.

        Returns:
            Whose state it ended: the agent, the state that ended and when that had begun [s].
        """
        if isinstance(line, Happening) or line.error is not None:
            return []
        ended: list[tuple[Standing, AgentState, float]] = []
        now, who = line.now, self.agents.get(line.agent or "")
        if line.name == "arrive" and line.agent is not None:
            self.agents[line.agent] = Standing(
                line.agent,
                now,
                parent=line.options.get("parent"),
                priority=line.options.get("priority", 0),
                since_s=now,
            )
        elif who is not None and line.name == "begin_step":
            who.is_off = False
            if line.agent in line.let_in:
                who.calls += 1
                self._move(who, "reasoning", now, ended)
            else:
                who.asked += 1
                family = self.agents.get(who.parent or "", who)
                self._move(who, "paused" if family.steps else "queued", now, ended)
        elif who is not None and line.name in ("end_step", "withdraw_step"):
            self._end(who, line.options.get("usage"), now, ended)
        elif who is not None and line.name == "suspend":
            who.is_off = True
        elif who is not None and line.name == "resume":
            who.is_off = False
            if who.state == "off":
                self._move(who, "paused" if who.steps else "queued", now, ended)
        elif who is not None and line.name == "leave":
            ended.append((who, who.state, who.since_s))
            del self.agents[who.id]
        if who is not None and who.is_off and not who.calls and not who.asked:
            self._move(who, "off", now, ended)
        for agent in line.let_in:
            let_in = self.agents.get(agent)
            if let_in is not None and let_in.state in ("queued", "paused"):
                let_in.calls, let_in.asked = let_in.calls + let_in.asked, 0
                self._move(let_in, "reasoning" if let_in.calls else "acting", now, ended)
        return ended

    def _end(
        self,
        who: Standing,
        usage: Usage | None,
        now: float,
        ended: list[tuple[Standing, AgentState, float]],
    ) -> None:
        if who.asked:  # its caller gave up; a root goes on waiting for its place
            who.asked -= 1
            if not who.asked and who.parent is not None:
                self._move(who, "acting", now, ended)
            return
        who.calls = max(0, who.calls - 1)
        if usage is not None:
            who.steps += 1
            who.prompt_tokens += usage.prompt_tokens
            who.cached_tokens += usage.cached_tokens or 0
            who.footprint_tokens = usage.prompt_tokens + usage.completion_tokens
        if not who.calls:
            self._move(who, "acting", now, ended)

    @staticmethod
    def _move(
        who: Standing,
        state: AgentState,
        now: float,
        ended: list[tuple[Standing, AgentState, float]],
    ) -> None:
        if who.state != state:
            ended.append((who, who.state, who.since_s))
            who.state, who.since_s = state, now


# --- writing -------------------------------------------------------------------------------------


class Taped:
    """A Regulator with a witness: each call is passed on, and noted with its answer.

    It has the whole door of the Regulator and everything else of it. A shadow law, if there is
    one, is shown each snapshot after the law in force; what it decides has no effect.
    """

    def __init__(
        self,
        regulator: Regulator,
        note: Callable[[Call], object] | None = None,
        *,
        shadow: Law | None = None,
    ) -> None:
        self.inner = regulator
        self.note = note
        self.shadow_law = shadow
        self.shadow: Shadow | None = None
        if shadow is not None:
            self.shadow = Shadow(law=shadow.name, state=shadow.initial())
        self._reason: str | None = None
        self._asked: list[Question] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def arrive(self, agent: str, now: float, **options: Any) -> list[str]:
        """See `Regulator.arrive`."""
        return self._pass_on("arrive", self.inner.arrive, now, agent, options)

    def begin_step(self, agent: str, now: float, **options: Any) -> list[str]:
        """See `Regulator.begin_step`."""
        return self._pass_on("begin_step", self.inner.begin_step, now, agent, options)

    def leave(self, agent: str, now: float) -> list[str]:
        """See `Regulator.leave`."""
        return self._pass_on("leave", self.inner.leave, now, agent, {})

    def end_step(self, agent: str, now: float, usage: Usage | None, **options: Any) -> list[str]:
        """See `Regulator.end_step`."""
        options["usage"] = usage
        return self._pass_on("end_step", self.inner.end_step, now, agent, options)

    def retry_step(self, agent: str, now: float, **options: Any) -> list[str]:
        """See `Regulator.retry_step`."""
        return self._pass_on("retry_step", self.inner.retry_step, now, agent, options)

    def withdraw_step(self, agent: str, now: float) -> list[str]:
        """See `Regulator.withdraw_step`."""
        return self._pass_on("withdraw_step", self.inner.withdraw_step, now, agent, {})

    def suspend(self, agent: str, now: float) -> list[str]:
        """See `Regulator.suspend`."""
        return self._pass_on("suspend", self.inner.suspend, now, agent, {})

    def resume(self, agent: str, now: float) -> list[str]:
        """See `Regulator.resume`."""
        return self._pass_on("resume", self.inner.resume, now, agent, {})

    def advance(self, now: float) -> list[str]:
        """See `Regulator.advance`."""
        asked = self._take_asked()
        let_in = self.inner.advance(now)
        self._note(
            Call(
                name="advance",
                now=now,
                let_in=tuple(let_in),
                reason=self._changed(),
                asked=asked,
            )
        )
        return let_in

    def view(self, now: float) -> View:
        """See `Regulator.view`."""
        self._ask("view", now)
        return self.inner.view(now)

    def explain(self, agent: str, now: float) -> str:
        """See `Regulator.explain`."""
        self._ask("explain", now, agent)
        return self.inner.explain(agent, now)

    def next_wake(self, now: float) -> float | None:
        """See `Regulator.next_wake`."""
        if not any(name == "next_wake" for name, _, _ in self._asked):  # the answer stands
            self._ask("next_wake", now)
        return self.inner.next_wake(now)

    def tick(self, reading: Reading | None, now: float) -> list[str]:
        """See `Regulator.tick`."""
        asked = self._take_asked()
        before = self.inner.last_snapshot
        let_in = self.inner.tick(reading, now)
        snapshot = self.inner.last_snapshot
        fresh = None if snapshot is before else snapshot
        if self.shadow_law is not None and self.shadow is not None and fresh is not None:
            state = self.shadow_law.decide(self.shadow.state, fresh)
            self.shadow = Shadow(law=self.shadow_law.name, state=state)
        if self.note is not None:
            tick = Tick(
                state=self.inner.state.to_dict(),
                view=self.inner.view(now),
                snapshot=fresh,
                shadow=None if self.shadow is None else self.shadow.state.to_dict(),
            )
            self._note(
                Call(
                    name="tick",
                    now=now,
                    options={"reading": reading},
                    let_in=tuple(let_in),
                    reason=self._changed(),
                    tick=tick,
                    asked=asked,
                )
            )
        return let_in

    def _pass_on(
        self,
        name: str,
        call: Callable[..., list[str]],
        now: float,
        agent: str,
        options: dict[str, Any],
    ) -> list[str]:
        asked = self._take_asked()
        try:
            let_in = call(agent, now, **options)
        except Exception as error:
            kind = type(error).__name__
            self._note(
                Call(name=name, now=now, agent=agent, options=options, error=kind, asked=asked)
            )
            raise
        self._note(
            Call(
                name=name,
                now=now,
                agent=agent,
                options=options,
                let_in=tuple(let_in),
                reason=self._changed(),
                asked=asked,
            )
        )
        return let_in

    def _ask(self, question: str, now: float, agent: str | None = None) -> None:
        if self.note is not None:
            if len(self._asked) >= _MOST_QUESTIONS:
                self._note(Call(name="ask", now=now, asked=self._take_asked()))
            self._asked.append((question, now, agent))

    def _take_asked(self) -> tuple[Question, ...]:
        asked, self._asked = tuple(self._asked), []
        return asked

    def _note(self, call: Call) -> None:
        if self.note is not None:
            self.note(call)

    def _changed(self) -> str | None:
        reason = self.inner.reason
        if reason == self._reason:
            return None
        self._reason = reason
        return reason


def describe_law(law: Law) -> dict[str, Any]:
    """A law for the header of a recording; a law within a law is described the same way."""
    config: dict[str, Any] | None = None
    thing: object = law  # a protocol does not say that it is a dataclass
    if is_dataclass(thing):
        values = {item.name: getattr(thing, item.name) for item in fields(thing)}
        config = {
            name: describe_law(value) if isinstance(value, Law) else _plain(value)
            for name, value in values.items()
        }
        try:
            json.dumps(config)
        except (TypeError, ValueError):
            config = None  # a law of the user's own
    return {"name": law.name, "config": config}


def _law_of(described: dict[str, Any]) -> Law:
    config = {
        name: _law_of(value) if isinstance(value, dict) else value
        for name, value in _numbers(described["config"] or {}).items()
    }
    return make_law(described["name"], **config)


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


def record(
    regulator: Regulator,
    path: str | os.PathLike[str],
    *,
    start_s: float = 0.0,
    shadow: Law | None = None,
    max_bytes: int = MAX_BYTES,
    **options: Any,
) -> tuple[Taped, Recorder]:
    """A recorded Regulator, for hosts of your own; a `Governor` has `record=`.

    Args:
        regulator: a fresh one; from here on call the returned `Taped` in its place.
        path: see `Recorder`.
        start_s: what it was made with [s].
        shadow: a law that decides beside its own, without effect.
        max_bytes: see `Recorder`.
        options: what else it was made with, by name: `max_wait_s`, `order`, ...

    Returns:
        What to call, and what to close at the end.
    """
    header = Header(
        start_s=start_s,
        now=start_s,
        unix_s=time.time(),
        law=describe_law(regulator.law),
        regulator=options,
        shadow=None if shadow is None else describe_law(shadow),
    )
    recorder = Recorder(path, header, max_bytes=max_bytes)
    return Taped(regulator, recorder.note, shadow=shadow), recorder


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
        self._roster = Roster(header.agents)
        self._now = header.now
        self._size = 0
        try:
            for old in (path, *_older(path)):
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
            if isinstance(line, Call | Happening):
                raw = _dump(_line_dict(line))
                if self._size + len(text) + len(raw) > self._part_bytes:
                    self._append(text)
                    self._turn_over()
                    text.clear()
                text += raw
                self._roster.take(line)
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
        files = _older(self._path)
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
            "agents": tuple(self._roster.agents.values()),
        }
        self._header = Header(**header)
        self._file = self._open(self._header)

    def _open(self, header: Header) -> io.FileIO:
        # Unbuffered: what has been written is with the operating system, also after `kill -9`.
        # For the owner's eyes: ids may tell more than others should know.
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        file = io.FileIO(descriptor, "w")
        text = _dump({"concur_recording": VERSION, **asdict(header)})
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


def _older(path: Path) -> list[Path]:
    """Where files go that are full, youngest first."""
    return [path.with_name(f"{path.name}.{number}") for number in range(1, PARTS)]


# --- reading -------------------------------------------------------------------------------------


class Recording:
    """A recording on disk, with all its files. Iterating gives its lines, oldest first.

    Raises:
        RecordingError: there is none, or it is not one of ours.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            files = [file for file in reversed(_older(self.path)) if file.is_file()]
            self._files = [*files, self.path]
            headers = [_read_header(file) for file in self._files]
        except OSError as error:
            raise RecordingError(
                f"cannot read the recording {self.path}: {error.strerror}"
            ) from error
        # Files of an earlier recording may lie beside it; only the unbroken run before PATH counts.
        while headers[0].part + len(headers) - 1 != headers[-1].part:
            del headers[0], self._files[0]
        self.header = headers[0]
        """Of the oldest file that is still there."""

    @property
    def is_whole(self) -> bool:
        """Whether it goes back to the start of its Regulator, so that it can be replayed."""
        return self.header.from_start and self.header.part == 0

    def __iter__(self) -> Iterator[Line]:
        for file in self._files:
            yield from _lines_of(file)

    def follow(self, rest: Callable[[], object]) -> Iterator[Line | None]:
        """Its lines, and then those that are still being written; None: none for now.

        Args:
            rest: called after each None, to pass some time.
        """
        last = self._files[-1]
        for file in self._files[:-1]:
            yield from _lines_of(file)
        while True:
            with last.open("rb") as lines:
                inode = os.fstat(lines.fileno()).st_ino
                begun = b""
                next(lines)
                while True:
                    raw = lines.readline()
                    begun += raw
                    if begun.endswith(b"\n"):
                        line = _parse(begun)
                        begun = b""
                        if line is None:
                            raise RecordingError(f"{last} has a line that is not one of ours")
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


def _lines_of(file: Path) -> Iterator[Line]:
    with file.open("rb") as lines:
        next(lines)
        for number, raw in enumerate(lines, 2):
            line = _parse(raw)
            if line is not None:
                yield line
            elif raw.endswith(b"\n"):  # else torn by a crash, or being written now
                raise RecordingError(f"line {number} of {file} is not a line of ours")


def _read_header(file: Path) -> Header:
    with file.open("rb") as lines:
        first = lines.readline()
    try:
        found = json.loads(first)
        if found.pop("concur_recording") != VERSION:
            raise RecordingError(f"{file} is a recording of another version than {VERSION}")
        found["agents"] = tuple(Standing(**who) for who in found["agents"])
        return Header(**found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordingError(
            f"{file} is not a recording of a Governor (it begins with {first[:40]!r})"
        ) from error


def _parse(raw: bytes) -> Line | None:
    """A line, or None if it is none of ours."""
    try:
        found = json.loads(raw)
        if "event" in found:
            return Happening(kind=found.pop("event"), **found)
        return _call_of(found)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


T = TypeVar("T")


def _make(kind: type[T], found: dict[str, Any]) -> T:
    """An instance without what only another version knows of."""
    names = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in found.items() if name in names})


def _call_of(found: dict[str, Any]) -> Call:
    name, now = found.pop("call"), found.pop("now")
    agent, let_in = found.pop("agent", None), tuple(found.pop("let_in", ()))
    error, reason = found.pop("error", None), found.pop("reason", None)
    asked = tuple((question, at_s, whom) for question, at_s, whom in found.pop("asked", ()))
    tick = None
    if name not in CALLS or not {question for question, _, _ in asked} <= set(QUESTIONS):
        raise ValueError(name)
    if name == "tick":
        view = found.pop("view")
        snapshot = found.pop("snapshot")
        told = found.get("reading")
        reading = None if told is None else _make(Reading, _numbers(told))
        found["reading"] = reading
        limit = {key: math.inf if bound is None else bound for key, bound in view["limit"].items()}
        tick = Tick(
            state=found.pop("state"),
            view=_make(View, {**_numbers(view), "limit": _make(Limit, limit)}),
            snapshot=None
            if snapshot is None
            else _make(Snapshot, {**_numbers(snapshot), "reading": reading}),
            shadow=found.pop("shadow", None),
        )
    if "usage" in found and found["usage"] is not None:
        found["usage"] = Usage(**found["usage"])
    if found.get("prefix") is not None:
        found["prefix"] = tuple((part, tokens) for part, tokens in found["prefix"])
    return Call(
        name=name,
        now=now,
        agent=agent,
        options=_numbers(found),
        let_in=let_in,
        error=error,
        reason=reason,
        tick=tick,
        asked=asked,
    )


# --- replaying -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Difference:
    """A call that a replay answered in another way."""

    call: Call
    let_in: tuple[str, ...]
    """Whom the replay let in."""
    error: str | None
    state: dict[str, Any]
    """Where its law stood."""


def replay(recording: Recording, regulator: Regulator | None = None) -> Iterator[Difference]:
    """Drives a Regulator with the recorded calls and yields each answer that differs.

    With a fresh Regulator of the recorded law there is none: same calls, same answers, to the bit.

    Args:
        recording: one that goes back to its start.
        regulator: None: a fresh one as the header says.

    Raises:
        RecordingError: its beginning is missing, or its law is unknown here.
    """
    if regulator is None:
        regulator = make_regulator(recording)
    for line in recording:
        if isinstance(line, Call):
            let_in, error = apply(regulator, line)
            state = regulator.state.to_dict()
            same = let_in == line.let_in and error == line.error
            if line.tick is not None:
                view = regulator.view(line.now)
                same = same and (line.tick.state, line.tick.view) == (state, view)
            if not same:
                yield Difference(line, let_in, error, state)


def make_regulator(recording: Recording, law: Law | None = None) -> Regulator:
    """A fresh Regulator as it was when the recording began.

    Args:
        recording: one that goes back to its start.
        law: in place of the recorded one.

    Raises:
        RecordingError: its beginning is missing, or its law is unknown here.
    """
    header = recording.header
    if not recording.is_whole:
        raise RecordingError(
            f"{recording.path} does not go back to its beginning "
            + ("(its first files are gone)" if header.part else "(it was begun later)")
            + ", so it cannot be replayed: give `record` a larger max_bytes, and start it with "
            "the governor"
        )
    try:
        return Regulator(law or header.make_law(), header.start_s, **header.regulator)
    except (TypeError, ValueError) as error:
        raise RecordingError(f"the recorded Regulator cannot be made here: {error}") from error


def apply(regulator: Regulator, call: Call) -> tuple[tuple[str, ...], str | None]:
    """Makes one recorded call; returns the answer, and the name of what it raised."""
    for question, at_s, agent in call.asked:
        getattr(regulator, question)(*(() if agent is None else (agent,)), now=at_s)
    if call.name == "ask":
        return (), None
    arguments: tuple[Any, ...] = () if call.agent is None else (call.agent,)
    options = dict(call.options)
    if call.name == "tick":
        arguments = (options.pop("reading"),)
    try:
        let_in = getattr(regulator, call.name)(*arguments, now=call.now, **options)
    except (KeyError, ValueError) as error:
        return (), type(error).__name__
    return tuple(let_in), None


# --- JSON ----------------------------------------------------------------------------------------


def _line_dict(line: Line) -> dict[str, Any]:
    if isinstance(line, Happening):
        told: dict[str, Any] = {"event": line.kind, "now": line.now}
        if line.agent is not None:
            told["agent"] = line.agent
        if line.reason:
            told["reason"] = scrub(line.reason)
        if line.waited_s is not None:
            told["waited_s"] = line.waited_s
        return told
    told = {"call": line.name, "now": line.now}
    if line.agent is not None:
        told["agent"] = line.agent
    for name, value in line.options.items():
        told[name] = _option(name, value)
    if line.error is None:
        told["let_in"] = line.let_in
    else:
        told["error"] = line.error
    if line.reason is not None:
        told["reason"] = line.reason
    if line.asked:
        told["asked"] = line.asked
    if line.tick is not None:
        tick = line.tick
        view = asdict(tick.view)
        view["limit"] = LawState(tick.view.limit).to_dict()["limit"]
        told["state"] = tick.state
        told["view"] = view
        told["snapshot"] = None
        if tick.snapshot is not None:
            told["snapshot"] = {
                item.name: getattr(tick.snapshot, item.name)
                for item in fields(Snapshot)
                if item.name != "reading"
            }
        if tick.shadow is not None:
            told["shadow"] = tick.shadow
    return told


def _option(name: str, value: Any) -> Any:
    if name == "prefix" and value is not None:
        return _digests(value)
    if isinstance(value, Reading | Usage):
        every = ((item.name, getattr(value, item.name)) for item in fields(value))
        return {key: told for key, told in every if told is not None}
    return value


def _digests(chain: Chain) -> list[tuple[str, float]]:
    """A chain with its names as digests: only whether they are equal matters."""
    return [(_digest(name), tokens) for name, tokens in chain]


def _digest(name: Hashable) -> str:
    text = name if isinstance(name, str | bytes) else repr(name)
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return blake2b(raw, digest_size=9).hexdigest()


_USER_INFO = re.compile(r"(?<=://)[^/@\s]+@")
_QUERY = re.compile(r"(?<=[^\s?])\?[^\s'\")]+")
_KEYS = re.compile(r"(?i)\b(bearer\s+|api[-_]?key\W{1,3}|sk-)[\w.~+/-]{4,}=*")


def scrub(text: str, most: int = 300) -> str:
    """A message without what may be a secret: user names and queries in addresses, keys."""
    text = _QUERY.sub("?...", _USER_INFO.sub("", text))
    text = _KEYS.sub("***", text)
    return text if len(text) <= most else text[:most] + "..."


def _dump(line: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(line, allow_nan=False, default=_foreign, separators=(",", ":"))
    except ValueError:  # an infinity: JSON has none
        text = json.dumps(_plain(line), allow_nan=False, default=_foreign, separators=(",", ":"))
    return text.encode() + b"\n"


def _foreign(value: Any) -> Any:
    item = getattr(value, "item", None)  # a number of numpy's
    return item() if callable(item) else repr(value)


def _plain(value: Any) -> Any:
    """With infinities and NaN as strings; `_numbers` is the way back."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value


def _numbers(found: dict[str, Any]) -> dict[str, Any]:
    """Gives back the infinities of one level."""
    return {
        key: float(value)
        if isinstance(value, str) and value in ("inf", "-inf", "nan") and key not in _WORDS
        else value
        for key, value in found.items()
    }


_WORDS = ("parent", "reason")
"""Keys whose value is text, whatever it looks like."""


def standing_of(
    agents: Sequence[tuple[str, str | None, int]],
    state: Callable[[str], str | None],
    now: float,
) -> tuple[Standing, ...]:
    """Who is there already when a recording begins late.

    Args:
        agents: id, parent and priority of each.
        state: the Regulator's `agent_state`.
        now: the time [s]; where they stand is known since then.
    """
    found = []
    for agent, parent, priority in agents:
        stands: Any = state(agent)
        if stands is not None:
            found.append(
                Standing(
                    agent,
                    now,
                    parent,
                    priority,
                    stands,
                    now,
                    calls=int(stands == "reasoning"),
                    asked=int(stands == "paused"),
                    is_off=stands == "off",
                )
            )
    return tuple(found)
