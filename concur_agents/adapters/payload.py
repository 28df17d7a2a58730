"""What in a prompt is text, and what is an image, a sound or a file.

Those travel as base64 of up to megabytes, and take as many tokens as their model decides. They are
found without parsing the body, because it may be large.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_STRIDE, _LOOK = 1024, 128
"""One look of `_LOOK` bytes is taken at each `_STRIDE`, so a run as long as both is found. Looks
cost, and a shorter payload is not worth one: as text it counts for some 250 tokens."""

_WINDOW = re.compile(rb"[A-Za-z0-9+/_-]{%d}" % _LOOK)
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/_-"
_RUN = re.compile(rb"[A-Za-z0-9+/_=-]*")
_NAMED = re.compile(
    rb"""base64,$|["'](?:data|file_data|bytes|b64_json|inline_data)["']\s*:\s*["']$"""
)
_MIXED = re.compile(rb"(?=.*[A-Z])(?=.*[a-z])(?=.*[0-9])")
_LINKED = re.compile(
    rb'"(?:(?:image|audio|video|file)_url"\s*:\s*(?:\{\s*"url"\s*:\s*)?'
    rb'|type"\s*:\s*"url"\s*,\s*"url"\s*:\s*)"https?:'
)
_ESCAPED = rb"\u"
_CONTINUES = re.compile(
    rb'"previous_response_id"\s*:\s*"|"conversation"\s*:\s*(?:\{\s*"id"\s*:\s*)?"conv_'
)

_ENDS = 4096
_MOST_PARTS = 100_000  # of nested messages that are looked at


def text_size(body: bytes) -> tuple[int, int]:
    """The bytes of text in a JSON body, and how many payloads there are beside it."""
    size, payloads, at = len(body), 0, 0
    quote = -1  # the next one, found once per string
    while at + _LOOK <= len(body):
        if _WINDOW.match(body, at) is None:
            at += _STRIDE
            continue
        begin = _begin_of_run(body, at)
        if quote < at:
            quote = body.find(b'"', at)
            quote = len(body) if quote < 0 else quote
        end = _end_of_run(body, at, quote)
        if _is_payload(body, begin, end):
            size -= end - begin
            payloads += 1
        at = max(end, at + _LOOK)
    if b'url"' in body:
        payloads += len(_LINKED.findall(body))
    # An escaped character has six bytes here and two or three where it is not escaped.
    if b"\\" in body:  # one byte is found many times as fast as two
        size -= 3 * body.count(_ESCAPED)
    return max(0, size), payloads


def continues(body: bytes) -> bool:
    """Whether a request refers to what the server holds, and holds itself the new part only."""
    # A field of the request itself, and so before or after what is long in it.
    ends = body if len(body) <= 4 * _ENDS else body[:_ENDS] + body[-_ENDS:]
    return _CONTINUES.search(ends) is not None


def measure(said: object) -> tuple[int, int]:
    """The bytes of text in the messages of a framework, and how many payloads there are."""
    size = payloads = 0
    rest: list[object] = [said]
    seen = 0
    while rest and seen < _MOST_PARTS:
        part = rest.pop()
        seen += 1
        if isinstance(part, str):
            text = part.encode("utf-8", "surrogatepass")
            if _is_payload_text(text):
                payloads += 1
            else:
                size += len(text)
        elif isinstance(part, bytes | bytearray | memoryview):
            payloads += 1
        elif isinstance(part, Mapping):
            if _names_link(part):
                payloads += 1
            else:
                rest.extend(part.values())
        elif isinstance(part, list | tuple):
            rest.extend(part)
        elif part is not None and hasattr(part, "content"):  # a message object
            rest.append(part.content)
            rest.append(getattr(part, "tool_calls", None))
        elif isinstance(part, int | float):
            size += 4
    return size, payloads


def _names_link(part: Mapping[object, object]) -> bool:
    """Whether it is an image, a sound or a file, given by its address or by its id."""
    kind = part.get("type")
    return isinstance(kind, str) and kind in (
        "image_url",
        "input_image",
        "image",
        "input_audio",
        "audio",
        "video",
        "video_url",
        "file",
        "input_file",
    )


def _is_payload_text(text: bytes) -> bool:
    if text.startswith(b"data:") and b";base64," in text[:256]:
        return True
    if len(text) < 2 * _LOOK or _WINDOW.match(text) is None:
        return False
    return _RUN.fullmatch(text) is not None and _MIXED.match(text[: 2 * _LOOK]) is not None


def _begin_of_run(body: bytes, at: int) -> int:
    before = body[max(0, at - _STRIDE) : at]
    return at - len(before) + len(before.rstrip(_ALPHABET))


def _end_of_run(body: bytes, at: int, quote: int) -> int:
    """Where a run ends: with its string, if samples of that are of the run, as megabytes are."""
    step = max(_LOOK, (quote - at) // 16)
    if all(_WINDOW.match(body, place) for place in range(at, quote - _LOOK, step)):
        return quote
    run = _RUN.match(body, at)
    return at if run is None else run.end()


def _is_payload(body: bytes, begin: int, end: int) -> bool:
    """Whether a run of base64's characters is a payload, and no text without spaces."""
    if _NAMED.search(body[max(0, begin - 64) : begin]) is not None:
        return True
    return end - begin >= 2 * _LOOK and _MIXED.match(body[begin : begin + 2 * _LOOK]) is not None
