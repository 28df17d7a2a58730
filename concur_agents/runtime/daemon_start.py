"""Starts the daemon of `shared="auto"`: the first process that needs it does."""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from concur_agents._sockets import make_private
from concur_agents.errors import ConcurError

logger = logging.getLogger("concur_agents")

START_S = 20.0
"""Longest start [s]."""


class DaemonError(ConcurError):
    """The daemon could not be started."""


class DaemonStartsError(DaemonError):
    """Another process is starting it."""


def start_daemon(path: Path, options: Mapping[str, Any]) -> None:
    """Starts a daemon, which listens on `path` when this returns.

    It goes on after this process, and ends by itself some time after its last client.

    Args:
        path: its socket.
        options: for `concur_agents.daemon`, which reads them as JSON.

    Raises:
        DaemonStartsError: another process is doing that.
        DaemonError: it could not be started.
    """
    make_private(path.parent)
    with _only_one(path.with_suffix(".starting")) as is_first:
        if not is_first:
            raise DaemonStartsError("another process is starting the daemon")
        command = [sys.executable, "-m", "concur_agents.daemon"]
        try:
            ran = subprocess.run(
                command,
                input=json.dumps({**options, "listen": f"unix:{path}"}).encode(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
                timeout=START_S,
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise DaemonError(f"cannot start the daemon: {error}") from error
    if ran.returncode != 0:
        said = ran.stderr.decode("utf-8", "replace").strip().splitlines()
        raise DaemonError(f"cannot start the daemon: {said[-1] if said else ran.returncode}")
    logger.info("started a daemon on %s", path)


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[bool]:
    """Whether no other process is in this block."""
    import fcntl

    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
