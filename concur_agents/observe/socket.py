"""The socket of a living governor: `concur watch` reads from it where the governor stands.

    gov = ca.Governor(url, socket="auto")        # or CONCUR_SOCKET=auto, or --socket auto

The governor listens only if it is asked to. The socket is a file that only its owner may open, in
a folder that only its owner may enter; it is removed when the governor closes. A watcher can ask
two questions and change nothing:

    look         -> a `Frame`, as JSON in one line
    trail        -> the last few minutes, a list of `Point`

A thread answers. It takes the governor's lock for no longer than any other read does, and a
watcher that does not read its answers blocks only the thread of that watcher.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import selectors
import socket
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from concur_agents import _moved
from concur_agents._sockets import bind, make_private, own_folder
from concur_agents.errors import ConfigError
from concur_agents.observe.frame import Point, finite, frame_of

if TYPE_CHECKING:
    from concur_agents.runtime.host import Host

logger = logging.getLogger("concur_agents")

AUTO = "auto"
"""The name that stands for a socket in `own_folder`."""

MOST_WATCHERS = 8

EVERY_S = 1.0
"""Time between two points of the trail [s]."""

TRAIL = 300
"""Points that are kept."""

SEND_TIMEOUT_S = 10.0
"""Longest wait for a watcher that does not read its answer [s]."""


def listen(governor: Host, where: str | os.PathLike[str]) -> Callable[[], None]:
    """Opens a socket on which the owner of this process can watch a governor.

    Args:
        governor: the governor; the socket does not keep it alive.
        where: path of the socket; `{pid}` in it stands for the process id. "auto": a socket in the
            user's own folder, where `concur watch` finds it.

    Returns:
        The function that closes the socket.

    Raises:
        ConfigError: other users may enter the folder, a process listens there already, the path is
            too long for a socket, or this system has no unix sockets.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise ConfigError("this system has no unix sockets: use record= and watch the recording")
    path = _free_name() if os.fspath(where) == AUTO else _given(where)
    make_private(path.parent)
    listener = bind(path, MOST_WATCHERS)
    # Runs when the caller calls it, when the governor is dropped, at the latest when the
    # interpreter ends. In a forked child it must leave the file alone: the parent owns it.
    watched = _Listener(weakref.ref(governor), listener)
    end = weakref.finalize(governor, watched.stop, path, os.getpid())
    watched.start()
    return end


class _Listener:
    """The thread that accepts watchers and keeps the trail."""

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
        """Starts the thread."""
        threading.Thread(target=self._run, name="concur-watched", daemon=True).start()

    def stop(self, path: Path, pid: int) -> None:
        """Ends the thread and removes the socket; a forked child only closes its copies."""
        if os.getpid() != pid:  # a forked child has no thread, and the parent owns the file
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
        except OSError:  # the watcher has gone again, or no descriptor is left
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
                    watcher.settimeout(SEND_TIMEOUT_S)
                    answer = self._look(question.strip())
                    if answer is None:
                        return
                    watcher.sendall(answer + b"\n")
                    watcher.settimeout(None)
        except OSError:  # the watcher has gone, or does not read
            return
        except Exception:
            logger.exception("cannot answer a watcher of the governor")
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
                finite(now.limit.tokens),
                finite(now.limit.agents),
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


def __getattr__(name: str) -> Any:
    if name == "Looker":
        from concur_agents.observe.socket_client import SocketClient

        _moved.warn(f"{__name__}.Looker", "concur_agents.observe.socket_client.SocketClient")
        return SocketClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
