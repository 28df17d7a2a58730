"""What counts in a training run beside the time: staleness, and prompts prefilled twice."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from concur_agents.lab.bench.cases import Case
from concur_agents.sim.faults import WeightUpdate
from concur_agents.sim.result import Result

__all__ = ["training_metrics"]


def training_metrics(case: Case, result: Result, staleness: int | None) -> dict[str, Any]:
    """For the rollouts of `samples`.

    Returns:
        `staleness_max` and `staleness_mean`: weight updates between an agent's first call and its
        end; `stale_agents`: those beyond the bound; `first_prefills`: tokens of first prompts that
        were computed, over those that are different.
    """
    ends_s: list[float] = []
    for fault in case.faults:
        if isinstance(fault, WeightUpdate):
            while len(ends_s) * (fault.every_s + fault.lasts_s) <= result.makespan_s:
                ends_s.append((len(ends_s) + 1) * (fault.every_s + fault.lasts_s))
    stale = [
        bisect_right(ends_s, row.finish_s) - bisect_right(ends_s, row.start_s)
        for row in result.rows
        if row.calls
    ]
    computed = sum(
        row.calls[0].prompt_tokens - row.calls[0].cached_tokens for row in result.rows if row.calls
    )
    different = {run for plan in case.plans for run in plan.steps[0].prompt}
    return {
        "staleness_max": max(stale, default=0),
        "staleness_mean": sum(stale) / len(stale) if stale else 0.0,
        "stale_agents": 0 if staleness is None else sum(age > staleness for age in stale),
        "first_prefills": computed / sum(run.tokens for run in different),
    }
