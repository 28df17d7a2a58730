"""Reads one engine when that is due, and passes what it says to the regulator."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, cast

from concur_agents.core import sum_of
from concur_agents.probes.findings import missing_rank
from concur_agents.runtime.events import told
from concur_agents.runtime.poller import PENDING
from concur_agents.runtime.rank_search import count_ranks

if TYPE_CHECKING:
    from concur_agents.core import Fleet, LawState, Limit, Reading
    from concur_agents.probes import PageReading
    from concur_agents.runtime.endpoints import Address, Endpoint
    from concur_agents.runtime.events import EventKind
    from concur_agents.runtime.monitor import Monitor
    from concur_agents.runtime.rank_search import RankSearch
    from concur_agents.runtime.session_hints import SessionHints
    from concur_agents.runtime.sessions import Sessions

logger = logging.getLogger("concur_agents")
_BEYOND = 1.2  # what a page tells of a tier wavers by a few percent; what proves more is above this


class PoolReader:
    """One engine's page, and the pools on it.

    A reading never holds up the others where the poller reads in the background: it is begun, and
    a later call collects the result.

    Args:
        monitor: makes the decisions.
        endpoint: what is read; its `unread` is kept up to date.
        search: finds out whether its pools can be the ranks on the page; None: nothing does.
        hints: finds out what its engine wants to hear of agents.
        blind_after_s: without a reading for this long [s] the regulator is asked to notice.
        nudge: asks for a beat, in any thread; called when a reading in the background is over. It
            must not keep its owner alive.
    """

    def __init__(
        self,
        monitor: Monitor,
        endpoint: Endpoint,
        *,
        search: RankSearch | None,
        hints: SessionHints,
        blind_after_s: float,
        nudge: Callable[[], object],
    ) -> None:
        self._monitor = monitor
        self.endpoint = endpoint
        self._poller = endpoint.poller
        self.search = search
        self._hints = hints
        self._blind_after_s = blind_after_s
        self._nudge = nudge
        self._poll_at_s = -math.inf
        self._read_s: dict[str | None, float] = {}  # by pool: last reading, or the first attempt
        self._blind_at_s = monitor.clock() + blind_after_s
        self._pool_warned = self._ranks_warned = False
        self._states: dict[str | None, LawState] = {}  # of pools of a fleet, as last ticked
        self._down: set[str] = set()  # those of its pools that are down

    def read_at_once(self) -> None:
        """The next beat reads, whenever the last reading was."""
        self._poll_at_s = -math.inf

    def read(self) -> list[float]:
        """Reads the engine if that is due; returns when [s] to look after it again."""
        poller, clock = self._poller, self._monitor.clock
        if poller.due_s is not None:
            result = poller.collect()
        elif clock() < self._poll_at_s:
            result = PENDING
        else:
            result = poller.begin(self._nudge) if poller.background else poller.poll()
        if result is not PENDING:
            self._tick(result)
            self._poll_at_s = clock() + poller.rest_s()
        elif poller.background and clock() >= self._blind_at_s:
            # The regulator notices blindness on ticks, and a reading that hangs brings none.
            self._blind_at_s = math.inf
            for pool in self.endpoint.names:
                self._tick_pool(pool, None)
        due_s = poller.due_s
        due = [self._poll_at_s if due_s is None else due_s]
        return [*due, self._blind_at_s] if poller.background else due

    def _tick(self, reading: Reading | None) -> None:
        """Passes the result of a reading to the regulator; None: it failed."""
        parts = self._parts(reading)
        self._monitor.decide(lambda now: self._note(parts, reading is not None, now))
        if reading is not None and self._waits_for_ranks():
            return
        for pool, part in parts:
            self._tick_pool(pool, part)
        if reading is not None:
            self._hints.look(self._poller, self._monitor.clock())
        self._compare_pools(self._summed(reading))
        self._count_ranks()

    def _note(
        self, parts: list[tuple[str | None, Reading | None]], was_read: bool, now: float
    ) -> tuple[()]:
        """Keeps account of the pools without a reading: those that the page does not show, or all.

        Args:
            parts: what was read of each pool.
            was_read: the page could be read.
            now: the time [s].
        """
        sessions, unread = self._monitor.sessions, self.endpoint.unread
        first_s = self._poller.sighted_s
        for pool, part in parts:
            read_s = self._read_s.setdefault(pool, now if first_s is None else first_s)
            if part is None:
                why = self._missing(pool) if was_read else self._poller.error or ""
                sessions.tell("poll_failed", now, reason=why, pool=pool)
                unread[pool] = why
                continue
            if unread.pop(pool, None) is not None:
                sessions.tell("poll_recovered", now, waited_s=now - read_s, pool=pool)
            self._read_s[pool] = now
        if was_read:
            self._blind_at_s = now + self._blind_after_s
        return ()

    def _missing(self, pool: str | None) -> str:
        """Why a page that was read has no reading of a pool."""
        page = self._page
        ranks = [rank for rank, name in (self.endpoint.pools or {}).items() if name == pool]
        return "its probe keeps no page" if page is None else missing_rank(page, *ranks)

    @property
    def _page(self) -> PageReading | None:
        """The page that was read last; None: the probe keeps none."""
        page: PageReading | None = getattr(self._poller.probe, "last_page", None)
        return page

    def latest(self, layout: Mapping[str, Address]) -> list[tuple[str | None, Reading]]:
        """What the last page said of each of its pools, as `layout` has them."""
        names = self.endpoint.named() if layout else None
        parts = self._parts_of(names, self._poller.last_reading)
        return [(pool, part) for pool, part in parts if part is not None]

    def _waits_for_ranks(self) -> bool:
        """Begins a proof if the page shows ranks; whether the reading should wait for it."""
        page = self._page
        if self.search is None or page is None:
            return False
        now = self._monitor.clock()
        self.search.look(page, now)
        return self.search.holds(now)

    def _parts(self, reading: Reading | None) -> list[tuple[str | None, Reading | None]]:
        """What `reading` says of each pool."""
        return self._parts_of(self.endpoint.pools, reading)

    def _parts_of(
        self, names: Mapping[str, str] | None, reading: Reading | None
    ) -> list[tuple[str | None, Reading | None]]:
        if names is None:
            return [(None, self._summed(reading))]
        if reading is None or len(names) == 1:
            return [(pool, reading) for pool in names.values()]
        page = self._page
        found = {} if page is None else page.readings
        return [(pool, found.get(rank)) for rank, pool in names.items()]

    def _summed(self, reading: Reading | None) -> Reading | None:
        """`reading` with those of the addresses that are governed with this one."""
        others = [poller.last_reading for poller in self.endpoint.summed if not poller.failures]
        known = [each for each in (reading, *others) if each is not None]
        return sum_of(known, known[0].at_s) if len(known) > 1 else next(iter(known), None)

    def _tick_pool(self, pool: str | None, reading: Reading | None) -> None:
        sessions = self._monitor.sessions
        changed: list[tuple[LawState, LawState]] = []
        down: list[str] = []  # why; '': it is up again

        def tick(now: float) -> Iterable[str]:
            if pool not in self.endpoint.names or (
                pool is not None and not _has_pool(sessions, pool)
            ):
                return ()  # it was removed, or is another, since the reading began
            if reading is not None:
                sessions.tell("polled", now, reading=reading, pool=pool)
            regulator = sessions.regulator
            before = regulator.state
            if pool is not None:  # that of a fleet is of the pool that was ticked last
                before = self._states.get(pool) or regulator.law.initial()
            let_in = sessions.regulator.tick(reading, now, pool)
            after = sessions.regulator.state
            if pool is not None:
                self._states[pool] = after
                is_down = cast("Fleet", sessions.regulator).is_down(pool)
                if is_down is not (pool in self._down):
                    kind: EventKind = "pool_down" if is_down else "pool_up"
                    why = self.endpoint.unread.get(pool, "no answer") if is_down else ""
                    sessions.tell(kind, now, reason=why, pool=pool)
                    self._down ^= {pool}
                    down.append(why)
            if after.limit != before.limit:
                sessions.tell(
                    "limit_changed", now, reason=after.reason, limit=after.limit, pool=pool
                )
                changed.append((before, after))
            return let_in

        self._monitor.decide(tick)
        for why in down:
            if why:
                text = "%s is down: %s; its agents move to other pools at their next boundary"
                logger.warning(text, pool, why, extra=told("pool_down", pool=pool, error=why))
            else:
                logger.info("%s can be read again", pool, extra=told("pool_up", pool=pool))
        for before, after in changed:
            logger.log(
                logging.INFO if after.reason != before.reason else logging.DEBUG,
                "limit %s (%s)%s",
                _show_limit(after.limit),
                after.reason,
                "" if pool is None else f" of {pool}",
                extra=told(
                    "limit_changed",
                    pool=pool,
                    reason=after.reason,
                    former_reason=before.reason,
                    limit_tokens=_finite(after.limit.tokens),
                    limit_agents=_finite(after.limit.agents),
                ),
            )

    def _count_ranks(self) -> None:
        """Warns once where the page shows several engines that are governed as one pool."""
        page = self._page
        if self._ranks_warned or page is None or len(self.endpoint.pools or "1") > 1:
            return
        count = len(page.readings)
        is_sought = self.search is not None and count_ranks(page) > 1  # then the proof is logged
        if count > 1 and not is_sought and not self.endpoint.is_sum:
            self._ranks_warned = True
            logger.warning(
                "%s shows %d engines, which are governed as one pool: if they are data-parallel "
                "ranks, ranks=%d (--ranks %d) makes each a pool of its own (logged once)",
                self._poller.url,
                *(count, count, count),
                extra=told("several_engines", url=self._poller.url, engines=count),
            )

    def _compare_pools(self, reading: Reading | None) -> None:
        """Warns once where calls and hits prove that the pool is larger than it is reported."""
        if (
            self._pool_warned
            or self.endpoint.pools is not None
            or reading is None
            or reading.capacity_tokens is None
        ):
            return
        view = self._monitor.look(self._monitor.sessions.regulator.view)
        reported, used = reading.capacity_tokens, view.capacity_tokens
        # A tier that the page tells of is no surprise.
        expected = max(reported, reading.host_capacity_tokens or 0.0)
        if used is not None and used > _BEYOND * expected:
            self._pool_warned = True
            logger.warning(
                "the engine reports a pool of %.0f tokens, but calls and cache hits prove that it "
                "is larger: %.0f is used from here on, and more if more is proven. Hybrid models "
                "count blocks in another unit, and a host tier is often not counted (logged once; "
                "`snapshot()` has both numbers)",
                reported,
                used,
                extra=told("pool_contradicted", reported_tokens=reported, capacity_tokens=used),
            )


def _has_pool(sessions: Sessions, pool: str | None) -> bool:
    return pool is None or cast("Fleet", sessions.regulator).has_pool(pool)


def _finite(bound: float) -> float | None:
    return bound if math.isfinite(bound) else None


def _show_limit(limit: Limit) -> str:
    parts = []
    if math.isfinite(limit.agents):
        parts.append(f"{limit.agents:.0f} agents")
    if math.isfinite(limit.tokens):
        parts.append(f"{limit.tokens:,.0f} tokens")
    return ", ".join(parts) or "none"
