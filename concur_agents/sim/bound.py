"""The free-tier bound: how fast a batch could be if idle contexts cost nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import takewhile

from concur_agents.core import Usage
from concur_agents.sim.engine import Run
from concur_agents.sim.gates import RequestCap
from concur_agents.sim.profile import Profile
from concur_agents.sim.result import Result, new_tokens
from concur_agents.sim.runner import check_plans, simulate
from concur_agents.sim.workload import AgentPlan

__all__ = ["free_tier_bound"]


def free_tier_bound(plans: Sequence[AgentPlan], profile: Profile, *, seed: int = 0) -> Result:
    """A run that no client can beat by much: idle KV costs nothing and nothing is ever computed
    twice.

    The engine keeps every prefix for ever, as if an endless free tier lay under its pool; only the
    KV of calls in flight (prompt and output, shared prefixes counted once) has to fit into the
    pool, and a call waits until it does. Of several bounds on the calls in flight the fastest is
    returned. It is a schedule, not a theorem: it lets calls in first come, first served, and
    another order could be a little faster.
    """
    check_plans(plans, profile)
    tokens = new_tokens(plans) + sum(s.output.tokens for p in plans for s in p.steps)
    runs = sum(len(p.steps) + len(p.steps[0].prompt) for p in plans)
    endless = profile.replace(
        kv_blocks=profile.kv_blocks + tokens // profile.block_size + 2 * runs, host_tier_tokens=0
    )
    caps = {len(plans), *(max(1, len(plans) // part) for part in (2, 4, 8))}
    results = [
        simulate(
            plans,
            endless,
            _FreeTier(plans, profile.capacity_tokens, cap),
            seed=seed,
            record_series=False,
        )
        for cap in sorted(caps)
    ]
    return min(results, key=lambda result: result.makespan_s)


class _FreeTier(RequestCap):
    """Calls in flight fit into the pool and under a cap; the first that fits goes first."""

    def __init__(self, plans: Sequence[AgentPlan], capacity_tokens: int, calls: int) -> None:
        super().__init__(calls)
        self.name = "free_tier"
        self._next = {plan.id: iter(plan.steps) for plan in plans}
        beginnings = Counter(run for plan in plans for run in plan.steps[0].prompt)
        self._shared = {run for run, agents in beginnings.items() if agents > 1}
        self._free_tokens = capacity_tokens
        self._holders: Counter[Run] = Counter()  # of the shared runs: calls in flight
        self._needs: dict[str, tuple[int, tuple[Run, ...]]] = {}  # own tokens, shared runs
        self._queue: dict[str, None] = {}

    def begin_step(self, agent: str, now: float, prompt_tokens: int) -> list[str]:
        """See `Gate`."""
        step = next(self._next[agent])
        shared = tuple(takewhile(self._shared.__contains__, step.prompt))
        own_tokens = prompt_tokens + step.output.tokens - sum(run.tokens for run in shared)
        self._needs[agent] = own_tokens, shared
        self._queue[agent] = None
        return self._fill()

    def end_step(self, agent: str, now: float, usage: Usage) -> list[str]:
        """See `Gate`."""
        own_tokens, shared = self._needs.pop(agent)
        self._holders.subtract(shared)
        self._free_tokens += own_tokens
        self._free_tokens += sum(run.tokens for run in shared if not self._holders[run])
        self._in_flight -= 1
        return self._fill()

    def _fill(self) -> list[str]:
        woken: list[str] = []
        for agent in self._queue:
            if self._in_flight >= self._calls:
                break
            own_tokens, shared = self._needs[agent]
            need = own_tokens + sum(run.tokens for run in shared if not self._holders[run])
            if need <= self._free_tokens:
                self._free_tokens -= need
                self._holders.update(shared)
                self._in_flight += 1
                woken.append(agent)
        for agent in woken:
            del self._queue[agent]
        return woken
