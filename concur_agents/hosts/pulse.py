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

from concur_agents.hosts.events import told

if TYPE_CHECKING:
    from concur_agents.core import LawState, Limit
    from concur_agents.hosts.desk import Desk
    from concur_agents.hosts.reader import Reader

logger = logging.getLogger("concur_agents")

LONG_WAIT_S = 60.0
"""A wait beyond this is logged with its reason, and again each time it has doubled."""

LAST_LONG_WAIT_S = 7 * 86_400.0
"""Beyond this it has been said often enough."""

SHORTEST_REST_S = 0.001
"""A claim that fades a hair later than computed is not worth a busy loop."""


class Pulse:
    """Beats for one desk.

    Args:
        desk: whose decisions they are.
        reader: reads the engine.
        ticks: whether the law lives on readings at all.
        first_reading_s: whom only the first reading keeps waiting is let in after so long [s] even
            if that reading is still under way; 0: nobody is kept by it, or time is simulated.
    """

    def __init__(
        self, desk: Desk, reader: Reader, *, ticks: bool, first_reading_s: float = 0.0
    ) -> None:
        self._desk = desk
        self._reader = reader
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
                self._desk.decide(lambda now: self._desk.roster.fail(found, now))
                return None

    def _beat(self) -> float | None:
        desk = self._desk
        if desk.roster.passing:
            return None
        now = desk.clock()
        due = []
        if self._ticks:
            if now >= self._poll_at_s:
                self._poll()
                now = desk.clock()
                self._poll_at_s = now + self._reader.rest_s()
            due.append(self._poll_at_s)

        self._let_in_by_time()
        long_wait_s = self._mind_long_waits()
        if long_wait_s is not None:
            due.append(now + long_wait_s)

        def rest(now: float) -> float | None:
            wake_s = desk.roster.regulator.next_wake(now)
            if wake_s is not None:
                due.append(max(wake_s, now + SHORTEST_REST_S))
            return desk.rest(min(due, default=math.inf), now)

        return desk.look(rest)

    def _poll(self) -> None:
        """Reads the engine, and tells the regulator."""
        reader, roster = self._reader, self._desk.roster
        dark_since_s = reader.sighted_s if reader.failures else None
        with self._bounded():
            reading = reader.poll()
        changed: list[tuple[LawState, LawState]] = []

        def tick(now: float) -> Iterable[str]:
            if reading is None:
                roster.tell("poll_failed", now, reason=reader.error or "")
            elif dark_since_s is not None:
                roster.tell("poll_recovered", now, waited_s=now - dark_since_s)
            if reading is not None:
                roster.tell("polled", now, reading=reading)
            before = roster.regulator.state
            let_in = roster.regulator.tick(reading, now)
            after = roster.regulator.state
            if after.limit != before.limit:
                roster.tell("limit_changed", now, reason=after.reason, limit=after.limit)
                changed.append((before, after))
            return let_in

        self._desk.decide(tick)
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
        roster = self._desk.roster
        self._desk.decide(lambda now: () if roster.passing else roster.regulator.advance(now))

    def _mind_long_waits(self) -> float | None:
        """Logs a wait that has become long; returns when [s from now] to look again."""
        roster = self._desk.roster
        why, who = "", ""
        longest_s = 0.0

        def look(now: float) -> float | None:
            nonlocal why, who, longest_s
            if not roster.waiting:
                self._long_wait_s = LONG_WAIT_S
                return None
            longest_s = roster.regulator.view(now).longest_wait_s
            if longest_s >= self._long_wait_s:
                while self._long_wait_s <= longest_s:
                    self._long_wait_s *= 2
                place = roster.longest_waiting()
                if place is not None:
                    who, why = place.id, roster.regulator.explain(place.id, now)
            elif longest_s < LONG_WAIT_S:
                self._long_wait_s = LONG_WAIT_S
            if self._long_wait_s > LAST_LONG_WAIT_S:
                return None
            return max(1.0, self._long_wait_s - longest_s)

        look_again_s = self._desk.look(look)
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
