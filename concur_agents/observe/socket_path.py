"""Where the sockets of `concur watch` are, and which of them are alive."""

from __future__ import annotations

import os
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

_LONGEST_FOLDER = 80
"""Bytes in the path of `own_folder`: macOS bounds the path of a socket to 103, Linux to 107."""


def own_folder() -> Path:
    """The user's own folder for sockets named "auto"; its path is short."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    name = f"concur-agents-{os.getuid()}"
    folder = Path(runtime) / "concur-agents" if runtime else Path(tempfile.gettempdir()) / name
    return folder if len(os.fsencode(folder)) <= _LONGEST_FOLDER else Path("/tmp") / name


def sockets() -> list[Path]:
    """The sockets in `own_folder` on which a governor listens, the youngest first."""
    found: list[Path] = []
    if not hasattr(socket, "AF_UNIX"):
        return found
    with suppress(OSError):
        found = [path for path in own_folder().iterdir() if path.suffix == ".sock"]
    alive = [path for path in found if is_alive(path)]
    return sorted(alive, key=lambda path: -path.stat().st_mtime)


def is_alive(path: Path) -> bool:
    """Whether a process listens on this socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
