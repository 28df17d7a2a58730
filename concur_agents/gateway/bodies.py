"""The body of a request: read as far as there is room, so that memory stays bounded.

A body is read before its call is held, because it says whose call it is. What is larger than
`MOST_READ`, or than what is left of the memory for all bodies, stays where it is, with its client,
and is passed on as it comes when the call is sent.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

MOST_READ = 4 * 1024 * 1024
"""Bytes of one body that are read before its call is sent."""

MOST_IN_ALL = 256 * 1024 * 1024
"""Bytes of all bodies that are read and not yet sent; beyond them `LEAST_READ` of each."""

LEAST_READ = 64 * 1024

_LONGEST_INDENT = 64
"""Bytes of white space before a body that are looked through."""


class Readable(Protocol):
    """A body as it comes."""

    async def readany(self) -> bytes:
        """The next bytes; empty at its end."""
        ...


@dataclass(slots=True)
class Body:
    """A body.

    Attributes:
        read: its bytes, or the first of them.
        rest: where the others come from; None: `read` is all.
        counted: bytes that count for `Room`.
    """

    read: bytes
    rest: Readable | None = None
    counted: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether it has been read to its end."""
        return self.rest is None

    def parsed(self) -> dict[str, Any] | None:
        """The JSON object that it is; None: it is none, or is not whole."""
        if not self.is_whole or not begins_object(self.read):
            return None
        try:
            found = json.loads(self.read)
        except (ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    async def pieces(self, added: bytes = b"") -> AsyncIterator[bytes]:
        """Its bytes, those that have been read first, see `with_fields`."""
        yield with_fields(self.read, added)
        if self.rest is not None:
            while piece := await self.rest.readany():
                yield piece


class Room:
    """The memory for bodies that wait.

    Args:
        most: bytes of all bodies.
    """

    def __init__(self, most: int = MOST_IN_ALL) -> None:
        self._most = most
        self.used = 0
        """Bytes that wait now."""

    async def read(self, content: Readable, patience_s: float) -> Body:
        """Reads a body as far as there is room; its bytes count until `free`.

        Raises:
            TimeoutError: nothing of it came for `patience_s`.
        """
        most = max(LEAST_READ, min(MOST_READ, self._most - self.used))
        pieces: list[bytes] = []
        size = 0
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(patience_s) as patience:
                while piece := await content.readany():
                    pieces.append(piece)
                    size += len(piece)
                    self.used += len(piece)
                    if size > most:
                        return Body(b"".join(pieces), content, size)
                    patience.reschedule(loop.time() + patience_s)
        except BaseException:
            self.used -= size
            raise
        return Body(b"".join(pieces), None, size)

    def free(self, body: Body) -> None:
        """A body has been sent, or is not needed any more."""
        self.used -= body.counted
        body.read, body.counted = b"", 0


def begins_object(body: bytes) -> bool:
    """Whether a body begins as a JSON object does, after white space or at once."""
    return body[:_LONGEST_INDENT].lstrip(b" \t\r\n").startswith(b"{")


def front_of(fields: Mapping[str, object]) -> bytes:
    """Fields as they stand at the front of a JSON object that has others; empty: there are none."""
    return json.dumps(fields, separators=(",", ":")).encode()[1:-1] + b"," if fields else b""


def with_fields(body: bytes, added: bytes) -> bytes:
    """The body of a request with further fields at its front, and the rest as it is.

    Of two fields of one name the last one counts, so a client's own is not overridden.

    Args:
        body: a JSON object with fields, or the beginning of one.
        added: see `front_of`.
    """
    if not added:
        return body
    first = body.index(b"{") + 1
    return b"".join((memoryview(body)[:first], added, memoryview(body)[first:]))
