"""Which agents are here, which of their callers wait, and what the regulator hears of them.

Where an agent stands, the regulator says; nothing here keeps it a second time.
Nothing here is thread-safe or waits: a `Monitor` keeps the sessions and calls them under its lock.
Every method is one decision: it books what happened, asks the regulator, and returns the agents
that the regulator has let in. `admit` then passes that on: it grants their tickets, which the
monitor wakes once the lock is released.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from concur_agents._text import shown_id
from concur_agents.core import pools_of, regrouped
from concur_agents.errors import ClosedError, ConfigError
from concur_agents.recording import RecordingRegulator
from concur_agents.runtime.elsewhere import Elsewhere
from concur_agents.runtime.events import Dispatcher, Event, EventKind
from concur_agents.runtime.interruptions import present
from concur_agents.runtime.session import End, Session, Ticket
from concur_agents.runtime.tickets import Tickets
from concur_agents.runtime.tool_times import ToolTime, learn_time

if TYPE_CHECKING:
    from concur_agents.core import AnyRegulator, Chain, Law, Reading, Regulator
    from concur_agents.runtime.waiter import Waiter


class Sessions:
    """The agents that are here.

    Args:
        regulator: decides who may run.
        dispatcher: gets the events.
        max_wait_s: a wait beyond this [s] is also an event `overdue`; None: there is no bound.
        make_regulator: makes another one with the same options, which waits for no first reading;
            the last argument names its pools, none: there is one.
        former: the sessions of the process that this one was forked from, if it was.
    """

    def __init__(
        self,
        regulator: Regulator,
        dispatcher: Dispatcher,
        *,
        max_wait_s: float | None,
        make_regulator: Callable[[Law, float, Sequence[str]], AnyRegulator],
        former: Sessions | None = None,
    ) -> None:
        self._make_regulator = make_regulator
        self.regulator = regulator
        self.by_id: dict[str, Session] = {}
        self.tickets = Tickets()
        self.elsewhere = Elsewhere()
        """The agents of other processes that this regulator decides about."""
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
        ticket: Ticket,
        make_waiter: Callable[[], Waiter],
        prompt_tokens: int | None,
        now: float,
    ) -> Iterable[str]:
        """Takes a place. `ticket.waiter` is set if there is something to wait for."""
        session = ticket.session
        if self.closed:
            raise ClosedError(
                f"agent {session.shown!r} comes after this governor was closed: keep the governor "
                "open for as long as agents start, or make a new one"
            )
        if session.id in self.by_id:
            raise ConfigError(
                f"an agent {session.shown!r} is alive already: ids must be unique among agents "
                "that run at once; give another id, or none to have one made up"
            )
        session.arrived_s = now
        self.by_id[session.id] = session
        session.entering = ticket
        self.tell(
            "arrived",
            now,
            session.id,
            parent=None if session.parent is None else session.parent.id,
            prompt_tokens=prompt_tokens,
        )
        if self.passing:
            self._let_in(session, now)
            return ()
        session.waiting_since_s = now
        let_in = self.regulator.arrive(
            session.id,
            now,
            prompt_tokens=prompt_tokens,
            parent=self.parent_of(session),
            priority=session.priority,
            group=session.group,
        )
        self.admit(let_in, now)
        self.tickets.wait_for(ticket, make_waiter)
        return ()

    def leave(self, session: Session, now: float) -> Iterable[str]:
        """Its life is over, wherever it stood."""
        if session.left_s is not None:
            return ()
        session.stop_waiting(now)
        for ticket in list(session.calls.values()):
            self.admit(self._close_call(ticket, now, End()), now)
        session.left_s = now
        if session.entering is not None:
            self.tickets.release(session.entering)
            session.entering = None
        self._grant_asked(session, now)  # a branch that outlives its agent has none: it passes
        if self.by_id.get(session.id) is not session:
            return ()
        del self.by_id[session.id]
        self.tell("left", now, session.id)
        return () if self.passing else self.regulator.leave(session.id, now)

    def expel(self, session: Session, now: float) -> Iterable[str]:
        """What waits in this family is woken to find that it is over."""
        session.expelled = True
        for member in self.by_id.values():
            if not member.is_expelled():
                continue
            member.stop_waiting(now)
            asked, member.asked = member.asked, []
            for ticket in asked:
                self.tickets.release(ticket)
                if not self.passing:
                    self.admit(self.regulator.withdraw_step(member.id, now), now)
        return ()

    # Its steps

    def begin(
        self,
        ticket: Ticket,
        make_waiter: Callable[[], Waiter],
        prefix: Chain | None,
        now: float,
    ) -> Iterable[str]:
        """Stands at a boundary. `ticket.waiter` is set if there is something to wait for."""
        session = ticket.session
        if self.passing or session.left_s is not None:
            self._grant(ticket, now)
            return ()
        if session.entering is not None or self.by_id.get(session.id) is not session:
            raise ConfigError(
                f"agent {session.shown!r} makes a call before it was let in: do so inside its "
                "`async with` (or `with`) block"
            )
        former = session.calls.get(ticket.key)
        if former is not None:  # a stream that was abandoned: its caller has gone on
            self.admit(self._close_call(former, now, End()), now)
        if session.suspended:
            session.suspended = False
            self.tell("resume_asked", now, session.id)
        session.asked.append(ticket)
        let_in = self.regulator.begin_step(
            session.id, now, prompt_tokens=ticket.prompt_tokens, prefix=prefix
        )
        self.admit(let_in, now)
        if not ticket.granted and not self.regulator.is_undecided(session.id):
            self.pause(session.id, now)
        self.tickets.wait_for(ticket, make_waiter)
        return ()

    def pause(self, agent: str, now: float) -> None:
        """The calls of `agent` wait; with a shared regulator that is known a little later."""
        session = self.by_id.get(agent)
        if session is not None and session.asked and session.waiting_since_s is None:
            session.waiting_since_s = now
            session.pauses += 1
            self.tell("paused", now, session.id)

    def withdraw(self, ticket: Ticket, now: float) -> Iterable[str]:
        """The wait for this ticket was cancelled, perhaps after the grant."""
        session = ticket.session
        if ticket.entry:
            return self.leave(session, now)
        if ticket.granted:
            return self._close_call(ticket, now, End(sent=False))
        if ticket not in session.asked:
            return ()
        # The agent stays paused, for it is still alive: only this call of it has gone.
        session.asked.remove(ticket)
        self.tickets.drop(ticket)
        if not session.asked:
            session.stop_waiting(now)
        return self.regulator.withdraw_step(session.id, now)

    def end(self, ticket: Ticket, end: End, now: float) -> Iterable[str]:
        """A call is over."""
        return self._close_call(ticket, now, end)

    def retry(self, ticket: Ticket, end: End, now: float) -> Iterable[str]:
        """A try of a call was refused, or another try begins; the call goes on."""
        session = ticket.session
        if self.passing or not ticket.open or session.left_s is not None:
            return ()
        return self.regulator.retry_step(
            session.id, now, overloaded=end.overloaded, retry_after_s=end.retry_after_s
        )

    def end_any(self, session: Session, key: Hashable, end: End, now: float) -> Iterable[str]:
        """A call is over, and it is not said which: this caller's, else the oldest."""
        ticket = session.calls.get(key) or next(iter(session.calls.values()), None)
        return () if ticket is None else self._close_call(ticket, now, end)

    # What is not a step

    def suspend(self, session: Session, now: float) -> Iterable[str]:
        """Its place is free for a while."""
        if self.passing or self.by_id.get(session.id) is not session or session.suspended:
            return ()
        if session.parent is not None or session.entering is not None:
            return ()  # no place of its own, or not yet
        session.suspended = True
        self.tell("suspended", now, session.id)
        return self.regulator.suspend(session.id, now)

    def resume(self, session: Session, now: float) -> Iterable[str]:
        """It asks for its place again."""
        if self.passing or session.left_s is not None or not session.suspended:
            return ()
        session.suspended = False
        self.tell("resume_asked", now, session.id)
        return self.regulator.resume(session.id, now)

    def tool_ended(self, session: Session, name: str, took_s: float, now: float) -> Iterable[str]:
        """A tool has run for so long."""
        learn_time(self.tools, name, took_s)
        return self.tell("tool_ended", now, session.id, reason=name, waited_s=took_s)

    # A weight update

    def hold(self, name: str, timeout_s: float, now: float) -> Iterable[str]:
        """No agent passes a boundary until `end_hold`."""
        return () if self.passing else self.regulator.hold(name, now, timeout_s)

    def end_hold(self, name: str, now: float) -> Iterable[str]:
        """The hold of this name is over."""
        return () if self.passing else self.regulator.end_hold(name, now)

    def is_held(self, name: str, now: float) -> bool:
        """Whether it is in force, or nothing is governed any more."""
        return self.passing or self.regulator.is_held(name, now)

    # When it is over

    def close(self, now: float) -> Iterable[str]:
        """From here on every agent passes, and no new one may enter."""
        if not self.closed:
            self.closed = True
            self._pass_all(now)
            self.tell("closed", now)
        return ()

    def fail(self, bug: Exception, now: float) -> tuple[()]:
        """A bug of ours: agents pass, and the owner sees it when the `with` block ends."""
        if self.bug is None:
            self.bug = bug
        self._pass_all(now)
        return ()

    def _pass_all(self, now: float) -> None:
        """From here on every agent passes; those that wait go on now."""
        self.passing = True
        for session in self.by_id.values():
            if session.entering is not None:
                self._let_in(session, now)
            self._grant_asked(session, now)

    def recover(self, now: float) -> None:
        """The decision before was cut off halfway, at any line: puts all in order again."""
        for ticket in self.tickets:
            session = ticket.session
            if ticket.granted or session.left_s is not None:
                self.tickets.release(ticket)
            elif ticket.entry:
                session.entering = ticket
            elif ticket not in session.asked:
                session.asked.append(ticket)
        for session in list(self.by_id.values()):
            if session.left_s is not None:
                del self.by_id[session.id]
                continue
            for key, ticket in list(session.calls.items()):
                if not ticket.open:
                    del session.calls[key]
            session.asked = [ticket for ticket in session.asked if not ticket.granted]
            if session.entering is not None and session.entering.granted:
                session.entering = None
            if not session.asked and session.entering is None:
                session.stop_waiting(now)
        if self.passing:
            self._pass_all(now)
            return
        old: Regulator = getattr(self.regulator, "inner", self.regulator)
        here = present(self.by_id.values(), self.parent_of, old.pool_of)
        names = pools_of(old)

        def make(law: Law, now: float) -> AnyRegulator:
            return self._make_regulator(law, now, names)

        new, let_in = regrouped(old, make, here, now)
        if old is self.regulator:
            self.regulator = cast("Regulator", new)  # or a fleet, which has the same door
        else:  # it is being recorded
            self.regulator.inner = new  # type: ignore[attr-defined]
        self.admit(let_in, now)

    def regroup(
        self,
        pools: Sequence[str],
        pool_of: Callable[[str], str | None],
        readings: Mapping[str | None, Reading],
        now: float,
    ) -> Iterable[str]:
        """The pools are others from here on; the agents stand where they stood.

        Args:
            pools: their names; empty: there is one.
            pool_of: where an agent goes; None: wherever there is room.
            readings: the latest ones of new pools, by name; None: there is one pool.
            now: the time [s].
        """
        here = present(self.by_id.values(), self.parent_of, pool_of)
        regulator: Any = self.regulator
        if isinstance(regulator, RecordingRegulator):
            return regulator.regroup(now, self._make_regulator, pools, here, readings)

        def make(law: Law, now: float) -> AnyRegulator:
            return self._make_regulator(law, now, pools)

        new, let_in = regrouped(regulator, make, here, now, readings=readings)
        self.regulator = cast("Regulator", new)  # or a fleet, which has the same door
        return let_in

    # Tickets

    def admit(self, let_in: Iterable[str], now: float) -> None:
        """The regulator has let these agents in: wakes their waiters."""
        for agent in let_in:
            session = self.by_id.get(agent)
            if session is None:
                self.elsewhere.let_in(agent, now)
                continue
            if session.entering is not None:
                self._let_in(session, now)
            else:
                self._grant_asked(session, now)

    def _let_in(self, session: Session, now: float) -> None:
        """An agent may start."""
        waited_s = session.stop_waiting(now)
        ticket, session.entering = session.entering, None
        if ticket is not None:
            self.tickets.release(ticket)
            self.tell("admitted", now, session.id, waited_s=waited_s)

    def _grant_asked(self, session: Session, now: float) -> None:
        """All calls of an agent that wait at the boundary may leave."""
        if session.asked:
            asked, session.asked = session.asked, []
            for ticket in asked:
                self._grant(ticket, now)

    def _grant(self, ticket: Ticket, now: float) -> None:
        """A call may leave."""
        session = ticket.session
        self.tickets.release(ticket)
        if session.waiting_since_s is not None:
            waited_s = session.stop_waiting(now)
            self.tell("resumed", now, session.id, waited_s=waited_s)
        if session.left_s is None:
            session.calls[ticket.key] = ticket
            ticket.open, ticket.began_s = True, now
            self.tell("step_began", now, session.id, prompt_tokens=ticket.prompt_tokens)

    def _close_call(self, ticket: Ticket, now: float, end: End) -> Iterable[str]:
        if not ticket.open:
            return ()
        ticket.open = False
        session = ticket.session
        if session.calls.get(ticket.key) is ticket:
            del session.calls[ticket.key]
        if session.left_s is not None:
            return ()
        if not end.sent:
            self.tell("step_withdrawn", now, session.id)
            return () if self.passing else self.regulator.withdraw_step(session.id, now)
        usage = ticket.usage if end.usage is None else end.usage
        aborted = end.aborted or ticket.was_aborted
        session.note(usage, aborted=aborted)
        reason = "abort" if aborted else ""
        lasted_s = now - ticket.began_s
        self.tell("step_ended", now, session.id, usage=usage, reason=reason, waited_s=lasted_s)
        if self.passing:
            return ()
        return self.regulator.end_step(
            session.id,
            now,
            usage,
            overloaded=end.overloaded,
            retry_after_s=end.retry_after_s,
            aborted=aborted,
        )

    # Seeing inside

    def parent_of(self, session: Session) -> str | None:
        """Whose place it shares; None once that one has left."""
        parent = session.parent
        while parent is not None and parent.left_s is not None:
            parent = parent.parent
        return None if parent is None else parent.id

    def explain(self, agent: str, now: float) -> str:
        """Why an agent waits, or what it does, in one line for humans."""
        if agent not in self.by_id and self.regulator.agent_state(agent) is None:
            return f"{shown_id(agent)}: not here"
        if self.passing:
            return f"{shown_id(agent)}: passes, nothing is governed any more"
        return explained(self.regulator, agent, now)

    def tell(
        self, kind: EventKind, now: float, agent: str | None = None, **details: Any
    ) -> tuple[()]:
        """Puts an event in line, for the monitor to deliver. It lets no agent in."""
        if self._dispatcher.watched:
            if agent is not None:
                details["pool"] = self.regulator.pool_of(agent)
            event = Event(kind=kind, at_s=now, agent=agent, **details)
            self._dispatcher.put(event)
            if kind in ("admitted", "resumed") and (event.waited_s or 0.0) >= self._max_wait_s:
                self._dispatcher.put(replace(event, kind="overdue"))
        return ()


def explained(regulator: Regulator, agent: str, now: float) -> str:
    """What the regulator says of an agent, in one line that is safe to show."""
    reason = regulator.explain(agent, now)
    return str(replace(reason, agent=shown_id(reason.agent)))
