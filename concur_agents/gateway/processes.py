"""Which process of this machine sent a request: for programs in which each process is an agent.

Linux says it in `/proc`: the socket at the other end of a connection has an inode, and a process
has it open. Looked up once for each connection, among the processes below one.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from aiohttp import web

logger = logging.getLogger("concur_agents")

_PROC = Path("/proc")


class Processes:
    """Finds the senders among the processes below this one."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[asyncio.BaseTransport, int] = WeakKeyDictionary()
        self._latest: dict[int, None] = {}  # the senders that were found, because they come again
        self._has_complained = False

    async def of(self, request: web.BaseRequest) -> int | None:
        """The process that sent a request; None: it cannot be found."""
        transport = request.transport
        if transport is None:
            return None
        found = self._known.get(transport)
        if found is None:
            peer = transport.get_extra_info("peername")
            mine = transport.get_extra_info("sockname")
            found = await asyncio.to_thread(self._look, peer[1], mine[1])
            if found is not None:
                self._known[transport] = found
                self._latest[found] = None
        return found

    def _look(self, peer_port: int, port: int) -> int | None:
        inode = _inode(peer_port, port)
        if inode is not None:
            link = f"socket:[{inode}]"
            recent = [pid for pid in self._latest if is_alive(pid)]
            self._latest = dict.fromkeys(recent)
            for pid in (*recent, *_below(os.getpid())):
                if link in _links(pid):
                    return pid
        if not self._has_complained:
            self._has_complained = True
            logger.warning(
                "the process that sent a request cannot be found here: its agent is the one that "
                "the request names, or a guess (logged once)"
            )
        return None


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not waited for yet does not."""
    try:
        text = (_PROC / str(pid) / "stat").read_text("utf-8", "replace")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[:1] != ["Z"]


def _inode(peer_port: int, port: int) -> str | None:
    """The inode of the socket at the other end of a connection to `port`."""
    for name in ("tcp", "tcp6"):
        with suppress(OSError), (_PROC / "net" / name).open(encoding="ascii") as rows:
            for row in rows:
                columns = row.split()
                if (
                    len(columns) > 9
                    and columns[1].endswith(f":{peer_port:04X}")
                    and columns[2].endswith(f":{port:04X}")
                ):
                    return columns[9]
    return None


def _below(root: int) -> Iterator[int]:
    """The processes below one, the youngest first."""
    children: dict[int, list[int]] = {}
    for pid in _pids():
        with suppress(OSError, ValueError, IndexError):
            text = (_PROC / str(pid) / "stat").read_text("utf-8", "replace")
            children.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(pid)
    found: list[int] = []
    rest = [root]
    while rest:
        below = children.get(rest.pop(), [])
        found += below
        rest += below
    return iter(sorted(found, reverse=True))


def _pids() -> Iterable[int]:
    with suppress(OSError):
        return [int(name) for name in os.listdir(_PROC) if name.isdecimal()]  # noqa: PTH208
    return []


def _links(pid: int) -> set[str]:
    """What a process has open."""
    found = set()
    with suppress(OSError):
        for entry in os.scandir(_PROC / str(pid) / "fd"):
            with suppress(OSError):
                found.add(os.readlink(entry.path))  # noqa: PTH115  # it is no path
    return found
