"""The roster: which agents are here, where each stands, and what the regulator is told of it.

A roster is not thread-safe and waits for nothing; it is kept by a `Desk`, which calls it under its
lock. Every method is one decision: it books what happened, asks the regulator, and returns whom the
regulator has let in. `admit` then passes that on: it grants their turns and puts them in
`to_wake`, for the desk to wake once the lock is released.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from concur_agents.errors import ClosedError, ConfigError
from concur_agents.hosts.events import Dispatcher, Event, EventKind
from concur_agents.hosts.place import End, Place, Turn

if TYPE_CHECKING:
    from concur_agents.core import Chain, Regulator
    from concur_agents.hosts.waiter import Waiter


@dataclass(frozen=True, slots=True)
class ToolTime:
    """How long a tool takes, learned from `agent.tool(name)` blocks."""

    calls: int
    mean_s: float
    longest_s: float


class Roster:
    """Everybody who is here.

    Args:
        regulator: decides who may run.
        dispatcher: is told what happens.
        max_wait_s: a wait beyond this [s] is told as `overdue`; None: there is no bound.
        former: the roster of the process that this one was forked from, if it was.
    """

    def __init__(
        self,
        regulator: Regulator,
        dispatcher: Dispatcher,
        *,
        max_wait_s: float | None,
        former: Roster | None = None,
    ) -> None:
        self.regulator = regulator
        self.places: dict[str, Place] = {}
        self.waiting = 0  # turns that somebody waits for
        self.to_wake: deque[Turn] = deque()
        self._dispatcher = dispatcher
        self._max_wait_s = math.inf if max_wait_s is None else max_wait_s
        # What a fork leaves as it was:
        self.closed: bool = former is not None and former.closed
        self.passing: bool = former is not None and former.passing  # closed or broken
        self.bug: Exception | None = None if former is None else former.bug
        self.bug_told: bool = former is not None and former.bug_told
        self.tools: dict[str, ToolTime] = {} if former is None else former.tools

    # An agent's life

    def enter(
        self,
        turn: Turn,
        make_waiter: Callable[[], Waiter],
        prompt_tokens: int | None,
        now: float,
    ) -> Iterable[str]:
        """Takes a place. `turn.waiter` is set if there is something to wait for."""
        place = turn.place
        if self.closed:
            raise ClosedError(
                f"agent {place.id!r} comes after this governor was closed: keep the governor "
                "open for as long as agents start, or make a new one"
            )
        if place.id in self.places:
            raise ConfigError(
                f"an agent {place.id!r} is alive already: ids must be unique among agents "
                "that run at once; give another id, or none to have one made up"
            )
        place.arrived_s = now
        self.places[place.id] = place
        place.entering = turn
        self.tell(
            "arrived",
            now,
            place,
            parent=None if place.parent is None else place.parent.id,
            prompt_tokens=prompt_tokens,
        )
        if self.passing:
            self._let_in(place, now)
            return ()
        place.waiting_since_s = now
        let_in = self.regulator.arrive(
            place.id,
            now,
            prompt_tokens=prompt_tokens,
            parent=self.parent_of(place),
            priority=place.priority,
        )
        self.admit(let_in, now)
        self._wait_for(turn, make_waiter)
        return ()

    def leave(self, place: Place, now: float) -> Iterable[str]:
        """Its life is over, wherever it stood."""
        if place.left_s is not None:
            return ()
        place.stop_waiting(now)
        for turn in list(place.calls.values()):
            self.admit(self._close_call(turn, now, End()), now)
        place.left_s = now
        if place.entering is not None:
            self._release(place.entering)
            place.entering = None
        self._grant_asked(place, now)  # a branch that outlives its agent is nobody's: it passes
        if self.places.get(place.id) is not place:
            return ()
        del self.places[place.id]
        self.tell("left", now, place)
        return () if self.passing else self.regulator.leave(place.id, now)

    def expel(self, place: Place, now: float) -> Iterable[str]:
        """What waits in this family is woken to find that it is over."""
        place.expelled = True
        for member in self.places.values():
            if not member.is_expelled():
                continue
            member.stop_waiting(now)
            asked, member.asked = member.asked, []
            for turn in asked:
                self._release(turn)
                if not self.passing:
                    self.admit(self.regulator.withdraw_step(member.id, now), now)
        return ()

    # Its steps

    def begin(
        self,
        turn: Turn,
        make_waiter: Callable[[], Waiter],
        prefix: Chain | None,
        now: float,
    ) -> Iterable[str]:
        """Stands at a boundary. `turn.waiter` is set if there is something to wait for."""
        place = turn.place
        former = place.calls.get(turn.key)
        if former is not None and former.source != turn.source:
            turn.joined = former
            turn.granted = True
            return ()
        if self.passing or place.left_s is not None:
            self._grant(turn, now)
            return ()
        if place.entering is not None or self.places.get(place.id) is not place:
            raise ConfigError(
                f"agent {place.id!r} makes a call before it was let in: do so inside its "
                "`async with` (or `with`) block"
            )
        if former is not None:
            self.admit(self._close_call(former, now, End()), now)
        if place.away:
            place.away = False
            self.tell("off_ended", now, place)
        place.asked.append(turn)
        let_in = self.regulator.begin_step(
            place.id, now, prompt_tokens=turn.prompt_tokens, prefix=prefix
        )
        self.admit(let_in, now)
        if not turn.granted and place.waiting_since_s is None:
            place.waiting_since_s = now
            place.pauses += 1
            self.tell("paused", now, place)
        self._wait_for(turn, make_waiter)
        return ()

    def withdraw(self, turn: Turn, now: float) -> Iterable[str]:
        """Whoever waited for this turn has been cancelled, perhaps after it was granted."""
        place = turn.place
        if turn.entry:
            return self.leave(place, now)
        if turn.granted:
            return self._close_call(turn, now, End(sent=False))
        if turn not in place.asked:
            return ()
        # The agent stays paused, for it is still alive: only this call of it has gone.
        place.asked.remove(turn)
        self.waiting -= 1
        if not place.asked:
            place.stop_waiting(now)
        return self.regulator.withdraw_step(place.id, now)

    def end(self, turn: Turn, end: End, now: float) -> Iterable[str]:
        """A call is over."""
        if turn.joined is not None:
            # The enclosing call goes on; what this part of it used is kept for its end.
            if end.usage is not None:
                turn.joined.usage = end.usage
            return self.retry(turn, end, now) if end.overloaded else ()
        return self._close_call(turn, now, end)

    def retry(self, turn: Turn, end: End, now: float) -> Iterable[str]:
        """A try of a call was refused, or another try begins; the call goes on."""
        call = turn.joined or turn
        if self.passing or not call.open or call.place.left_s is not None:
            return ()
        return self.regulator.retry_step(
            call.place.id, now, overloaded=end.overloaded, retry_after_s=end.retry_after_s
        )

    def end_any(self, place: Place, key: Hashable, end: End, now: float) -> Iterable[str]:
        """A call is over, and nobody says which: this caller's, else the oldest."""
        turn = place.calls.get(key) or next(iter(place.calls.values()), None)
        return () if turn is None else self._close_call(turn, now, end)

    # What is not a step

    def go_off(self, place: Place, now: float) -> Iterable[str]:
        """Its place is free for a while."""
        if self.passing or self.places.get(place.id) is not place or place.away:
            return ()
        if place.parent is not None or place.entering is not None:
            return ()  # no place of its own, or not yet
        place.away = True
        self.tell("off_began", now, place)
        return self.regulator.suspend(place.id, now)

    def come_back(self, place: Place, now: float) -> Iterable[str]:
        """It asks for its place again."""
        if self.passing or place.left_s is not None or not place.away:
            return ()
        place.away = False
        self.tell("off_ended", now, place)
        return self.regulator.resume(place.id, now)

    def tool_ended(self, place: Place, name: str, took_s: float, now: float) -> Iterable[str]:
        """A tool has run for so long."""
        known = self.tools.get(name, ToolTime(0, 0.0, 0.0))
        calls = known.calls + 1
        self.tools[name] = ToolTime(
            calls,
            known.mean_s + (took_s - known.mean_s) / calls,
            max(known.longest_s, took_s),
        )
        return self.tell("tool_ended", now, place, reason=name, waited_s=took_s)

    # When it is over

    def close(self, now: float) -> Iterable[str]:
        """From here on everybody passes, and nobody may enter."""
        if not self.closed:
            self.closed = True
            self._pass_all(now)
            self.tell("closed", now)
        return ()

    def fail(self, bug: Exception, now: float) -> tuple[()]:
        """A bug of ours: nobody is to suffer from it but the owner, who is told on `with` exit."""
        if self.bug is None:
            self.bug = bug
        self._pass_all(now)
        return ()

    def _pass_all(self, now: float) -> None:
        """From here on everybody passes; who waits goes on now."""
        self.passing = True
        for place in self.places.values():
            if place.entering is not None:
                self._let_in(place, now)
            self._grant_asked(place, now)

    # Turns

    def admit(self, let_in: Iterable[str], now: float) -> None:
        """The regulator has let these agents in: passes the news on to whoever waits for them."""
        for agent in let_in:
            place = self.places.get(agent)
            if place is None:
                continue
            if place.entering is not None:
                self._let_in(place, now)
            else:
                self._grant_asked(place, now)

    def _let_in(self, place: Place, now: float) -> None:
        """An agent may start."""
        waited_s = place.stop_waiting(now)
        turn, place.entering = place.entering, None
        if turn is not None:
            self._release(turn)
            self.tell("admitted", now, place, waited_s=waited_s)
            self._tell_overdue(place, now, waited_s)

    def _grant_asked(self, place: Place, now: float) -> None:
        """All calls of an agent that wait at the boundary may leave."""
        if place.asked:
            asked, place.asked = place.asked, []
            for turn in asked:
                self._grant(turn, now)

    def _grant(self, turn: Turn, now: float) -> None:
        """A call may leave."""
        place = turn.place
        self._release(turn)
        if place.waiting_since_s is not None:
            waited_s = place.stop_waiting(now)
            self.tell("resumed", now, place, waited_s=waited_s)
            self._tell_overdue(place, now, waited_s)
        if place.left_s is None:
            turn.open = True
            place.calls[turn.key] = turn
            self.tell("step_began", now, place, prompt_tokens=turn.prompt_tokens)

    def _wait_for(self, turn: Turn, make_waiter: Callable[[], Waiter]) -> None:
        if not turn.granted:
            turn.waiter = make_waiter()
            self.waiting += 1

    def _release(self, turn: Turn) -> None:
        turn.granted = True
        if turn.waiter is not None:
            self.waiting -= 1
            self.to_wake.append(turn)

    def _close_call(self, turn: Turn, now: float, end: End) -> Iterable[str]:
        if not turn.open:
            return ()
        turn.open = False
        place = turn.place
        if place.calls.get(turn.key) is turn:
            del place.calls[turn.key]
        if place.left_s is not None:
            return ()
        if not end.sent:
            self.tell("step_withdrawn", now, place)
            return () if self.passing else self.regulator.withdraw_step(place.id, now)
        usage = turn.usage if end.usage is None else end.usage
        place.note(usage)
        self.tell("step_ended", now, place, usage=usage)
        if self.passing:
            return ()
        return self.regulator.end_step(
            place.id,
            now,
            usage,
            overloaded=end.overloaded,
            retry_after_s=end.retry_after_s,
        )

    # Seeing inside

    def parent_of(self, place: Place) -> str | None:
        """Whose place it shares; None once that one has left."""
        parent = place.parent
        while parent is not None and parent.left_s is not None:
            parent = parent.parent
        return None if parent is None else parent.id

    def longest_waiting(self) -> Place | None:
        """Whoever has waited for the longest; None: nobody waits."""
        return min(
            (place for place in self.places.values() if place.waiting_since_s is not None),
            key=lambda place: place.waiting_since_s or 0.0,
            default=None,
        )

    def explain(self, agent: str, now: float) -> str:
        """Why an agent waits, or what it does, in one line for humans."""
        if agent not in self.places:
            return f"{agent}: not here"
        if self.passing:
            return f"{agent}: passes, nothing is governed any more"
        return self.regulator.explain(agent, now)

    def tell(
        self,
        kind: EventKind,
        now: float,
        place: Place | None = None,
        **details: Any,
    ) -> tuple[()]:
        """Puts an event in line, for the desk to deliver. Nobody is let in by that."""
        if self._dispatcher.watched:
            agent = None if place is None else place.id
            self._dispatcher.put(Event(kind=kind, at_s=now, agent=agent, **details))
        return ()

    def _tell_overdue(self, place: Place, now: float, waited_s: float) -> None:
        if waited_s >= self._max_wait_s:
            self.tell("overdue", now, place, waited_s=waited_s)
