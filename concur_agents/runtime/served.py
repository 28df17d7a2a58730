"""Learns from the answers of an agent's calls which pool serves it.

Behind a router an agent is where the router sends it, whatever was planned: the first answer says
so, and from then on the agent is in that pool. Where answers say nothing of it, or where the router
does not keep agents, the pools are governed as one. In front of engines themselves an answer only
shows that a call did not go where it was sent.
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from concur_agents._text import printable

if TYPE_CHECKING:
    from concur_agents.runtime.endpoints import Address, Endpoints
    from concur_agents.runtime.monitor import Monitor
    from concur_agents.runtime.session import Session

logger = logging.getLogger("concur_agents")

WORKER_HEADER = "x-smg-routed-worker-id"
"""In an answer through SGLang's gateway: the address that served it, with `@rank`."""

TOKEN_HEADER = "x-session-token"
"""In an answer through llm-d's router: the engine that served it, encoded; to be sent back."""

KEY_HEADER = "X-SMG-Routing-Key"
"""SGLang's gateway keeps calls with the same key on one engine, if its policy or
`--routing-key-override` goes by it."""

_LONGEST_TOKEN = 4096
_LEAST_STRAYS = 8  # answers from another pool than before, until a router is not believed any more
_LEAST_UNHEARD = 8  # calls whose answers were never seen, likewise


class Served:
    """What answers have said so far.

    Args:
        monitor: makes the decisions.
        endpoints: the pools, and the router before them if there is one.
        nudge: asks for a beat; it must not keep its owner alive.
    """

    def __init__(self, monitor: Monitor, endpoints: Endpoints, nudge: Callable[[], object]) -> None:
        self._monitor, self._endpoints, self._nudge = monitor, endpoints, nudge
        self._said: set[str] = set()
        self._kept = self._strayed = self._unheard = 0
        self.has_heard = False
        """Whether the headers of any answer were seen."""

    def heard(self, session: Session, headers: Mapping[str, Any], sent: Address | None) -> None:
        """The headers of an answer that is no error.

        Args:
            session: of the agent whose call it was.
            headers: found by names in lower case.
            sent: where the call was sent, with the rank that it was pinned to; None: to a router.
        """
        self.has_heard = True
        worker, token = headers.get(WORKER_HEADER), headers.get(TOKEN_HEADER)
        if self._endpoints.router is None:
            if worker is not None and sent is not None:
                self._compare(session, str(worker), sent)
            return
        if isinstance(token, str) and len(token) <= _LONGEST_TOKEN:
            session.root.token = token
        if not self._endpoints.is_fleet or session.root is not session:
            return
        worker = None if worker is None else str(worker)
        token = token if isinstance(token, str) else None
        if self._endpoints.are_given:
            self._report(session, worker, token)
            return
        pool = self.served(worker, token, session.served_by)
        if pool is not None:
            self._follow(session, pool)

    def served(self, worker: str | None, token: str | None, before: str | None) -> str | None:
        """The pool that an answer through the router names; None: none of them.

        If that shows that agents' pools cannot be known, they are governed as one from the next
        beat on.

        Args:
            worker: what the answer said in `WORKER_HEADER`.
            token: the same in `TOKEN_HEADER`.
            before: the pool that the agent's answer before named; None: it is the first.
        """
        self.has_heard = True
        said = worker if worker is not None else _decoded(token)
        pool = None if said is None else pool_named(said, self._endpoints.addresses)
        if pool is not None:
            self._count(pool, before)
        elif said is None:
            self._join(
                "the answers of %s do not say which engine served them, so that no agent's pool is "
                "known, and the pools are governed as one. SGLang's gateway names it in "
                f"{WORKER_HEADER}, llm-d with its session affinity plugin in {TOKEN_HEADER} "
                "(logged once)"
            )
        else:
            self._join(
                f"the answers of %s name {printable(said, 200)!r}, which is none of `pools=`, so "
                "the pools are governed as one: list them as the answers name them, or give "
                "pools={name: address} (logged once)"
            )
        return pool

    def unheard(self) -> None:
        """A call of an agent was answered, and its headers were not seen."""
        self._unheard += 1
        if self._unheard >= _LEAST_UNHEARD and not self.has_heard:
            self._join(
                "no answer of %s was seen, only that calls were answered, so that no agent's pool "
                "is known, and the pools are governed as one: use a client of the governor's, or "
                "agent.heard(response.headers) (logged once)"
            )

    def _follow(self, root: Session, pool: str) -> None:
        """`pool` has served the agent, and is where it is from here on."""
        root.served_by = pool
        if self._endpoints.are_given:
            return  # a daemon says where agents are

        def follow(now: float) -> Iterable[str]:
            sessions = self._monitor.sessions
            regulator: Any = sessions.regulator
            is_here = sessions.by_id.get(root.id) is root and root.entering is None
            if sessions.passing or not is_here or not self._endpoints.is_fleet:
                return ()
            if not regulator.has_pool(pool):
                return ()  # it was removed meanwhile
            let_in: Iterable[str] = regulator.found(root.id, now, pool=pool)
            return let_in

        pool_of = self._monitor.sessions.regulator.pool_of
        if self._monitor.look(lambda _: pool_of(root.id)) != pool:
            self._monitor.decide(follow)

    def _report(self, root: Session, worker: str | None, token: str | None) -> None:
        """A daemon has to know what the answer of an agent said."""

        def report(now: float) -> Iterable[str]:
            sessions = self._monitor.sessions
            regulator: Any = sessions.regulator
            if not sessions.passing and sessions.by_id.get(root.id) is root:
                regulator.served(root.id, now, worker=worker, token=token)
            return ()

        self._monitor.decide(report)

    def _count(self, pool: str, before: str | None) -> None:
        """Does the router keep agents where they are?"""
        if before is None:
            return
        self._kept += pool == before
        self._strayed += pool != before
        if self._strayed >= _LEAST_STRAYS and self._strayed >= self._kept:
            self._join(
                "%s does not keep agents on their engines, so that their prefixes are computed "
                "again and again, and the pools are governed as one: choose a policy of the router "
                f"that goes by x-session-id or {KEY_HEADER} (logged once)"
            )

    def _compare(self, session: Session, worker: str, sent: Address) -> None:
        """An engine's own address was called: has another one answered?"""
        addresses = self._endpoints.addresses
        pool = pool_named(worker, addresses)
        rank = _split(worker)[1]
        is_other_rank = None not in (sent.rank, rank) and rank != sent.rank
        is_other = pool is not None and _where(addresses[pool].url) != _where(sent.url)
        if not is_other and not is_other_rank:
            return
        self._say(
            "served elsewhere",
            "a call was sent to %s and was served by %s: %s (logged once)",
            f"{base_text(sent.url)}{'' if sent.rank is None else f', rank {sent.rank}'}",
            printable(worker, 200),
            "the agent is in that pool from here on. Give the governor and the client the "
            "engines' own addresses"
            if is_other
            else "calls are not kept on their ranks, so that these are governed as one pool",
        )
        if is_other and pool is not None:
            self._follow(session.root, pool)
        elif self._endpoints.unpin(sent.url):
            self._nudge()

    def _join(self, text: str) -> None:
        self._say("joined", text, base_text(str(self._endpoints.router)))
        if self._endpoints.join():
            self._nudge()

    def _say(self, what: str, text: str, *values: str) -> None:
        if what not in self._said:
            self._said.add(what)
            logger.warning(text, *values)


def pool_named(said: str, addresses: Mapping[str, Address]) -> str | None:
    """The pool that an answer names, by its name or its address; None: none, or several fit."""
    said = said.strip().rstrip("/")
    if said in addresses:
        return said
    url, rank = _split(said)
    found = [
        pool
        for pool, address in addresses.items()
        if url == pool.partition("#")[0] or _where(url) == _where(address.worker or address.url)
        if rank is None or address.served_rank in (None, rank)
    ]
    return found[0] if len(found) == 1 else None


def base_text(url: str) -> str:
    """An address for messages, without user, password and path."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _split(said: str) -> tuple[str, int | None]:
    """An address, and the rank after `@`."""
    url, _, rank = said.rpartition("@")
    return (url, int(rank)) if url and rank.isdecimal() and len(rank) < 10 else (said, None)


def _where(url: str) -> str:
    """Host, port and path, by which a name without a scheme is compared as well."""
    try:
        parts = urlsplit(url if "://" in url else f"//{url}")
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return url
    path = parts.path.rstrip("/").removesuffix("/v1")
    return f"{parts.hostname or ''}{f':{port}' if port else ''}{path}"


def _decoded(token: object) -> str | None:
    """The text in a session token: a pod or an address.  None: there is none."""
    if not isinstance(token, str) or not token or len(token) > _LONGEST_TOKEN:
        return None
    try:
        text = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        return text.decode()
    except (binascii.Error, ValueError):
        return token
