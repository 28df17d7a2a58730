"""`concur watch SOCKET`: a living governor, through its socket."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from concur_agents._sockets import sockets
from concur_agents.cli.show import Show
from concur_agents.errors import WatchError
from concur_agents.observe.frame import Frame, Point
from concur_agents.observe.socket import TRAIL
from concur_agents.observe.socket_client import SocketClient, frames


def watch_socket(where: str, show: Show, *, interval_s: float) -> None:
    """Shows a living governor until it ends.

    Args:
        where: its socket; "": the only one in the user's own folder.
        show: shows its frames.
        interval_s: time between frames [s].

    Raises:
        WatchError: no governor listens there, or the folder holds no socket or several.
    """
    path = Path(where) if where else _only_one()
    with SocketClient(path) as client:
        trail: deque[Point] = deque(client.trail(), maxlen=TRAIL)

        def remembered() -> Iterator[Frame]:
            for frame in frames(client, lambda: time.sleep(interval_s)):
                yield frame
                trail.append(frame.point)

        show(remembered(), lambda: list(trail), path.name)


def _only_one() -> Path:
    found = sockets()
    if not found:
        raise WatchError(
            'no governor of yours listens: start one with socket="auto" (CONCUR_SOCKET=auto, '
            "--socket auto), or name an endpoint, a recording or a socket"
        )
    if len(found) > 1:
        listed = "\n  ".join(str(path) for path in found)
        raise WatchError(f"several governors of yours listen; name one:\n  {listed}")
    return found[0]
