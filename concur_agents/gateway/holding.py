"""How long a request may be held, and what its client gets meanwhile.

A client waits as long as its timeout allows. A stream can be kept alive: its answer is begun with
status 200, and from then on a comment (OpenAI) or a ping (Anthropic) says that it goes on. Anything
else has to be held in silence, because no byte can be sent before the status of the answer is
known; it is held for a share of the time that its client waits, and then passes.

Comments are lines without a blank one after them, because some clients decode an empty event.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Dialect: TypeAlias = Literal["openai", "anthropic", "other"]

TIMEOUT_HEADERS = ("x-stainless-read-timeout", "x-stainless-timeout")
"""In which clients say how long they wait [s]: those for Python first, then those for Node."""

COMMENT = b": held\n"
PING = b'event: ping\ndata: {"type": "ping"}\n\n'

_SHORTEST_S = 0.5  # the clients for Node say 0 for less than a second


@dataclass(frozen=True, slots=True)
class Times:
    """How requests are held [s].

    Attributes:
        first_s: until the first comment of a stream whose client says how long it waits.
        every_s: between its comments.
        untold_s: the same two for other clients: shorter than their shortest usual timeout, 2 s.
        timeout_part: the part of a client's timeout after which a silent request passes; no stream
            is silent for longer than half of that.
        answer_s: what is left of the timeout for the answer, at least, but for three quarters of it
            at most.
        silent_s: after which a silent request passes if its client does not say how long it waits.
    """

    first_s: float = 2.0
    every_s: float = 3.0
    untold_s: float = 1.0
    timeout_part: float = 0.8
    answer_s: float = 1.0
    silent_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Hold:
    """How one request is held.

    Attributes:
        first_s: when its answer begins, with the first sign of life [s]; None: it is silent.
        every_s: time between signs of life [s].
        most_s: when it passes [s]; None: only when its turn comes.
        sign: the bytes of a sign of life.
    """

    first_s: float | None
    every_s: float | None
    most_s: float | None
    sign: bytes = b""


def dialect_of(path: str) -> Dialect:
    """Whose API a path belongs to."""
    segments = [segment for segment in path.partition("?")[0].split("/") if segment]
    if "messages" in segments:
        return "anthropic"
    if segments and segments[-1] in ("completions", "responses"):
        return "openai"
    return "other"


def client_timeout_s(headers: Mapping[str, str]) -> float | None:
    """How long a client says that it waits for bytes [s]; None: it does not say.

    Infinite if it says that it waits for ever.
    """
    for name in TIMEOUT_HEADERS:
        said = headers.get(name)
        if said is None:
            continue
        if said.strip().lower() in ("none", "inf", "infinity"):
            return math.inf
        try:
            seconds = float(said)
        except ValueError:
            continue
        if seconds >= 0:  # which NaN is not
            return max(seconds, _SHORTEST_S)
    return None


def plan(
    dialect: Dialect, *, stream: bool, timeout_s: float | None, times: Times | None = None
) -> Hold:
    """How a request is held.

    Args:
        dialect: see `dialect_of`.
        stream: whether the request asks for one.
        timeout_s: see `client_timeout_s`.
        times: the bounds.
    """
    times = times or Times()
    if stream and dialect != "other":
        sign = PING if dialect == "anthropic" else COMMENT
        if timeout_s is None:
            return Hold(times.untold_s, times.untold_s, None, sign)
        longest_s = timeout_s * times.timeout_part / 2
        return Hold(min(times.first_s, longest_s), min(times.every_s, longest_s), None, sign)
    if timeout_s is None:
        return Hold(None, None, times.silent_s)
    if not math.isfinite(timeout_s):
        return Hold(None, None, None)
    most_s = min(timeout_s * times.timeout_part, timeout_s - times.answer_s)
    return Hold(None, None, max(most_s, timeout_s / 4))
