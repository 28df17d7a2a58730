"""The client of a governor's socket: reads a governor of another process."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from concur_agents._sockets import check_folder
from concur_agents.errors import WatchError
from concur_agents.observe.frame import Frame, Point

MOST_ANSWER = 2**22
"""Longest answer [characters]; a frame has at most some thousand."""

TIMEOUT_S = 10.0
"""Longest wait for an answer [s]."""


class SocketClient:
    """A connection to the socket of a governor.

    Args:
        path: the socket.

    Raises:
        WatchError: no governor listens there, or its folder is not the user's own; also from each
            read, once the governor has ended.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        check_folder(self.path.absolute().parent)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(TIMEOUT_S)
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
        """The governor's last few minutes, oldest first."""
        try:
            return [Point(*row) for row in self._ask("trail")]
        except TypeError as error:
            raise self._is_foreign() from error

    def close(self) -> None:
        """Closes the connection."""
        self._answers.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, question: str) -> Any:
        try:
            self._socket.sendall(question.encode() + b"\n")
            line = self._answers.readline(MOST_ANSWER)
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
        return WatchError(
            f"{self.path} is the socket of another program, or of another version of this one"
        )


def frames(client: SocketClient, rest: Callable[[], object]) -> Iterator[Frame]:
    """Reads frames until the governor has ended.

    Args:
        client: where to read.
        rest: called between two reads, to pass some time.
    """
    while True:
        try:
            frame = client.look()
        except WatchError:
            return
        yield frame
        if frame.closed:
            return
        rest()
