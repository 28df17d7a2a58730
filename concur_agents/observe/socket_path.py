"""Where the sockets of `concur watch` are, and which of them are alive."""

from __future__ import annotations

import os
import socket
import tempfile
from contextlib import suppress
from pathlib import Path


def own_folder() -> Path:
    """The user's own folder for sockets named "auto"."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return Path(runtime) / "concur-agents"
    return Path(tempfile.gettempdir()) / f"concur-agents-{os.getuid()}"


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
