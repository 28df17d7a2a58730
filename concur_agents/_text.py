"""Text from outside, made safe for where it goes: ids for headers and files, lines for a terminal.

An id is free text of the caller: often a question, sometimes a whole prompt. Nothing here raises.
"""

from __future__ import annotations

import unicodedata
from hashlib import blake2b

MOST_ID = 64
"""Longest id [characters] in a header, a recording, a label or a message."""

_PREFIX = 40  # characters of an id that stay readable before its digest


def wire_id(text: str) -> str:
    """An id for headers, recordings and files: at most 64 printable ASCII characters.

    An id that is that already stays as it is. Any other one becomes a readable prefix and a digest,
    `Gro_e~91a5bb3dc5bd9d22`, so that different ids stay different. Of a text (one with line breaks,
    or a long one with spaces) only the digest is left, because it may be a prompt.
    """
    if len(text) <= MOST_ID and text.isascii() and text.isprintable() and text == text.strip():
        if text:
            return text
        return f"empty~{_digest(text)}"
    if len(text.splitlines()) > 1 or (len(text) > MOST_ID and len(text.split(maxsplit=1)) > 1):
        return f"text~{_digest(text)}"
    folded = unicodedata.normalize("NFKD", text[: 2 * _PREFIX])
    marks = (character for character in folded if not unicodedata.combining(character))
    prefix = "".join(
        character if character.isascii() and character.isprintable() else "_" for character in marks
    )
    return f"{prefix[:_PREFIX].strip()}~{_digest(text)}"


def shown_id(text: str) -> str:
    """An id for people: as it is if it is printable and short, else as in `wire_id`."""
    return text if text.isprintable() and 0 < len(text) <= MOST_ID else wire_id(text)


def printable(text: str, most: int = 300) -> str:
    r"""A text in one line that a terminal only shows: no control characters, at most `most` long.

    What is not printable (escapes, line breaks, marks that change the direction of text, lone
    surrogates) is written as in a Python string: `\x1b`.
    """
    short = text if len(text) <= most else text[:most] + "..."
    return escaped(short)


def escaped(text: str, keep: str = "") -> str:
    """The text with each character that is neither printable nor in `keep` written as an escape."""
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or character in keep
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
