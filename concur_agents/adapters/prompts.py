"""How large a prompt is, and what it begins with, before it is sent.

The gate needs to know how much a step adds. Counting tokens would need the model's tokeniser and a
pass over the whole context at each step. Instead, the agent's last prompt counts as the server
counted it, and only its growth is estimated: bytes of text by the tokens per byte that earlier
growth had, within what text can have; images by their pixels, and other payloads by the piece (see
`payload.py`), by what earlier ones took of their estimate.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any
from weakref import WeakKeyDictionary

from concur_agents.adapters import payload
from concur_agents.core import Chain, Usage
from concur_agents.runtime.agent import Agent

TOKENS_PER_BYTE = 0.25
"""Before the first usage of an agent: English and code have 3.3 to 4.5 bytes per token, other
scripts 3 to 7.5, depending on the tokeniser (measured: `tests/fixtures/prompts`)."""

_PLAUSIBLE_PER_BYTE = (1 / 12, 1.0)
"""Tokens of a byte of text. Outside of this something else has grown, such as a hidden prompt."""

_PLAUSIBLE_SHARE = (0.05, 16.0)
"""What payloads take of their estimate: 50 to 16,000 tokens for one of unknown size."""

_TELLING_TOKENS = 500
"""Payloads estimated at less, such as icons, say that much less about what others take."""

_LEAST_GROWTH = 64
"""Bytes; less growth is mostly the frame of a message, and says nothing about its text."""

_WEIGHT = 1000
"""Bytes of text that weigh as much as all before: one short turn does not change the ratio."""

_HEAD_BYTES = 1024
"""A prompt that begins with the same bytes as the agent's last one has the same leading parts."""


@dataclass(slots=True, eq=False)
class Prompt:
    """A prompt about to be sent. Made by `of_body` and `of_messages`.

    Attributes:
        unit: how its size was measured; sizes of different units are not compared.
        size: its text [bytes, a digit as three]; that of a body is measured by `estimate`.
        body: the JSON body; empty if there is none.
        payloads: images, sounds and files in it, which are not part of its size [tokens, as
            estimated without any usage].
        continues: the server holds what came before: the size is that of the new part.
        tokens: estimated tokens; None: not estimated yet.
        chain: its leading parts; None: unknown.
    """

    unit: str
    size: int
    body: bytes = b""
    payloads: int = 0
    continues: bool = False
    tokens: int | None = None
    chain: Chain | None = None
    growth: tuple[int, int, int] | None = None
    """What it has in common with the agent's last one [tokens], and its new bytes and payloads."""
    known: _Known | None = None


def of_body(body: bytes) -> Prompt | None:
    """The prompt in the JSON body of a request; None: there is none."""
    if not body:
        return None
    return Prompt("body", 0, body, 0, payload.continues(body))


def of_messages(unit: str, said: object, *, continues: bool = False) -> Prompt | None:
    """The prompt of a framework's messages: texts, mappings, lists and message objects of them."""
    size, payloads = payload.measure(said)
    return Prompt(unit, size, b"", payloads, continues) if size or payloads else None


@dataclass(slots=True)
class _Known:
    """What one agent's prompts of one unit have shown."""

    size: int = 0
    payloads: int = 0
    tokens: int = 0
    completion: int = 0
    per_byte: float = TOKENS_PER_BYTE
    payload_share: float = 1.0  # of their estimate
    has_grown: bool = False  # then the ratio comes from growth
    seen: payload.Seen = field(default_factory=payload.Seen)  # the last body
    head: bytes = b""
    parts: tuple[tuple[str, int], ...] = ()  # name, size up to its end


_known: WeakKeyDictionary[Agent, dict[str, _Known]] = WeakKeyDictionary()


def estimate(agent: Agent, prompt: Prompt) -> None:
    """Fills in the size of a body, and the tokens and the leading parts of a prompt."""
    known = _of(agent, prompt.unit)
    if prompt.body:
        prompt.size, prompt.payloads = payload.text_size(prompt.body, known.seen)
    prompt.known = known
    prompt.growth = before, grown, more = _growth(known, prompt)
    tokens = before + grown * known.per_byte + more * known.payload_share
    prompt.tokens = max(1, round(tokens))
    head = prompt.body[:_HEAD_BYTES]
    if head and head != known.head:
        known.head = head
        known.parts = _leading_parts(prompt.body)
    if known.parts:
        prompt.chain = tuple(
            (name, min(size * known.per_byte, tokens)) for name, size in known.parts
        )


def _growth(known: _Known, prompt: Prompt) -> tuple[int, int, int]:
    """See `Prompt.growth`."""
    if prompt.continues:
        return known.tokens + known.completion, prompt.size, prompt.payloads
    grown, more = prompt.size - known.size, prompt.payloads - known.payloads
    if known.tokens and known.size and grown >= 0 and more >= 0:
        return known.tokens, grown, more
    return 0, prompt.size, prompt.payloads  # it was compacted, and all of it is new


def learn(agent: Agent, prompt: Prompt, usage: Usage) -> None:
    """Takes the server's count of a prompt, for later estimates."""
    if usage.prompt_tokens <= 0:
        return
    known = prompt.known or _of(agent, prompt.unit)
    before, grown, more = prompt.growth or _growth(known, prompt)
    gained = usage.prompt_tokens - before
    if more > 0:
        taken = _bounded((gained - grown * known.per_byte) / more, _PLAUSIBLE_SHARE)
        weight = min(1.0, more / _TELLING_TOKENS)
        known.payload_share = weight * taken + (1 - weight) * known.payload_share
    elif grown >= _LEAST_GROWTH and _is_plausible(gained / grown):
        if before:
            known.per_byte = (_WEIGHT * known.per_byte + gained) / (_WEIGHT + grown)
            known.has_grown = True
        elif not known.has_grown and not prompt.continues:  # else part of it is the server's
            # A short one is mostly frame, and the template's tokens are no part of its text.
            share = min(1.0, grown / _WEIGHT)
            known.per_byte = share * gained / grown + (1 - share) * TOKENS_PER_BYTE
    # What a prompt that continues holds in all is not known: a later one may repeat everything.
    known.size = 0 if prompt.continues else prompt.size
    known.payloads = 0 if prompt.continues else prompt.payloads
    known.tokens, known.completion = usage.prompt_tokens, usage.completion_tokens


def _is_plausible(per_byte: float) -> bool:
    low, high = _PLAUSIBLE_PER_BYTE
    return low <= per_byte <= high


def _bounded(value: float, bounds: tuple[float, float]) -> float:
    low, high = bounds
    return min(max(value, low), high)


def last_tokens(agent: Agent) -> int | None:
    """Tokens of the agent's latest prompt, as the server counted it; None: no count yet."""
    return max((known.tokens for known in _known.get(agent, {}).values()), default=0) or None


def _of(agent: Agent, unit: str) -> _Known:
    units = _known.get(agent)
    if units is None:
        units = _known[agent] = {}
    known = units.get(unit)
    if known is None:
        known = units[unit] = _Known()
    return known


def _leading_parts(body: bytes) -> tuple[tuple[str, int], ...]:
    """Parts that agents of one batch may share: tools and system prompt, then the task."""
    data: dict[str, Any] = json.loads(body)
    model = str(data.get("model", ""))
    messages = data.get("messages", data.get("input"))
    if not isinstance(messages, list):
        messages = [messages] if messages is not None else []
    fixed: list[Any] = [data.get("tools"), data.get("instructions"), data.get("functions")]
    rest = iter(messages)
    first: Any = None
    for message in rest:
        if isinstance(message, dict) and message.get("role") in ("system", "developer"):
            fixed.append(message)
        else:
            first = message
            break
    parts: list[tuple[str, int]] = []
    digest = blake2b(model.encode(), digest_size=12)
    size = 0
    for part in ([item for item in fixed if item], first):
        if not part:
            continue
        text = json.dumps(part, separators=(",", ":"), ensure_ascii=False).encode()
        size += payload.text_size(text)[0]
        digest.update(text)
        parts.append((digest.hexdigest(), size))
    return tuple(parts)
