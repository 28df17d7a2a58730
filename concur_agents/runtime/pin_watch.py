"""Notices from what calls report that they do not reach the ranks that they are pinned to.

An agent comes back for the first time: its context is far longer than what all agents share, the
pool holds all contexts twice over, so that nothing was evicted, and yet less than half of it was
cached. If that happens again and again, calls are not served where they are sent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from concur_agents.recording import scrub
from concur_agents.runtime.events import told

if TYPE_CHECKING:
    from concur_agents.core import Usage
    from concur_agents.runtime.endpoints import Endpoints
    from concur_agents.runtime.events import Dispatcher, Event
    from concur_agents.runtime.monitor import Monitor
    from concur_agents.runtime.served import Served

logger = logging.getLogger("concur_agents")

_SOON_S = 60.0  # a context that rests for longer may have been evicted by other tenants
_LEAST_TOKENS = 256  # engines cache whole blocks, so a short prompt says nothing
_CLEAR = 4.0  # so many times what is shared is far longer
_LEAST_MISSES = 6
_LEAST_SHARE = 0.3  # of the first returns: of two ranks in turn half miss, of four three quarters
_ENOUGH = 64  # first returns after which the pin is believed


@dataclass(slots=True)
class _Returns:
    """First returns to one address."""

    hits: int = 0
    misses: int = 0
    shared_tokens: int = 0
    """Most that a first call has found cached."""


class PinWatch:
    """Watches calls while there is something to find out.

    Args:
        monitor: says how full a pool is.
        endpoints: the pools.
        served: hears of answers whose headers were not seen.
        dispatcher: reports the calls.
        nudge: asks for a beat; it must not keep its owner alive.
    """

    def __init__(
        self,
        monitor: Monitor,
        endpoints: Endpoints,
        served: Served,
        dispatcher: Dispatcher,
        nudge: Callable[[], object],
    ) -> None:
        self._monitor, self._endpoints, self._served = monitor, endpoints, served
        self._dispatcher, self._nudge = dispatcher, nudge
        self._first: dict[str, tuple[float, Usage]] = {}  # of agents that have made one call
        self._returns: dict[str, _Returns] = {}  # by address
        self._unwatch: Callable[[], None] | None = None

    def follow(self) -> None:
        """The pools have been made, or are others: watches if there is something to find out."""
        if self._is_needed and self._unwatch is None:
            self._unwatch = self._dispatcher.subscribe(self._note)
        elif not self._is_needed and self._unwatch is not None:
            self._unwatch()
            self._unwatch = None
            self._first.clear()

    @property
    def _is_needed(self) -> bool:
        endpoints = self._endpoints
        if endpoints.router is not None:
            return endpoints.is_fleet and not self._served.has_heard
        return any(endpoint.ranks > 1 and self._is_open(endpoint.url) for endpoint in endpoints.all)

    def _is_open(self, url: str | None) -> bool:
        known = self._returns.get(str(url))
        return known is None or known.hits + known.misses < _ENOUGH

    def _note(self, event: Event) -> None:
        agent = event.agent
        if event.kind == "flushed":  # what misses now says nothing
            self._first.clear()
        if agent is None:
            return
        if event.kind == "left":
            self._first.pop(agent, None)
        if event.kind != "step_ended" or event.usage is None:
            return
        if self._endpoints.router is not None:
            if not self._served.has_heard:
                self._served.unheard()
            self.follow()
            return
        address = self._endpoints.addresses.get(event.pool or "")
        if address is not None and address.rank is not None:
            self._note_call(agent, address.url, event.at_s, event.usage)

    def _note_call(self, agent: str, url: str, at_s: float, usage: Usage) -> None:
        cached = usage.cached_tokens
        if cached is None:
            return
        returns = self._returns.setdefault(url, _Returns())
        known = self._first.get(agent)
        if known is None:
            returns.shared_tokens = max(returns.shared_tokens, min(cached, usage.prompt_tokens))
            self._first[agent] = at_s, usage
            return
        first_s, first = known
        if first_s < 0.0:
            return  # it has been back before
        self._first[agent] = -1.0, first
        own = min(first.prompt_tokens, usage.prompt_tokens)
        is_clear = own >= max(_LEAST_TOKENS, _CLEAR * returns.shared_tokens)
        if not is_clear or at_s - first_s > _SOON_S or not self._has_room(agent):
            return
        returns.hits += cached >= 0.5 * own
        returns.misses += cached < 0.5 * own
        count = returns.hits + returns.misses
        if returns.misses >= _LEAST_MISSES and returns.misses >= _LEAST_SHARE * count:
            self._give_up(url, returns)
        self.follow()

    def _has_room(self, agent: str) -> bool:
        def look(_: float) -> bool:
            regulator: Any = self._monitor.sessions.regulator
            return self._endpoints.is_fleet and bool(regulator.has_ample_room(agent))

        return self._monitor.look(look)

    def _give_up(self, url: str, returns: _Returns) -> None:
        count = returns.hits + returns.misses
        if self._endpoints.unpin(url):
            logger.warning(
                "%d of %d agents that came back to %s soon found nothing of their context, though "
                "all contexts fit: calls do not reach the ranks that they are pinned to, so that "
                "these are governed as one pool. Give each engine an address of its own; "
                "`concur doctor` shows what the router does (logged once)",
                *(returns.misses, count, scrub(url)),
                extra=told("pin_lost", url=scrub(url), returns=count, misses=returns.misses),
            )
            self._nudge()
