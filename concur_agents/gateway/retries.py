"""Which requests are tries of one call.

A client whose timeout has passed hangs up and sends the same request again. Taken for a new call,
the retry would wait at the end of the line, or the engine would compute the answer twice. So the
call of a client that retries (openai's and Anthropic's say so in a header) outlives its connection
for as long as the client sleeps before the next try; a retry with the same body takes the call
over.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Generic, TypeVar

COUNT_HEADER = "x-stainless-retry-count"

_FIRST_S, _LONGEST_S = 0.5, 8.0
"""How long these clients sleep before the first retry, and at most; twice as long each time."""

_SLACK_S = 1.0
"""For the retry to be sent, and to be read here."""

F = TypeVar("F")


def retry_count(headers: Mapping[str, str]) -> int | None:
    """How often the client has tried before; None: it does not say, so it may never retry."""
    said = headers.get(COUNT_HEADER, "").strip()
    return min(int(said), 1000) if said.isascii() and said.isdecimal() and len(said) < 5 else None


def linger_s(count: int) -> float:
    """How long [s] after the end of a connection the retry of its request may still come."""
    return float(min(_FIRST_S * 2.0**count, _LONGEST_S)) + _SLACK_S


def digest(agent: str, path: str, body: bytes) -> bytes:
    """What the tries of one call have in common."""
    found = blake2b(body, digest_size=16)
    found.update(f"\0{agent}\0{path}".encode("utf-8", "surrogateescape"))
    return found.digest()


class Tries(Generic[F]):
    """The calls that a retry may take over, by their digests."""

    def __init__(self) -> None:
        self._calls: dict[bytes, F] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, key: bytes, call: F) -> None:
        """A call has begun; of two with one digest the later one may be taken over."""
        self._calls[key] = call

    def find(self, key: bytes, count: int) -> F | None:
        """The call that a retry takes over; None: there is none, or it is the first try.

        Two first tries of one body are two calls: samples of one prompt.
        """
        return self._calls.get(key) if count > 0 else None

    def remove(self, key: bytes, call: F) -> None:
        """The call can be taken over no longer: it has ended, or its answer has begun."""
        if self._calls.get(key) is call:
            del self._calls[key]
