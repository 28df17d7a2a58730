"""How many tokens an image probably takes, by its size, which its first bytes tell.

A few bytes are decoded, however large the image is, and what cannot be read is no error.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode
from collections.abc import Callable

UNKNOWN_TOKENS = 1000
"""Of an image whose size is unknown, a sound or a file: models take some 100 to 3,000."""

LOW_DETAIL_TOKENS = 85
"""Of an image with `detail: "low"`, which OpenAI counts so, whatever its size."""

_PIXELS_PER_TOKEN = 28 * 28
_LEAST_TOKENS, _MOST_TOKENS = 4, 16_384
"""As Qwen2-VL and Qwen2.5-VL count by default; Qwen3-VL counts 0.77 of it. Anthropic's published
formula is within a factor of two up to 1920 x 1200, OpenAI's tiles from 400 x 300 to 1600 x 900:
larger images are scaled down there, and a tile is the least.
"""

_HEAD = 30  # bytes; tells the size, but in JPEG
_MOST_SEGMENTS = 64  # of a JPEG before its size: comments, thumbnails and colour profiles
_NO_FRAMES = (0xC4, 0xC8, 0xCC)

_LOW = rb'"detail"\s*:\s*"low"'
_LOW_BEFORE = re.compile(_LOW + rb"[^{}]*\Z")
_LOW_AFTER = re.compile(rb'"[^{}]*?' + _LOW)
_BESIDE = 96  # bytes around an image, where its `detail` is looked for

Read = Callable[[int, int], bytes]
"""Some bytes of a file: from where, and how many; fewer where it ends."""


def tokens_in_body(body: bytes, begin: int, end: int) -> int:
    """Estimated tokens of the payload whose base64 is `body[begin:end]`, in a JSON body."""
    if is_low_detail(body, begin, end):
        return LOW_DETAIL_TOKENS
    return tokens(lambda at, count: _decode(body, begin, end, at, count))


def tokens_of_text(said: str) -> int:
    """Estimated tokens of a payload that is a data URL or base64."""
    begin = said.find(",", 0, 256) + 1
    return tokens(lambda at, count: _decode(said, begin, len(said), at, count))


def tokens_of_bytes(data: bytes | bytearray) -> int:
    """Estimated tokens of a payload that is no base64."""
    return tokens(lambda at, count: bytes(data[at : at + count]))


def is_low_detail(body: bytes, begin: int, end: int) -> bool:
    """Whether the JSON object around the text at `body[begin:end]` asks for low detail."""
    return (
        _LOW_AFTER.match(body[end : end + _BESIDE]) is not None
        or _LOW_BEFORE.search(body[max(0, begin - _BESIDE) : begin]) is not None
    )


def tokens(read: Read) -> int:
    """Estimated tokens of a file, by its size if it is a PNG, JPEG, GIF or WebP."""
    width, height = _size(read)
    if width == 0 or height == 0:
        return UNKNOWN_TOKENS
    return min(max(width * height // _PIXELS_PER_TOKEN, _LEAST_TOKENS), _MOST_TOKENS)


def _decode(said: bytes | str, begin: int, end: int, at: int, count: int) -> bytes:
    """Some bytes of base64: each three of them are four characters."""
    first = begin + at // 3 * 4
    try:
        decoded = urlsafe_b64decode(said[first : min(end, first + count // 3 * 4 + 8)])
    except ValueError:
        return b""
    return decoded[at % 3 : at % 3 + count]


def _size(read: Read) -> tuple[int, int]:
    """Width and height [pixels]; zeros: unknown."""
    head = read(0, _HEAD)
    if len(head) < _HEAD:
        return 0, 0
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return int.from_bytes(head[16:20]), int.from_bytes(head[20:24])
    if head.startswith((b"GIF87a", b"GIF89a")):
        return int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")
    if head.startswith(b"\xff\xd8"):
        return _size_of_jpeg(read)
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return _size_of_webp(head)
    return 0, 0


def _size_of_jpeg(read: Read) -> tuple[int, int]:
    at = 2
    for _ in range(_MOST_SEGMENTS):
        segment = read(at, 9)
        if len(segment) < 9 or segment[0] != 0xFF:
            break
        if 0xC0 <= segment[1] <= 0xCF and segment[1] not in _NO_FRAMES:
            return int.from_bytes(segment[7:9]), int.from_bytes(segment[5:7])
        # A byte 0xFF before a marker only fills.
        at += 1 if segment[1] == 0xFF else 2 + int.from_bytes(segment[2:4])
    return 0, 0


def _size_of_webp(head: bytes) -> tuple[int, int]:
    if head[12:16] == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if head[12:16] == b"VP8 ":
        width, height = head[26:28], head[28:30]
        return int.from_bytes(width, "little") & 0x3FFF, int.from_bytes(height, "little") & 0x3FFF
    return 0, 0
