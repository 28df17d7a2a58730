"""Looking on: a governor tells `concur watch` where it stands, over a socket of your own machine.

    gov = ca.Governor(url, socket="auto")        # or CONCUR_SOCKET=auto, or --socket auto

Nothing listens unless asked for. The socket is a file, which nobody but its owner may open, in a
folder that nobody else may enter; it goes when the governor is closed. Whoever looks on can ask
where things stand, and nothing else. A thread answers; an agent waits for it no longer than for any
other look at the governor, and a watcher who does not read is waited for by that watcher's thread
alone.

    look         -> a `Frame`, as JSON in one line
    trail        -> the last few minutes, a list of `Point`
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import selectors
import socket
import stat
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from concur_agents.errors import ConfigError, WatchError
from concur_agents.observe.frame import MOST_ROWS, Active, Frame, Point, Waiting, split_pressure

if TYPE_CHECKING:
    from concur_agents.runtime.host import Host

logger = logging.getLogger("concur_agents")

AUTO = "auto"
"""The name that stands for a socket in a folder of the user's own."""

MOST_WATCHERS = 8

EVERY_S = 1.0
"""Between two points of the trail [s]."""

TRAIL = 300
"""Points that are kept."""

_LONGEST_FOLDER = 80
"""Bytes in the path of `own_folder`: macOS bounds the path of a socket to 103, Linux to 107."""

PATIENCE_S = 10.0
"""For a watcher that does not read, and for a governor that does not answer [s]."""


def own_folder() -> Path:
    """Where sockets named `AUTO` are; its path is short, because that of a socket is bounded."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    name = f"concur-agents-{os.getuid()}"
    folder = Path(runtime) / "concur-agents" if runtime else Path(tempfile.gettempdir()) / name
    return folder if len(os.fsencode(folder)) <= _LONGEST_FOLDER else Path("/tmp") / name


def sockets() -> list[Path]:
    """Those in `own_folder` that somebody listens on, the youngest first."""
    found: list[Path] = []
    if not hasattr(socket, "AF_UNIX"):
        return found
    with suppress(OSError):
        found = [path for path in own_folder().iterdir() if path.suffix == ".sock"]
    living = [path for path in found if _answers(path)]
    return sorted(living, key=lambda path: -path.stat().st_mtime)


def listen(governor: Host, where: str | os.PathLike[str]) -> Callable[[], None]:
    """Lets the owner of this process look on.

    Args:
        governor: who is looked at; it is not kept alive.
        where: path of the socket; `{pid}` in it stands for this process. "auto": one in a folder
            of the user's own, where `concur watch` finds it.

    Returns:
        The function that ends it.

    Raises:
        ConfigError: others may enter the folder, somebody listens there already, the path is too
            long for a socket, or this system has none.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise ConfigError("this system has no unix sockets: use record= and watch the recording")
    path = _free_name() if os.fspath(where) == AUTO else _given(where)
    _make_private(path.parent)
    listener = _bind(path)
    # Runs when it is called, when the governor is dropped, and at the latest at the interpreter's
    # end. In a forked child it must leave the parent's file alone.
    watched = _Listener(weakref.ref(governor), listener)
    end = weakref.finalize(governor, watched.stop, path, os.getpid())
    watched.start()
    return end


def frame_of(governor: Host, *, start_s: float = 0.0) -> Frame:
    """Where a governor stands.

    Args:
        governor: whom to look at.
        start_s: what to count its time from, on its own clock [s].
    """
    snapshot, agents = governor.snapshot(), governor.agents()
    now = snapshot.at_s
    active = [who for who in agents if who.state in ("reasoning", "acting")]
    waiting = [who for who in agents if who.state in ("queued", "paused") and who.parent is None]
    waiting.sort(key=lambda who: who.since_s)
    active.sort(key=lambda who: who.since_s)
    held, faded = split_pressure(
        snapshot.pressure_tokens,
        (who.held_tokens for who in agents),
        (who.footprint_tokens for who in active if who.state == "acting"),
    )
    rows = [
        Waiting(
            agent=who.agent,
            state=who.state,
            waited_s=round(max(0.0, now - who.since_s), 3),
            why=governor.explain(who.agent).partition(f"{who.state}: ")[2],
        )
        for who in waiting[:MOST_ROWS]
    ]
    limit = snapshot.limit
    return Frame(
        at_s=round(now - start_s, 3),
        law=snapshot.law,
        reasoning=snapshot.reasoning,
        acting=snapshot.acting,
        paused=snapshot.paused,
        queued=snapshot.queued,
        suspended=snapshot.suspended,
        done_total=snapshot.done_total,
        pressure_tokens=snapshot.pressure_tokens,
        capacity_tokens=snapshot.capacity_tokens,
        reasoning_tokens=held,
        faded_tokens=faded,
        limit_tokens=_finite(limit.tokens),
        limit_agents=_finite(limit.agents),
        reason=snapshot.reason,
        hit_rate=snapshot.hit_rate,
        hit_deficit=snapshot.hit_deficit,
        pauses_total=snapshot.pauses_total,
        overdue_total=snapshot.overdue_total,
        longest_wait_s=snapshot.longest_wait_s,
        blind=snapshot.poll_error is not None,
        closed=snapshot.closed,
        waiting=[row for row in rows if row.why],  # else it has gone on meanwhile
        active=[
            Active(
                agent=who.agent,
                state=who.state,
                for_s=round(max(0.0, now - who.since_s), 3),
                tokens=round(who.footprint_tokens),
                steps=who.steps,
            )
            for who in active[:MOST_ROWS]
        ],
    )


class Looker:
    """The other end: looks at a governor of another process.

    Raises:
        WatchError: nobody listens there; also by each look, once the governor has ended.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(PATIENCE_S)
        try:
            self._socket.connect(str(self.path))
        except OSError as error:
            self._socket.close()
            raise WatchError(
                f"no governor listens on {self.path} ({error.strerror or error}): has it ended?"
            ) from error
        self._answers = self._socket.makefile("r", encoding="utf-8")

    def look(self) -> Frame:
        """Where the governor stands now."""
        try:
            return Frame.from_dict(self._ask("look"))
        except (KeyError, TypeError) as error:
            raise self._is_foreign() from error

    def trail(self) -> list[Point]:
        """Its last few minutes, oldest first."""
        try:
            return [Point(*row) for row in self._ask("trail")]
        except TypeError as error:
            raise self._is_foreign() from error

    def close(self) -> None:
        """Looks no more."""
        self._answers.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, question: str) -> Any:
        try:
            self._socket.sendall(question.encode() + b"\n")
            line = self._answers.readline()
        except ConnectionError as error:
            raise WatchError(f"the governor at {self.path} has ended") from error
        except OSError as error:
            raise WatchError(f"the governor at {self.path} does not answer: {error}") from error
        if not line:
            raise WatchError(f"the governor at {self.path} has ended")
        try:
            return json.loads(line)
        except ValueError as error:
            raise self._is_foreign() from error

    def _is_foreign(self) -> WatchError:
        return WatchError(f"{self.path} is the socket of something else, or of another version")


# --- the governor's side -------------------------------------------------------------------------


class _Listener:
    """The thread that waits for watchers, and keeps the trail."""

    def __init__(self, governor: weakref.ref[Host], listener: socket.socket) -> None:
        self._governor = governor
        self._listener = listener
        self._woken, self._wake = socket.socketpair()
        self._watchers: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._stopped = False
        found = governor()
        self._start_s = 0.0 if found is None else found.snapshot().at_s
        self._trail: deque[Point] = deque(maxlen=TRAIL)

    def start(self) -> None:
        """Begins to answer."""
        threading.Thread(target=self._run, name="concur-watched", daemon=True).start()

    def stop(self, path: Path, pid: int) -> None:
        """Ends it; in a forked child only the child's hold on it."""
        if os.getpid() != pid:  # the thread is not here, and the file is the parent's
            for end in (self._listener, self._woken, self._wake, *self._watchers):
                end.close()
            return
        with self._lock:
            self._stopped = True
            watchers = list(self._watchers)
        with suppress(OSError):
            path.unlink()
        self._wake.close()
        for watcher in watchers:
            with suppress(OSError):
                watcher.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector, self._listener, self._woken:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select(EVERY_S)}
                if self._woken in ready or self._stopped:
                    return
                if not ready:
                    self._remember()
                elif self._listener in ready:
                    self._accept()

    def _accept(self) -> None:
        try:
            watcher, _ = self._listener.accept()
        except OSError:  # it has gone again, or there are no more descriptors
            return
        with self._lock:
            if self._stopped or len(self._watchers) >= MOST_WATCHERS:
                watcher.close()
                return
            self._watchers.add(watcher)
        threading.Thread(
            target=self._answer, args=(watcher,), name="concur-watched-by", daemon=True
        ).start()

    def _answer(self, watcher: socket.socket) -> None:
        watcher.settimeout(None)
        try:
            with watcher, watcher.makefile("rb") as questions:
                while question := questions.readline(64):
                    watcher.settimeout(PATIENCE_S)
                    answer = self._look(question.strip())
                    if answer is None:
                        return
                    watcher.sendall(answer + b"\n")
                    watcher.settimeout(None)
        except OSError:  # it has gone, or does not read
            return
        except Exception:
            logger.exception("cannot tell a watcher where the governor stands")
        finally:
            with self._lock:
                self._watchers.discard(watcher)

    def _look(self, question: bytes) -> bytes | None:
        governor = self._governor()
        if governor is None:
            return None
        if question == b"look":
            return json.dumps(asdict(frame_of(governor, start_s=self._start_s))).encode()
        if question == b"trail":
            return json.dumps(list(self._trail)).encode()
        return None

    def _remember(self) -> None:
        governor = self._governor()
        if governor is None:
            return
        now = governor.snapshot()
        self._trail.append(
            Point(
                round(now.at_s - self._start_s, 3),
                _finite(now.limit.tokens),
                _finite(now.limit.agents),
                now.pressure_tokens,
                now.active,
                now.hit_deficit,
            )
        )


_numbers = itertools.count()


def _free_name() -> Path:
    return own_folder() / f"{os.getpid()}-{next(_numbers)}.sock"


def _given(where: str | os.PathLike[str]) -> Path:
    return Path(os.fspath(where).replace("{pid}", str(os.getpid()))).absolute()


def _make_private(folder: Path) -> None:
    """The folder is there, and nobody else may enter it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise ConfigError(f"cannot make the folder {folder}: {error.strerror}") from error
    if stat.S_ISLNK(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigError(
            f"others may enter {folder}, so a socket there would let them look on: name one in a "
            f'folder of your own (mkdir -m 700), or take socket="{AUTO}"'
        )


def _bind(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            if _answers(path):
                raise ConfigError(
                    f"somebody listens on {path} already: name another, {{pid}} in it stands for "
                    "the process"
                )
            path.unlink()  # of a process that was killed
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(MOST_WATCHERS)
        listener.setblocking(False)
    except BaseException as error:
        listener.close()
        if isinstance(error, OSError):
            most = "; the path of a socket has at most about 100 characters"
            raise ConfigError(
                f"cannot listen on {path}: {error.strerror or str(error) + most}"
            ) from error
        raise
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None


def frames(looker: Looker, rest: Callable[[], object]) -> Iterator[Frame]:
    """Looks until the governor has ended.

    Args:
        looker: who looks.
        rest: called between two looks, to pass some time.
    """
    while True:
        try:
            frame = looker.look()
        except WatchError:
            return
        yield frame
        if frame.closed:
            return
        rest()
