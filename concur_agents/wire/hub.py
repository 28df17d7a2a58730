"""The server's side of the wire, pure: the sessions of many clients in front of one Regulator.

The clients are the truth and the hub a cache.  Each connection begins with the client's roster, and
the hub makes its Regulator agree with it: what has a place keeps it.  After that ops come, each
once.  A client whose connection ends is gone and its agents leave; one that is silent for `ttl_s`
likewise.  A hub that may have had a predecessor lets no agent in for `settle_s`, until the others
have said what they hold.

An agent of a client is `SESSION/AGENT` for the Regulator: ids need not be unique among clients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from concur_agents._access import is_allowed
from concur_agents.wire.book import Book, Entry
from concur_agents.wire.hub_events import Tell
from concur_agents.wire.hub_ops import Connection, HubOps, Router, Session
from concur_agents.wire.messages import (
    BEAT_S,
    TTL_S,
    VERSION,
    Granted,
    Hello,
    Message,
    Open,
    Ops,
    Ping,
    Pong,
    PoolAddress,
    Pools,
    Roster,
    Standing,
    Waits,
    Welcome,
    WireError,
)
from concur_agents.wire.put_back import put_back, rank

SETTLE_S = 1.0
"""Time after a start in which clients come back and no agent is let in [s]."""


@dataclass(slots=True)
class _Arriving:
    """A connection that has not said all of its hello yet."""

    is_trusted: bool
    hello: Hello | None = None
    standings: list[Standing] = field(default_factory=list)


class Hub(HubOps):
    """All sessions.

    Args:
        regulator: returns what decides, a `Regulator` or a `Fleet`; its decisions that the hub has
            not caused (ticks, time) have to be passed to `let_in`.
        start_s: the time [s].
        settle_s: see above; 0: it has no predecessor.
        ttl_s: see above.
        token: what connections that are not trusted have to send; None: all are let in.
        law: its name, for the clients.
        router: what is before the engines; None: clients call these themselves.
        tell: hears what happens to the agents, see `hub_events`; None: it is told to none.
    """

    def __init__(
        self,
        regulator: Callable[[], Any],
        start_s: float,
        *,
        settle_s: float = SETTLE_S,
        ttl_s: float = TTL_S,
        token: str | None = None,
        law: str = "",
        router: Router | None = None,
        tell: Tell | None = None,
    ) -> None:
        super().__init__(regulator, start_s + settle_s if settle_s > 0 else None, router, tell)
        found = regulator()
        self._known: Any = getattr(found, "inner", found)
        self._ttl_s = ttl_s
        self._token = token
        self._law = law
        self._arriving: dict[Connection, _Arriving] = {}
        self._pools: tuple[PoolAddress, ...] = ()
        self.closing: list[Connection] = []
        """Connections for the host to close: another one of the same client took over, or none was
        heard of for long."""

    @property
    def _router_url(self) -> str | None:
        return None if self._router is None else self._router.url

    @property
    def sessions(self) -> dict[str, Session]:
        """All sessions by name."""
        return self._sessions

    @property
    def alive(self) -> int:
        """The agents of all sessions."""
        return sum(len(session.book) for session in self._sessions.values())

    @property
    def waiting(self) -> int:
        """Families whose client has come back, and that the Regulator does not know yet."""
        return sum(len(session.waiting) for session in self._sessions.values())

    # -- connections -------------------------------------------------------------------------------

    def connect(self, connection: Connection, *, is_trusted: bool = True) -> None:
        """A connection was made.

        Args:
            is_trusted: it needs no token.
        """
        self._arriving[connection] = _Arriving(is_trusted)

    def receive(self, connection: Connection, message: Message, now: float) -> None:
        """A frame came.

        Raises:
            WireError: the client is to be dropped.
        """
        self._mind_regulator(now)
        arriving = self._arriving.get(connection)
        if arriving is not None:
            self._greet(connection, arriving, message, now)
            return
        session = self._connected.get(connection)
        if session is None:
            raise WireError("this connection has ended")
        session.heard_s = now
        if isinstance(message, Ops):
            for op in message.ops:
                self._take(session, op, now)
        elif isinstance(message, Ping):
            self._out.append((connection, Pong()))
        else:
            raise WireError(f"a client does not say {message.kind!r} here")

    def drop(self, connection: Connection) -> None:
        """The client is to connect again: its agents stay for `ttl_s`, and none of its place goes.

        For a frame that was lost, or that is not one of ours.
        """
        self._arriving.pop(connection, None)
        session = self._connected.pop(connection, None)
        if session is not None and session.connection == connection:
            session.connection = None

    def disconnect(self, connection: Connection, now: float) -> None:
        """The client has hung up: its agents leave."""
        self._arriving.pop(connection, None)
        session = self._connected.pop(connection, None)
        if session is not None and session.connection == connection:
            self._end(session, now)

    def take(self) -> list[tuple[Connection, Message]]:
        """What is to be sent; it is then forgotten."""
        for session in self._sessions.values():
            connection = session.connection
            if connection is not None:
                if session.granted:
                    self._out.append((connection, Granted(tuple(session.granted))))
                if session.waits:
                    self._out.append((connection, Waits(tuple(session.waits))))
            session.granted, session.waits = [], []
        out, self._out = self._out, []
        return out

    # -- what the host says -----------------------------------------------------------------------

    def set_pools(self, pools: Iterable[PoolAddress]) -> None:
        """There are these pools; none: there is one in all."""
        pools = tuple(pools)
        if pools != self._pools:
            self._pools = pools
            self._tell_all(Pools(pools))

    def advance(self, now: float) -> None:
        """Time has passed."""
        self._mind_regulator(now)
        for session in list(self._sessions.values()):
            if now - session.heard_s >= self._ttl_s:
                if session.connection is not None:
                    self.closing.append(session.connection)
                    self._connected.pop(session.connection, None)
                self._end(session, now)
        if self._settles_s is not None and now >= self._settles_s:
            self._settle(now)
        self.let_in(self._regulator().advance(now), now)
        self._mind_opening(now)

    def next_wake(self, now: float) -> float | None:
        """When to call `advance` if nothing else happens before [s]; None: no need."""
        wakes: list[float | None] = [
            session.heard_s + self._ttl_s for session in self._sessions.values()
        ]
        wakes += [self._settles_s, self._regulator().next_wake(now)]
        return min((wake for wake in wakes if wake is not None), default=None)

    def _mind_regulator(self, now: float) -> None:
        """Another Regulator has taken the place of the one before, as the pools are others."""
        found = self._regulator()
        regulator = getattr(found, "inner", found)
        if regulator is self._known:
            return
        self._known = regulator
        sessions = self._sessions.values()
        roots = [(root, session) for session in sessions for root in session.book.roots]
        for root, session in sorted(roots, key=lambda each: rank(each[0])):
            if root not in session.waiting:
                self.let_in(put_back(found, root, session.key, now), now)

    # -- hello ------------------------------------------------------------------------------------

    def _greet(
        self, connection: Connection, arriving: _Arriving, message: Message, now: float
    ) -> None:
        if isinstance(message, Hello) and arriving.hello is None:
            self._check(message, arriving.is_trusted)
            arriving.hello = message
        elif isinstance(message, Roster) and arriving.hello is not None:
            arriving.standings += message.agents
        else:
            raise WireError(f"a connection begins with 'hello', not with {message.kind!r}")
        missing = arriving.hello.agents - len(arriving.standings)
        if missing < 0:
            raise WireError("the roster is longer than the hello says")
        if missing == 0:
            del self._arriving[connection]
            self._welcome(connection, arriving.hello, arriving.standings, now)

    def _check(self, hello: Hello, is_trusted: bool) -> None:
        if hello.version != VERSION:
            raise WireError(
                f"this daemon speaks version {VERSION} of the protocol, and the client version "
                f"{hello.version}: install the same concur-agents on both sides"
            )
        if not is_trusted and not is_allowed(f"Bearer {hello.token}", self._token):
            if not hello.token:
                raise WireError("a token is needed and none was sent: set token= or CONCUR_TOKEN")
            raise WireError("the token is not that of this daemon")
        name = hello.session
        if not name or not name.isascii() or not name.isprintable() or "/" in name:
            raise WireError("the name of a session is printable ASCII without '/'")
        former = self._sessions.get(name)
        if former is not None and hello.epoch <= former.epoch:
            raise WireError("a later connection of this session is known")

    def _welcome(
        self, connection: Connection, hello: Hello, standings: list[Standing], now: float
    ) -> None:
        book = Book()
        book.take(standings, hello.seq)
        session = self._sessions.get(hello.session)
        if session is None:
            session = self._sessions[hello.session] = Session(hello.session)
        if session.connection is not None:
            self._connected.pop(session.connection, None)
            self.closing.append(session.connection)
        session.connection, session.epoch, session.seq = connection, hello.epoch, hello.seq
        session.heard_s = now
        session.granted, session.waits = [], []
        self._connected[connection] = session
        self._out.append(
            (connection, Welcome(VERSION, self._law, BEAT_S, self._ttl_s, self._router_url)),
        )
        if self._pools:
            self._out.append((connection, Pools(self._pools)))
        if self._open:
            self._out.append((connection, Open(True)))
        self._agree(session, book, now)

    def _agree(self, session: Session, book: Book, now: float) -> None:
        """The Regulator has the session's agents as its client has them."""
        former, session.book = session.book, book
        known = {id(root) for root in session.waiting}
        session.waiting, session.deferred = [], []
        self._events.returned(former, book, session.key, now)
        for name in session.holds:  # those that are in force still are said again
            self.let_in(self._regulator().end_hold(f"{session.name}/{name}", now), now)
        session.holds.clear()
        same = {_standings(root) for root in former.roots if id(root) not in known}
        changed = [root for root in book.roots if _standings(root) not in same]
        stay = {_standings(root) for root in book.roots}
        regulator = self._regulator()
        for root in former.roots:
            if id(root) not in known and _standings(root) not in stay:
                for member in (*root.children.values(), root):
                    self.let_in(regulator.leave(session.key(member), now), now)
        for root in sorted(changed, key=rank):
            if self._settles_s is not None and not root.has_place:
                session.waiting.append(root)
            else:
                self.let_in(put_back(regulator, root, session.key, now), now)

    def _settle(self, now: float) -> None:
        """The clients have come back: what waited for that goes on."""
        self._settles_s = None
        sessions = list(self._sessions.values())
        waiting = [(root, session) for session in sessions for root in session.waiting]
        for root, session in sorted(waiting, key=lambda each: rank(each[0])):
            self.let_in(put_back(self._regulator(), root, session.key, now), now)
        for session in sessions:
            session.waiting = []
            deferred, session.deferred = session.deferred, []
            try:
                for op in deferred:
                    self._do(session, op, now)
            except WireError:
                if session.connection is not None:
                    self.closing.append(session.connection)
                    self.drop(session.connection)


def _standings(root: Entry) -> tuple[tuple[Any, ...], ...]:
    """Where a family stands, without what only memory needs."""
    return tuple(member.standing()[:9] for member in root.family)
