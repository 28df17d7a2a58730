"""Where a call goes: to the address of its agent's pool.

A client is made for one address. Its request to any address of the governor is sent to the one that
the agent is in: scheme, host, port and leading path change, the rest of the path and the query do
not. A request to another address is not touched, and neither is a signed one.

Keys stay with their host: what may be a secret is removed from a request that goes to another host
than the client was made for.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

from concur_agents.adapters.addresses import Base, base, base_of_request, bases_of, innermost
from concur_agents.adapters.extras import Edit, is_signed
from concur_agents.adapters.secrets import is_placeholder, is_secret, without_secrets
from concur_agents.probes.pinning import RANK_FIELD, RANK_HEADER, names_rank
from concur_agents.runtime.agent import Agent, Governing
from concur_agents.runtime.endpoints import Address

logger = logging.getLogger("concur_agents")

_REFUSED = (400, 404, 422, 500)
_UNPINNED_OF_SGLANG = ("/responses", "/generate")  # at 0.5.19, which answers 200 all the same


class Target(NamedTuple):
    """Where a request goes."""

    base: Base
    former: Base
    """What `base` takes the place of; the same if nothing changes."""
    rank: int | None
    url: str
    """The address as the governor was given it."""

    @property
    def keeps_keys(self) -> bool:
        """Whether the client's keys may go there: it is the same host, and no less private."""
        is_downgrade = (self.former.scheme, self.base.scheme) == ("https", "http")
        return self.base.host == self.former.host and not is_downgrade


@dataclass(slots=True)
class Route:
    """One request that has been sent on its way to a pool."""

    router: Router
    agent: Agent
    target: Target
    request: Any
    is_pinned: bool = False
    edit: Edit | None = None
    """What else was changed in the request."""

    @property
    def governor(self) -> Governing:
        """Of the agent."""
        return self.agent.governor

    def may_be_refused(self, status: int) -> bool:
        """Whether the endpoint may have refused the rank."""
        return self.is_pinned and status in _REFUSED

    def was_refused(self, answer: bytes) -> bool:
        """Whether it did. Then the rank is no longer sent there, and the request goes out again."""
        if not self.is_pinned or not names_rank(answer.decode("utf-8", "replace")):
            return False
        self.router.meet_refused_rank(self.governor, self.target)
        self.request.headers.pop(RANK_HEADER, None)
        if self.edit is not None and RANK_FIELD in self.edit.added:
            self.edit.undo()
        self.is_pinned = False
        return True

    def meet(self, status: int, headers: Any) -> None:
        """Looks at the headers of an answer, which may say where it is from."""
        if status < 400:
            rank = self.target.rank if self.is_pinned else None
            self.governor.heard(self.agent, headers, Address(self.target.url, rank))


class Router:
    """Sends the requests of one governor's agents to their pools. Made by `router_of`."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._unpinned: set[Base] = set()  # they refuse ranks
        self._met: WeakSet[Agent] = WeakSet()  # their requests pass here

    def target(self, governor: Governing, agent: Agent, asked: Base) -> Target | None:
        """Where a request of `agent` goes that was made for `asked`.

        None: it stays as it is, because there is one pool, the agent has none yet, or `asked` is no
        address of the governor's.
        """
        address, router = governor.address_of(agent.id), governor.router
        if address is None and router is not None:
            address = Address(router)  # its pools are governed as one, but it may keep agents
        if address is None:
            return None
        self._met.add(agent)
        known = [address] if router is not None else governor.addresses.values()
        former, there = innermost(asked, known), base(address.url)
        if former is None or there is None:
            return None
        return Target(there, former, address.rank, address.url)

    def meet_elsewhere(self, governor: Governing, agent: Agent, asked: Base) -> None:
        """A call of an agent was not directed: that should be known if there are several pools."""
        known = list(governor.addresses.values())
        if not known and governor.router is not None:
            known = [Address(governor.router)]
        if governor.address_of(agent.id) is not None or governor.router is not None:
            self.say(
                "elsewhere",
                "a call of an agent goes to %s, which is no address of this governor's, and so it "
                "is not sent to the agent's pool: make the client for one of %s (logged once)",
                str(asked._replace(path="")),
                ", ".join(str(each) for each in bases_of(known)),
            )

    def direct(
        self,
        client: Any,
        agent: Agent | None,
        request: Any,
        options: dict[str, Any],
        *,
        is_call: bool = True,
    ) -> Route | None:
        """Changes a request and the options of its `send` so that it goes to the agent's pool.

        Args:
            client: sends it; a governed view.
            agent: makes it; None: no agent does.
            request: of httpx or httpx2; changed in place, and as it was if it is sent again.
            options: of `send`; changed in place.
            is_call: of a model, and not such as a question for the list of models.

        Returns:
            None: it stays as it is.
        """
        _restore(request)
        governor: Governing = client._concur_governor
        if agent is None:
            return None
        if governor.address_of(agent.id) is None and governor.router is None:
            return None
        asked = base_of_request(request.url)
        target = self.target(governor, agent, asked)
        if target is None:
            if is_call:
                self.meet_elsewhere(governor, agent, asked)
            return None
        if is_signed(request):
            self.say(
                "signed",
                "a signed request cannot be sent to the agent's pool, because its signature "
                "holds for one address: it goes to %s (logged once)",
                str(target.former),
            )
            return None
        route = Route(self, agent, target, request)
        headers: dict[str, str | None] = {}
        there, former, before = target.base, target.former, request.url
        if there != former:
            self._rewrite(request, target, headers)
        if not target.keeps_keys:
            self._lock_up(client, request, target, headers, options)
        if target.rank is not None and self.may_pin(governor, target, asked.path):
            headers[RANK_HEADER] = str(target.rank)
            route.is_pinned = True
        if governor.router is not None:
            own = request.headers
            steering = agent.headers.items()
            headers.update((name, value) for name, value in steering if name not in own)
        request._concur_before = before, _set(request.headers, headers)
        return route

    def may_pin(self, governor: Governing, target: Target, path: str) -> bool:
        """Whether the address takes ranks, for a request to this path."""
        if not self.pins(target.base):
            return False
        engine = getattr(governor.probe, "engine", None)
        if engine != "sglang" or not path.endswith(_UNPINNED_OF_SGLANG):
            return True
        self.say(
            "route",
            "SGLang ignores ranks on %s, so that calls are not pinned, and its engines are "
            "governed as one pool: use chat completions, or an address for each engine (logged "
            "once)",
            path,
        )
        governor.unpin(target.url)
        return False

    def meet_unseen(self, agent: Agent) -> None:
        """A framework reported an answered call: has the request of it passed here?"""
        if agent not in self._met and agent.governor.address_of(agent.id) is not None:
            self.say(
                "unseen",
                "an agent waits at a hook of its framework, but its requests do not pass here, and "
                "so its calls are not sent to its pool: give its model an HTTP client of the "
                "governor's (gov.http_client), or base_url and headers of the agent; "
                "docs/fleet-routing.md says how (logged once)",
            )

    def pins(self, there: Base) -> bool:
        """Whether an address takes ranks, as far as is known."""
        return there not in self._unpinned

    def meet_refused_rank(self, governor: Governing, target: Target) -> None:
        """An address has refused a rank: none is sent there, and its engines are one pool."""
        self._unpinned.add(target.base)
        self.say(
            f"rank {target.base}",
            "%s refuses rank %s as out of range, so its calls are not pinned, and its engines are "
            "governed as one pool: has it fewer data-parallel engines than `ranks=` says, or is it "
            "a router whose engines have one each? (logged once)",
            str(target.base),
            str(target.rank),
        )
        governor.unpin(target.url)

    def meet_lost_key(self, target: Target) -> None:
        """The client's key stays behind."""
        self.say(
            "key",
            "the client's key is for %s and is not sent to %s, which is another host. If one key "
            "is good for all addresses, give it to the governor: Governor([...], api_key=...) "
            "(logged once)",
            target.former.host,
            target.base.host,
        )

    def _rewrite(self, request: Any, target: Target, headers: dict[str, str | None]) -> None:
        there, former = target.base, target.former
        raw: bytes = request.url.raw_path
        rest = raw[len(former.path.encode()) :]
        userinfo = there.userinfo
        if not userinfo and target.keeps_keys:
            userinfo = request.url.userinfo.decode()
        request.url = request.url.copy_with(
            scheme=there.scheme,
            host=there.host,
            port=there.port,
            userinfo=userinfo.encode(),
            raw_path=(there.path.encode() + rest) or b"/",
        )
        headers["host"] = str(there).partition("://")[2].partition("/")[0]

    def _lock_up(
        self,
        client: Any,
        request: Any,
        target: Target,
        headers: dict[str, str | None],
        options: dict[str, Any],
    ) -> None:
        """Removes what may be a secret; the governor's key takes its place, if it has one."""
        key = client._concur_governor.api_key
        auth = options.get("auth")
        if type(auth).__name__ == "UseClientDefault" or "auth" not in options:
            auth = vars(client).get("_auth")
        lost = auth is not None
        options["auth"] = None  # because httpx would add that of the client
        for name in list(dict.fromkeys(request.headers)):
            if is_secret(name):
                lost = lost or not is_placeholder(request.headers[name])
                headers[name] = None
        query = without_secrets(request.url.query)
        if query != request.url.query:
            lost = True
            request.url = request.url.copy_with(query=query or None)
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        elif lost:
            self.meet_lost_key(target)

    def say(self, what: str, text: str, *values: str) -> None:
        """Warns once of each `what`."""
        if what not in self._said:
            self._said.add(what)
            logger.warning(text, *values)


_routers: WeakKeyDictionary[Governing, Router] = WeakKeyDictionary()


def router_of(governor: Governing) -> Router:
    """The governor's `Router`: what is said once is said once per governor."""
    router = _routers.get(governor)
    if router is None:
        router = _routers[governor] = Router()
    return router


def _set(headers: Any, changes: dict[str, str | None]) -> dict[str, str | None]:
    """Changes headers; returns how they were."""
    before: dict[str, str | None] = {name: headers.get(name) for name in changes}
    for name, value in changes.items():
        if value is not None:
            headers[name] = value
        else:
            with suppress(KeyError):
                del headers[name]
    return before


def _restore(request: Any) -> None:
    """A request that has been sent before, as it was before that."""
    before = getattr(request, "_concur_before", None)
    if before is not None:
        request.url, headers = before
        del request._concur_before
        _set(request.headers, headers)
