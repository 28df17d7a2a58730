"""The client's side of the wire without its door: messages, losses and time.

linked    the hello has been sent, and ops go out as they happen
away      no daemon: agents that are in go on, and those that wait do so for `AWAY_S`
local     then a Regulator of its own decides, with what was in here as its cap
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from concur_agents._text import wire_id
from concur_agents.core import AgentId, Decision, Regulator, State, Transition, make_law
from concur_agents.wire.book import Entry
from concur_agents.wire.messages import (
    BEAT_S,
    TTL_S,
    VERSION,
    Granted,
    Hello,
    Message,
    Moved,
    Op,
    Open,
    Ops,
    Ping,
    Pong,
    Pools,
    Refused,
    Roster,
    Waits,
    Welcome,
    WireError,
)
from concur_agents.wire.put_back import put_back, rank
from concur_agents.wire.remote_reads import RemoteReads

AWAY_S = 5.0
"""So long the daemon is waited for [s]."""

_MOST_ROWS = 100  # in one frame, so that it stays below `MOST_BYTES`


class RemoteLink(RemoteReads):
    """What holds the connection calls this.  Owned by `RemoteRegulator`."""

    def __init__(
        self,
        session: str,
        start_s: float,
        *,
        token: str = "",
        safe_agents: int = 8,
        wake: Callable[[], object] = lambda: None,
    ) -> None:
        super().__init__()
        self.session = session
        self.wake = wake
        self.token = token
        """For the daemon: it is sent at the begin of each connection."""
        self._safe_agents = safe_agents
        self._seq = self._epoch = 0
        self._lost_s: float | None = start_s  # None: a daemon answers
        self._held = 0  # places of agents when the daemon was lost
        self._is_linked = self._was_local = self._was_reached = False
        self._is_open = self._is_anew = False
        self._sent_s = self._heard_s = self._pinged_s = start_s
        self._inbox: list[Message] = []
        self._ops: list[Op] = []
        self._first: list[Message] = []
        self._flushes: dict[
            str | None, None
        ] = {}  # caches emptied that the daemon has not heard of

    def advance(self, now: float) -> Decision:
        """Time has passed, or the daemon has said something: let in the agents that this allows."""
        let_in: list[AgentId] = []
        self._newly_waiting = []
        if self.holds:
            self._mind_holds(now)
        inbox, self._inbox = self._inbox, []
        for message in inbox:
            let_in += self._heed(message)
        if self._lost_s is not None:
            for root in self.book.roots:
                self._tell(root)
        if self._lost_s is not None and not self._is_linked and self.local is None:
            if now >= self._lost_s + AWAY_S:
                let_in += self._go_local(now)
        elif self.local is not None:
            let_in += self._hear(self.local.advance(now))
        return Decision(let_in, self._moves())

    def next_wake(self, now: float) -> float | None:
        """When to call `advance` if nothing else happens before [s]; None: no need."""
        if self._inbox:
            return now
        if self.local is not None:
            return self.local.next_wake(now)
        if self._lost_s is None or self._is_linked:
            return None
        return self._lost_s + AWAY_S

    def newly_waiting(self) -> list[AgentId]:
        """The agents whose calls were still unanswered before the last `advance`, and wait now."""
        roots = [root for root in self._newly_waiting if root.is_told]
        return [self._id(each.agent) for root in roots for each in root.family if each.asks]

    # -- the wire: called by what holds the connection --------------------------------------------

    @property
    def is_linked(self) -> bool:
        """Whether there is a connection."""
        return self._is_linked

    @property
    def seq(self) -> int:
        """The number of its last op."""
        return self._seq

    @property
    def is_reached(self) -> bool:
        """Whether a daemon answers."""
        return self._lost_s is None

    def connected(self, now: float) -> None:
        """There is a connection: begins it with the roster."""
        self._epoch += 1
        self._is_linked, self._is_open = True, False
        self._was_local = self.local is not None
        self.local = None
        self._sent_s = self._heard_s = self._pinged_s = now
        if self._lost_s is None:
            self._lose(now)
        self._inbox, self._ops = [], []
        roster = self.book.roster()
        self._first = [
            Hello(VERSION, self.session, self._epoch, self._seq, len(roster), self.token)
        ]
        self._first += [Roster(tuple(rows)) for rows in _cut(roster)]
        self._mind_holds(now)
        for name, until_s in self.holds.items():
            self._say("hold", "", name=wire_id(name), timeout_s=until_s - now)
        for pool in self._flushes:  # after the roster, which says what was cached
            self._say("flushed", "", **({} if pool is None else {"pool": pool}))
        self._flushes = {}
        self.wake()

    def disconnected(self, now: float) -> None:
        """The connection is gone.  Call `advance` afterwards."""
        self._is_linked = self._is_open = False
        unsent = [op.args.get("pool") for op in self._ops if op.method == "flushed"]
        self._flushes |= dict.fromkeys(unsent)
        self._inbox, self._ops, self._first = [], [], []
        if self._lost_s is None:
            self._lose(now)
        elif self._was_local:  # the daemon was there for a moment and did not answer
            self._lost_s = now - AWAY_S
        self._was_local = False

    def deliver(self, message: Message, now: float) -> None:
        """The daemon says something.  Call `advance` afterwards.

        Raises:
            WireError: the connection is of no use.
        """
        self._heard_s = now
        if isinstance(message, Refused):
            raise WireError(message.why)
        if isinstance(message, Welcome) and message.version != VERSION:
            raise WireError(f"the daemon speaks version {message.version}, and this is {VERSION}")
        if isinstance(message, Hello | Roster | Ops | Ping):
            raise WireError(f"a daemon does not say {message.kind!r}")
        if not isinstance(message, Pong):
            self._inbox.append(message)

    def take(self, now: float) -> list[Message]:
        """What is to be sent; it is then forgotten.

        A ping, if nothing was sent or nothing was heard for `BEAT_S`.

        Raises:
            WireError: the daemon is silent, and the connection of no use.
        """
        if not self._is_linked:
            return []
        patience_s = TTL_S if self._lost_s is None else AWAY_S
        if now - self._heard_s >= patience_s:
            raise WireError(f"the daemon was silent for {patience_s:.0f} s")
        out, self._first = self._first, []
        out += [Ops(tuple(ops)) for ops in _cut(self._ops)]
        self._ops = []
        quiet_s = now - min(self._sent_s, self._heard_s)
        if quiet_s >= BEAT_S and now - self._pinged_s >= BEAT_S:
            out.append(Ping())
            self._pinged_s = now
        if out:
            self._sent_s = now
        return out

    # -- inside -----------------------------------------------------------------------------------

    def _say(self, method: str, agent: str, **args: Any) -> None:
        self._seq += 1
        if not self._is_linked:
            return  # the roster will say it
        self._ops.append(Op(method, agent, self._seq, args))
        if len(self._ops) == 1:
            self.wake()

    def _heed(self, message: Message) -> list[AgentId]:
        match message:
            case Welcome():
                self._lost_s, self._was_local, self._was_reached = None, False, True
                self.daemon_law, self.router = message.law, message.router
            case Granted():
                return self._grant(message)
            case Waits():
                for agent, seq, why in message.agents:
                    entry = self.book.find(agent)
                    if entry is not None and entry.root.waits:
                        self.whys[agent] = (seq, why)
                        self._tell(entry.root)
            case Open():
                self._is_open = message.open
            case Moved():
                for agent, pool in message.agents:
                    entry = self.book.find(agent)
                    if entry is not None:
                        entry.root.pool = pool
            case Pools():
                self.are_pools_said = True
                self.addresses = {pool.name: pool for pool in message.pools}
        return []

    def _grant(self, message: Granted) -> list[AgentId]:
        let_in: list[AgentId] = []
        for agent, seq, pool in message.agents:
            entry = self.book.find(agent)
            if entry is None:
                continue
            root = entry.root
            is_stale = seq < root.place_seq
            if entry.asks and entry.asks[0] > seq:
                entry.wants_place = False  # the calls have a question of their own
                continue
            if not entry.asks and is_stale and (not entry.wants_place or entry.wants_seq > seq):
                continue
            self.book.grant(entry)
            root.has_place = root.has_calls or not is_stale
            root.pool = pool
            self.whys.pop(agent, None)
            let_in.append(self._id(agent))
        return let_in

    def _mind_holds(self, now: float) -> None:
        """Those that were over by themselves are forgotten."""
        self.holds = {name: until_s for name, until_s in self.holds.items() if until_s > now}

    def _tell(self, root: Entry) -> None:
        """The calls of a family wait: its agents are paused from now on."""
        if root.has_asks and not root.is_told:
            root.is_told = True
            self._newly_waiting.append(root)

    def _moves(self) -> tuple[Transition, ...]:
        return tuple(
            Transition(self._id(root.agent), State.ACTING, State.PAUSED)
            for root in self._newly_waiting
            if root.is_told
        )

    def _hear(self, let_in: list[AgentId]) -> Decision:
        """What the local Regulator has decided."""
        found: list[AgentId] = []
        for name in let_in:
            entry = self.book.find(name)
            if entry is not None:
                self.book.grant(entry)
                found.append(self._id(name))
        return Decision(found)

    def _lose(self, now: float) -> None:
        """No daemon answers from here on."""
        self._lost_s = now
        self._held = self._inside()

    def _inside(self) -> int:
        return sum(root.has_place for root in self.book.roots)

    def _go_local(self, now: float) -> Decision:
        roots = self.book.roots
        # Also the places of those that have left since: nobody else may fill them.
        inside = max(self._held, self._inside())
        cap = max(1, inside) if self._was_reached else max(self._safe_agents, inside)
        self.local = Regulator(make_law("fixed", agents=cap), now)
        self.whys.clear()
        let_in: list[AgentId] = []
        for name, until_s in self.holds.items():
            self.local.hold(name, now, until_s - now)
        for root in sorted(roots, key=rank):
            let_in += self._hear(put_back(self.local, root, lambda entry: entry.agent, now))
        return Decision(let_in)


def _cut(rows: list[Any]) -> list[list[Any]]:
    return [rows[start : start + _MOST_ROWS] for start in range(0, len(rows), _MOST_ROWS)]
