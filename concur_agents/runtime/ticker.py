"""What happens because time passes, and not because an agent does something.

One beat reads the engine if that is due, lets in the agents that only time keeps waiting, and logs
waits that have become long. The governor's thread calls it; in simulated time the host does.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from concur_agents._outside import is_from_outside
from concur_agents._text import shown_id
from concur_agents.runtime.events import told
from concur_agents.runtime.poller import PENDING
from concur_agents.runtime.sessions import explained

if TYPE_CHECKING:
    from concur_agents.core import LawState, Limit, Reading
    from concur_agents.runtime.monitor import Monitor
    from concur_agents.runtime.poller import EnginePoller

logger = logging.getLogger("concur_agents")

LONG_WAIT_S = 60.0
"""A wait beyond this is logged with its reason, and again each time it has doubled."""

LAST_LONG_WAIT_S = 7 * 86_400.0
"""A wait beyond this is not logged again."""

STALLED = (
    "a stall: agents waited, no call was in flight, and no agent that may run began one, so one "
    "more was let in. The likely cause: agents wait for the governor while they hold a semaphore, "
    "a thread of a small pool, a rate limiter or a place with another governor, and those that may "
    "run wait for that. Take that limit away, or take it inside of the step: see "
    "docs/semaphores.md (logged once; `snapshot().stalls_total` counts)"
)
"""What the first stall logs."""

SHORTEST_REST_S = 0.001
"""A claim that fades a hair later than computed is not worth a busy loop."""


class Ticker:
    """Beats for one monitor.

    A beat never waits for the engine where the poller reads in the background: it starts a
    reading, and a later beat collects the result. So time passes whatever a server does.

    Args:
        monitor: makes the decisions.
        engine_poller: reads the engine.
        ticks: whether the law uses readings at all.
        blind_after_s: without a reading for this long [s] the regulator is asked to notice.
        nudge: asks for a beat, in any thread; called when a reading in the background is over. It
            must not keep its owner alive.
    """

    def __init__(
        self,
        monitor: Monitor,
        engine_poller: EnginePoller,
        *,
        ticks: bool,
        blind_after_s: float,
        nudge: Callable[[], object],
    ) -> None:
        self._monitor = monitor
        self._engine_poller = engine_poller
        self._ticks = ticks
        self._blind_after_s = blind_after_s
        self._nudge = nudge
        self._beating = threading.Lock()  # the state below belongs to the thread that beats
        self._poll_at_s = -math.inf
        self._dark_since_s: float | None = None  # the last good reading before the failures
        self._blind_at_s = monitor.clock() + blind_after_s
        self._pool_warned = False
        self._long_wait_s = LONG_WAIT_S
        self._warned_stall = False

    def beat(self) -> float | None:
        """Does what is due now.

        Returns:
            How long [s] nothing will be due; None: until something changes.
        """
        with self._beating:
            try:
                return self._beat()
            except Exception as bug:
                if is_from_outside(bug):
                    raise
                found = bug
                self._monitor.decide(lambda now: self._monitor.sessions.fail(found, now))
                return None

    def _beat(self) -> float | None:
        monitor = self._monitor
        if monitor.sessions.passing:
            return None
        due = self._read_engine() if self._ticks else []
        now = monitor.clock()
        self._let_in_by_time()
        self._mind_stalls()
        long_wait_s = self._mind_long_waits()
        if long_wait_s is not None:
            due.append(now + long_wait_s)

        def rest(now: float) -> float | None:
            wake_s = monitor.sessions.regulator.next_wake(now)
            if wake_s is not None:
                due.append(max(wake_s, now + SHORTEST_REST_S))
            return monitor.rest(min(due, default=math.inf), now)

        return monitor.look(rest)

    def _read_engine(self) -> list[float]:
        """Reads the engine if that is due; returns when [s] to look after it again."""
        poller, clock = self._engine_poller, self._monitor.clock
        if poller.due_s is not None:
            result = poller.collect()
        elif clock() < self._poll_at_s:
            result = PENDING
        else:
            self._dark_since_s = poller.sighted_s if poller.failures else None
            result = poller.begin(self._nudge) if poller.background else poller.poll()
        if result is not PENDING:
            self._tick(result)
            self._poll_at_s = clock() + poller.rest_s()
        elif poller.background and clock() >= self._blind_at_s:
            # The regulator notices blindness on ticks, and a reading that hangs brings none.
            self._blind_at_s = math.inf
            self._monitor.decide(lambda now: self._monitor.sessions.regulator.tick(None, now))
        due_s = poller.due_s
        due = [self._poll_at_s if due_s is None else due_s]
        return [*due, self._blind_at_s] if poller.background else due

    def _tick(self, reading: Reading | None) -> None:
        """Passes the result of a reading to the regulator; None: it failed."""
        engine_poller, sessions = self._engine_poller, self._monitor.sessions
        dark_since_s = self._dark_since_s
        changed: list[tuple[LawState, LawState]] = []

        def tick(now: float) -> Iterable[str]:
            if reading is None:
                sessions.tell("poll_failed", now, reason=engine_poller.error or "")
            elif dark_since_s is not None:
                sessions.tell("poll_recovered", now, waited_s=now - dark_since_s)
            if reading is not None:
                sessions.tell("polled", now, reading=reading)
                self._blind_at_s = now + self._blind_after_s
            before = sessions.regulator.state
            let_in = sessions.regulator.tick(reading, now)
            after = sessions.regulator.state
            if after.limit != before.limit:
                sessions.tell("limit_changed", now, reason=after.reason, limit=after.limit)
                changed.append((before, after))
            return let_in

        self._monitor.decide(tick)
        self._compare_pools(reading)
        for before, after in changed:
            logger.log(
                logging.INFO if after.reason != before.reason else logging.DEBUG,
                "limit %s (%s)",
                _show_limit(after.limit),
                after.reason,
                extra=told(
                    "limit_changed",
                    reason=after.reason,
                    former_reason=before.reason,
                    limit_tokens=_finite(after.limit.tokens),
                    limit_agents=_finite(after.limit.agents),
                ),
            )

    def _compare_pools(self, reading: Reading | None) -> None:
        """Warns once where calls and hits prove that the pool is larger than it is reported."""
        if self._pool_warned or reading is None or reading.capacity_tokens is None:
            return
        view = self._monitor.look(self._monitor.sessions.regulator.view)
        reported, used = reading.capacity_tokens, view.capacity_tokens
        if used is not None and used > reported:
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

    def _let_in_by_time(self) -> None:
        """Lets in the agents that only time kept waiting."""
        sessions = self._monitor.sessions
        self._monitor.decide(
            lambda now: () if sessions.passing else sessions.regulator.advance(now)
        )

    def _mind_stalls(self) -> None:
        """Logs the first stall with its likely cause."""
        if self._warned_stall:
            return
        regulator = self._monitor.sessions.regulator
        stalls = self._monitor.look(lambda now: regulator.view(now).stalls_total)
        if stalls:
            self._warned_stall = True
            logger.warning("%s", STALLED, extra=told("stalled", stalls_total=stalls))

    def _mind_long_waits(self) -> float | None:
        """Logs a wait that has become long; returns when [s from now] to look again."""
        sessions = self._monitor.sessions
        why, who = "", ""
        longest_s = 0.0

        def look(now: float) -> float | None:
            nonlocal why, who, longest_s
            if not sessions.tickets:
                self._long_wait_s = LONG_WAIT_S
                return None
            longest_s = sessions.regulator.view(now).longest_wait_s
            if longest_s >= self._long_wait_s:
                while self._long_wait_s <= longest_s:
                    self._long_wait_s *= 2
                for agent in sessions.regulator.waiting(1):
                    who = shown_id(agent)
                    why = explained(sessions.regulator, agent, now)
            elif longest_s < LONG_WAIT_S:
                self._long_wait_s = LONG_WAIT_S
            if self._long_wait_s > LAST_LONG_WAIT_S:
                return None
            return max(1.0, self._long_wait_s - longest_s)

        look_again_s = self._monitor.look(look)
        if why:
            waited = told("long_wait", agent=who, waited_s=longest_s, why=why)
            logger.warning("a long wait: %s", why, extra=waited)
        return look_again_s


def _finite(bound: float) -> float | None:
    return bound if math.isfinite(bound) else None


def _show_limit(limit: Limit) -> str:
    parts = []
    if math.isfinite(limit.agents):
        parts.append(f"{limit.agents:.0f} agents")
    if math.isfinite(limit.tokens):
        parts.append(f"{limit.tokens:,.0f} tokens")
    return ", ".join(parts) or "none"
