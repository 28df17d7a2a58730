"""The pulse: what happens because time passes, and not because an agent does something.

One beat reads the engine if that is due, lets in whom time alone lets in, and minds waits that have
become long. The governor's thread beats; in simulated time its host does.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from concur_agents.runtime.events import told

if TYPE_CHECKING:
    from concur_agents.core import LawState, Limit
    from concur_agents.runtime.monitor import Monitor
    from concur_agents.runtime.poller import EnginePoller

logger = logging.getLogger("concur_agents")

LONG_WAIT_S = 60.0
"""A wait beyond this is logged with its reason, and again each time it has doubled."""

LAST_LONG_WAIT_S = 7 * 86_400.0
"""Beyond this it has been said often enough."""

SHORTEST_REST_S = 0.001
"""A claim that fades a hair later than computed is not worth a busy loop."""


class Ticker:
    """Beats for one desk.

    Args:
        desk: whose decisions they are.
        reader: reads the engine.
        ticks: whether the law lives on readings at all.
        first_reading_s: whom only the first reading keeps waiting is let in after so long [s] even
            if that reading is still under way; 0: nobody is kept by it, or time is simulated.
    """

    def __init__(
        self,
        monitor: Monitor,
        engine_poller: EnginePoller,
        *,
        ticks: bool,
        first_reading_s: float = 0.0,
    ) -> None:
        self._monitor = monitor
        self._engine_poller = engine_poller
        self._ticks = ticks
        self._first_reading_s = first_reading_s
        self._beating = threading.Lock()  # its state is touched only by whoever beats
        self._poll_at_s = -math.inf
        self._long_wait_s = LONG_WAIT_S

    def beat(self) -> float | None:
        """Does what is due now.

        Returns:
            How long [s] nothing will be due; None: until something changes.
        """
        with self._beating:
            try:
                return self._beat()
            except Exception as bug:
                found = bug
                self._monitor.decide(lambda now: self._monitor.sessions.fail(found, now))
                return None

    def _beat(self) -> float | None:
        monitor = self._monitor
        if monitor.sessions.passing:
            return None
        now = monitor.clock()
        due = []
        if self._ticks:
            if now >= self._poll_at_s:
                self._poll()
                now = monitor.clock()
                self._poll_at_s = now + self._engine_poller.rest_s()
            due.append(self._poll_at_s)

        self._let_in_by_time()
        long_wait_s = self._mind_long_waits()
        if long_wait_s is not None:
            due.append(now + long_wait_s)

        def rest(now: float) -> float | None:
            wake_s = monitor.sessions.regulator.next_wake(now)
            if wake_s is not None:
                due.append(max(wake_s, now + SHORTEST_REST_S))
            return monitor.rest(min(due, default=math.inf), now)

        return monitor.look(rest)

    def _poll(self) -> None:
        """Reads the engine, and tells the regulator."""
        engine_poller, sessions = self._engine_poller, self._monitor.sessions
        dark_since_s = engine_poller.sighted_s if engine_poller.failures else None
        with self._bounded():
            reading = engine_poller.poll()
        changed: list[tuple[LawState, LawState]] = []

        def tick(now: float) -> Iterable[str]:
            if reading is None:
                sessions.tell("poll_failed", now, reason=engine_poller.error or "")
            elif dark_since_s is not None:
                sessions.tell("poll_recovered", now, waited_s=now - dark_since_s)
            if reading is not None:
                sessions.tell("polled", now, reading=reading)
            before = sessions.regulator.state
            let_in = sessions.regulator.tick(reading, now)
            after = sessions.regulator.state
            if after.limit != before.limit:
                sessions.tell("limit_changed", now, reason=after.reason, limit=after.limit)
                changed.append((before, after))
            return let_in

        self._monitor.decide(tick)
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

    @contextmanager
    def _bounded(self) -> Iterator[None]:
        """While this thread is busy with the first reading, another one minds how long it takes."""
        wait_s, self._first_reading_s = self._first_reading_s, 0.0
        if not wait_s:
            yield
            return
        timer = threading.Timer(wait_s, self._let_in_by_time)
        timer.name, timer.daemon = "concur-first-reading", True
        try:
            timer.start()
        except RuntimeError:  # no more threads: then it takes as long as it takes
            yield
            return
        try:
            yield
        finally:
            timer.cancel()

    def _let_in_by_time(self) -> None:
        """Lets in whom time alone lets in."""
        sessions = self._monitor.sessions
        self._monitor.decide(
            lambda now: () if sessions.passing else sessions.regulator.advance(now)
        )

    def _mind_long_waits(self) -> float | None:
        """Logs a wait that has become long; returns when [s from now] to look again."""
        sessions = self._monitor.sessions
        why, who = "", ""
        longest_s = 0.0

        def look(now: float) -> float | None:
            nonlocal why, who, longest_s
            if not sessions.waiting:
                self._long_wait_s = LONG_WAIT_S
                return None
            longest_s = sessions.regulator.view(now).longest_wait_s
            if longest_s >= self._long_wait_s:
                while self._long_wait_s <= longest_s:
                    self._long_wait_s *= 2
                session = sessions.longest_waiting()
                if session is not None:
                    who, why = session.id, str(sessions.regulator.explain(session.id, now))
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
