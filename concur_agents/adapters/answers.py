"""Reads the usage in an answer as it passes, without parsing the whole answer a second time.

Answers of training runs hold megabytes of log-probabilities, so the text is searched from its end
for the usage object only.
"""

from __future__ import annotations

import json
import re
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any

from concur_agents.core import Usage
from concur_agents.probes.usage import generated_tokens, read_usage

OVERLOADED = (429, 503, 529)
"""How servers refuse a call for lack of capacity."""

_KEY = b'"usage"'  # inside a JSON string it would be \"usage\", which does not contain this
_OTHER_KEYS = (
    b'"usageMetadata"',
    b'"usage_metadata"',
    b'"meta"',  # of Cohere's first API
    b'"details"',  # of Text Generation Inference
    b'"amazon-bedrock-invocationMetrics"',
)
_META = b'"meta_info"'  # of SGLang's /generate, with log-probabilities between its counts
_META_COUNTS = tuple(
    (name, re.compile(b'"%s"\\s*:\\s*(\\d+)' % name.encode()))
    for name in ("prompt_tokens", "completion_tokens", "cached_tokens")
)
_ABORT = re.compile(rb'"(?:finish|stop)_reason"\s*:\s*(?:\{[^{}]*"type"\s*:\s*)?"abort(?:ed)?"')
"""Of vLLM, and of SGLang's native answer, where a request was cut short."""
_IDS = re.compile(rb'"(?:prompt_)?token_ids"\s*:\s*\[\s*(\d[\d\s,]*)\]')
_VALUE = re.compile(rb"\s*:\s*")
_DECODER = json.JSONDecoder()
_LONGEST_USAGE = 4096  # bytes of a usage object with all its details
_LONGEST_LINE = 1024 * 1024  # bytes of an answer that is read whole because it has no usage object
_TAIL = 64 * 1024  # bytes of a stream that are kept: its last events
_HEAD = 8 * 1024  # bytes of a stream that are kept: its first event
_LONGEST_EVENT = 64 * 1024  # bytes of an event that may be the answer to our question
_MOST_UNZIPPED = 64 * 1024 * 1024  # bytes of a zipped answer, before and after, that are read
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')


def usage_in(text: bytes, head: bytes = b"") -> Usage | None:
    """The last usage in an answer, plain or as server-sent events; None: there is none.

    Args:
        text: the answer, or the end of a stream.
        head: the beginning of that stream. Anthropic's streams report the prompt there, and the
            completion in one of their last events.
    """
    head = head or text[:_HEAD]
    if b'"message_start"' in head:
        return _two_events(head, text)
    for key in (_KEY, *_OTHER_KEYS):
        for value in _values(text, key):
            usage = read_usage(value)
            if usage is not None:
                return usage
    if _META in text or _META in head:
        return _meta_info(text, head)
    return _last_line(text)


def usage_of_ids(sent: bytes, text: bytes) -> Usage | None:
    """What a call took, counted by its token ids; None: they are not in both.

    vLLM's `/inference/v1/generate` takes and gives ids, and reports no usage.

    Args:
        sent: the body of the request.
        text: the answer.
    """
    prompt, completion = _count_ids(sent), _count_ids(text)
    return Usage(prompt, completion) if prompt and completion else None


def _count_ids(body: bytes) -> int:
    return sum(found[1].count(b",") + 1 for found in _IDS.finditer(body))


def was_aborted(text: bytes) -> bool:
    """Whether the engine cut short what an answer holds, as before a weight update."""
    return b'"abort' in text and _ABORT.search(text) is not None


def _values(text: bytes, key: bytes) -> Iterator[Any]:
    """What stands under a key, from the end of the text."""
    at = text.rfind(key)
    while at >= 0:
        colon = _VALUE.match(text, at + len(key))
        if colon is not None:
            piece = text[colon.end() : colon.end() + _LONGEST_USAGE].decode("utf-8", "ignore")
            try:
                value = _DECODER.raw_decode(piece)[0]
            except (ValueError, RecursionError):
                pass
            else:
                yield value
        at = text.rfind(key, 0, at)  # because streams have "usage":null in all events but one


def _two_events(head: bytes, tail: bytes) -> Usage | None:
    """The usage of a stream of Anthropic's: each count is the largest that any event reports.

    Some servers know the prompt at the start, some at the end, and some report 0 at the other.
    """
    prompt = cached = None
    completion = 0
    for text in (head, tail):
        for value in _values(text, _KEY):
            usage = read_usage(value)
            if usage is not None:
                prompt = max(prompt or 0, usage.prompt_tokens)
                if usage.cached_tokens is not None:
                    cached = max(cached or 0, usage.cached_tokens)
            completion = max(completion, generated_tokens(value) or 0)
    return None if prompt is None else Usage(prompt, completion, cached)


def _meta_info(text: bytes, head: bytes) -> Usage | None:
    """The counts of SGLang's native answer, which may have megabytes between them."""
    counts: dict[str, int] = {}
    at = max(0, text.rfind(_META))
    for name, pattern in _META_COUNTS:
        found = pattern.search(text, at) or pattern.search(head)
        if found is not None and len(found[1]) < 16:
            counts[name] = int(found[1])
    return read_usage(counts)


def _last_line(text: bytes) -> Usage | None:
    """The usage of answers that hold their counts beside everything else, as Ollama's do."""
    line = text.rstrip()
    if b"_count" not in line and b"tokens_" not in line:
        return None
    for piece in (line[line.rfind(b"\n") + 1 :].removeprefix(b"data:"), line):
        if len(piece) <= _LONGEST_LINE:
            with suppress(ValueError, RecursionError):
                usage = read_usage(json.loads(piece))
                if usage is not None:
                    return usage
    return None


def retry_after_s(headers: Any) -> float:
    """How long the endpoint asked to wait [s]; 0: it did not ask."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        said = headers.get("retry-after", "")
        if not said:
            return 0.0
        try:
            return max(0.0, float(said))
        except ValueError:
            return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


class Answer:
    """An answer on its way to the user.

    Args:
        encoding: its content-encoding. A zipped answer is read in pieces and up to 64 MB, because
            a short one may hold gigabytes; what comes after that passes without being read.
        hide_usage: leave out the event that exists only because we asked for usage.
    """

    def __init__(self, encoding: str = "", *, hide_usage: bool = False) -> None:
        is_plain = encoding in ("", "identity")
        self._hider = _Hider() if hide_usage and is_plain else None
        self._unzip: Any = None
        if encoding in ("gzip", "x-gzip", "deflate"):
            self._unzip = zlib.decompressobj(zlib.MAX_WBITS | 32)
        self._unzipped = 0
        self._readable = is_plain or self._unzip is not None
        self._head = b""
        self._tail: list[bytes] = []
        self._tail_bytes = 0

    def feed(self, chunk: bytes) -> bytes:
        """Takes bytes from the server; returns the bytes that the user gets now."""
        if self._unzip is not None:
            self._unpack(chunk)
        elif self._readable:
            self._keep(chunk)
        return self._hider.feed(chunk) if self._hider is not None else chunk

    def finish(self) -> bytes:
        """The server has sent everything; returns the bytes that the user has not got yet."""
        return self._hider.finish() if self._hider is not None else b""

    def usage(self) -> Usage | None:
        """The last usage so far; None: there is none."""
        return usage_in(b"".join(self._tail), self._head)

    def was_aborted(self) -> bool:
        """Whether the engine cut it short."""
        return was_aborted(b"".join(self._tail))

    def _unpack(self, chunk: bytes) -> None:
        is_whole = False
        while self._readable and not is_whole:
            try:
                text = self._unzip.decompress(chunk, _TAIL)
            except zlib.error:
                self._readable = False
                return
            self._keep(text)
            rest = self._unzip.unconsumed_tail
            is_whole = not rest and len(text) < _TAIL
            self._unzipped += len(chunk) - len(rest) + len(text)
            self._readable = self._unzipped <= _MOST_UNZIPPED
            chunk = rest

    def _keep(self, text: bytes) -> None:
        self._tail.append(text)
        self._tail_bytes += len(text)
        if self._tail_bytes > 2 * _TAIL:
            kept = b"".join(self._tail)
            self._head = self._head or kept[:_HEAD]
            self._tail, self._tail_bytes = [kept[-_TAIL:]], _TAIL


class _Hider:
    """Leaves out of a stream the event that answers our own question.

    It is one line, `data: {...}`, with the blank line after it. So only a line that has not ended
    is kept back, whatever the server separates its events with.
    """

    def __init__(self) -> None:
        self._pending: list[bytes] = []
        """Bytes of a line that has not ended yet; joined once, when it has."""
        self._pending_bytes = 0
        self._is_whole = True  # the next line is the first of its event, or follows one of data
        self._drops_blank = False  # the line before is left out

    def feed(self, chunk: bytes) -> bytes:
        """Takes bytes from the server; returns the bytes that the user gets now."""
        if (
            not self._pending
            and self._is_whole
            and not self._drops_blank
            and b"[]" not in chunk
            and b"[ ]" not in chunk
            and chunk.endswith(b"\n\n")
        ):
            return chunk  # whole events, none of them with empty choices: the usual case
        # A carriage return at the very end may be the first half of a line's end.
        edge = (self._pending[-1][-1:] if self._pending else b"") + chunk
        end = max(edge.rfind(b"\n"), edge.rfind(b"\r", 0, -1)) + 1
        self._pending.append(chunk)
        self._pending_bytes += len(chunk)
        if not end and self._pending_bytes <= _LONGEST_EVENT:
            return b""
        text = b"".join(self._pending)
        # A line that is too long to be ours passes, before it has ended.
        cut = len(text) - (len(edge) - end if end else 0)
        self._pending = [text[cut:]] if cut < len(text) else []
        self._pending_bytes = len(text) - cut
        return self._without_ours(text[:cut])

    def finish(self) -> bytes:
        """The server has sent everything; returns the bytes that the user has not got yet."""
        rest, self._pending, self._pending_bytes = b"".join(self._pending), [], 0
        return self._without_ours(rest)

    def _without_ours(self, text: bytes) -> bytes:
        kept: list[bytes] = []
        for line in text.splitlines(keepends=True):
            is_blank = not line.strip(b"\r\n")
            if self._is_whole and _only_tells_usage(line):
                self._drops_blank = True
                continue
            if not (is_blank and self._drops_blank):
                kept.append(line)
            self._drops_blank = False
            ends = line.endswith((b"\n", b"\r"))
            self._is_whole = is_blank or (ends and line.startswith(b"data:"))
        return b"".join(kept)


def _only_tells_usage(event: bytes) -> bool:
    text = event.strip()
    if not text.startswith(b"data:") or _NO_CHOICES.search(text) is None:
        return False
    try:
        data = json.loads(text[5:])
    except ValueError:
        return False
    if not isinstance(data, dict) or data.get("choices") != [] or not data.get("usage"):
        return False
    return all(name in _OURS for name, value in data.items() if value is not None)


_OURS = frozenset(
    ("id", "object", "created", "model", "system_fingerprint", "service_tier", "choices", "usage")
)
"""What the answer to our question holds: the usage, and what is on every chunk. An event with
anything else says something to the user."""
