"""What happens because time passes, and not because an agent does something.

One beat reads the engine if that is due, lets in the agents that only time keeps waiting, and logs
waits that have become long. The governor's thread calls it; in simulated time the host does.
"""

from __future__ import annotations

import logging
import math
import threading
from typing import TYPE_CHECKING

from concur_agents._outside import is_from_outside
from concur_agents._text import shown_id
from concur_agents.runtime.events import told
from concur_agents.runtime.sessions import explained

if TYPE_CHECKING:
    from concur_agents.runtime.monitor import Monitor
    from concur_agents.runtime.pool_reader import PoolReader
    from concur_agents.runtime.regrouping import Regrouping

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
        readers: read the engines; none: the law uses no readings.
        regrouping: makes pools of what they find.
    """

    def __init__(
        self,
        monitor: Monitor,
        readers: list[PoolReader],
        regrouping: Regrouping,
    ) -> None:
        self._monitor = monitor
        self.readers = readers
        self._regrouping = regrouping
        self._beating = threading.Lock()  # the state below belongs to the thread that beats
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
        self._regrouping.settle()
        due = [due_s for reader in list(self.readers) for due_s in reader.read()]
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
        why, who, pool = "", "", None
        longest_s = 0.0

        def look(now: float) -> float | None:
            nonlocal why, who, pool, longest_s
            if not sessions.tickets:
                self._long_wait_s = LONG_WAIT_S
                return None
            longest_s = sessions.regulator.view(now).longest_wait_s
            if longest_s >= self._long_wait_s:
                while self._long_wait_s <= longest_s:
                    self._long_wait_s *= 2
                for agent in sessions.regulator.waiting(1):
                    who, pool = shown_id(agent), sessions.regulator.pool_of(agent)
                    why = explained(sessions.regulator, agent, now)
            elif longest_s < LONG_WAIT_S:
                self._long_wait_s = LONG_WAIT_S
            if self._long_wait_s > LAST_LONG_WAIT_S:
                return None
            return max(1.0, self._long_wait_s - longest_s)

        look_again_s = self._monitor.look(look)
        if why:
            waited = told("long_wait", agent=who, waited_s=longest_s, why=why, pool=pool)
            logger.warning("a long wait: %s", why, extra=waited)
        return look_again_s
