"""The gates that stood before a real engine when it was measured, as they were then.

Written for the driver of the H100 sweeps, before this package was; `working_set` grew out of the
last of them. They are kept for `validate` alone: what is compared with a measurement has to have
gone through the same gate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from concur_agents.core import Reading, Usage
from concur_agents.sim.gates import AgentCap, Gate, RequestCap, Ungoverned
from concur_agents.sim.workload import AgentPlan


class _Preemptive(Ungoverned):
    """Agents wait at step boundaries; earlier agents go first. Knows all outputs beforehand, as the
    measured prototypes did.
    """

    def __init__(self, plans: Sequence[AgentPlan], capacity_tokens: int) -> None:
        self.capacity_tokens = capacity_tokens
        self.plans = {plan.id: plan for plan in plans}
        self.rank = {plan.id: i for i, plan in enumerate(plans)}
        self.step = dict.fromkeys(self.plans, 0)
        self.active: set[str] = set()
        self.want: set[str] = set()
        self.now = 0.0
        self._in_tool: set[str] = set()

    def begin_step(self, agent: str, now: float, prompt_tokens: int) -> list[str]:
        """See `Gate`."""
        self.now = now
        self._in_tool.discard(agent)
        self.returns(agent)
        let_in = []
        if agent in self.active and self.is_over(agent):
            self.active.discard(agent)
            let_in = self.pump()
        if agent in self.active:
            return [*let_in, agent]
        self.want.add(agent)
        return let_in + self.pump()

    def end_step(self, agent: str, now: float, usage: Usage) -> list[str]:
        """See `Gate`."""
        self.now = now
        let_in = self.goes(agent)
        self.step[agent] += 1
        self._in_tool.add(agent)
        return let_in

    def leave(self, agent: str, now: float) -> list[str]:
        """See `Gate`."""
        self.now = now
        self.active.discard(agent)
        return self.pump()

    def pump(self) -> list[str]:
        """Let in from the front of the queue while it fits."""
        let_in = []
        for agent in sorted(self.want, key=self.order):
            if not self.fits(agent):
                break
            self.active.add(agent)
            self.want.discard(agent)
            let_in.append(agent)
        return let_in

    def context_tokens(self, agent: str) -> int:
        """What it has in its context now: while its tool runs, without the tool's result."""
        steps, k = self.plans[agent].steps, self.step[agent]
        if agent in self._in_tool:
            return steps[k - 1].prompt_tokens + steps[k - 1].output.tokens
        return steps[k].prompt_tokens

    def next_tokens(self, agent: str) -> int:
        """Its context after its next answer."""
        steps, k = self.plans[agent].steps, self.step[agent]
        return self.context_tokens(agent) + (steps[k].output.tokens if k < len(steps) else 0)

    def fits(self, agent: str) -> bool:
        """May it join those that are active?"""
        raise NotImplementedError

    def is_over(self, agent: str) -> bool:
        """Must it, being active, wait at this boundary?"""
        raise NotImplementedError

    def order(self, agent: str) -> tuple[float, ...]:
        """Who is let in first: started agents, then by arrival."""
        return (self.step[agent] == 0, self.rank[agent])

    def returns(self, agent: str) -> None:
        """Its tool is done."""

    def goes(self, agent: str) -> list[str]:
        """Its call is done; returns the agents that this lets in."""
        return []


class _Concur(_Preemptive):
    """CONCUR's law, W from 4 on, every 2 s: += 2 if U < 0.2; halved if U > 0.5 and H < 0.2."""

    def __init__(self, plans: Sequence[AgentPlan], capacity_tokens: int, arg: str) -> None:
        super().__init__(plans, capacity_tokens)
        window, every_s = arg.split("/")
        self.window, self.every_s = float(window), float(every_s)
        self.hit_rate = 1.0
        self.last: Reading | None = None

    def fits(self, agent: str) -> bool:
        """See `_Preemptive`."""
        return len(self.active) < max(1, int(self.window))

    def is_over(self, agent: str) -> bool:
        """See `_Preemptive`."""
        keep = max(1, int(self.window))
        return (
            len(self.active) > keep
            and agent not in sorted(self.active, key=self.rank.__getitem__)[:keep]
        )

    def tick(self, reading: Reading | None, now: float) -> list[str]:
        """See `Gate`."""
        self.now = now
        assert reading is not None
        last = self.last
        if last is None:
            self.last = reading
            return []
        if reading.at_s - last.at_s < self.every_s - 0.05:
            return []
        self.last = reading
        queries = (reading.query_tokens_total or 0) - (last.query_tokens_total or 0)
        if queries:
            hits = (reading.hit_tokens_total or 0) - (last.hit_tokens_total or 0)
            self.hit_rate = hits / queries
        usage = reading.kv_usage or 0.0
        if usage < 0.2:
            self.window += 2
        elif usage > 0.5 and self.hit_rate < 0.2:
            self.window = max(1.0, self.window * 0.5)
        return self.pump()


class _Budget(_Preemptive):
    """Active contexts stay under a share of the pool."""

    def __init__(self, plans: Sequence[AgentPlan], capacity_tokens: int, arg: str) -> None:
        super().__init__(plans, capacity_tokens)
        self.budget_tokens = float(arg) * capacity_tokens

    def fits(self, agent: str) -> bool:
        """See `_Preemptive`."""
        used = sum(map(self.next_tokens, self.active))
        return not self.active or used + self.next_tokens(agent) <= self.budget_tokens

    def is_over(self, agent: str) -> bool:
        """See `_Preemptive`."""
        earlier = [other for other in self.active if self.rank[other] <= self.rank[agent]]
        used = sum(map(self.next_tokens, earlier))
        return used > self.budget_tokens and len(self.active) > 1


class _BreakEven(_Budget):
    """A budget in which the claim of an agent in a tool call fades as exp(-idle / tau)."""

    def __init__(self, plans: Sequence[AgentPlan], capacity_tokens: int, arg: str) -> None:
        super().__init__(plans, capacity_tokens, arg)
        self.idle_since: dict[str, float] = {}
        self.left_at: dict[str, float | None] = {}
        self.reasoning = 1.0

    def tau_s(self, agent: str) -> float:
        """Break-even time: one prefill of its context at 30,000 tokens/s, times the batch."""
        return min(120.0, max(0.5, self.context_tokens(agent) / 30_000 * self.reasoning / 0.5))

    def used_tokens(self) -> float:
        """What the active claim by now. Asking moves the average of those that reason."""
        now_reasoning = max(1, len(self.active) - len(self.idle_since))
        self.reasoning += 0.1 * (now_reasoning - self.reasoning)
        used = 0.0
        for agent in sorted(self.active):
            since = self.idle_since.get(agent)
            fade = 1.0 if since is None else math.exp((since - self.now) / self.tau_s(agent))
            used += self.next_tokens(agent) * fade
        return used

    def fits(self, agent: str) -> bool:
        """See `_Preemptive`."""
        if not self.active:
            return True
        return self.used_tokens() + self.next_tokens(agent) <= self.budget_tokens

    def is_over(self, agent: str) -> bool:
        """See `_Preemptive`."""
        return len(self.active) > 1 and self.used_tokens() > self.budget_tokens

    def order(self, agent: str) -> tuple[float, ...]:
        """Warm, then new, then those with the least steps done."""
        left_s = self.left_at.get(agent)
        is_warm = left_s is not None and self.now - left_s < 2 * self.tau_s(agent)
        started = self.step[agent] > 0
        group = 0 if is_warm and started else 2 if started else 1
        return (group, self.step[agent], self.rank[agent])

    def returns(self, agent: str) -> None:
        """See `_Preemptive`."""
        self.left_at[agent] = self.idle_since.pop(agent, None)

    def goes(self, agent: str) -> list[str]:
        """See `_Preemptive`."""
        self.idle_since[agent] = self.now
        return self.pump()

    def leave(self, agent: str, now: float) -> list[str]:
        """See `Gate`."""
        self.idle_since.pop(agent, None)
        return super().leave(agent, now)

    def tick(self, reading: Reading | None, now: float) -> list[str]:
        """See `Gate`."""
        self.now = now
        return self.pump()


def make_gate(arm: str, plans: Sequence[AgentPlan], capacity_tokens: int) -> Gate:
    """The gate of an arm, by the name it had in the measurement: `agent:32`, `budget:0.9`..."""
    kind, _, arg = arm.partition(":")
    makers: dict[str, Callable[[], Gate]] = {
        "none": Ungoverned,
        "agent": lambda: AgentCap(int(arg)),
        "request": lambda: RequestCap(int(arg)),
        "concur": lambda: _Concur(plans, capacity_tokens, arg),
        "budget": lambda: _Budget(plans, capacity_tokens, arg),
        "breakeven": lambda: _BreakEven(plans, capacity_tokens, arg),
    }
    return makers[kind]()
