"""Pools that turn out to be several, or to be one, while agents run.

What an address has is wished for from any thread (`Endpoint.ranks`), and made so on a beat: one
decision puts another regulator in place, in which all agents stand where they stood. So nothing is
changed halfway, and nothing waits.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from concur_agents.core import Reading, pools_of, sum_of
from concur_agents.runtime.events import told

if TYPE_CHECKING:
    from concur_agents.probes.pinning import PinProof
    from concur_agents.runtime.endpoints import Address, Endpoint, Endpoints
    from concur_agents.runtime.monitor import Monitor
    from concur_agents.runtime.pin_watch import PinWatch
    from concur_agents.runtime.pool_reader import PoolReader

logger = logging.getLogger("concur_agents")


class Regrouping:
    """Makes the pools of a governor those that its addresses turn out to have.

    Args:
        monitor: makes the decisions.
        endpoints: the addresses, and the pools of each.
        readers: of the addresses.
        watch: whether calls go where they are sent.
    """

    def __init__(
        self,
        monitor: Monitor,
        endpoints: Endpoints,
        readers: list[PoolReader],
        watch: PinWatch,
    ) -> None:
        self._monitor, self._endpoints, self._readers = monitor, endpoints, readers
        self._watch = watch

    def settle(self) -> None:
        """On a beat: takes up proofs that have come, and regroups if that is wished for."""
        for reader in list(self._readers):
            proof = None if reader.search is None else reader.search.take()
            if proof is not None:
                self.believe(reader.endpoint, proof)
                reader.read_at_once()
        self.regroup()

    def regroup(self) -> None:
        """From here on the pools are as is wished for."""
        if self._endpoints.is_due:
            self._monitor.decide(self._regroup)
            self._watch.follow()

    def believe(self, endpoint: Endpoint, proof: PinProof) -> None:
        """The ranks of an address have been proved, or have not."""
        url = endpoint.poller.url
        facts = {"url": url, "engines": proof.ranks, "verdict": proof.verdict}
        search = next((r.search for r in self._readers if r.endpoint is endpoint), None)
        if proof.verdict != "unknown" and search is not None:
            search.stop()
        if proof.works:
            endpoint.ranks, endpoint.is_sum = proof.ranks, False
            endpoint.by_body = proof.by_body
            text = "%s: %s: each is a pool of its own"
            logger.info(text, url, proof.text, extra=told("ranks_found", **facts))
            return
        if proof.verdict != "unknown":
            endpoint.ranks = 1
        if not endpoint.is_sum:
            endpoint.is_sum = endpoint.ranks == 1
            logger.warning(
                "%s, with %d engines: %s (logged once)",
                *(url, proof.ranks, proof.text),
                extra=told("several_engines", **facts),
            )

    def _regroup(self, now: float) -> Iterable[str]:
        """Under the lock."""
        sessions, endpoints = self._monitor.sessions, self._endpoints
        if sessions.passing or not endpoints.is_due:
            return ()
        layout = endpoints.layout()
        let_in: Iterable[str] = ()
        regulator: Any = getattr(sessions.regulator, "inner", sessions.regulator)
        former = pools_of(regulator)
        if (regulator.pools[0].regulator if former else regulator).holds:
            return ()  # all boundaries are closed, which agents stand at; a later beat does it
        if former != list(layout):
            readings: dict[str | None, Reading] = {}
            for reader in self._readers:
                for pool, reading in reader.latest(layout):
                    known = [readings[pool]] if pool in readings else []
                    if pool not in former:
                        readings[pool] = sum_of([*known, reading], reading.at_s)
            where = self._spread(layout, former)
            let_in = sessions.regroup(list(layout), where.get, readings, now)
        else:  # only how calls get there, or a signal struck before the next line
            layout = {**endpoints.addresses, **layout}
        endpoints.apply(layout)
        return let_in

    def _spread(self, layout: dict[str, Address], former: list[str]) -> dict[str, str]:
        """Where the agents go whose pool is another one now, by their ids.

        To the same address, because their contexts are there; of its ranks to the one with least
        tokens, and with their group.
        """
        sessions, found = self._monitor.sessions, dict[str, str]()
        url_of = {pool: address.url for pool, address in self._endpoints.addresses.items()}
        held = dict.fromkeys(layout, 0.0)
        groups: dict[tuple[str, str], str] = {}
        for agent, session in sessions.by_id.items():
            if sessions.parent_of(session) is not None or session.entering is not None:
                continue
            pool = sessions.regulator.pool_of(agent)
            if pool not in layout:
                url = url_of.get(pool or "", self._endpoints.all[0].url)
                there = [name for name, address in layout.items() if address.url == url]
                if not there:
                    continue
                key = (str(url), session.group or f"agent {agent}")
                pool = groups.setdefault(key, min(there, key=held.__getitem__))
            context, _ = sessions.regulator.memory_of(agent)
            held[pool] += 1 if context is None else context.prompt_tokens
            found[agent] = pool
        return found
