"""Fields that we add to a request: a question for usage, and hints that some engines take.

None of them is required. If the endpoint refuses a request and names an added field, the request
goes out again as the user wrote it, and the field is not added again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from concur_agents._text import wire_id
from concur_agents.probes.pinning import RANK_FIELD
from concur_agents.probes.sessions import SESSION_FIELD
from concur_agents.runtime.agent import Agent

fields: ContextVar[Mapping[str, object] | None] = ContextVar("concur_agents_fields", default=None)
"""The body of the request about to be sent, before it was serialised; None: unknown.

With it, a long prompt need not be searched for the names of fields.
"""

_REFUSED = (400, 422)  # how servers refuse a field that they do not know
_WITH_SESSION = ("/completions", "/responses", "/generate")  # of SGLang's routes
_STREAM = b'"stream'
_IS_TRUE = re.compile(rb'"\s*:\s*true')


@dataclass(slots=True)
class Extras:
    """The fields that we add, and which of them each endpoint takes."""

    taken: set[tuple[str, str]] = field(default_factory=set)
    refused: set[tuple[str, str]] = field(default_factory=set)
    """(host, name of the field)"""

    def edit(
        self,
        request: Any,
        path: str,
        body: bytes,
        agent: Agent,
        *,
        stream: bool,
    ) -> Edit:
        """Adds to a request the fields that it may have.

        A signed request is left as it is, because any change would break its signature.
        Where an engine is polled, the headers also get the agent's id, see `wire_id`: no server
        refuses a header.

        Args:
            request: the request; it is changed in place.
            path: its path.
            body: its body.
            agent: the agent that makes it.
            stream: whether its answer is streamed.
        """
        known = fields.get()
        added: dict[str, object] = {}
        if stream and path.endswith("/completions") and _asks_for_stream_alone(body, known):
            added["stream_options"] = {"include_usage": True}
        probe = agent.governor.probe
        if (not added and probe is None) or is_signed(request):
            return _NOTHING
        if probe is not None:
            # For routers that keep an agent on its replica, and for the engine's log.
            request.headers.setdefault("x-session-id", wire_id(agent.id))
            engine = getattr(probe, "engine", None)
            # No `session_id` in the body for vLLM, because some versions of it log a warning for
            # each unknown field.
            if engine == "vllm" and agent.priority:
                added["priority"] = -agent.priority  # it serves the lowest number first
            elif engine == "sglang":
                if agent.priority:
                    added["priority"] = agent.priority
                address = agent.governor.address_of(agent.id)
                if address is not None and address.by_body and path.endswith("/completions"):
                    added[RANK_FIELD] = address.rank
                if path.endswith(_WITH_SESSION) and not _is_said("session_params", body, known):
                    session = agent.governor.session_of(agent.id)
                    if session is not None:
                        added[SESSION_FIELD] = session
        if not added:
            return _NOTHING
        host = request.url.netloc.decode()
        for name in list(added):
            if (host, name) in self.refused or _is_said(name, body, known):
                del added[name]
        if not added:
            return _NOTHING
        edit = Edit(self, request, host, added)
        edit.apply(body)
        return edit


@dataclass(slots=True)
class Edit:
    """A request and the fields added to it.

    The request is changed in place, because building another one costs more than everything else
    that we do for a call.
    """

    extras: Extras
    request: Any
    host: str
    added: dict[str, object]
    _before: tuple[Any, bytes, dict[str, str | None]] | None = None

    @property
    def hides_usage(self) -> bool:
        """Whether the answer has an event that the user did not ask for."""
        return "stream_options" in self.added

    def apply(self, body: bytes) -> None:
        """Adds the fields to the front of the body."""
        request = self.request
        if not body.startswith(b"{") or body == b"{}" or not hasattr(request, "_content"):
            self.added = {}
            return
        extra = json.dumps(self.added, separators=(",", ":")).encode()
        content = b"".join((extra[:-1], b",", memoryview(body)[1:]))
        headers = {"content-length": str(len(content))}
        if self.hides_usage:
            headers["accept-encoding"] = "identity"  # because we have to find the event to hide
        self._before = (
            request.stream,
            body,
            {name: request.headers.get(name) for name in headers},
        )
        self._set(type(request.stream)(content), content, headers)

    def undo(self) -> None:
        """The request as the user wrote it."""
        if self._before is not None:
            self._set(*self._before)
            self._before = None
            self.added = {}

    def is_on_trial(self, status: int) -> bool:
        """Whether the endpoint may have refused a field of ours that it has never taken before."""
        if not self.added:
            return False
        new = [name for name in self.added if (self.host, name) not in self.extras.taken]
        if new and status < 400:
            self.extras.taken.update((self.host, name) for name in new)
        return bool(new) and status in _REFUSED

    def was_refused(self, answer: bytes) -> bool:
        """Whether it did. Then the request is as the user wrote it, and has to be sent again."""
        named = [name for name in self.added if name.encode() in answer]
        self.extras.refused.update((self.host, name) for name in named)
        if named:
            self.undo()
        return bool(named)

    def _set(self, stream: Any, content: bytes, headers: Mapping[str, str | None]) -> None:
        self.request.stream = stream
        self.request._content = content
        for name, value in headers.items():
            if value is None:
                self.request.headers.pop(name, None)
            else:
                self.request.headers[name] = value


_NOTHING = Edit(Extras(), None, "", {})


def is_signed(request: Any) -> bool:
    """Whether the request carries a signature of itself: AWS, RFC 9421, a digest of the body."""
    headers = {name.lower(): value for name, value in request.headers.raw}
    if not _DIGESTS.isdisjoint(headers) or b"signature" in b" ".join(headers):
        return True
    for name in (b"authorization", b"proxy-authorization"):
        if name in headers:
            scheme = headers[name][:64].partition(b" ")[0].lower()
            if b"hmac" in scheme or b"signature" in scheme or b"sha256" in scheme:
                return True
    return b"signature=" in request.url.query.lower()


_DIGESTS = frozenset(
    (b"x-amz-content-sha256", b"x-amz-date", b"content-digest", b"digest", b"content-md5")
)


def _is_said(name: str, body: bytes, known: Mapping[str, object] | None) -> bool:
    """Whether the user has set this field."""
    if name == "stream_options":
        return False  # `_asks_for_stream_alone` has looked
    return name in known if known is not None else f'"{name}"'.encode() in body


def _asks_for_stream_alone(body: bytes, known: Mapping[str, object] | None = None) -> bool:
    """Whether the body has `"stream": true` at its top level, and no `stream_options` anywhere.

    One search through the body, because prompts may be large. Inside a string the quotes would be
    escaped.
    """
    if known is not None:
        return known.get("stream") is True and "stream_options" not in known
    asks = False
    at = body.find(_STREAM)
    while at >= 0:
        end = at + len(_STREAM)
        if body.startswith(b'_options"', end):
            return False
        asks = asks or (_IS_TRUE.match(body, end) is not None and _is_top_level(body, at))
        at = body.find(_STREAM, end)
    return asks


def _is_top_level(body: bytes, at: int) -> bool:
    """Whether the key at `at` belongs to the outermost object.

    If so, the text after it closes one brace, and the text before it opens one. The shorter of the
    two is parsed, because clients write the key near one end, before or after the messages.
    """
    text = body[:at] + b'"":0}' if at < len(body) - at else b"{" + body[at:]
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
