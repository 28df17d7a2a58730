"""What comes out of a simulated run: rows per agent, a series, and the numbers that tables show."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from concur_agents.sim.profile import Profile
from concur_agents.sim.workload import AgentPlan, Prompt, common_tokens

__all__ = ["AgentRow", "Result", "SeriesPoint", "SimulatedCall", "make_result", "new_tokens"]


class SimulatedCall(NamedTuple):
    """One LLM call of one agent."""

    gate_s: float
    """When it reached the gate (the first one: when it asked to start)."""
    start_s: float
    """When it was let through and sent."""
    end_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class AgentRow:
    """What happened to one agent."""

    id: str
    group: str | None
    arrive_s: float
    start_s: float
    """When its first call was sent; inf: it was not, when the run was cut."""
    finish_s: float
    """When its last call ended; inf: it had not, when the run was cut."""
    pauses: int
    """How often it waited at a gate after its first call."""
    calls: tuple[SimulatedCall, ...]
    """Those that ended."""

    @property
    def waits_s(self) -> tuple[float, ...]:
        """How long it waited before each of its calls."""
        return tuple(call.start_s - call.gate_s for call in self.calls)


class SeriesPoint(NamedTuple):
    """One instant of the series."""

    t_s: float
    active: int
    """Agents that have arrived, are not done and do not wait at a gate."""
    waiting: int
    """Agents that wait at a gate."""
    running: int
    """Requests in the engine's batch, tenants' included, as the next two."""
    queued: int
    """Requests in the engine's queue."""
    kv_usage: float
    """Share of the pool held by requests in the batch."""
    hit_rate: float | None
    """Cached share of the prompt tokens admitted since the last sample; None: there were none."""
    output_tokens_per_s: float
    prefill_tokens_per_s: float
    """Prompt tokens really computed."""
    pressure_tokens: float | None
    limit_agents: float | None
    limit_tokens: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run. Token counts are those of the governed agents."""

    gate: str
    profile: str
    seed: int
    agents: int
    finished: int
    """Agents that finished: all of them, unless the run was cut."""
    steps: int
    """Calls that ended."""
    makespan_s: float
    """From the first arrival to the last finish, or to the cut."""
    finish_mean_s: float | None
    """From an agent's arrival to its finish, on average. None: the run was cut before that."""
    finish_p90_s: float | None
    """In this time after their arrival nine in ten were done. None: the run was cut before that."""
    most_open: int
    """Most agents open at once: let in and not finished."""
    prompt_tokens: int
    cached_tokens: int
    computed_tokens: int
    """Prompt tokens that were not cached. What a preemption throws away comes on top."""
    output_tokens: int
    useful_tokens: int
    """Output, and each prompt token the first time that an agent sends it: the same for all gates.
    """
    useful_tokens_per_s: float
    output_tokens_per_s: float
    agents_per_min: float
    """Agents that finished, over the makespan."""
    hit_rate: float
    """Cached share of all prompt tokens."""
    hit_deficit: float
    """1 - H/H*: share of what each agent had sent before (in whole blocks), and was not cached any
    more.
    """
    preemptions: int
    pauses: int
    gini_pauses: float
    """How unevenly pauses fell on agents: 0 evenly, towards 1 all on one."""
    wait_p50_s: float
    """Waits at the gate, one per call, zeros included; the first is counted from the arrival."""
    wait_p99_s: float
    wait_worst_s: float
    pause_worst_s: float
    """The longest wait of an agent that had started."""
    mean_active: float
    """Agents that are there and do not wait at a gate, averaged over the makespan."""
    rows: tuple[AgentRow, ...] = field(repr=False)
    """In the order of the plans."""
    series: tuple[SeriesPoint, ...] = field(repr=False)
    """One sample a second; empty if not recorded."""

    def summary(self) -> dict[str, Any]:
        """All but rows and series, JSON-able."""
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in {"rows", "series"}
        }


def make_result(
    plans: Sequence[AgentPlan],
    profile: Profile,
    rows: tuple[AgentRow, ...],
    *,
    gate: str,
    seed: int,
    end_s: float,
    still_waiting: Sequence[tuple[int, float]],
    preemptions: int,
    active_s: float,
    most_open: int,
    series: tuple[SeriesPoint, ...],
) -> Result:
    """Sum up a run that ended, or was cut, at `end_s`.

    Args:
        plans: the agents, in the order of `rows`.
        profile: the engine.
        rows: what happened to the agents.
        gate: its name.
        seed: of the run.
        end_s: when it ended [s].
        still_waiting: of each agent at the gate then: its calls so far, and its wait so far [s].
        preemptions: counted by the engine.
        active_s: active agents, integrated over time [agents x s].
        most_open: most agents open at once.
        series: samples.
    """
    calls = [call for row in rows for call in row.calls]
    prompt_tokens = sum(call.prompt_tokens for call in calls)
    cached_tokens = sum(call.cached_tokens for call in calls)
    output_tokens = sum(call.output_tokens for call in calls)
    sent = [
        dataclasses.replace(plan, steps=plan.steps[: len(row.calls)])
        for plan, row in zip(plans, rows, strict=True)
        if row.calls
    ]
    useful_tokens = output_tokens + new_tokens(sent)
    makespan_s = end_s - min(row.arrive_s for row in rows)
    pauses_s = [wait_s for row in rows for wait_s in row.waits_s[1:]]
    waits_s = [wait_s for row in rows for wait_s in row.waits_s]
    waits_s = sorted([*waits_s, *(wait_s for _, wait_s in still_waiting)])
    pauses_s += [wait_s for calls_before, wait_s in still_waiting if calls_before]
    lives_s = sorted(row.finish_s - row.arrive_s for row in rows)
    finished = sum(life_s < math.inf for life_s in lives_s)
    p90_s = _rank(lives_s, 0.9)
    pauses = [row.pauses for row in rows]
    return Result(
        gate=gate,
        profile=profile.name,
        seed=seed,
        agents=len(rows),
        finished=finished,
        steps=len(calls),
        makespan_s=makespan_s,
        finish_mean_s=math.fsum(lives_s) / len(rows) if finished == len(rows) else None,
        finish_p90_s=p90_s if p90_s < math.inf else None,
        most_open=most_open,
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        computed_tokens=prompt_tokens - cached_tokens,
        output_tokens=output_tokens,
        useful_tokens=useful_tokens,
        useful_tokens_per_s=useful_tokens / makespan_s,
        output_tokens_per_s=output_tokens / makespan_s,
        agents_per_min=60.0 * finished / makespan_s,
        hit_rate=cached_tokens / prompt_tokens if prompt_tokens else 0.0,
        hit_deficit=_hit_deficit(plans, rows, profile.block_size),
        preemptions=preemptions,
        pauses=sum(pauses),
        gini_pauses=_gini(pauses),
        wait_p50_s=_rank(waits_s, 0.50),
        wait_p99_s=_rank(waits_s, 0.99),
        wait_worst_s=max(waits_s, default=0.0),
        pause_worst_s=max(pauses_s, default=0.0),
        mean_active=active_s / makespan_s,
        rows=rows,
        series=series,
    )


def new_tokens(plans: Sequence[AgentPlan]) -> int:
    """Prompt tokens the first time that an agent sends them, in whatever order agents enter."""
    new = 0
    seen: set[Prompt] = set()
    for plan in plans:
        first = plan.steps[0].prompt
        for n, run in enumerate(first, start=1):
            if first[:n] not in seen:
                seen.add(first[:n])
                new += run.tokens
        later = (step.prompt_tokens for step in plan.steps[1:])
        new += sum(tokens - sent for tokens, sent in zip(later, _sent_before(plan), strict=True))
    return new


def _sent_before(plan: AgentPlan) -> list[int]:
    """Per call but the first: its prompt tokens that the call before sent or received."""
    return [
        common_tokens((*before.prompt, before.output), step.prompt)
        for before, step in pairwise(plan.steps)
    ]


def _hit_deficit(plans: Sequence[AgentPlan], rows: Sequence[AgentRow], block_size: int) -> float:
    """1 - H/H* over all calls but first ones: the engine caches whole blocks and computes at least
    one token.
    """
    reusable = reused = 0
    for plan, row in zip(plans, rows, strict=True):
        for sent, (before, call) in zip(_sent_before(plan), pairwise(row.calls), strict=False):
            held = before.prompt_tokens + before.output_tokens - 1  # the last token has no KV yet
            could = min(sent, held, call.prompt_tokens - 1) // block_size * block_size
            reusable += could
            reused += min(call.cached_tokens, could)
    return 1.0 - reused / reusable if reusable else 0.0


def _gini(values: Sequence[int]) -> float:
    total, n = sum(values), len(values)
    if not total:
        return 0.0
    weighted = sum(i * value for i, value in enumerate(sorted(values), start=1))
    return 2.0 * weighted / (n * total) - (n + 1) / n


def _rank(rising: Sequence[float], share: float) -> float:
    """Nearest-rank percentile."""
    return rising[max(0, math.ceil(share * len(rising)) - 1)] if rising else 0.0
