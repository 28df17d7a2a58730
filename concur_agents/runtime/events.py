"""What the governor tells those who watch, and how it is delivered.

Events are put in line under the governor's lock and handed out after it is released, in the order
in which things happened, one at a time. A watcher can therefore call the governor freely; a slow
watcher delays the thread that delivers, so it should hand its work on.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from concur_agents._outside import is_from_outside
from concur_agents.core import Limit, Reading, Usage

logger = logging.getLogger("concur_agents")

EventKind: TypeAlias = Literal[
    "arrived",  # an agent asks to start
    "admitted",  # it may start; waited_s: its time in the queue
    "paused",  # at a boundary it was told to wait
    "resumed",  # it may go on; waited_s: how long the pause was
    "step_began",  # a call may leave; prompt_tokens as announced
    "step_ended",  # the call is over; usage as reported; waited_s: how long it took; reason:
    # "abort" where the engine cut it short
    "step_withdrawn",  # it was not sent after all: a checkpoint, or cancelled as its turn came
    "suspended",  # the agent gave its place back for a while
    "resume_asked",  # it asks for a place again
    "tool_began",  # reason: the name of the tool
    "tool_ended",  # reason: the name of the tool; waited_s: how long it took
    "left",  # finished, failed or cancelled
    "limit_changed",  # the law moved the limit; reason: its code
    "polled",  # the engine was read; reading
    "poll_failed",  # it could not be read; reason: what went wrong
    "poll_recovered",  # it can be read again; waited_s: how long it was dark
    "pool_down",  # its agents move at their next boundary; reason: why it cannot be read
    "pool_up",  # it can be read again
    "flushed",  # the caches were emptied; pool: of this one only
    "overdue",  # it went on only after more than max_wait_s; waited_s
    "closed",  # from here on every agent passes
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened.

    Attributes:
        kind: what happened, see `EventKind`.
        at_s: when [s], on the governor's clock.
        agent: the one it concerns; None: all.
        parent: on `arrived`: the agent whose place it shares, if it is nested.
        reason: a short code or text, see `EventKind`.
        waited_s: how long [s] what has just ended had lasted; None also where that is not known,
            as of a call that began before this daemon.
        prompt_tokens: size [tokens] of the prompt about to be sent, where it was announced.
        usage: what the ended step used, where the server said so.
        reading: what the engine said.
        limit: the limit now in force, on `limit_changed`.
        pool: where a governor has several: the one that was read or decided about; of an agent,
            the one that it was in when this happened, which `pool_of` may have forgotten when the
            event is delivered; None: it had none yet. A page with the pools of several ranks gives
            an event for each of them.
    """

    kind: EventKind
    at_s: float
    agent: str | None = None
    parent: str | None = None
    reason: str = ""
    waited_s: float | None = None
    prompt_tokens: int | None = None
    usage: Usage | None = None
    reading: Reading | None = None
    limit: Limit | None = None
    pool: str | None = None


Watcher: TypeAlias = Callable[[Event], object]


def told(event: str, **facts: Any) -> dict[str, Any]:
    """For `extra=` of a line in the log: the same in values, as the attribute `concur`."""
    return {"concur": {"event": event, **facts}}


class Dispatcher:
    """Delivers events in order, never two at once, and outlives watchers that raise."""

    def __init__(self) -> None:
        self._watchers: tuple[Watcher, ...] = ()
        self._line: deque[Event] = deque()
        self._delivering: dict[str, object] = {}  # "by": the delivery that is under way
        self._complained: set[int] = set()

    @property
    def watched(self) -> bool:
        """Whether there is a watcher: without one, building events would only slow the gate."""
        return bool(self._watchers)

    def subscribe(self, watcher: Watcher) -> Callable[[], None]:
        """Adds a watcher. Returns the function that removes it (calling it twice is fine)."""
        self._watchers = (*self._watchers, watcher)

        def unsubscribe() -> None:
            self._watchers = tuple(known for known in self._watchers if known is not watcher)

        return unsubscribe

    def put(self, event: Event) -> None:
        """Puts an event in line. To be called in the order in which things happen."""
        self._line.append(event)

    def deliver(self) -> None:
        """Hands out what is in line. If another thread is at it, it hands out ours as well."""
        if not self._line:
            return
        # No lock: an exception from outside right after `acquire` would leave it locked for good.
        delivery = object()
        delivering = self._delivering
        try:
            while self._line and delivering.setdefault("by", delivery) is delivery:
                while self._line:
                    self._hand_out(self._line.popleft())
                del delivering["by"]
        except BaseException:
            if delivering.get("by") is delivery:
                del delivering["by"]
            raise

    def _hand_out(self, event: Event) -> None:
        for watcher in self._watchers:
            try:
                watcher(event)
            except Exception as error:
                if is_from_outside(error):
                    raise
                if id(watcher) not in self._complained:
                    self._complained.add(id(watcher))
                    logger.exception(
                        "an event watcher failed on %r; it stays subscribed, and its further "
                        "failures are not logged: %r",
                        event.kind,
                        watcher,
                    )
