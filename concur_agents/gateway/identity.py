"""Which agent makes a request: what the client says of itself, else a guess.

The first of these that a request has is taken:

1. its path, `/agent/ID/v1/...`; a child in its parent's path: `/agent/PARENT/agent/ID/v1/...`;
2. its key, `sk-agent-ID`, with the gateway's token, if it asks for one, after a colon;
3. the process that sent it, where `concur run` asks for that;
4. a header or a field of `SOURCES`: coding agents name their session;
5. a guess: a digest of its system prompt and of the first message of the user.

A guess is right for one agent with one task. Two agents with the same first messages, such as
samples of one prompt, look like one. So the id of a guess begins with `guess~` wherever it is
shown.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple
from urllib.parse import unquote

from concur_agents._text import wire_id

GUESS = "guess~"
"""How the id of a guess begins."""

KEY = "sk-agent-"
"""How a key begins that names an agent."""

KEY_HEADERS = ("authorization", "x-api-key", "api-key", "x-goog-api-key")
"""Where clients send their key, in lower case."""

_FIRST_CHARACTERS = 2048  # of a plain prompt that a guess reads, because its end grows


@dataclass(frozen=True, slots=True)
class Identity:
    """Who makes a request.

    Attributes:
        agent: its id, fit for headers, recordings and labels.
        source: what says so: "path", "key", "process", the name of a header or field, or "guess".
        parent: the agent that it is a child of, and whose place it shares; None: it has its own.
    """

    agent: str
    source: str
    parent: str | None = None

    @property
    def is_guess(self) -> bool:
        """Whether the request does not say who makes it."""
        return self.source == "guess"


class Source(NamedTuple):
    """Headers that name an agent."""

    agent: str
    child: str | None = None
    """If it is there, the agent is this child of `agent`."""
    parent: str | None = None
    """The parent: beside `child` another child of `agent`, otherwise an agent."""


SOURCES = (
    Source("x-session-id", parent="x-parent-session-id"),
    Source("x-claude-code-session-id", "x-claude-code-agent-id", "x-claude-code-parent-agent-id"),
    Source("thread-id", parent="x-codex-parent-thread-id"),  # Codex; the session has many threads
    Source("session-id"),
    Source("session_id"),  # Codex before it had threads
    Source("x-session-affinity"),  # OpenCode and others
)
"""Headers by which agents name themselves, in the order in which they are looked for."""

BODY_FIELD = "prompt_cache_key"
"""A field by which clients name what shares a prefix."""


def split_path(path: str) -> tuple[list[str], str]:
    """The agents that a path names, the outermost first, and the engine's path.

    Args:
        path: as it was sent, with its query.
    """
    named: list[str] = []
    while path.startswith("/agent/"):
        agent, slash, rest = path[len("/agent/") :].partition("/")
        if not agent or not slash or "?" in agent:
            break
        named.append(wire_id(unquote(agent)))
        path = f"/{rest}"
    return named, path


def prefix_of(path: str) -> str:
    """What a path has before that of the engine: `/agent/ID`, or nothing."""
    rest = split_path(path)[1]
    return path[: len(path) - len(rest)] if path.startswith("/agent/") else ""


def read_keys(headers: Mapping[str, str], token: str | None) -> tuple[bool, str | None]:
    """Whether one of a client's keys opens the gateway, and the agent that it names.

    Args:
        headers: of the request; looked up by names in lower case.
        token: what the gateway asks for; None: nothing, so every request may pass.
    """
    agent: str | None = None
    is_open = not token
    for name in KEY_HEADERS:
        value = headers.get(name)
        if value is not None:
            opens, named = _read_key(value, token)
            is_open = is_open or opens
            agent = agent or (named if opens else None)
    return is_open, agent


def _read_key(value: str, token: str | None) -> tuple[bool, str | None]:
    scheme, space, rest = value.partition(" ")
    key = rest.strip() if space and scheme.lower() == "bearer" else value.strip()
    named = key[len(KEY) :] if key.startswith(KEY) else ""
    if not token:
        return True, wire_id(named) if named else None
    given = key
    if key.startswith(KEY):
        named, _, given = named.rpartition(":")
    is_right = hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())
    return is_right, wire_id(named) if named else None


def identify(
    named: list[str],
    of_key: str | None,
    headers: Mapping[str, str],
    body: Mapping[str, Any] | None,
    *,
    process: str | None = None,
    may_guess: bool = True,
) -> Identity | None:
    """Who makes a request; None: it does not say, and nothing of it can be guessed.

    Args:
        named: the agents in its path, see `split_path`.
        of_key: the agent in its key, see `read_keys`.
        headers: of the request; looked up by names in lower case.
        body: its JSON object; None: it has none, or it was not read.
        process: the process that sent it, if agents are processes.
        may_guess: whether to guess where it does not say.
    """
    if named:
        return Identity(named[-1], "path", named[-2] if len(named) > 1 else None)
    if of_key:
        return Identity(of_key, "key")
    if process is not None:
        return Identity(wire_id(process), "process")
    for source in SOURCES:
        found = _read(source, headers)
        if found is not None:
            return found
    if body is None:
        return None
    said = body.get(BODY_FIELD)
    if isinstance(said, str) and said:
        return Identity(wire_id(said), BODY_FIELD)
    return _guess(body) if may_guess else None


def _read(source: Source, headers: Mapping[str, str]) -> Identity | None:
    agent = headers.get(source.agent)
    if not agent:
        return None
    parent = headers.get(source.parent) if source.parent is not None else None
    if source.child is not None:
        child = headers.get(source.child)
        if not child:
            return Identity(wire_id(agent), source.agent)
        above = f"{agent}/{parent}" if parent else agent
        return Identity(wire_id(f"{agent}/{child}"), source.child, wire_id(above))
    is_child = bool(parent) and parent != agent
    return Identity(wire_id(agent), source.agent, wire_id(parent or "") if is_child else None)


def _guess(body: Mapping[str, Any]) -> Identity | None:
    digest = blake2b(digest_size=8)
    seen = False
    for text in _first_words(body):
        digest.update(text.encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
        seen = True
    return Identity(GUESS + digest.hexdigest(), "guess") if seen else None


def _first_words(body: Mapping[str, Any]) -> Iterator[str]:
    """The texts that stay the same as long as an agent lives."""
    for name in ("system", "instructions"):
        yield from _texts(body.get(name))
    messages = body.get("messages", body.get("input", body.get("prompt")))
    if isinstance(messages, str):
        yield messages[:_FIRST_CHARACTERS]
    if not isinstance(messages, list):
        return
    for message in messages:
        if isinstance(message, str):
            yield message[:_FIRST_CHARACTERS]
            return
        if isinstance(message, dict):
            yield from _texts(message.get("content"))
            if message.get("role") == "user":
                return


def _texts(content: object) -> Iterator[str]:
    """The texts of a message.

    Marks beside them, such as Anthropic's `cache_control`, move on from call to call.
    """
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            text = part.get("text") if isinstance(part, dict) else part
            if isinstance(text, str):
                yield text
