"""What one arm of the demo came to: one row of numbers, and three curves over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from concur_agents.lab.demo.course import Course
from concur_agents.lab.demo.scenario import Scenario
from concur_agents.lab.replay.batch import StepRow

__all__ = ["ArmReport", "Series", "as_json", "series_of", "summarize"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmReport:
    """One arm; the keys of an object under `arms` in the JSON. Times are on the engine's clock."""

    arm: str
    """As given to `--arms`."""
    label: str
    law: str | None
    """None: ungoverned."""
    makespan_s: float
    """From the first agent's arrival to the last one's end [s]."""
    speedup: float | None
    """Makespan of the (first) ungoverned arm over this one's; None: no arm was ungoverned."""
    virtual_makespan_s: float
    """The same batch in the virtual-time simulator: no HTTP, no clients, no machine [s]."""
    real_s: float
    """Time on the wall that it took [s]."""
    agents_per_min: float
    output_tokens_per_s: float
    cached_share: float
    """Share of all prompt tokens that the engine found in its cache."""
    hit_deficit: float
    """Share of what an agent had sent before, sent again, and was not cached any more."""
    mean_active: float
    """Agents that were there and did not wait at the gate, averaged over the makespan."""
    pauses: int
    """How often an agent that had started had to wait."""
    worst_wait_s: float
    """Longest stand before a call, the first one's queue included [s]."""
    calls: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Curves of one arm, for pictures. Lists of equal length, a value per `every_s`."""

    every_s: float
    """Width of an interval [s]."""
    at_s: list[float]
    """Middle of the interval."""
    active: list[float]
    """Active agents, averaged over the interval."""
    cached_share: list[float | None]
    """Of the prompts whose calls ended in it; None: none ended."""
    output_tokens_per_s: list[float]
    """Each call's, spread evenly over its duration."""


def summarize(scenario: Scenario, courses: Sequence[Course]) -> list[ArmReport]:
    """One row per arm that has run, in their order."""
    rows = [
        _report(scenario, course, virtual_s)
        for course, virtual_s in zip(courses, scenario.virtual_s, strict=False)
    ]
    base_s = next((row.makespan_s for row in rows if row.law is None), None)
    return [
        replace(row, speedup=base_s / row.makespan_s if base_s is not None else None)
        for row in rows
    ]


def series_of(course: Course, every_s: float) -> Series:
    """The curves of one arm."""
    bins = int(course.makespan_s / every_s) + 1
    active_s, outputs = [0.0] * bins, [0.0] * bins
    prompts, cached = [0] * bins, [0] * bins
    for rows in course.calls.values():
        for row in rows:
            at = min(bins - 1, int(row.done_s / every_s))
            prompts[at] += row.prompt_tokens
            cached[at] += row.cached_tokens or 0
            _spread(outputs, every_s, row.sent_s, row.done_s, row.output_tokens)
        for from_s, to_s in _active_spans(rows):
            _spread(active_s, every_s, from_s, to_s, to_s - from_s)
    lengths_s = [min(every_s, course.makespan_s - at * every_s) for at in range(bins)]
    kept = [at for at in range(bins) if lengths_s[at] > 0.5 * every_s]
    return Series(
        every_s=every_s,
        at_s=[(at + 0.5) * every_s for at in kept],
        active=[active_s[at] / lengths_s[at] for at in kept],
        cached_share=[cached[at] / prompts[at] if prompts[at] else None for at in kept],
        output_tokens_per_s=[outputs[at] / lengths_s[at] for at in kept],
    )


def as_json(
    scenario: Scenario, courses: Sequence[Course], machine: dict[str, Any], files: Sequence[str]
) -> dict[str, Any]:
    """All of it; the keys are stable and documented in docs/quickstart.md."""
    every_s = interval_s(courses)
    profile = scenario.profile
    return {
        "scenario": {
            "agents": len(scenario.plans),
            "calls": scenario.calls,
            "traces": scenario.traces,
            "seed": scenario.seed,
            "profile": profile.name,
            "model": profile.model,
            "replicas": scenario.replicas,
            "capacity_tokens": profile.capacity_tokens,
            "final_tokens": scenario.final_tokens,
            "oversubscription": round(scenario.oversubscription, 3),
        },
        "machine": machine,
        "arms": [
            _rounded(asdict(row)) | {"series": _rounded(asdict(series_of(course, every_s)))}
            for row, course in zip(summarize(scenario, courses), courses, strict=True)
        ],
        "files": list(files),
    }


def interval_s(courses: Sequence[Course]) -> float:
    """Width of the intervals that all curves are cut into [s]: 60 over the longest arm."""
    return max(course.makespan_s for course in courses) / 60


def _report(scenario: Scenario, course: Course, virtual_s: float) -> ArmReport:
    calls = [row for rows in course.calls.values() for row in rows]
    output_tokens = sum(row.output_tokens for row in calls)
    prompt_tokens = sum(row.prompt_tokens for row in calls)
    cached_tokens = sum(row.cached_tokens or 0 for row in calls)
    reusable = sum(row.reusable_tokens for row in calls)
    reused = sum(min(row.cached_tokens or 0, row.reusable_tokens) for row in calls)
    active_s = sum(
        to_s - from_s for rows in course.calls.values() for from_s, to_s in _active_spans(rows)
    )
    law = course.arm.law
    return ArmReport(
        arm=course.arm.name,
        label=course.arm.label,
        law=law.name if law is not None else None,
        makespan_s=course.makespan_s,
        speedup=None,
        virtual_makespan_s=virtual_s,
        real_s=course.real_s,
        agents_per_min=60 * len(course.calls) / course.makespan_s,
        output_tokens_per_s=output_tokens / course.makespan_s,
        cached_share=cached_tokens / prompt_tokens,
        hit_deficit=1 - reused / reusable if reusable else 0.0,
        mean_active=active_s / course.makespan_s,
        pauses=course.pauses,
        worst_wait_s=max(row.waited_s for row in calls),
        calls=len(calls),
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        output_tokens=output_tokens,
    )


def _active_spans(rows: Sequence[StepRow]) -> list[tuple[float, float]]:
    """When an agent did not wait at the gate: from each call sent to the next gate, or its end."""
    ends_s = [row.at_gate_s for row in rows[1:]] + [rows[-1].done_s]
    return [(row.sent_s, end_s) for row, end_s in zip(rows, ends_s, strict=True)]


def _spread(bins: list[float], every_s: float, from_s: float, to_s: float, amount: float) -> None:
    """Add `amount` to the intervals between two instants, to each by its share of the time."""
    for at in range(int(from_s / every_s), min(len(bins) - 1, int(to_s / every_s)) + 1):
        overlap_s = min(to_s, (at + 1) * every_s) - max(from_s, at * every_s)
        bins[at] += amount * overlap_s / (to_s - from_s) if to_s > from_s else 0.0


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    def short(value: Any) -> Any:
        if isinstance(value, list):
            return [short(each) for each in value]
        return round(value, 4) if isinstance(value, float) else value

    return {name: short(value) for name, value in values.items()}
