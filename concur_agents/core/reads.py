"""Questions to a Regulator: they change nothing, however often they are asked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from concur_agents.core.family import Account
from concur_agents.core.machine import Machine
from concur_agents.core.types import AgentId, AgentView, Limit, State, View
from concur_agents.core.why import Reason


class Reads(Machine):
    """How things stand, and why."""

    def next_wake(self, now: float) -> float | None:
        """When to call `advance` if nothing else happens before [s]; None: no need."""
        # From the last event on, not from `now`: when it was asked must not matter.
        wakes = (self._admission.next_wake(self._heard_s), self._stall_s())
        return min((wake for wake in wakes if wake is not None), default=None)

    @property
    def holds(self) -> Mapping[str, float]:
        """By name, until when each hold in force may last [s]."""
        return self._holds

    def is_undecided(self, agent: AgentId) -> bool:
        """Whether it is not known yet if a call of `agent` waits.  False: what decides is here."""
        return False

    def is_held(self, name: str, now: float) -> bool:
        """Whether the hold of this name is in force."""
        return self._holds.get(name, now) > now

    @property
    def limit(self) -> Limit:
        """What is enforced now: the law's limit, or a tighter one while blind or at first."""
        return self._admission.limit

    @property
    def reason(self) -> str:
        """Code of the decision in force."""
        if self._admission.held_until_s is not None:
            return "hold"
        if self._admission.alone_until_s is not None:
            return "first_reading"
        return "blind" if self._is_blind else self.state.reason

    def pool_of(self, agent: AgentId) -> str | None:
        """None: there is one pool.  For a `Fleet` it matters."""
        return None

    def must_move(self, agent: AgentId) -> bool:
        """False: there is one pool.  For a `Fleet` it matters."""
        return False

    def would_admit(self, now: float, prompt_tokens: int | None = None) -> bool:
        """Whether a new agent would be let in at once if it came now."""
        if len(self._admission.queue):
            return False  # those that wait here go first, and do not fit
        newcomer = Account("", self._arrivals, expected_prompt=prompt_tokens)
        return self._admission.would_admit(newcomer, now)

    @property
    def waiting_agents(self) -> int:
        """Agents that wait, to start or to go on."""
        return len(self._admission.queue)

    @property
    def last_waiting(self) -> AgentId | None:
        """Who has begun to wait last; None: no agent waits."""
        youngest = self._admission.queue.youngest()
        return None if youngest is None else youngest.agent

    @property
    def footprint_tokens(self) -> float:
        """What its agents hold, those that are paused as well [tokens]."""
        return self._sizes.footprint_tokens

    @property
    def final_tokens(self) -> float:
        """What an agent is expected to hold when it leaves [tokens]; 0: not known."""
        return self._sizes.final_mean

    @property
    def pool_tokens(self) -> float | None:
        """What it may hold [tokens]; None: that is not known."""
        tokens = self._admission.limit.tokens
        return self._sizes.residency.capacity_tokens if tokens == math.inf else tokens

    @property
    def open_agents(self) -> int:
        """Agents that have been let in and have not left."""
        return self._admission.open_agents

    def agent_state(self, agent: AgentId) -> str | None:
        """A value of `State`: where its family stands; None: not here."""
        who = self._accounts.get(agent)
        return None if who is None else who.root.state.value

    def view(self, now: float) -> View:
        """How things stand."""
        admission, sizes = self._admission, self._sizes
        oldest, reusable = admission.queue.oldest(), sizes.recent_reusable
        return View(
            at_s=now,
            active=admission.active,
            reasoning=admission.reasoning,
            acting=admission.active - admission.reasoning,
            paused=admission.paused,
            queued=len(admission.queue) - admission.paused,
            suspended=admission.suspended,
            done_total=self._done_total,
            pressure_tokens=admission.pressure(now),
            capacity_tokens=sizes.residency.capacity_tokens,
            footprint_tokens=sizes.footprint_tokens,
            limit=admission.limit,
            reason=self.reason,
            hit_rate=self._meter.hit_rate,
            hit_deficit=1.0 - sizes.recent_reused / reusable if reusable > 0 else None,
            pauses_total=self._pauses_total,
            overdue_total=admission.overdue_total,
            stalls_total=admission.stalls_total,
            reported_tokens=self._meter.told_tokens,
            longest_wait_s=now - oldest.waiting_since_s if oldest is not None else 0.0,
        )

    def ids(self) -> list[AgentId]:
        """All agents that are here, in order of arrival."""
        return list(self._accounts)

    def waiting(self, first: int | None = None) -> list[AgentId]:
        """The agents that wait, longest first; with `first` no more than that many."""
        return [account.agent for account in self._admission.queue.waiting(first)]

    def agents(self, only: Iterable[AgentId] | None = None) -> list[AgentView]:
        """The agents that are here, in order of arrival, or those of `only` that are.

        O(n): a host with a lock asks for `ids` and then for some of them at a time.
        """
        found = map(self._accounts.get, self._accounts if only is None else only)
        return [
            AgentView(
                who.agent,
                None if who.parent is None else who.parent.agent,
                who.standing.value,
                who.since_s,
                who.footprint,
                who.claim.tokens if who.claim.held else 0.0,
                who.steps,
            )
            for who in found
            if who is not None
        ]

    def explain(self, agent: AgentId, now: float) -> Reason:
        """Why `agent` stands where it stands; `str()` gives one line.  O(n): for people."""
        who = self._accounts.get(agent)
        if who is None:
            return Reason(agent=agent, cause="absent")
        root = who.root
        state = root.state.value
        if root.state.is_active and agent in root.waiters:
            return replace(self._admission.why(root, now), agent=agent)
        if root.state.is_active:
            return Reason(agent=agent, state=state, cause="active", count=root.claim.tokens)
        if root.state is State.SUSPENDED:
            return Reason(agent=agent, state=state, cause="suspended")
        wake_s = self.next_wake(now)
        return replace(
            self._admission.why(root, now),
            agent=agent,
            ahead=self._admission.queue.ahead(root),
            wake_in_s=None if wake_s is None else max(0.0, wake_s - now),
        )

    def why(self, agent: AgentId, now: float) -> Reason | None:
        """What keeps `agent` waiting at this instant; None: it does not wait.  O(1)."""
        who = self._accounts.get(agent)
        if who is None or who.root.state is State.SUSPENDED:
            return None
        if who.root.state.is_active and agent not in who.root.waiters:  # else a hold has stopped it
            return None
        return replace(self._admission.why(who.root, now), agent=agent)

    def __repr__(self) -> str:
        admission = self._admission
        return (
            f"<Regulator {self.law.name} [{self.reason}]: {admission.reasoning} reasoning, "
            f"{admission.active - admission.reasoning} acting, {len(admission.queue)} waiting>"
        )
