"""Reads the usage in an answer as it passes, without parsing the whole answer a second time.

Answers of training runs hold megabytes of log-probabilities, so the text is searched from its end
for the usage object only.
"""

from __future__ import annotations

import json
import re
import zlib
from typing import Any

from concur_agents.core import Usage
from concur_agents.probes.usage import read_usage

_KEY = b'"usage"'  # inside a JSON string it would be \"usage\", which does not contain this
_VALUE = re.compile(rb"\s*:\s*")
_DECODER = json.JSONDecoder()
_LONGEST_USAGE = 4096  # bytes of a usage object with all its details
_TAIL = 64 * 1024  # bytes of a stream that are kept: its last events
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_EVENT_END = re.compile(rb"\r?\n\r?\n")


def usage_in(text: bytes) -> Usage | None:
    """The last usage in an answer, plain or as server-sent events; None: there is none."""
    at = text.rfind(_KEY)
    while at >= 0:
        colon = _VALUE.match(text, at + len(_KEY))
        if colon is not None:
            piece = text[colon.end() : colon.end() + _LONGEST_USAGE].decode("utf-8", "ignore")
            try:
                usage = read_usage(_DECODER.raw_decode(piece)[0])
            except ValueError:
                usage = None
            if usage is not None:
                return usage
        at = text.rfind(_KEY, 0, at)  # because streams have "usage":null in all events but one
    return None


class Answer:
    """An answer on its way to the user.

    Args:
        encoding: its content-encoding.
        hide_usage: leave out the event that exists only because we asked for usage.
    """

    def __init__(self, encoding: str = "", *, hide_usage: bool = False) -> None:
        self._hide = hide_usage and encoding in ("", "identity")
        self._unzip: Any = None
        if encoding in ("gzip", "x-gzip", "deflate"):
            self._unzip = zlib.decompressobj(zlib.MAX_WBITS | 32)
        self._readable = encoding in ("", "identity") or self._unzip is not None
        self._tail: list[bytes] = []
        self._tail_bytes = 0
        self._pending = b""

    def feed(self, chunk: bytes) -> bytes:
        """Takes bytes from the server; returns the bytes that the user gets now."""
        if self._readable:
            self._remember(chunk)
        if not self._hide:
            return chunk
        if not self._pending and b"[]" not in chunk and chunk.endswith(b"\n\n"):
            return chunk  # whole events, none of them with empty choices: the usual case
        text = self._pending + chunk
        end = _after_last_event(text, len(text))
        whole, self._pending = text[:end], text[end:]
        return _without_usage_event(whole)

    def finish(self) -> bytes:
        """The server has sent everything; returns the bytes that the user has not got yet."""
        rest, self._pending = self._pending, b""
        return _without_usage_event(rest)

    def usage(self) -> Usage | None:
        """The last usage so far; None: there is none."""
        return usage_in(b"".join(self._tail))

    def _remember(self, chunk: bytes) -> None:
        if self._unzip is not None:
            try:
                chunk = self._unzip.decompress(chunk)
            except zlib.error:
                self._readable = False
                return
        self._tail.append(chunk)
        self._tail_bytes += len(chunk)
        if self._tail_bytes > 2 * _TAIL:
            kept = b"".join(self._tail)[-_TAIL:]
            self._tail, self._tail_bytes = [kept], len(kept)


def _after_last_event(text: bytes, before: int) -> int:
    """The end of the last whole event; 0: there is none."""
    ends = (text.rfind(b"\n\n", 0, before), 2), (text.rfind(b"\r\n\r\n", 0, before), 4)
    return max(at + length if at >= 0 else 0 for at, length in ends)


def _without_usage_event(events: bytes) -> bytes:
    kept: list[bytes] = []
    start = 0
    for match in _NO_CHOICES.finditer(events):
        begin = _after_last_event(events, match.start())
        ended = _EVENT_END.search(events, match.end())
        end = len(events) if ended is None else ended.end()
        if begin >= start and _only_tells_usage(events[begin:end]):
            kept.append(events[start:begin])
            start = end
    if not kept:
        return events
    kept.append(events[start:])
    return b"".join(kept)


def _only_tells_usage(event: bytes) -> bool:
    text = event.strip()
    if not text.startswith(b"data:"):
        return False
    try:
        data = json.loads(text[5:])
    except ValueError:
        return False
    return isinstance(data, dict) and data.get("choices") == [] and bool(data.get("usage"))
