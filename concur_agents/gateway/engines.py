"""Where a call goes, and what a request to an engine carries.

Everything passes as the client sent it, but for what belongs to one connection only, and for keys:
an agent's key is for the gateway, and the engine's key is the gateway's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from concur_agents.adapters.addresses import Base, base
from concur_agents.adapters.routing import Route, Target, router_of
from concur_agents.errors import ConfigError
from concur_agents.gateway.identity import KEY_HEADERS
from concur_agents.probes.pinning import RANK_FIELD, RANK_HEADER
from concur_agents.runtime.agent import Agent, Governing
from concur_agents.runtime.endpoints import Address, addresses_in

_HOP_BY_HOP = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
"""Headers of one connection (RFC 9110, section 7.6.1)."""

_OURS = frozenset(("host", "expect", "cookie"))
"""Headers of a request that the gateway answers or sets itself, and what only it may know."""


class Pinned(NamedTuple):
    """A request as `adapters.routing` changes it: its headers."""

    headers: dict[str, str]


@dataclass(slots=True)
class Destination:
    """The engine of one call.

    Attributes:
        base: its address.
        headers: what the request gets beside the client's own, by name.
        rank: what the body has to name as well, because the engine reads the rank of a call there;
            None: nothing.
        route: what notices that a rank was refused, or that another engine served; None: there is
            one engine.
    """

    base: Base
    headers: dict[str, str]
    route: Route | None = None
    rank: int | None = None

    def fields(self) -> dict[str, int]:
        """What a body gets beside the client's own, by name."""
        is_pinned = self.route is not None and self.route.is_pinned
        return {RANK_FIELD: self.rank} if is_pinned and self.rank is not None else {}

    def url(self, path: str) -> str:
        """The address of a path, which is left as it is."""
        user = f"{self.base.userinfo}@" if self.base.userinfo else ""
        scheme, _, where = str(self.base).partition("://")
        return f"{scheme}://{user}{where}{path}"


class Engines:
    """The engines of one governor.

    Args:
        governor: says which pool an agent is in.
        urls: their addresses, as given to the governor.
        key: sent to them as a bearer token; None: none is.

    Raises:
        ConfigError: one of them is no http(s) address.
    """

    bases: list[Base]
    """Their addresses."""

    def __init__(
        self, governor: Governing, urls: str | Iterable[str], key: str | None = None
    ) -> None:
        self._governor = governor
        self._key = key
        found = addresses_in(urls or None)
        if not found:
            raise ConfigError("a gateway needs the address of an engine: give its url (--engine)")
        self.bases = [self._base(url) for url in found]
        self._next = 0

    def destination(self, agent: Agent | None, path: str = "") -> Destination:
        """Where a request goes: to the pool of its agent, else to the engines in turn.

        Args:
            agent: makes it; None: no agent does.
            path: the engine's, without its query.
        """
        if agent is None:
            return Destination(self._in_turn(), {})
        address = self._governor.address_of(agent.id)
        if address is None and self._governor.router is not None:
            address = Address(self._governor.router)
        if address is None:
            return Destination(self._in_turn(), agent.headers)
        there, headers = self._base(address.url), agent.headers
        router = router_of(self._governor)
        target = Target(there, there, address.rank, address.url)
        if RANK_HEADER in headers and not router.may_pin(self._governor, target, path):
            del headers[RANK_HEADER]
        route = Route(router, agent, target, Pinned(headers), is_pinned=RANK_HEADER in headers)
        in_body = address.by_body and path.rstrip("/").endswith("/completions")
        return Destination(there, headers, route, address.rank if in_body else None)

    def has(self, url: str) -> bool:
        """Whether one of them is at an address."""
        there = self._base(url)
        return any(each.origin == there.origin for each in self.bases)

    def request_headers(
        self, sent: Iterable[tuple[str, str]], destination: Destination
    ) -> list[tuple[str, str]]:
        """The headers of a request to an engine.

        Args:
            sent: those of the client.
            destination: where it goes.
        """
        sent = list(sent)
        dropped = _of_connection(sent)
        headers: list[tuple[str, str]] = []
        key_header = "authorization"
        for name, value in sent:
            lower = name.lower()
            if lower in KEY_HEADERS:
                key_header = lower
            elif lower not in dropped and lower not in _OURS:
                headers.append((name, value))
        given = {name.lower() for name, _ in headers}
        headers += [pair for pair in destination.headers.items() if pair[0].lower() not in given]
        if self._key is not None and not destination.base.userinfo:
            headers.append(("Authorization", f"Bearer {self._key}"))
            if key_header != "authorization":  # what this client's API has in its place
                headers.append((key_header, self._key))
        return headers

    def _in_turn(self) -> Base:
        found = self.bases[self._next % len(self.bases)]
        self._next += 1
        return found

    def _base(self, url: str) -> Base:
        found = base(url)
        if found is None:
            raise ConfigError(f"url must look like 'http://localhost:8000', got {url!r}")
        return found


def as_sent(raw: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    """Headers with their names spelt as they were sent.

    Values that are no UTF-8 become text by the characters of Latin-1.
    """
    return [(name.decode("ascii", "replace"), _text(value)) for name, value in raw]


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def answer_headers(sent: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The headers of an engine's answer, without those of its connection."""
    sent = list(sent)
    dropped = _of_connection(sent)
    return [(name, value) for name, value in sent if name.lower() not in dropped]


def redirection(location: str, there: Base, before: str) -> str:
    """Where an engine sends its client: below the gateway if it is the engine itself.

    A client that followed the engine's own address would leave the gateway, and its agent's name,
    behind.

    Args:
        location: as the engine says it.
        there: the engine.
        before: what the path at the gateway has before that of the engine: `/agent/ID`.
    """
    path = location
    if "://" in location:
        scheme, _, rest = location.partition("://")
        where, _, path = rest.partition("/")
        if base(f"{scheme}://{where}") != there._replace(path="", userinfo=""):
            return location
        path = f"/{path}"
    if not path.startswith("/") or path.startswith("//"):
        return location  # relative to the path that was asked for, or another host's
    if there.path and path.startswith(f"{there.path}/"):
        path = path.removeprefix(there.path)
    return before + path


def _of_connection(headers: Iterable[tuple[str, str]]) -> frozenset[str]:
    """Names of headers that are for one connection only; `Connection` may name further ones."""
    named = [
        option.strip().lower()
        for name, value in headers
        if name.lower() == "connection"
        for option in value.split(",")
    ]
    return _HOP_BY_HOP.union(named) - {"content-length", "content-type"} if named else _HOP_BY_HOP
