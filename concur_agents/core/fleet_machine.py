"""What is behind a fleet's door: who is placed where, and what the pools' answers become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from concur_agents.core.groups import Groups
from concur_agents.core.laws.law import Law
from concur_agents.core.placement import Line, Member, Pool, half_empty, pool_for
from concur_agents.core.regulator import Regulator
from concur_agents.core.types import AgentId, Decision, State, Transition, Usage, View
from concur_agents.core.why import Reason

_WAITING = (State.QUEUED, State.PAUSED)
DOWN_AFTER_S = 5.0
"""Readings of a pool that is down have failed for so long, and no call was answered since [s]."""


class FleetMachine:
    """The pools, and the line of those that have none.  Owned by `Fleet`."""

    def __init__(
        self,
        law: Law,
        pools: Sequence[str],
        start_s: float = 0.0,
        *,
        max_wait_s: float | None = None,
        max_open: int | None = None,
        down_after_s: float = DOWN_AFTER_S,
        moves_paused: bool = True,
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
        self._down_after_s, self._moves_paused = down_after_s, moves_paused
        self._members: dict[AgentId, Member] = {}
        self._departed: dict[AgentId, Member] = {}  # roots whose children are still here
        self._line = Line()
        self._groups = Groups()
        self._arrivals = self._placements = self._done_total = self._moved_total = 0
        self._entered = 0  # roots that have been let in, and have not left with all children
        self._let_in: dict[AgentId, None] = {}  # in order
        self._moves: list[Transition] = []
        for name in pools:
            self._open_pool(name, start_s)
        self._ticked = self.pools[0]

    # -- after a call that an exception of a signal handler cut off halfway -------------------

    def memory_of(self, agent: AgentId) -> tuple[Usage | None, int | None]:
        """As `Regulator.memory_of`."""
        member = self._members.get(agent)
        if member is None or member.root.pool is None:
            return None, None if member is None else member.prompt_tokens
        return member.root.pool.regulator.memory_of(agent)

    def take_over(self, old: FleetMachine, now: float) -> None:
        """As `Regulator.take_over`, for each pool."""
        self.law = old.law
        self._done_total, self._moved_total = old._done_total, old._moved_total
        formers = {former.name: former for former in old.pools}
        for pool in self.pools:
            pool.take_over(formers[pool.name], now)

    def follow(self, law: Law, totals: View, formers: Sequence[Pool], now: float) -> None:
        """As `Regulator.follow`.  Pools that stay go on as they were.

        Args:
            formers: the pools of the fleet that this one takes the place of; empty: it was none.
        """
        self.law, self._done_total = law, totals.done_total
        kept = {former.name: former for former in formers}
        names = [pool.name for pool in self.pools]
        gone = [view for name, view in totals.pools.items() if name not in names] or [totals]
        rest = replace(
            totals,
            done_total=0,
            pauses_total=sum(view.pauses_total for view in gone),
            overdue_total=sum(view.overdue_total for view in gone),
            stalls_total=sum(view.stalls_total for view in gone),
        )
        for pool in self.pools:
            former = kept.get(pool.name)
            if former is None:
                pool.regulator.follow(law, rest, now)
                rest = replace(rest, pauses_total=0, overdue_total=0, stalls_total=0)
                continue
            pool.take_over(former, now)

    # -- placing ---------------------------------------------------------------------------------

    def _settle(self, now: float) -> Decision:
        """Place whom the pools now take; the answer of every call."""
        self._fill(now)
        self._line_up(now)
        self._spread(now)
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

    def _fill(self, now: float) -> None:
        """Where a pool would let an agent in, the first of all that wait to enter goes there."""
        pools = self._takers
        while (member := self._first(now)) is not None:
            pool = pool_for(member, pools, now)
            if pool is None or not pool.regulator.would_admit(now, member.prompt_tokens):
                break
            if member.pool is not None:
                self._take_back(member, now)
            self._place(member, pool, now)
            if pool.candidate is member:  # not let in after all
                break

    def _line_up(self, now: float) -> None:
        """The first of the line wait in the pools, one in each."""
        pools = self._takers
        while (member := self._next(now)) is not None:
            pool = pool_for(member, pools, now)
            if pool is None:  # then in place of the one that goes last, if that is later
                waiting = [pool.candidate for pool in pools if pool.candidate is not None]
                last = max(waiting, key=lambda other: self._rank(other, now))
                if self._rank(last, now) <= self._rank(member, now):
                    break
                pool = last.pool
                self._take_back(last, now)
            assert pool is not None
            self._place(member, pool, now)

    def _spread(self, now: float) -> None:
        """A paused agent goes to a pool that is half empty: the youngest of where most wait.

        Only once no agent waits to start: a new one brings no prefix that is computed again.
        """
        if not self._moves_paused:
            return
        home = max(self.pools, key=lambda pool: pool.regulator.waiting_agents)
        agent = home.regulator.last_waiting
        if agent is None:
            return
        if len(self._line) or any(pool.candidate for pool in self.pools):
            return
        root = self._members.get(agent)
        if root is None or root.pool is not home:  # it has left, and its children go on there
            return
        usage, prompt_tokens = home.regulator.memory_of(agent)
        held_tokens = 0 if usage is None else usage.prompt_tokens + usage.completion_tokens
        tokens = max(held_tokens, prompt_tokens or 0) or None
        pool = half_empty([pool for pool in self._takers if pool is not home], tokens, now)
        if pool is not None:
            root.prompt_tokens = tokens
            self._take_back(root, now)
            self._place(root, pool, now)

    def _first(self, now: float) -> Member | None:
        """Who goes first of the line and of those that wait in a pool; None: none may."""
        waiting = [pool.candidate for pool in self.pools if pool.candidate is not None]
        member = self._next(now)
        if member is not None:
            waiting.append(member)
        return min(waiting, key=lambda member: self._rank(member, now), default=None)

    def _next(self, now: float) -> Member | None:
        """Who goes first of the line; None: none may."""
        member = self._line.head()
        if member is None or member.has_entered:
            return member
        if self._max_open is not None and self._open_agents >= self._max_open:
            return None
        oldest = self._line.oldest()
        return oldest if oldest is not None and self._is_due(oldest, now) else member

    def _rank(self, member: Member, now: float) -> tuple[float, ...]:
        """The smaller one goes first: those that have begun, then who waits past `max_wait_s`."""
        if not member.has_entered and self._is_due(member, now):
            return (1, member.since_s, member.seq)
        return (2 * (not member.has_entered), -member.priority, member.seq)

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
        self._settle_in(member, pool)
        pool.candidate = member
        answer = pool.regulator.arrive(
            member.agent,
            now,
            prompt_tokens=member.prompt_tokens,
            priority=member.priority,
            group=member.group,
            waiting_since_s=member.since_s,
        )
        for child in member.family.values():
            if child is not member:  # it shares the place, so that this lets in no other agent
                pool.regulator.arrive(child.agent, now, parent=member.agent)
        self._hear(pool, answer, now)

    def _pool_to_force(self, root: Member, name: str | None, now: float) -> Pool:
        """Where `root`, which has no pool, is let in whatever the limit says."""
        pools = self._takers
        named = [pool for pool in pools if pool.name == name]
        pool = named[0] if named else pool_for(root, pools, now) or pools[0]
        if pool.candidate is not None:
            self._take_back(pool.candidate, now)
        return pool

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

    def _rehome(self, root: Member, here: Pool, there: Pool, now: float) -> None:
        """`root` and its family, which have their place in one pool, have it in another."""
        calls = {member: here.regulator.calls_of(member.agent) for member in root.family.values()}
        self._vacate(root)
        self._moved_total += 1
        self._settle_in(root, there)
        for member, count in calls.items():
            answer = there.regulator.take_in(
                member.agent,
                now,
                calls=count,
                prompt_tokens=member.prompt_tokens,
                parent=None if member is root else root.agent,
                priority=member.priority,
                group=member.group,
            )
            self._hear(there, answer, now)
        for agent in root.family:
            self._hear(here, here.regulator.leave(agent, now), now)

    def _settle_in(self, member: Member, pool: Pool) -> None:
        """From here on `pool` is where `member` is."""
        self._placements += 1
        pool.chosen = self._placements
        member.pool, member.is_suspended = pool, False
        if member.group is not None:
            pool.groups[member.group] = pool.groups.get(member.group, 0) + 1

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
        self._note(root, state, now, self._why(root, now))
        self._line.push(root)

    def _evacuate(self, pool: Pool, now: float) -> None:
        """Who waits in a pool that takes no agents goes elsewhere."""
        if pool.takes_agents or self._takers == [pool]:
            return
        for root in [member for member in self._members.values() if member.pool is pool]:
            waits = pool.regulator.agent_state(root.agent) in ("queued", "paused")
            if waits and root.agent in root.family:
                self._take_back(root, now)

    def _is_gone(self, pool: Pool | None) -> bool:
        return pool is not None and not pool.takes_agents and pool not in self._takers

    def _move_if_gone(self, root: Member, now: float) -> None:
        """`root`, at a boundary, leaves a pool that takes no agents for another that does."""
        pool = root.pool
        if pool is None or not self._is_gone(pool):
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
        candidate, entered = pool.candidate, None
        for agent, _, after, reason in decision.transitions:
            member = self._members.get(agent) or self._departed.get(agent) or of
            if member is None or member.agent != agent or member.pool is not pool:
                continue
            if after is State.QUEUED and member.has_entered:
                after = State.PAUSED
            self._note(member, after, now, reason)
            if member is candidate and after.is_active:
                entered = member
        for agent in decision:
            member = self._members.get(agent)
            if member is None or member.root.pool is not pool:
                continue
            if member is entered and (member.asked or not member.asks_place):
                continue  # its calls are begun below
            member.asked, member.asks_place = 0, False
            self._let_in[agent] = None
        if entered is not None:
            self._enter(entered, pool)
            self._begin_asked(entered, pool, now)

    def _enter(self, root: Member, pool: Pool) -> None:
        """`pool` is the home of `root` from now on."""
        pool.candidate = None
        self._entered += not root.has_entered
        root.has_entered = True

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

    def _why(self, member: Member, now: float) -> Reason:
        root = member.root
        state = "" if root.state is None else root.state.value
        holds = self.pools[0].regulator.holds
        if holds:
            left_s = max(0.0, max(holds.values()) - now)
            return Reason(agent=member.agent, state=state, cause="hold", most=left_s)
        if self._max_open is not None and self._open_agents >= self._max_open:
            count, most = float(self._open_agents), float(self._max_open)
            return Reason(agent=member.agent, state=state, cause="max_open", count=count, most=most)
        return Reason(
            agent=member.agent,
            state=state,
            cause="pools",
            count=float(len(self._line) + (not root.ticket)),  # with itself
            most=float(len(self.pools)),
        )
