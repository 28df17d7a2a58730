"""What a hub does with the ops of its sessions: each is booked, and asked of the Regulator."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from concur_agents.core import AgentId, Reason, View
from concur_agents.wire.book import Book, Entry
from concur_agents.wire.codec import finite
from concur_agents.wire.hub_events import HubEvents, Tell
from concur_agents.wire.messages import Message, Moved, Op, Open, WireError
from concur_agents.wire.put_back import begin_passed

OPEN_BELOW, CLOSED_ABOVE = 0.6, 0.75
"""Boundaries are open from a fill of the pools below the one to one above the other."""

Connection = Hashable


@dataclass(slots=True, eq=False)
class Session:
    """One client process."""

    name: str
    epoch: int = 0
    seq: int = 0
    """The last op that was taken."""
    heard_s: float = 0.0
    connection: Connection | None = None
    """None: it was dropped, and may come back."""
    book: Book = field(default_factory=Book)
    waiting: list[Entry] = field(default_factory=list)
    """Families of its roster that are put back once the hub has settled."""
    holds: set[str] = field(default_factory=set)
    deferred: list[Op] = field(default_factory=list)
    """Ops that came before."""
    granted: list[tuple[str, int, str | None]] = field(default_factory=list)
    waits: list[tuple[str, int, dict[str, Any]]] = field(default_factory=list)

    def key(self, entry: Entry) -> AgentId:
        """The Regulator's name of an agent."""
        return f"{self.name}/{entry.agent}"


class Router(Protocol):
    """What the host knows of the router before its engines.  It decides nothing under the lock."""

    @property
    def url(self) -> str:
        """Its address."""

    def served(self, worker: str | None, token: str | None, before: str | None) -> str | None:
        """The pool that an answer names by its headers; `before`: that of the answer before."""


class HubOps:
    """The sessions' agents.  Owned by `Hub`."""

    def __init__(
        self,
        regulator: Callable[[], Any],
        settles_s: float | None,
        router: Router | None,
        tell: Tell | None,
    ) -> None:
        self._regulator = regulator
        self._router = router
        self._events = HubEvents(tell)
        self._settles_s = settles_s
        self._sessions: dict[str, Session] = {}
        self._connected: dict[Connection, Session] = {}
        self._out: list[tuple[Connection, Message]] = []
        self._open = False

    def let_in(self, agents: Iterable[AgentId], now: float) -> None:
        """The Regulator has let these in."""
        for key in agents:
            name, _, agent = key.partition("/")
            session = self._sessions.get(name)
            entry = None if session is None else session.book.find(agent)
            if session is None or entry is None:
                continue
            root = entry.root
            is_news = bool(entry.asks) or root.wants_place or not root.has_place
            was_in, calls = root.entered, len(entry.asks)
            session.book.grant(entry)
            root.pool = self._regulator().pool_of(key)
            self._events.let_in(key, entry, now, was_in=was_in, calls=calls)
            if is_news:
                session.granted.append((agent, session.seq, root.pool))

    # -- ops --------------------------------------------------------------------------------------

    def _take(self, session: Session, op: Op, now: float) -> None:
        if op.seq <= session.seq:
            return
        if op.seq != session.seq + 1:
            raise WireError(f"op {op.seq} came after op {session.seq}")
        session.seq = op.seq
        if self._settles_s is not None:
            session.deferred.append(op)
        else:
            self._do(session, op, now)

    def _do(self, session: Session, op: Op, now: float) -> None:
        try:
            do = getattr(self, f"_{op.method}")
            do(session, op, now)
        except (KeyError, ValueError) as error:  # the Regulator cannot do that
            raise WireError(f"{op.method}: {error}") from error

    def _arrive(self, session: Session, op: Op, now: float) -> None:
        args = {name: value for name, value in op.args.items() if name != "passed"}
        entry = session.book.arrive(op.agent, op.seq, args.get("parent"))
        key = session.key(entry)
        entry.prompt_tokens, entry.group = args.get("prompt_tokens"), args.get("group")
        entry.priority = args.get("priority", 0)
        if entry.parent is not None:
            args["parent"] = f"{session.name}/{args['parent']}"
        self._events.arrived(key, entry, now, args.get("parent"))
        let_in = self._regulator().arrive(key, now, **args)
        if entry.parent is not None:  # it is in, and its family perhaps is not
            let_in = [agent for agent in let_in if agent != key]
        self.let_in(let_in, now)
        self._explain(session, entry, now)

    def _begin_step(self, session: Session, op: Op, now: float) -> None:
        entry = session.book.get(op.agent)
        args = {name: value for name, value in op.args.items() if name != "passed"}
        if args.get("prompt_tokens") is not None:
            entry.prompt_tokens = args["prompt_tokens"]
        key = session.key(entry)
        self._events.comes_back(key, entry, now)
        if op.args.get("passed"):
            if not entry.root.entered:
                raise WireError(f"agent {op.agent!r} passed before it was let in")
            session.book.pass_on(entry)
            self._events.passed(key, entry, now)
            self.let_in(begin_passed(self._regulator(), key, now, entry.root.pool, **args), now)
            return
        session.book.ask(entry, op.seq)
        self.let_in(self._regulator().begin_step(key, now, **args), now)
        self._events.asked(key, entry, now)
        self._explain(session, entry, now)

    def _end_step(self, session: Session, op: Op, now: float) -> None:
        entry = session.book.get(op.agent)
        usage = op.args.get("usage")
        session.book.end(entry, usage)
        key, is_aborted = session.key(entry), op.args.get("aborted", False)
        self._events.ended(key, entry, now, usage, is_aborted=is_aborted)
        args = {name: value for name, value in op.args.items() if name != "usage"}
        self.let_in(self._regulator().end_step(key, now, usage, **args), now)

    def _retry_step(self, session: Session, op: Op, now: float) -> None:
        entry = session.book.get(op.agent)
        self.let_in(self._regulator().retry_step(session.key(entry), now, **op.args), now)

    def _withdraw_step(self, session: Session, op: Op, now: float) -> None:
        entry = session.book.get(op.agent)
        key, waited = session.key(entry), bool(entry.asks)
        session.book.withdraw(entry)
        self._events.withdrawn(key, entry, now, waited=waited)
        self.let_in(self._regulator().withdraw_step(key, now), now)

    def _suspend(self, session: Session, op: Op, now: float) -> None:
        entry = session.book.get(op.agent)
        key = session.key(entry)
        session.book.suspend(entry, op.seq)
        self._events.suspended(key, now)
        self.let_in(self._regulator().suspend(key, now), now)

    def _resume(self, session: Session, op: Op, now: float) -> None:
        entry = session.book.get(op.agent)
        key = session.key(entry)
        self._events.comes_back(key, entry, now)
        session.book.resume(entry, op.seq)
        self.let_in(self._regulator().resume(key, now), now)

    def _leave(self, session: Session, op: Op, now: float) -> None:
        entry = session.book.get(op.agent)
        key = session.key(entry)
        self._events.left(key, entry, now)
        session.book.leave(entry)
        self.let_in(self._regulator().leave(key, now), now)

    def _served(self, session: Session, op: Op, now: float) -> None:
        root = session.book.get(op.agent).root
        regulator, key = self._regulator(), session.key(root)
        if self._router is None or root.agent != op.agent:
            return  # children are where their family is
        pool = self._router.served(op.args.get("worker"), op.args.get("token"), root.served_by)
        if pool is None or not getattr(regulator, "has_pool", lambda _: False)(pool):
            return  # there is one pool, or it was removed meanwhile
        root.served_by = pool
        if regulator.pool_of(key) not in (None, pool):
            self.let_in(regulator.found(key, now, pool=pool), now)
        root.pool = regulator.pool_of(key)
        if session.connection is not None and root.pool == pool:
            self._out.append((session.connection, Moved(((root.agent, pool),))))

    def _flushed(self, session: Session, op: Op, now: float) -> None:
        pool, regulator = op.args.get("pool"), self._regulator()
        if pool is not None and not getattr(regulator, "has_pool", lambda _: False)(pool):
            return  # it was removed meanwhile
        self._events.flushed(pool, now)
        self.let_in(regulator.flushed(now, *(() if pool is None else (pool,))), now)

    def _hold(self, session: Session, op: Op, now: float) -> None:
        name = op.args["name"]
        session.holds.add(name)
        if self._open:
            self._set_open(False)
        timeout_s = op.args["timeout_s"]
        self.let_in(self._regulator().hold(f"{session.name}/{name}", now, timeout_s), now)

    def _end_hold(self, session: Session, op: Op, now: float) -> None:
        name = op.args["name"]
        session.holds.discard(name)
        self.let_in(self._regulator().end_hold(f"{session.name}/{name}", now), now)

    def _end(self, session: Session, now: float) -> None:
        """The client is gone, and its agents leave."""
        del self._sessions[session.name]
        for name in session.holds:
            self.let_in(self._regulator().end_hold(f"{session.name}/{name}", now), now)
        for entry in session.book:
            self._events.left(session.key(entry), entry, now)
        waiting = {id(root) for root in session.waiting}
        for root in session.book.roots:
            if id(root) not in waiting:
                for member in (*root.children.values(), root):
                    self.let_in(self._regulator().leave(session.key(member), now), now)

    # -- what clients hear beside their grants ----------------------------------------------------

    def _explain(self, session: Session, entry: Entry, now: float) -> None:
        """Says why an agent waits, if it does."""
        if not entry.root.waits:
            return
        why = self._regulator().why(session.key(entry), now)
        if why is not None:
            session.waits.append((entry.agent, session.seq, reason_fields(why)))
        if self._open:
            self._set_open(False)

    def _mind_opening(self, now: float) -> None:
        view = self._regulator().view(now)
        filled = fill(view)
        if self._open and filled > CLOSED_ABOVE:
            self._set_open(False)
        elif not self._open and filled < OPEN_BELOW and self._settles_s is None:
            self._set_open(not any(session.holds for session in self._sessions.values()))

    def _set_open(self, is_open: bool) -> None:
        if is_open is self._open:
            return
        self._open = is_open
        self._tell_all(Open(is_open))

    def _tell_all(self, message: Message) -> None:
        for connection in self._connected:
            self._out.append((connection, message))


def fill(view: View) -> float:
    """How full the fullest pool is, 0..; infinity: boundaries must be asked for."""
    if view.paused + view.queued:
        return float("inf")
    views = list(view.pools.values()) or [view]
    return max(
        max(each.footprint_tokens / (each.limit.tokens or 1), each.active / each.limit.agents)
        if each.limit.agents and each.reason not in ("down", "leaving", "blind", "first_reading")
        else float("inf")
        for each in views
    )


def reason_fields(why: Reason) -> dict[str, Any]:
    """A reason for the wire."""
    found = {each.name: getattr(why, each.name) for each in fields(why) if each.name != "agent"}
    return {
        name: finite(value) if isinstance(value, float) else value
        for name, value in found.items()
        if value is not None
    }
