"""How large a prompt is, and what it begins with, before it is sent.

The gate needs to know how much a step adds. Counting tokens would need the model's tokeniser and a
pass over the whole context at each step. Instead, the size in bytes is scaled by the tokens that
earlier prompts of the same agent had. After one step only the last turn is estimated, because an
agent's context only grows at its end.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any
from weakref import WeakKeyDictionary

from concur_agents.core import Chain, Usage
from concur_agents.runtime.agent import Agent

TOKENS_PER_BYTE = 0.25
"""Before the first usage of an agent: English and code have 3.5 to 4.5 bytes per token."""

_HEAD_BYTES = 1024
"""A prompt that begins with the same bytes as the agent's last one has the same leading parts."""


@dataclass(slots=True, eq=False)
class Prompt:
    """A prompt about to be sent.

    Attributes:
        unit: how its size was measured; sizes of different units are not compared.
        size: its size [bytes or characters].
        body: the JSON body; empty if there is none.
        tokens: estimated tokens; None: not estimated yet.
        chain: its leading parts; None: unknown.
    """

    unit: str
    size: int
    body: bytes = b""
    tokens: int | None = None
    chain: Chain | None = None


@dataclass(slots=True)
class _Known:
    """What one agent's prompts of one unit have shown."""

    size: int = 0
    tokens: int = 0
    tokens_per_unit: float = TOKENS_PER_BYTE
    head: bytes = b""
    parts: tuple[tuple[str, int], ...] = ()  # name, size up to its end


_known: WeakKeyDictionary[Agent, dict[str, _Known]] = WeakKeyDictionary()


def estimate(agent: Agent, prompt: Prompt) -> None:
    """Fills in the tokens and the leading parts of a prompt."""
    known = _of(agent, prompt.unit)
    grown = prompt.size - known.size
    # Only growth is estimated. If the prompt shrank, it was compacted, and all of it is new.
    if known.tokens and grown >= 0:
        tokens = known.tokens + grown * known.tokens_per_unit
    else:
        tokens = prompt.size * known.tokens_per_unit
    prompt.tokens = max(1, round(tokens))
    head = prompt.body[:_HEAD_BYTES]
    if head and head != known.head:
        known.head = head
        known.parts = _leading_parts(prompt.body)
    if known.parts:
        prompt.chain = tuple(
            (name, min(size * known.tokens_per_unit, tokens)) for name, size in known.parts
        )


def learn(agent: Agent, prompt: Prompt, usage: Usage) -> None:
    """Takes the server's count of a prompt, for later estimates."""
    if usage.prompt_tokens > 0 and prompt.size > 0:
        known = _of(agent, prompt.unit)
        known.size, known.tokens = prompt.size, usage.prompt_tokens
        known.tokens_per_unit = usage.prompt_tokens / prompt.size


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
        size += len(text)
        digest.update(text)
        parts.append((digest.hexdigest(), size))
    return tuple(parts)
