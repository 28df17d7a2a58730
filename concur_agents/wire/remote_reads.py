"""Questions to a `RemoteRegulator`: about the agents of this process, as far as it knows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

from concur_agents.core import (
    AgentId,
    AgentView,
    LawState,
    Limit,
    Reason,
    Regulator,
    State,
    View,
)
from concur_agents.core.why import Cause
from concur_agents.wire.book import Book, Entry
from concur_agents.wire.messages import PoolAddress


class RemoteReads:
    """How things stand here, and why."""

    _lost_s: float | None
    _is_linked: bool

    def __init__(self) -> None:
        self.book = Book()
        self.local: Regulator | None = None
        """Decides while there is no daemon; None: there is one, or it is waited for."""
        self.whys: dict[str, tuple[int, dict[str, Any]]] = {}
        """Why agents wait, as the daemon said."""
        self.addresses: dict[str, PoolAddress] = {}
        """Of the pools, by name; empty: there is one."""
        self.are_pools_said = False
        """The daemon has said which there are."""
        self.router: str | None = None
        """All calls go there; None: they go to the pools themselves."""
        self.daemon_law = ""
        self.done_total = 0
        self.holds: dict[str, float] = {}
        """By name, until when each hold of this process may last [s]."""
        self._newly_waiting: list[Entry] = []
        self._long: dict[str, AgentId] = {}  # ids that are no names, by what stands for them

    @property
    def state(self) -> LawState:
        """No law decides here."""
        return LawState(self.limit, reason=self.reason)

    @property
    def limit(self) -> Limit:
        """The daemon's is not known here; without a daemon the local one."""
        return Limit() if self.local is None else self.local.limit

    @property
    def reason(self) -> str:
        """'shared'; 'away': the daemon is waited for; 'local': it is not there."""
        if self.local is not None:
            return "local"
        return "shared" if self._lost_s is None else "away"

    def pool_of(self, agent: AgentId) -> str | None:
        """Where `agent` sends its calls; None: it has no pool yet, or there is one."""
        entry = self._find(agent)
        return None if entry is None else entry.root.pool

    def must_move(self, agent: AgentId) -> bool:
        """Whether its pool takes no agents and another does."""
        entry = self._find(agent)
        return entry is not None and self._is_gone(entry.root.pool)

    def has_pool(self, pool: str) -> bool:
        """Whether the daemon has a pool of this name."""
        return pool in self.addresses

    def is_down(self, pool: str) -> bool:
        """Whether a pool takes no agents; False: there is none."""
        return pool in self.addresses and self.addresses[pool].is_gone

    def has_ample_room(self, agent: AgentId) -> bool:
        """False: what a pool holds is not known here."""
        return False

    def is_held(self, name: str, now: float) -> bool:
        """Whether the hold of this name is in force."""
        return self.holds.get(name, now) > now

    def is_undecided(self, agent: AgentId) -> bool:
        """Whether the daemon has not said yet if a call of `agent` waits."""
        entry = self._find(agent)
        return entry is not None and entry.root.has_asks and not entry.root.is_told

    def agent_state(self, agent: AgentId) -> str | None:
        """A value of `State`; None: not here."""
        entry = self._find(agent)
        return None if entry is None else stands(entry.root).value

    def view(self, now: float) -> View:
        """How things stand in this process."""
        roots = self.book.roots
        states = [stands(root) for root in roots]
        waiting = [root.since_s for root in roots if root.waits]
        held = [root for root in roots if root.has_place]
        reasoning = states.count(State.REASONING)
        acting = states.count(State.ACTING)
        return View(
            at_s=now,
            active=reasoning + acting,
            reasoning=reasoning,
            acting=acting,
            paused=states.count(State.PAUSED),
            queued=states.count(State.QUEUED),
            suspended=states.count(State.SUSPENDED),
            done_total=self.done_total,
            pressure_tokens=sum(map(footprint, held)),
            capacity_tokens=None,
            footprint_tokens=sum(map(footprint, roots)),
            limit=self.limit,
            reason=self.reason,
            hit_rate=None,
            hit_deficit=None,
            pauses_total=0,
            overdue_total=0,
            longest_wait_s=now - min(waiting, default=now),
        )

    def ids(self) -> list[AgentId]:
        """All agents that are here, in order of arrival."""
        return [self._id(entry.agent) for entry in self.book]

    def waiting(self, first: int | None = None) -> list[AgentId]:
        """The agents that wait, longest first; with `first` no more than that many."""
        entries = [entry for entry in self.book if entry.parent is None and entry.waits]
        entries.sort(key=lambda entry: entry.since_s)
        return [self._id(entry.agent) for entry in entries[:first]]

    def agents(self, only: Iterable[AgentId] | None = None) -> list[AgentView]:
        """The agents that are here, in order of arrival, or those of `only` that are."""
        found = self.book if only is None else (self._find(agent) for agent in only)
        return [
            AgentView(
                self._id(entry.agent),
                None if entry.parent is None else self._id(entry.parent.agent),
                _own(entry).value,
                entry.root.since_s,
                footprint(entry),
                footprint(entry) if entry.calls else 0.0,
                entry.steps,
                entry.root.pool,
            )
            for entry in found
            if entry is not None
        ]

    def explain(self, agent: AgentId, now: float) -> Reason:
        """Why `agent` stands where it stands."""
        entry = self._find(agent)
        if entry is None:
            return Reason(agent=agent, cause="absent")
        state = stands(entry.root)
        if state is State.SUSPENDED:
            return Reason(agent=agent, state=state.value, cause="suspended")
        if not entry.root.waits:
            count = footprint(entry.root)
            return Reason(agent=agent, state=state.value, cause="active", count=count)
        return self._why(agent, entry, now)

    def why(self, agent: AgentId, now: float) -> Reason | None:
        """What keeps `agent` waiting; None: it does not wait."""
        entry = self._find(agent)
        return self._why(agent, entry, now) if entry is not None and entry.root.waits else None

    def _why(self, agent: AgentId, entry: Entry, now: float) -> Reason:
        if self.local is not None:
            found = self.local.why(entry.agent, now)
            if found is not None:
                return found
        state = stands(entry.root).value
        if self._lost_s is not None:  # what the daemon said last is of another time
            return Reason(agent=agent, state=state, cause="daemon")
        said = self.whys.get(entry.agent) or self.whys.get(entry.root.agent)
        if said is not None:
            known = {name: value for name, value in said[1].items() if name in _NUMBERS}
            cause: Any = said[1].get("cause", "next")
            if cause not in get_args(Cause):  # of a later release
                cause = "other"
            if all(isinstance(value, int | float) for value in known.values()):
                return Reason(agent=agent, state=state, cause=cause, **known)
        return Reason(agent=agent, state=state, cause="next")

    def _is_gone(self, pool: str | None) -> bool:
        if pool is None or not self.addresses:
            return False
        others = [each.is_gone for name, each in self.addresses.items() if name != pool]
        return (pool not in self.addresses or self.is_down(pool)) and not all(others)

    def _find(self, agent: AgentId) -> Entry | None:
        return self.book.find(self._name(agent))

    def _name(self, agent: AgentId) -> str:
        raise NotImplementedError

    def _id(self, name: str) -> AgentId:
        """The id of an agent, from its name on the wire."""
        return self._long.get(name, name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} [{self.reason}]: {len(self.book)} agents>"


_NUMBERS = ("count", "most", "pressure_tokens", "need_tokens", "limit_tokens")


def stands(root: Entry) -> State:
    """Where a family stands."""
    if not root.entered:
        return State.QUEUED
    if root.has_calls:
        return State.REASONING
    if root.has_place or (root.has_asks and not root.is_told):
        return State.ACTING  # until the daemon says that its calls wait
    return State.SUSPENDED if root.suspended and not root.waits else State.PAUSED


def _own(entry: Entry) -> State:
    """Where a member of a family stands itself."""
    if entry.calls:
        return State.REASONING
    state = stands(entry.root)
    if entry.parent is None:
        return state
    return state if entry.asks or state not in (State.REASONING, State.PAUSED) else State.ACTING


def footprint(entry: Entry) -> float:
    """What an agent holds [tokens], as its last call said."""
    context = entry.context
    return 0.0 if context is None else float(context.prompt_tokens + context.completion_tokens)
