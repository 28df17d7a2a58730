"""Where a daemon listens, and how to connect to it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from concur_agents._sockets import check_folder, own_folder
from concur_agents.errors import ConfigError
from concur_agents.recording import scrub

AUTO = "auto"
"""Stands for the daemon of this machine, this user and these engines."""

CONNECT_S = 5.0
"""Longest attempt to connect [s]."""


class DaemonAddress(NamedTuple):
    """A unix socket, or a host and a port."""

    path: Path | None
    host: str = ""
    port: int = 0

    @property
    def is_trusted(self) -> bool:
        """Whether only this user can connect, so that no token is needed."""
        return self.path is not None

    def __str__(self) -> str:
        return f"tcp://{self.host}:{self.port}" if self.path is None else f"unix:{self.path}"

    def connect(self) -> socket.socket:
        """A connection.

        Raises:
            OSError: no daemon listens there.
            WatchError: another user may put a socket there.
        """
        if self.path is None:
            found = socket.create_connection((self.host, self.port), CONNECT_S)
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return found
        check_folder(self.path.parent)
        found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            found.settimeout(CONNECT_S)
            found.connect(str(self.path))
        except BaseException:
            found.close()
            raise
        return found


def daemon_address(text: str, urls: Iterable[str] = ()) -> DaemonAddress:
    """An address as text: "auto", "unix:PATH" or "tcp://HOST:PORT".

    Args:
        text: the address.
        urls: of the engines, for "auto".

    Raises:
        ConfigError: it is none of these.
    """
    if text == AUTO:
        if not hasattr(socket, "AF_UNIX"):
            raise ConfigError('this system has no unix sockets: share by "tcp://HOST:PORT"')
        return DaemonAddress(own_folder() / f"shared-{digest_of(urls)}.daemon")
    if text.startswith("unix:") and len(text) > len("unix:"):
        return DaemonAddress(Path(os.path.expanduser(text[len("unix:") :])).absolute())  # noqa: PTH111
    host, colon, port = text.removeprefix("tcp://").rpartition(":")
    if text.startswith("tcp://") and colon and host and port.isdigit() and int(port) < 65536:
        return DaemonAddress(None, host.strip("[]"), int(port))
    raise ConfigError(f'a daemon is "auto", "unix:PATH" or "tcp://HOST:PORT", got {text!r}')


def digest_of(urls: Iterable[str]) -> str:
    """A name for engines, in whatever order they are given."""
    names = sorted(scrub(url).rstrip("/").removesuffix("/v1") for url in urls)
    return blake2b("\n".join(names).encode(), digest_size=8).hexdigest()
