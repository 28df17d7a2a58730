"""The fleet: several KV pools behind the door of one Regulator.

Each pool has a Regulator of its own: what fits, what it costs and what has been evicted are facts
about one cache.  The fleet decides which pool an agent goes to, and when:

  * late: an agent gets its pool when one lets it in.  At most one agent waits in each pool to be
    let in for the first time; all others wait in one line, by order and `max_wait_s` of the fleet;
  * by tokens: to the pool that is least full of contexts, as far as they will have grown;
  * for life: its prefix is there.  It moves only if the pool is down or is being removed, and then
    at a boundary, together with its children.

Pure, like the Regulator: no clock, no I/O, and the same calls give the same answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from concur_agents.core.laws.law import Law, LawState
from concur_agents.core.placement import Line, Member, Pool, pool_for
from concur_agents.core.prefixes import Chain
from concur_agents.core.regulator import Regulator
from concur_agents.core.types import (
    AgentId,
    AgentView,
    Decision,
    Limit,
    Reading,
    Snapshot,
    State,
    Transition,
    Usage,
    View,
)
from concur_agents.core.why import Reason

_WAITING = (State.QUEUED, State.PAUSED)
DOWN_AFTER_S = 5.0
"""Readings of a pool that is down have failed for so long, and no call was answered since [s]."""


class Fleet:
    """Admits, places, pauses and resumes whole agents so that none of several pools thrashes.

    Args:
        law: decides the limit of each pool from that pool's own readings.
        pools: their names.
        start_s: the host's clock at the start [s].
        max_wait_s: as for `Regulator`, of the whole fleet [s].
        max_open: as for `Regulator`, of the whole fleet.
        down_after_s: see `DOWN_AFTER_S`.
        options: for each pool's `Regulator`.

    Raises:
        ValueError: there is no pool, two have the same name, or an argument is out of its range.
    """

    def __init__(
        self,
        law: Law,
        pools: Sequence[str],
        start_s: float = 0.0,
        *,
        max_wait_s: float | None = None,
        max_open: int | None = None,
        down_after_s: float = DOWN_AFTER_S,
        **options: Any,
    ) -> None:
        if not pools:
            raise ValueError("a fleet needs at least one pool")
        if max_open is not None and max_open < 1:
            raise ValueError(f"max_open must be at least 1, got {max_open}")
        self.law = law
        self.pools: list[Pool] = []
        self._options = {**options, "max_wait_s": max_wait_s}
        self._max_wait_s, self._max_open = max_wait_s, max_open
        self._down_after_s = down_after_s
        self._members: dict[AgentId, Member] = {}
        self._departed: dict[AgentId, Member] = {}  # roots whose children are still here
        self._line = Line()
        self._arrivals = self._placements = self._done_total = self._moved_total = 0
        self._entered = 0  # roots that have been let in, and have not left with all children
        self._let_in: dict[AgentId, None] = {}  # in order
        self._moves: list[Transition] = []
        for name in pools:
            self._open_pool(name, start_s)
        self._ticked = self.pools[0]

    # -- what happens to an agent ----------------------------------------------------------------

    def arrive(
        self,
        agent: AgentId,
        now: float,
        *,
        prompt_tokens: int | None = None,
        parent: AgentId | None = None,
        priority: int = 0,
        group: str | None = None,
        pool: str | None = None,
    ) -> Decision:
        """As `Regulator.arrive`.

        Args:
            group: agents of one group, as the samples of one prompt, go to one pool while it has
                room.
            pool: it goes to this one, because its context is there; None: to whichever has room.
        """
        if agent in self._members:
            raise ValueError(f"agent {agent!r} is already here: ids must be unique until it leaves")
        if parent is not None and parent not in self._members:
            raise ValueError(f"parent {parent!r} of agent {agent!r} is not here")
        member = Member(agent, self._arrivals, priority, group, prompt_tokens, since_s=now)
        self._arrivals += 1
        self._members[agent] = member
        if parent is None:
            member.family[agent], member.asks_place = member, True
            self._wait(member, now)
            if pool is not None:
                self._place(member, self._pool(pool), now)
            return self._settle(now)
        member.parent = root = self._members[parent].root
        root.family[agent] = member
        if root.pool is None:
            self._let_in[agent] = None
        else:
            answer = root.pool.regulator.arrive(
                agent, now, prompt_tokens=prompt_tokens, parent=parent
            )
            self._hear(root.pool, answer, now)
        return self._settle(now)

    def begin_step(
        self,
        agent: AgentId,
        now: float,
        *,
        prompt_tokens: int | None = None,
        prefix: Chain | None = None,
    ) -> Decision:
        """As `Regulator.begin_step`.  An agent whose pool is gone moves here."""
        member = self._here(agent)
        root = member.root
        if prompt_tokens is not None:
            member.prompt_tokens = prompt_tokens
        member.asked += 1
        self._move_if_gone(root, now)
        home = root.home
        if home is not None:
            answer = home.regulator.begin_step(
                agent, now, prompt_tokens=prompt_tokens, prefix=prefix
            )
            self._hear(home, answer, now)
        elif root.is_suspended:
            self._wait(root, now)
        return self._settle(now)

    def end_step(
        self,
        agent: AgentId,
        now: float,
        usage: Usage | None,
        *,
        overloaded: bool = False,
        retry_after_s: float = 0.0,
    ) -> Decision:
        """As `Regulator.end_step`."""
        member = self._here(agent)
        pool = member.root.home
        if pool is None:
            return self.withdraw_step(agent, now)
        if usage is not None:
            pool.answered_s = now
        answer = pool.regulator.end_step(
            agent, now, usage, overloaded=overloaded, retry_after_s=retry_after_s
        )
        member.asked = max(0, member.asked - 1)
        self._hear(pool, answer, now)
        return self._settle(now)

    def retry_step(
        self,
        agent: AgentId,
        now: float,
        *,
        overloaded: bool = False,
        retry_after_s: float = 0.0,
    ) -> Decision:
        """As `Regulator.retry_step`."""
        pool = self._here(agent).root.home
        if pool is not None:
            answer = pool.regulator.retry_step(
                agent, now, overloaded=overloaded, retry_after_s=retry_after_s
            )
            self._hear(pool, answer, now)
        return self._settle(now)

    def withdraw_step(self, agent: AgentId, now: float) -> Decision:
        """As `Regulator.withdraw_step`."""
        member = self._here(agent)
        pool = member.root.home
        if pool is None:
            if not member.asked:
                raise ValueError(f"agent {agent!r} has no step to end")
            member.asked -= 1
            return self._settle(now)
        answer = pool.regulator.withdraw_step(agent, now)
        member.asked = max(0, member.asked - 1)
        self._hear(pool, answer, now)
        return self._settle(now)

    def suspend(self, agent: AgentId, now: float) -> Decision:
        """As `Regulator.suspend`."""
        root = self._own(agent)
        if not root.has_entered:
            raise ValueError(f"agent {agent!r} has not been let in and has no place to give back")
        root.asks_place = False
        if root.home is not None:
            self._hear(root.home, root.home.regulator.suspend(agent, now), now)
        elif not any(member.asked for member in root.family.values()):
            if root.pool is not None:
                self._take_back(root, now)
            self._line.remove(root)
            root.is_suspended = True
            self._note(root, State.SUSPENDED, now)
        return self._settle(now)

    def resume(self, agent: AgentId, now: float) -> Decision:
        """As `Regulator.resume`.  An agent whose pool is gone moves here."""
        root = self._own(agent)
        root.asks_place = True
        self._move_if_gone(root, now)
        if root.home is not None:
            self._hear(root.home, root.home.regulator.resume(agent, now), now)
        elif root.is_suspended:
            self._wait(root, now)
        return self._settle(now)

    def leave(self, agent: AgentId, now: float) -> Decision:
        """As `Regulator.leave`."""
        member = self._members.pop(agent, None)
        if member is None:
            return Decision()
        root, home = member.root, member.root.home
        del root.family[agent]
        self._done_total += member is root
        self._entered -= root.has_entered and not root.family
        if home is not None:
            if member is root and root.family:
                self._departed[agent] = root
            self._hear(home, home.regulator.leave(agent, now), now, of=root)
            if not root.family:
                self._departed.pop(root.agent, None)
                self._vacate(root)
        elif member is root:
            if root.pool is not None:
                root.family[agent] = root
                self._take_back(root, now)
                del root.family[agent]
            self._line.remove(root)
            self._note(root, State.DONE, now)
            self._orphan(root, now)
        elif root.pool is not None:
            root.pool.regulator.leave(agent, now)
        return self._settle(now)

    def _orphan(self, root: Member, now: float) -> None:
        """`root` has left without a pool: each of its children waits for a place of its own."""
        self._entered -= root.has_entered and bool(root.family)
        for child in root.family.values():
            child.parent, child.family, child.has_entered = None, {child.agent: child}, True
            child.group = root.group
            self._entered += 1
            if child.asked:
                self._wait(child, now)
            else:
                child.is_suspended = True
                self._note(child, State.SUSPENDED, now)

    # -- what happens to a pool ------------------------------------------------------------------

    def tick(self, reading: Reading | None, now: float, pool: str | None = None) -> Decision:
        """A poll of `pool` came back (None: it failed).

        Args:
            pool: its name; None where there is only one.

        Raises:
            KeyError: there is no such pool.
        """
        read = self._ticked = self._pool(pool)
        if reading is not None:
            read.failing_since_s, read.is_down = math.inf, False
        else:
            read.failing_since_s = min(read.failing_since_s, now)
            failed_s = now - read.failing_since_s
            if failed_s >= self._down_after_s and read.answered_s < read.failing_since_s:
                read.is_down = True
        self._hear(read, read.regulator.tick(reading, now), now)
        self._evacuate(read, now)
        return self._settle(now)

    def add_pool(self, name: str, now: float) -> Decision:
        """`name` takes agents from now on.

        Raises:
            ValueError: there is a pool of this name.
        """
        self._open_pool(name, now)
        return self._settle(now)

    def remove_pool(self, name: str, now: float) -> Decision:
        """`name` takes no more agents; those that are there move at their next boundary.

        Raises:
            KeyError: there is no such pool.
            ValueError: there is no other.
        """
        pool = self._pool(name)
        if all(other.is_leaving for other in self.pools if other is not pool):
            raise ValueError(f"pool {name!r} is the last one: add another first")
        pool.is_leaving = True
        self._evacuate(pool, now)
        return self._settle(now)

    def flushed(self, now: float, pool: str | None = None) -> Decision:
        """The cache of `pool`, or of all, was emptied: what then misses says nothing."""
        for emptied in self.pools if pool is None else [self._pool(pool)]:
            self._hear(emptied, emptied.regulator.flushed(now), now)
        return self._settle(now)

    def advance(self, now: float) -> Decision:
        """Only time has passed: let in the agents that this allows."""
        for pool in self.pools:
            self._hear(pool, pool.regulator.advance(now), now)
        return self._settle(now)

    # -- questions: they change nothing ----------------------------------------------------------

    @property
    def state(self) -> LawState:
        """What the law has decided for the pool that was ticked last."""
        return self._ticked.regulator.state

    @property
    def last_snapshot(self) -> Snapshot | None:
        """What it has decided from; None: it has not yet."""
        return self._ticked.regulator.last_snapshot

    def next_wake(self, now: float) -> float | None:
        """When to call `advance` if nothing else happens before [s]; None: no need."""
        wakes = [pool.regulator.next_wake(now) for pool in self.pools]
        oldest = self._line.oldest()
        if oldest is not None and self._max_wait_s is not None:
            due_s = oldest.since_s + self._max_wait_s
            wakes.append(due_s if due_s > now else None)
        return min((wake for wake in wakes if wake is not None), default=None)

    def memory_of(self, agent: AgentId) -> tuple[Usage | None, int | None]:
        """As `Regulator.memory_of`."""
        member = self._members.get(agent)
        if member is None or member.root.pool is None:
            return None, None if member is None else member.prompt_tokens
        return member.root.pool.regulator.memory_of(agent)

    def take_over(self, old: Fleet, now: float) -> None:
        """As `Regulator.take_over`, for each pool."""
        self.law = old.law
        self._done_total, self._moved_total = old._done_total, old._moved_total
        formers = {former.name: former for former in old.pools}
        for pool in self.pools:
            former = formers.get(pool.name)
            if former is None:  # it was removed
                pool.is_leaving = True
                continue
            pool.regulator.take_over(former.regulator, now)
            pool.is_down, pool.is_leaving = former.is_down, former.is_leaving
            pool.failing_since_s, pool.answered_s = former.failing_since_s, former.answered_s

    def pool_of(self, agent: AgentId) -> str | None:
        """Where `agent` sends its calls; None: it is not here, or has no pool yet."""
        member = self._members.get(agent)
        pool = None if member is None else member.root.pool
        return None if pool is None else pool.name

    def must_move(self, agent: AgentId) -> bool:
        """Whether its pool takes no agents and another does: it moves at its next boundary."""
        member = self._members.get(agent)
        pool = None if member is None else member.root.pool
        return pool is not None and not pool.takes_agents and pool not in self._takers

    def agent_state(self, agent: AgentId) -> str | None:
        """A value of `State`: where its family stands; None: not here."""
        member = self._members.get(agent)
        if member is None or member.root.state is None:
            return None
        return member.root.state.value

    def view(self, now: float) -> View:
        """How things stand: sums over the pools, and each of them."""
        views = {pool.name: pool.regulator.view(now) for pool in self.pools}
        oldest = self._line.oldest()
        in_line_s = 0.0 if oldest is None else now - oldest.since_s
        return replace(
            _sum_of(list(views.values())),
            at_s=now,
            queued=sum(view.queued for view in views.values()) + len(self._line),
            done_total=self._done_total,
            reason=self.reason,
            longest_wait_s=max([*(view.longest_wait_s for view in views.values()), in_line_s]),
            pools=views,
        )

    @property
    def limit(self) -> Limit:
        """The pools' limits, summed up."""
        return _sum_of_limits([pool.regulator.limit for pool in self.pools])

    @property
    def reason(self) -> str:
        """Codes of the decisions in force, those of equal pools once."""
        reasons = ["down" if pool.is_down else pool.regulator.reason for pool in self.pools]
        return ",".join(dict.fromkeys(reasons))

    def ids(self) -> list[AgentId]:
        """All agents that are here, in order of arrival."""
        return list(self._members)

    def waiting(self, first: int | None = None) -> list[AgentId]:
        """The agents that wait, longest first; with `first` no more than that many."""
        agents = [member.agent for member in self._line.waiting(first)]
        for pool in self.pools:
            agents += pool.regulator.waiting(first)
        agents.sort(key=lambda agent: (self._members.get(agent) or self._departed[agent]).since_s)
        return agents[:first]

    def agents(self, only: Iterable[AgentId] | None = None) -> list[AgentView]:
        """The agents that are here, in order of arrival, or those of `only` that are."""
        views: list[AgentView] = []
        for agent in self._members if only is None else only:
            member = self._members.get(agent)
            if member is None:
                continue
            pool, parent = member.root.pool, member.parent
            if pool is not None:
                views += pool.regulator.agents([agent])
                continue
            state = member.root.state or State.QUEUED
            up = None if parent is None else parent.agent
            views.append(AgentView(agent, up, state.value, member.root.since_s, 0.0, 0.0, 0))
        return views

    def explain(self, agent: AgentId, now: float) -> Reason:
        """Why `agent` stands where it stands."""
        member = self._members.get(agent)
        if member is None:
            return Reason(agent=agent, cause="absent")
        pool = member.root.pool
        return self._why(member) if pool is None else pool.regulator.explain(agent, now)

    def why(self, agent: AgentId, now: float) -> Reason | None:
        """What keeps `agent` waiting at this instant; None: it does not wait."""
        member = self._members.get(agent)
        if member is None:
            return None
        pool = member.root.pool
        if pool is not None:
            return pool.regulator.why(agent, now)
        return None if member.root.is_suspended else self._why(member)

    def __repr__(self) -> str:
        pools = "; ".join(f"{pool.name}: {pool.regulator!r}" for pool in self.pools)
        return f"<Fleet {self.law.name}: {pools}; {len(self._line)} without a pool>"

    # -- placing ---------------------------------------------------------------------------------

    def _settle(self, now: float) -> Decision:
        """Place whom the pools now take; the answer of every call."""
        pools = self._takers
        while (member := self._next(now)) is not None:
            pool = pool_for(member, pools, now)
            if pool is None:
                self._give_way(member, pools, now)
                break
            self._place(member, pool, now)
        if not len(self._line):
            self._recall(pools, now)
        for pool in [pool for pool in self.pools if pool.is_leaving]:
            if not pool.regulator.ids():
                self.pools.remove(pool)
        answer = Decision(self._let_in, tuple(self._moves))
        self._let_in, self._moves = {}, []
        return answer

    @property
    def _takers(self) -> list[Pool]:
        """The pools that take agents; if all are down, those that may come back."""
        pools = [pool for pool in self.pools if pool.takes_agents]
        return pools or [pool for pool in self.pools if not pool.is_leaving]

    def _next(self, now: float) -> Member | None:
        """Who is placed next; None: none may be."""
        member = self._line.head()
        if member is None or member.has_entered:
            return member
        if self._max_open is not None and self._open_agents >= self._max_open:
            return None
        oldest = self._line.oldest()
        return oldest if oldest is not None and self._is_due(oldest, now) else member

    @property
    def _open_agents(self) -> int:
        """Agents that are open or may be at any time, as they wait in a pool."""
        waiting = [pool.candidate for pool in self.pools if pool.candidate is not None]
        return self._entered + sum(not member.has_entered for member in waiting)

    def _is_due(self, member: Member, now: float) -> bool:
        return self._max_wait_s is not None and member.since_s + self._max_wait_s <= now

    def _place(self, member: Member, pool: Pool, now: float) -> None:
        """`member` and its family go to `pool`, which lets them in now or later."""
        self._line.remove(member)
        self._placements += 1
        pool.chosen = self._placements
        member.pool, member.is_suspended = pool, False
        pool.candidate = member
        if member.group is not None:
            pool.groups[member.group] = pool.groups.get(member.group, 0) + 1
        answer = pool.regulator.arrive(
            member.agent,
            now,
            prompt_tokens=member.prompt_tokens,
            priority=member.priority,
            waiting_since_s=member.since_s,
        )
        for child in member.family.values():
            if child is not member:
                pool.regulator.arrive(child.agent, now, parent=member.agent)
        self._hear(pool, answer, now)

    def _vacate(self, root: Member) -> None:
        """`root` is no longer in its pool."""
        pool, root.pool = root.pool, None
        assert pool is not None
        if pool.candidate is root:
            pool.candidate = None
        if root.group is not None:
            pool.groups[root.group] -= 1
            if not pool.groups[root.group]:
                del pool.groups[root.group]

    def _take_back(self, root: Member, now: float) -> None:
        """`root` and its family are in no pool, and wait for one."""
        pool = root.pool
        assert pool is not None
        self._vacate(root)
        self._moved_total += root.has_entered
        for agent in root.family:
            self._hear(pool, pool.regulator.leave(agent, now), now)
        self._wait(root, now)

    def _wait(self, root: Member, now: float) -> None:
        """`root` waits for a pool."""
        root.is_suspended = False
        state = State.PAUSED if root.has_entered else State.QUEUED
        self._note(root, state, now, self._why(root))
        self._line.push(root)

    def _give_way(self, member: Member, pools: list[Pool], now: float) -> None:
        """`member`, overdue, takes the turn of the youngest that waits in a pool and is not."""
        if self._is_due(member, now):
            waiting = [pool.candidate for pool in pools if pool.candidate is not None]
            youngest = max(waiting, key=lambda other: other.since_s, default=None)
            if youngest is not None and not self._is_due(youngest, now):
                pool = youngest.pool
                assert pool is not None
                self._take_back(youngest, now)
                self._place(member, pool, now)

    def _recall(self, pools: list[Pool], now: float) -> None:
        """An agent that waits in one pool goes to another that would let it in at once."""
        for pool in pools:
            waiting = [other.candidate for other in self.pools if other.candidate is not None]
            first = min(waiting, key=lambda member: (-member.priority, member.seq), default=None)
            if (
                first is not None
                and pool.candidate is None
                and pool.regulator.reason != "first_reading"
                and pool.regulator.would_admit(now, first.prompt_tokens)
            ):
                self._take_back(first, now)
                self._place(first, pool, now)

    def _evacuate(self, pool: Pool, now: float) -> None:
        """Who waits in a pool that takes no agents goes elsewhere."""
        if pool.takes_agents or self._takers == [pool]:
            return
        for root in [member for member in self._members.values() if member.pool is pool]:
            waits = pool.regulator.agent_state(root.agent) in ("queued", "paused")
            if waits and root.agent in root.family:
                self._take_back(root, now)

    def _move_if_gone(self, root: Member, now: float) -> None:
        """`root`, at a boundary, leaves a pool that takes no agents for another that does."""
        pool = root.pool
        if pool is None or not self.must_move(root.agent):
            return
        # A root that has left is there until its children are done: they stay with it.
        if root.agent in root.family and pool.regulator.agent_state(root.agent) != "reasoning":
            self._take_back(root, now)

    # -- hearing ---------------------------------------------------------------------------------

    def _hear(
        self, pool: Pool, decision: Decision, now: float, *, of: Member | None = None
    ) -> None:
        """What a pool has decided becomes a part of the answer.

        Args:
            of: the root of an agent that has just left.
        """
        candidate: Any = pool.candidate
        enters = False
        for agent, _, after, reason in decision.transitions:
            member = self._members.get(agent) or self._departed.get(agent) or of
            if member is None or member.agent != agent or member.pool is not pool:
                continue
            if after is State.QUEUED and member.has_entered:
                after = State.PAUSED
            self._note(member, after, now, reason)
            enters |= member is candidate and after.is_active
        for agent in decision:
            member = self._members.get(agent)
            if member is None or member.root.pool is not pool:
                continue
            if enters and member is candidate and (member.asked or not member.asks_place):
                continue  # its calls are begun below
            member.asked, member.asks_place = 0, False
            self._let_in[agent] = None
        if enters:
            pool.candidate = None
            self._entered += not candidate.has_entered
            candidate.has_entered = True
            self._begin_asked(candidate, pool, now)

    def _begin_asked(self, root: Member, pool: Pool, now: float) -> None:
        """A family that has been let in begins the calls with which it waited."""
        for member in list(root.family.values()):
            for _ in range(member.asked):
                tokens = member.prompt_tokens
                answer = pool.regulator.begin_step(member.agent, now, prompt_tokens=tokens)
                self._hear(pool, answer, now)

    def _note(self, member: Member, after: State, now: float, reason: Reason | None = None) -> None:
        before, member.state = member.state, after
        if before is not after:
            self._moves.append(Transition(member.agent, before, after, reason))
            if after in _WAITING:
                member.since_s = now

    # -- inside ----------------------------------------------------------------------------------

    def _open_pool(self, name: str, now: float) -> None:
        if any(pool.name == name for pool in self.pools):
            raise ValueError(f"there is a pool {name!r} already: names must be unique")
        self.pools.append(Pool(name, Regulator(self.law, now, **self._options)))

    def _pool(self, name: str | None) -> Pool:
        if name is None and len(self.pools) == 1:
            return self.pools[0]
        for pool in self.pools:
            if pool.name == name:
                return pool
        raise KeyError(f"there is no pool {name!r}, only {[pool.name for pool in self.pools]}")

    def _here(self, agent: AgentId) -> Member:
        member = self._members.get(agent)
        if member is None:
            raise KeyError(f"agent {agent!r} is not here: it must arrive first")
        return member

    def _own(self, agent: AgentId) -> Member:
        member = self._here(agent)
        if member.parent is not None:
            raise ValueError(f"agent {agent!r} shares the place of {member.parent.agent!r}")
        return member

    def _why(self, member: Member) -> Reason:
        root = member.root
        state = "" if root.state is None else root.state.value
        if self._max_open is not None and self._open_agents >= self._max_open:
            count, most = float(self._open_agents), float(self._max_open)
            return Reason(agent=member.agent, state=state, cause="max_open", count=count, most=most)
        return Reason(
            agent=member.agent,
            state=state,
            cause="pools",
            count=float(len(self._line)),
            most=float(len(self.pools)),
        )


def _sum_of(views: Sequence[View]) -> View:
    """Several pools as one: sums, and means where a sum says nothing."""
    sums = {
        name: sum(getattr(view, name) for view in views)
        for name in (
            "active", "reasoning", "acting", "paused", "queued", "suspended", "done_total",
            "pressure_tokens", "footprint_tokens", "pauses_total", "overdue_total", "stalls_total",
        )
    }  # fmt: skip
    return replace(
        views[0],
        **sums,
        capacity_tokens=_sum([view.capacity_tokens for view in views]),
        reported_tokens=_sum([view.reported_tokens for view in views]),
        limit=_sum_of_limits([view.limit for view in views]),
        hit_rate=_mean([view.hit_rate for view in views]),
        hit_deficit=_mean([view.hit_deficit for view in views]),
    )


def _sum_of_limits(limits: Sequence[Limit]) -> Limit:
    return Limit(
        agents=sum(limit.agents for limit in limits),
        tokens=sum(limit.tokens for limit in limits),
        hold_s_per_token=max(limit.hold_s_per_token for limit in limits),
        enter_tokens=sum(limit.enter_tokens for limit in limits),
        open_agents=sum(limit.open_agents for limit in limits),
    )


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
