"""Questions to a fleet: they change nothing, however often they are asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from concur_agents.core.fleet_machine import FleetMachine
from concur_agents.core.laws.law import LawState
from concur_agents.core.placement import Member, Pool
from concur_agents.core.types import (
    AgentId,
    AgentView,
    Limit,
    Snapshot,
    State,
    View,
)
from concur_agents.core.why import Reason


class FleetReads(FleetMachine):
    """How things stand, and why."""

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

    def pool_of(self, agent: AgentId) -> str | None:
        """Where `agent` sends its calls; None: it is not here, or has no pool yet."""
        member = self._members.get(agent)
        pool = None if member is None else member.root.pool
        return None if pool is None else pool.name

    def must_move(self, agent: AgentId) -> bool:
        """Whether its pool takes no agents and another does: it moves at its next boundary."""
        member = self._members.get(agent)
        return member is not None and self._is_gone(member.root.pool)

    def has_ample_room(self, agent: AgentId) -> bool:
        """Whether all contexts of its pool fit twice: what misses there has not been evicted."""
        member = self._members.get(agent)
        pool = None if member is None else member.root.pool
        tokens = None if pool is None else pool.regulator.pool_tokens
        return pool is not None and 2.0 * pool.regulator.footprint_tokens <= (tokens or 0.0)

    def has_pool(self, pool: str) -> bool:
        """Whether there is a pool of this name; one that was removed is gone once it is empty."""
        return any(each.name == pool for each in self.pools)

    def is_down(self, pool: str) -> bool:
        """Whether neither the page nor the engine of this pool answers; False: there is none."""
        return any(each.is_down for each in self.pools if each.name == pool)

    def is_undecided(self, agent: AgentId) -> bool:
        """Whether it is not known yet if a call of `agent` waits.  False: what decides is here."""
        return False

    def is_held(self, name: str, now: float) -> bool:
        """As `Regulator.is_held`: a hold is in force in all pools."""
        return self.pools[0].regulator.is_held(name, now)

    def agent_state(self, agent: AgentId) -> str | None:
        """A value of `State`: where its family stands; None: not here."""
        member = self._members.get(agent)
        if member is None or member.root.state is None:
            return None
        return member.root.state.value

    def view(self, now: float) -> View:
        """How things stand: sums over the pools, and each of them.

        The tokens, limits and shares of a pool that is down are left out: no agent can use it.
        """
        views = {pool.name: _view_of(pool, now) for pool in self.pools}
        oldest = self._line.oldest()
        in_line_s = 0.0 if oldest is None else now - oldest.since_s
        return replace(
            _sum_of(list(views.values()), [views[pool.name] for pool in self._usable]),
            at_s=now,
            paused=sum(view.paused for view in views.values()) + self._line.begun,
            queued=sum(view.queued for view in views.values()) + len(self._line) - self._line.begun,
            done_total=self._done_total,
            reason=self.reason,
            longest_wait_s=max([*(view.longest_wait_s for view in views.values()), in_line_s]),
            pools=views,
        )

    @property
    def limit(self) -> Limit:
        """The limits of the pools that are not down, summed up."""
        return _sum_of_limits([pool.regulator.limit for pool in self._usable])

    @property
    def _usable(self) -> list[Pool]:
        """The pools whose tokens count: those that are not down; if all are, all."""
        return [pool for pool in self.pools if not pool.is_down] or self.pools

    @property
    def reason(self) -> str:
        """Codes of the decisions in force, those of equal pools once."""
        return ",".join(dict.fromkeys(pool.reason for pool in self.pools))

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
                for view in pool.regulator.agents([agent]):
                    state = _state_of(member, view.state)
                    views.append(view._replace(pool=pool.name, state=state))
                continue
            state = (member.root.state or State.QUEUED).value
            up = None if parent is None else parent.agent
            views.append(AgentView(agent, up, state, member.root.since_s, 0.0, 0.0, 0))
        return views

    def explain(self, agent: AgentId, now: float) -> Reason:
        """Why `agent` stands where it stands."""
        member = self._members.get(agent)
        if member is None:
            return Reason(agent=agent, cause="absent")
        pool = member.root.pool
        if pool is None and member.root.is_suspended:
            return Reason(agent=agent, state=State.SUSPENDED.value, cause="suspended")
        if pool is None:
            return self._why(member, now)
        reason = pool.regulator.explain(agent, now)
        return replace(reason, pool=pool.name, state=_state_of(member, reason.state))

    def why(self, agent: AgentId, now: float) -> Reason | None:
        """What keeps `agent` waiting at this instant; None: it does not wait."""
        member = self._members.get(agent)
        if member is None:
            return None
        pool = member.root.pool
        if pool is None:
            return None if member.root.is_suspended else self._why(member, now)
        reason = pool.regulator.why(agent, now)
        if reason is None:
            return None
        return replace(reason, pool=pool.name, state=_state_of(member, reason.state))

    def __repr__(self) -> str:
        pools = "; ".join(f"{pool.name}: {pool.regulator!r}" for pool in self.pools)
        return f"<Fleet {self.law.name}: {pools}; {len(self._line)} without a pool>"


def _view_of(pool: Pool, now: float) -> View:
    """Its Regulator's view, to which an agent that has just moved there is new."""
    view = pool.regulator.view(now)
    moved = pool.candidate is not None and pool.candidate.has_entered
    return replace(view, reason=pool.reason, paused=view.paused + moved, queued=view.queued - moved)


def _state_of(member: Member, state: str) -> str:
    """`state` as its pool has it, to which an agent that has just moved there is new."""
    is_paused = state == State.QUEUED.value and member.root.has_entered
    return State.PAUSED.value if is_paused else state


def _sum_of(views: Sequence[View], usable: Sequence[View]) -> View:
    """Several pools as one: sums, and means where a sum says nothing.

    Args:
        views: all of them, whose agents and totals count.
        usable: those whose tokens count.
    """
    sums = {
        name: sum(getattr(view, name) for view in views)
        for name in (
            "active", "reasoning", "acting", "paused", "queued", "suspended", "done_total",
            "pauses_total", "overdue_total", "stalls_total",
        )
    }  # fmt: skip
    return replace(
        views[0],
        **sums,
        pressure_tokens=sum(view.pressure_tokens for view in usable),
        footprint_tokens=sum(view.footprint_tokens for view in usable),
        capacity_tokens=_sum([view.capacity_tokens for view in usable]),
        reported_tokens=_sum([view.reported_tokens for view in usable]),
        limit=_sum_of_limits([view.limit for view in usable]),
        hit_rate=_mean([view.hit_rate for view in usable]),
        hit_deficit=_mean([view.hit_deficit for view in usable]),
    )


def _sum_of_limits(limits: Sequence[Limit]) -> Limit:
    return Limit(
        agents=sum(limit.agents for limit in limits),
        tokens=sum(limit.tokens for limit in limits),
        hold_s_per_token=max(limit.hold_s_per_token for limit in limits),
        enter_tokens=sum(limit.enter_tokens for limit in limits),
        near_tokens=sum(limit.near_tokens for limit in limits),
        open_agents=sum(limit.open_agents for limit in limits),
    )


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
