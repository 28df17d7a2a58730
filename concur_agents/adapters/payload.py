"""What in a prompt is text, and what is an image, a sound or a file.

Those travel as base64 of up to megabytes, and take as many tokens as their model decides (see
`image_size.py`). They are found without parsing the body, because it may be large and this happens
at each call.

Sizes of text are bytes, in which a digit counts as three: most tokenisers take digits one by one or
three at a time, and other text of any script by some four bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from concur_agents.adapters import image_size

_STRIDE, _RUNNING = 32, 36
"""Each `_STRIDE`-th byte of a body is looked at. A payload shows there as `_RUNNING` characters of
base64 in a row, so one of 1,200 bytes is found; as text a shorter one counts for some 250 tokens.
"""
_LOOK = 128
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/_-"
_IS_BASE64 = bytes(49 if byte in _ALPHABET else 48 for byte in range(256))
_IN_A_ROW = b"1" * _RUNNING
_WINDOW = re.compile(rb"[A-Za-z0-9+/_-]{%d}" % _LOOK)
_RUN = re.compile(rb"[A-Za-z0-9+/_=-]*")
_NAMED = re.compile(
    rb"""base64,$|["'](?:data|file_data|bytes|b64_json|inline_data)["']\s*:\s*["']$"""
)
_MIXED = re.compile(rb"(?=.*[A-Z])(?=.*[a-z])(?=.*[0-9])")
_LINK = b'url"'
_LINKED = re.compile(
    rb'"(?:(?:image|audio|video|file)_url"\s*:\s*(?:\{\s*"url"\s*:\s*)?'
    rb'|type"\s*:\s*"url"\s*,\s*"url"\s*:\s*)"https?:'
)
_LONGEST_LINK = 128  # bytes of a match of `_LINKED`
_LONGEST_ADDRESS = 2048
_ESCAPED = rb"\u"
_ESCAPE = re.compile(rb"\\u[0-9A-Fa-f]{4}")
_TWO_BYTES = re.compile(rb"\\u0[0-7]")
_CONTINUES = re.compile(
    rb'"previous_response_id"\s*:\s*"|"conversation"\s*:\s*(?:\{\s*"id"\s*:\s*)?"conv_'
)

_ENDS = 4096
_MOST_PARTS = 100_000  # of nested messages that are looked at

_BLOCK = 16 * 1024
_SPARSE = 257

_DIGITS = b"0123456789"
_EACH = 7
"""Each 7th byte is looked at for digits: odd, so that no table or time stamp keeps step."""
_MORE = 2
"""What a digit counts as beyond its one byte."""


Block = tuple[int, int, int]
"""A block of a body: a hash of each 257th byte of it; what its escaped characters and its digits
change in the size, and the tokens of payloads given by their address that begin in it, both with
those before it."""

Run = tuple[int, int, int, int]
"""Where a payload begins and ends, what it counts for as text, and its estimated tokens."""


@dataclass(slots=True)
class Seen:
    """What the agent's last body held, so that the next one is read from its growth on."""

    last: tuple[list[Block], list[Run]] = ([], [])
    """Its whole blocks, and its payloads; replaced, because the agent may have other threads."""


def text_size(body: bytes, seen: Seen | None = None) -> tuple[int, int]:
    """The size of the text in a JSON body, and the estimated tokens of payloads beside it.

    Args:
        body: the body.
        seen: what the agent's last body held, which this one probably repeats; it then has what
            this one holds. An edit that moves nothing may go unseen, and matters as little.
    """
    blocks, runs = ([], []) if seen is None else seen.last
    same = 0
    while same < len(blocks) and blocks[same][0] == _mark(body, same * _BLOCK):
        same += 1
    edge = start = same * _BLOCK
    blocks = blocks[:same]
    if runs:
        runs = [run for run in runs if run[0] < edge]
        if runs and runs[-1][1] > edge:
            start = runs.pop()[0]  # it may end elsewhere now
    runs = runs + _runs(body, start)
    _, change, links = blocks[-1] if same else (0, 0, 0)
    for at in range(edge, len(body), _BLOCK):
        more, more_links = _read(body, at, min(at + _BLOCK, len(body)))
        change, links = change + more, links + more_links
        if at + _BLOCK <= len(body):
            blocks.append((_mark(body, at), change, links))
    if seen is not None:
        seen.last = blocks, runs
    size = len(body) + change - sum(run[2] for run in runs)
    return max(0, size), sum(run[3] for run in runs) + links


def _mark(body: bytes, at: int) -> int:
    return hash(body[at : at + _BLOCK : _SPARSE])


def _read(body: bytes, at: int, end: int) -> tuple[int, int]:
    """What escaped characters and digits change, and tokens of payloads given by their address."""
    change = links = 0
    # `rfind` first, because it takes half the time of `find` and `count`.
    if body.rfind(_ESCAPED, at, end + 1) >= 0:
        change = _more_for_digits(_ESCAPE.sub(b"      ", body[at:end]), -at % _EACH)
        # Escaped a character has six bytes, and two or three if not.
        change -= 3 * body.count(_ESCAPED, at, end + 1)
        change -= len(_TWO_BYTES.findall(body, at, end + 3))
    else:
        change = _more_for_digits(body, at + -at % _EACH, end)
    if body.rfind(_LINK, at, end + _LONGEST_LINK) >= 0:
        found = _LINKED.finditer(body, at, end + _LONGEST_LINK)
        links = sum(_tokens_of_link(body, match.end()) for match in found if match.start() < end)
    return change, links


def _tokens_of_link(body: bytes, at: int) -> int:
    quote = body.find(b'"', at, at + _LONGEST_ADDRESS)
    is_low = image_size.is_low_detail(body, at, at if quote < 0 else quote)
    return image_size.LOW_DETAIL_TOKENS if is_low else image_size.UNKNOWN_TOKENS


def _more_for_digits(text: bytes, at: int = 0, end: int | None = None) -> int:
    """What digits count for beyond their bytes."""
    sample = text[at:end:_EACH]
    return _MORE * _EACH * (len(sample) - len(sample.translate(None, _DIGITS)))


def _runs(body: bytes, start: int) -> list[Run]:
    """The payloads that are in a body from `start` on."""
    found: list[Run] = []
    sample = body[start::_STRIDE].translate(_IS_BASE64)
    quote = -1  # the next one, found once per string
    place = sample.find(_IN_A_ROW)
    while place >= 0:
        # A payload that shows there holds this.
        at = start + (place + _RUNNING // 2) * _STRIDE
        next_at = at + _STRIDE
        if _WINDOW.match(body, at) is not None:
            begin = _begin_of_run(body, at)
            if quote < at:
                quote = body.find(b'"', at)
                quote = len(body) if quote < 0 else quote
            end = _end_of_run(body, at, quote)
            if _is_payload(body, begin, end):
                text = end - begin + _more_for_digits(body, begin + -begin % _EACH, end)
                found.append((begin, end, text, image_size.tokens_in_body(body, begin, end)))
            next_at = max(end, next_at)
        place = sample.find(_IN_A_ROW, -((start - next_at) // _STRIDE))
    return found


def continues(body: bytes) -> bool:
    """Whether a request refers to what the server holds, and holds itself the new part only."""
    # A field of the request itself, and so before or after what is long in it.
    ends = body if len(body) <= 4 * _ENDS else body[:_ENDS] + body[-_ENDS:]
    if ends.rfind(b'previous_response_id"') < 0 and ends.rfind(b'"conversation"') < 0:
        return False
    return _CONTINUES.search(ends) is not None


_FIELDS = ("content", "tool_calls", "function", "name", "arguments")


def measure(said: object) -> tuple[int, int]:
    """The size of the text in a framework's messages, and the estimated tokens of payloads."""
    size = tokens = 0
    rest: list[object] = [said]
    seen = 0
    while rest and seen < _MOST_PARTS:
        part = rest.pop()
        seen += 1
        if isinstance(part, str):
            if _is_payload_text(part):
                tokens += image_size.tokens_of_text(part)
            else:
                text = part.encode("utf-8", "surrogatepass")
                size += len(text) + _more_for_digits(text)
        elif isinstance(part, bytes | bytearray):
            tokens += image_size.tokens_of_bytes(part)
        elif isinstance(part, memoryview):
            tokens += image_size.UNKNOWN_TOKENS
        elif isinstance(part, Mapping):
            if _names_link(part):
                tokens += _tokens_of_named(part)
            else:
                rest.extend(part.values())
        elif isinstance(part, list | tuple):
            rest.extend(part)
        elif isinstance(part, int | float):
            size += 4
        elif part is not None:  # a message object, or a tool call in one
            rest.extend(getattr(part, name, None) for name in _FIELDS)
    return size, tokens


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


def _tokens_of_named(part: Mapping[object, object]) -> int:
    inner = [part, *(value for value in part.values() if isinstance(value, Mapping))]
    if any(each.get("detail") == "low" for each in inner):
        return image_size.LOW_DETAIL_TOKENS
    for value in (value for each in inner for value in each.values()):
        if isinstance(value, str) and _is_payload_text(value):
            return image_size.tokens_of_text(value)
    return image_size.UNKNOWN_TOKENS


def _is_payload_text(said: str) -> bool:
    if not said.isascii():
        return False
    if said.startswith("data:"):
        return ";base64," in said[:256]
    if len(said) < 2 * _LOOK:
        return False
    head = said[: 2 * _LOOK].encode()
    if _WINDOW.match(head) is None or _MIXED.match(head) is None:
        return False
    sample = said.rstrip("=")[::_STRIDE].encode().translate(_IS_BASE64)
    return b"0" not in sample


def _begin_of_run(body: bytes, at: int) -> int:
    before = body[max(0, at - _STRIDE * _RUNNING) : at]
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
