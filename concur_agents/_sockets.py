"""Unix sockets of ours: where they are, who may connect, and which of them are alive."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from concur_agents.errors import ConfigError, WatchError

_LONGEST_FOLDER = 80
"""Bytes in the path of `own_folder`: macOS bounds the path of a socket to 103, Linux to 107."""


def own_folder() -> Path:
    """The user's own folder for sockets named "auto"; its path is short."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    name = f"concur-agents-{os.getuid()}"
    folder = Path(runtime) / "concur-agents" if runtime else Path(tempfile.gettempdir()) / name
    return folder if len(os.fsencode(folder)) <= _LONGEST_FOLDER else Path("/tmp") / name


def sockets() -> list[Path]:
    """The sockets in `own_folder` on which a governor listens, the youngest first.

    Raises:
        WatchError: another user owns that folder, or may write to it.
    """
    found: list[Path] = []
    folder = own_folder()
    if not hasattr(socket, "AF_UNIX") or not os.path.lexists(folder):
        return found
    check_folder(folder)
    with suppress(OSError):
        found = [path for path in folder.iterdir() if path.suffix == ".sock"]
    alive = [path for path in found if is_alive(path)]
    return sorted(alive, key=lambda path: -path.stat().st_mtime)


def check_folder(folder: Path) -> None:
    """Refuses a folder in which another user could put a socket and speak for a governor.

    Raises:
        WatchError: another user owns it or may write to it, or it is a link.
    """
    try:
        found = folder.lstat()
    except OSError:  # the connection reports what is missing
        return
    if found.st_uid != os.getuid() or stat.S_ISLNK(found.st_mode) or found.st_mode & 0o022:
        raise WatchError(
            f"{folder} is owned by another user, is a link, or other users may write there, so "
            "what answers there may be no governor of yours: only sockets in a folder that is "
            "yours alone are used"
        )


def is_alive(path: Path) -> bool:
    """Whether a process listens on this socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def make_private(folder: Path) -> None:
    """Makes the folder, and checks that only its owner may enter it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise ConfigError(f"cannot make the folder {folder}: {error.strerror}") from error
    if stat.S_ISLNK(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigError(
            f"other users may enter {folder} and could connect to a socket there: name one in "
            'a folder of your own (mkdir -m 700), or use "auto"'
        )


def bind(path: Path, backlog: int) -> socket.socket:
    """Listens on a socket that only its owner may open.

    Raises:
        ConfigError: a process listens there already, or the path cannot be used.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            if is_alive(path):
                raise ConfigError(
                    f"a process listens on {path} already: name another; {{pid}} in its name "
                    "stands for the process id"
                )
            path.unlink()  # left behind by a process that was killed
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(backlog)
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
