"""The KV pools of a host: which there are, where their calls go, and what updates do to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from concur_agents.errors import ConfigError
from concur_agents.runtime.checks import check_timeout
from concur_agents.runtime.hold import HOLD_S, Hold
from concur_agents.runtime.rank_search import count_ranks
from concur_agents.runtime.session import Named, id_of

if TYPE_CHECKING:
    from concur_agents.probes import PageReading
    from concur_agents.probes.pinning import PinProof
    from concur_agents.runtime.agent import Agent
    from concur_agents.runtime.endpoints import Address, Endpoint, Endpoints
    from concur_agents.runtime.monitor import Monitor
    from concur_agents.runtime.pin_watch import PinWatch
    from concur_agents.runtime.pool_reader import PoolReader
    from concur_agents.runtime.regrouping import Regrouping
    from concur_agents.runtime.served import Served
    from concur_agents.runtime.session_hints import SessionHints
    from concur_agents.runtime.sharing import Sharing
    from concur_agents.runtime.ticker import Ticker


class Pools:
    """One pool or several. Owned by `Host`, which makes the parts."""

    _monitor: Monitor
    _endpoints: Endpoints
    _ticker: Ticker
    _names: Iterator[int]
    _regrouping: Regrouping
    _served: Served
    _watch: PinWatch
    _hints: SessionHints
    _nudge: Callable[[], None]
    _sharing: Sharing | None
    _reader: Callable[[Endpoint], PoolReader]

    def flushed(self, pool: str | None = None) -> None:
        """Say that the engine's cache has been emptied, as a weight update does.

        Without it, agents that return to an empty cache look like agents whose contexts were
        evicted, and the pool is taken for a small one until the next hits.

        Args:
            pool: of several: which one; None: all.

        Raises:
            ConfigError: there is no such pool.
        """
        sessions = self._monitor.sessions
        if not isinstance(pool, str | None):  # what cannot be compared would end the governor
            raise ConfigError(f"a pool must be a string, got one of type {type(pool).__name__}")
        if pool is not None:
            pool = str.__str__(pool)

        def flush(now: float) -> Iterable[str]:
            if sessions.passing:
                return ()
            regulator: Any = sessions.regulator
            if pool is not None and not (self._endpoints.is_fleet and regulator.has_pool(pool)):
                names = ", ".join(self._endpoints.addresses) or "one without a name"
                raise ConfigError(f"there is no pool {pool!r}, only {names}")
            sessions.tell("flushed", now, pool=pool)
            return sessions.regulator.flushed(now, *(() if pool is None else (pool,)))

        self._monitor.decide(flush)
        self._reach()

    def _reach(self) -> None:
        """The daemon of a shared governor is to hear what was said, also if no agent is here."""
        if self._sharing is not None:
            self._nudge()

    def hold(self, timeout_s: float = HOLD_S) -> Hold:
        """A block in which no agent passes a boundary and none is let in, such as a weight update.

            async with gov.hold():          # also plain `with`: neither end of it waits
                await update_weights()
                gov.flushed()               # if the update empties the engine's cache

        Calls in flight go on. Agents that come to a boundary keep their place and wait there; `why`
        says so. Blocks may overlap: agents go on when the last one is over.

        Args:
            timeout_s: they go on after so long [s] in any case, so that an update that hangs stops
                no agent for ever.

        Raises:
            ConfigError: `timeout_s` is not a time above 0, or is infinite.
        """
        bound_s = check_timeout(timeout_s)
        if not bound_s:
            raise ConfigError(f"timeout_s must be above 0 s and finite, got {timeout_s!r}")
        return Hold(self._monitor, f"hold-{next(self._names)}", bound_s, self._reach)

    def add_pool(self, url: str) -> None:
        """One more engine takes agents from now on.

        Raises:
            ConfigError: this governor was made for one pool, or the address is there already.
        """
        self._check_fleet()
        endpoint = self._endpoints.add(url)
        self._change(endpoint, "add_pool")
        self._ticker.readers.append(self._reader(endpoint))
        self._nudge()

    def remove_pool(self, url: str) -> None:
        """An engine takes no more agents; those that are there move at their next boundary.

        Raises:
            ConfigError: this governor was made for one pool, there is no such address, or no other.
        """
        self._check_fleet()
        endpoint = self._endpoints.remove(url)
        readers = self._ticker.readers
        readers[:] = [reader for reader in readers if reader.endpoint is not endpoint]
        self._change(endpoint, "remove_pool")
        endpoint.poller.close()

    def check_pinning(self, model: str | None = None) -> dict[str, PinProof]:
        """Proves that calls can be pinned to the engines on a page, and governs as that says.

        With four tiny calls to each address that shows several engines. Ranks that are proved are
        pools of their own from here on; if calls are served elsewhere or a rank is refused, one
        pool of all is. A governor does the same by itself when the first agent comes, if `ranks=`
        is not given. Before that no other calls count as well. It blocks for some seconds.

        Args:
            model: serves the calls; None: the first one that is served.

        Returns:
            The proofs by address; empty: no page shows several engines.
        """
        proofs: dict[str, PinProof] = {}
        for endpoint in self._endpoints.all:
            poller = endpoint.poller
            if poller.last_reading is None:
                poller.poll()  # the new pools begin with it
            is_pinned = endpoint.ranks > 1 and self._endpoints.router is None
            page: PageReading | None = getattr(poller.probe, "last_page", None)
            is_sought = not endpoint.is_sum and page is not None and count_ranks(page) > 1
            is_sought = is_sought and self._endpoints.router is None
            if endpoint.url is not None and (is_pinned or is_sought):
                ranks = endpoint.ranks if endpoint.ranks > 1 else None
                proof = proofs[poller.url or ""] = poller.check_pinning(ranks, model)
                self._regrouping.believe(endpoint, proof)
        self._regrouping.regroup()
        return proofs

    def address_of(self, agent: str) -> Address | None:
        """Where the calls of an agent go; None: there is one pool, or it has none yet."""
        if not self._endpoints.is_fleet:
            return None
        pool = self.pool_of(agent)
        return None if pool is None else self._endpoints.addresses.get(pool)

    def session_of(self, agent: str) -> str | None:
        """The session that a call of an agent is to name to its engine; None: it names none."""
        return self._hints.name_of(agent, partial(self.address_of, agent))

    def pool_of(self, agent: str | Named) -> str | None:
        """The name of the pool that an agent is in; None: there is one, or it has none yet."""
        found = id_of(agent)
        return self._monitor.look(lambda _: self._monitor.sessions.regulator.pool_of(found))

    def unpin(self, url: str) -> None:
        """Calls to an address cannot be pinned: its engines are one pool from here on.

        From any thread. It comes into force at the next beat; agents keep their places.

        Args:
            url: as it was given to the governor.
        """
        if self._endpoints.unpin(url):
            self._nudge()

    def heard(self, agent: Agent, headers: Mapping[str, Any], sent: Address | None = None) -> None:
        """Looks at the headers of an answer, which may say which pool serves an agent.

        Args:
            agent: made the call.
            headers: of an answer that is no error, found by names in lower case.
            sent: where the call was sent, with the rank that it was pinned to; None: to a router.
        """
        self._served.heard(agent._session, headers, sent)

    def served(self, worker: str | None, token: str | None, before: str | None) -> str | None:
        """For hosts of agents that are not of this process: the pool that an answer names.

        As `heard` finds it; to be followed by the fleet's `found`.

        Args:
            worker: the answer's header `x-smg-routed-worker-id`.
            token: the answer's header `x-session-token`.
            before: the pool that the agent's answer before named; None: it is the first.
        """
        return self._served.served(worker, token, before)

    @property
    def router(self) -> str | None:
        """Where all calls go, because a router picks; None: they go to the pools themselves."""
        return self._endpoints.router

    @property
    def addresses(self) -> dict[str, Address]:
        """Where each pool's calls go, by the names of the pools; empty: there is one pool."""
        return dict(self._endpoints.addresses)

    def _change(self, endpoint: Endpoint, what: str) -> None:
        """Each pool of an address comes or goes.

        Args:
            what: the name of the fleet's method.
        """
        sessions = self._monitor.sessions
        for pool in (endpoint.pools or {}).values():

            def change(now: float, pool: str = pool) -> Iterable[str]:
                let_in: Iterable[str] = getattr(sessions.regulator, what)(pool, now)
                return let_in

            self._monitor.decide(change)

    def _check_fleet(self) -> None:
        if self._sharing is not None:
            raise ConfigError("the pools of a shared governor are those of its daemon")
        if not self._endpoints.is_fleet:
            raise ConfigError(
                "this governor was made for one pool: give it a list of addresses, such as "
                'Governor(["http://gpu1:8000", "http://gpu2:8000"])'
            )
