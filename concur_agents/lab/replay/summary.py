"""Numbers of a replay: one row per arm over all its rounds, a table, and what goes to disk.

Every latency runs from arrival at the gate, so a hold is never hidden. Ratios are of throughput on
the same work: 2.0 under `× none` means half the time of the ungoverned arm. A cut arm has no
makespan; against it there is only a bound (`>2.0`), and it gets none itself beyond `<`.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from concur_agents.core import Reading
from concur_agents.lab.replay.driver import ArmRun, ReplaySample, StepRow

__all__ = ["Summary", "read_round", "round_record", "summarize", "table", "work_agrees"]

_PAUSE_S = 0.05  # shorter holds are the event loop's, not the gate's
_WORK_TOLERANCE = 0.01


@dataclass(frozen=True, slots=True)
class Summary:
    """One arm over its rounds. Means and medians are over rounds, waits and latencies over all
    steps of all rounds.
    """

    arm: str
    rounds: int  # begun
    cut: int  # of these, ended by the time limit
    makespan_s: float  # median; of a cut round, the time it was given
    makespan_low_s: float
    makespan_high_s: float
    agents_per_min: float
    output_tokens_per_s: float
    output_tokens: float  # per round
    prompt_tokens: float  # per round
    hit_rate: float | None  # cached share of prompt tokens; None: the endpoint does not tell
    hit_deficit: float | None  # share of what could have been cached and was not
    recomputed_tokens: (
        float | None
    )  # per round: prompt tokens computed again that this agent had sent before
    mean_active: float
    mean_running: float | None  # calls inside the engine
    kv_usage: float | None  # mean
    preemptions: float | None  # per round
    pauses: float  # per round: steps after the first held longer than 50 ms
    wait_p50_s: float
    wait_p99_s: float
    wait_worst_s: float
    latency_p50_s: float
    latency_p99_s: float
    agents_done: float  # per round
    agents_failed: float
    errors: dict[str, int]
    vs_none: str = ""
    vs_best_fixed: str = ""

    @property
    def finished(self) -> bool:
        """Every round ran to its end with every agent."""
        return self.cut == 0 and self.agents_failed == 0


def summarize(runs: Iterable[ArmRun]) -> list[Summary]:
    """One summary per arm that began, in the order of the runs, with the ratios filled in."""
    by_arm: dict[str, list[ArmRun]] = {}
    for run in runs:
        if run.outcome in ("finished", "cut"):
            by_arm.setdefault(run.arm, []).append(run)
    rows = [_summary(arm, rounds) for arm, rounds in by_arm.items()]
    none = next((row for row in rows if row.arm == "none"), None)
    caps = [row for row in rows if row.arm.startswith("fixed:") and row.finished]
    best = min(caps, key=lambda row: row.makespan_s, default=None)
    return [_with_ratios(row, none, best) for row in rows]


def work_agrees(runs: Iterable[ArmRun]) -> bool:
    """Whether all finished rounds generated the same number of tokens, within 1 %."""
    made = [sum(step.output_tokens for step in run.steps) for run in runs if run.finished]
    return not made or max(made) - min(made) <= _WORK_TOLERANCE * max(made)


def _summary(arm: str, rounds: Sequence[ArmRun]) -> Summary:
    steps = [step for run in rounds for step in run.steps]
    known = [step for step in steps if step.cached_tokens is not None]
    prompt = sum(step.prompt_tokens for step in known)
    cached = sum(step.cached_tokens or 0 for step in known)
    reusable = sum(step.reusable_tokens for step in known)
    reused = sum(min(step.cached_tokens or 0, step.reusable_tokens) for step in known)
    samples = [sample for run in rounds for sample in run.samples if sample.at_s <= run.span_s]
    readings = [sample.reading for sample in samples if sample.reading is not None]
    waits = sorted(step.waited_s for step in steps)
    latencies = sorted(step.latency_s for step in steps)
    spans = [run.span_s for run in rounds]
    total_s = sum(spans)
    n = len(rounds)
    errors: Counter[str] = Counter()
    for run in rounds:
        errors += run.errors
    return Summary(
        arm=arm,
        rounds=n,
        cut=sum(run.outcome == "cut" for run in rounds),
        makespan_s=statistics.median(spans),
        makespan_low_s=min(spans),
        makespan_high_s=max(spans),
        agents_per_min=60.0 * sum(run.agents_done for run in rounds) / total_s,
        output_tokens_per_s=sum(step.output_tokens for step in steps) / total_s,
        output_tokens=sum(step.output_tokens for step in steps) / n,
        prompt_tokens=sum(step.prompt_tokens for step in steps) / n,
        hit_rate=cached / prompt if prompt else None,
        hit_deficit=1.0 - reused / reusable if reusable else None,
        recomputed_tokens=(reusable - reused) / n if known else None,
        mean_active=_mean(sample.active for sample in samples) or 0.0,
        mean_running=_mean(reading.running for reading in readings),
        kv_usage=_mean(reading.kv_usage for reading in readings),
        preemptions=_mean(_risen(run, "preemptions_total") for run in rounds),
        pauses=sum(step.step > 0 and step.waited_s > _PAUSE_S for step in steps) / n,
        wait_p50_s=_rank(waits, 0.50),
        wait_p99_s=_rank(waits, 0.99),
        wait_worst_s=_rank(waits, 1.0),
        latency_p50_s=_rank(latencies, 0.50),
        latency_p99_s=_rank(latencies, 0.99),
        agents_done=sum(run.agents_done for run in rounds) / n,
        agents_failed=sum(run.agents_failed for run in rounds) / n,
        errors=dict(errors),
    )


def _with_ratios(row: Summary, none: Summary | None, best: Summary | None) -> Summary:
    values = asdict(row)
    values["vs_none"] = _ratio(none, row)
    values["vs_best_fixed"] = _ratio(best, row)
    return Summary(**values)


def _ratio(reference: Summary | None, row: Summary) -> str:
    """Throughput of ``row`` over the reference's on the same work, with the bound a cut leaves."""
    if reference is None or (reference.cut and row.cut and reference is not row):
        return "-"
    ratio = f"{reference.makespan_s / row.makespan_s:.2f}"
    if reference is row:
        return ratio
    return f"{'>' if reference.cut else '<' if row.cut else ''}{ratio}"


def table(rows: Sequence[Summary]) -> str:
    """The summaries as a Markdown table that also reads well in a terminal."""
    head = (
        "arm",
        "makespan s",
        "agents/min",
        "out tok/s",
        "hit",
        "deficit",
        "active",
        "pauses",
        "wait p50/p99/worst s",
        "step p50/p99 s",
        "errors",
        "× none",
        "× best fixed",
    )
    lines = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = [_line(line, widths) for line in lines]
    rule = (
        "|"
        + "|".join("-" * (width + 1) + (":" if i else "-") for i, width in enumerate(widths))
        + "|"
    )
    return "\n".join([text[0], rule, *text[1:]])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.rjust(width) if i else cell.ljust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "| " + " | ".join(padded) + " |"


def _cells(row: Summary) -> tuple[str, ...]:
    makespan = f"{row.makespan_s:.1f}"
    if row.rounds > 1:
        makespan += f" ({row.makespan_low_s:.1f}-{row.makespan_high_s:.1f})"
    if row.cut:
        makespan = f"cut at {makespan}, {row.agents_done:.0f} done"
    failed = f" ({row.agents_failed:.0f} agents lost)" if row.agents_failed else ""
    return (
        row.arm,
        makespan,
        f"{row.agents_per_min:.1f}",
        f"{row.output_tokens_per_s:.0f}",
        _share(row.hit_rate),
        _share(row.hit_deficit),
        f"{row.mean_active:.1f}",
        f"{row.pauses:.0f}",
        f"{row.wait_p50_s:.1f}/{row.wait_p99_s:.1f}/{row.wait_worst_s:.1f}",
        f"{row.latency_p50_s:.1f}/{row.latency_p99_s:.1f}",
        f"{sum(row.errors.values())}{failed}",
        row.vs_none,
        row.vs_best_fixed,
    )


def round_record(run: ArmRun) -> dict[str, Any]:
    """One arm in one round, ready for JSON: outcome, 1 s series and every step."""
    return {
        "arm": run.arm,
        "round": run.round,
        "outcome": run.outcome,
        "problem": run.problem,
        "cache_reset": run.cache_reset,
        "span_s": round(run.span_s, 3),
        "agents": run.agents,
        "agents_done": run.agents_done,
        "agents_failed": run.agents_failed,
        "agent_done_s": [round(at_s, 2) for at_s in run.agent_done_s],
        "errors": dict(run.errors),
        "wrong_lengths": run.wrong_lengths,
        "sample_failures": run.sample_failures,
        "counters": {name: _risen(run, name) for name in _COUNTERS},
        "series": _columns(_series(run)),
        "steps": _columns(
            [
                {
                    "agent": step.agent,
                    "step": step.step,
                    "at_gate_s": round(step.at_gate_s, 3),
                    "waited_s": round(step.waited_s, 3),
                    "sent_s": round(step.sent_s, 3),
                    "latency_s": round(step.latency_s, 3),
                    "prompt_tokens": step.prompt_tokens,
                    "cached_tokens": step.cached_tokens,
                    "reusable_tokens": step.reusable_tokens,
                    "output_tokens": step.output_tokens,
                }
                for step in run.steps
            ]
        ),
    }


def read_round(record: dict[str, Any]) -> ArmRun:
    """What `round_record` wrote, as a run that can be summarized again, with rounds of other files.

    Steps and samples come back, rounded as they were written; of the engine's readings, usage and
    the calls inside it, and by how much each counter rose over the whole round.
    """
    risen = {name: value for name, value in record["counters"].items() if value is not None}
    return ArmRun(
        arm=record["arm"],
        round=record["round"],
        outcome=record["outcome"],
        problem=record["problem"],
        cache_reset=record["cache_reset"],
        span_s=record["span_s"],
        agents=record["agents"],
        agents_done=record["agents_done"],
        agents_failed=record["agents_failed"],
        agent_done_s=record["agent_done_s"],
        steps=[
            StepRow(
                agent=row["agent"],
                step=row["step"],
                at_gate_s=row["at_gate_s"],
                sent_s=row["sent_s"],
                done_s=row["at_gate_s"] + row["latency_s"],
                prompt_tokens=row["prompt_tokens"],
                cached_tokens=row["cached_tokens"],
                output_tokens=row["output_tokens"],
                reusable_tokens=row["reusable_tokens"],
            )
            for row in _rows(record["steps"])
        ],
        samples=[
            ReplaySample(
                at_s=row["at_s"],
                active=row["active"],
                in_flight=row["in_flight"],
                waiting=row["waiting"],
                done=row["done"],
                reading=Reading(
                    at_s=row["at_s"],
                    kv_usage=row["kv_usage"],
                    running=row["engine_running"],
                    waiting=row["engine_waiting"],
                )
                if row["engine_running"] is not None
                else None,
                gate={},
            )
            for row in _rows(record["series"])
        ],
        errors=Counter(record["errors"]),
        before=Reading(at_s=0.0, **dict.fromkeys(risen, 0.0)),
        after=Reading(at_s=record["span_s"], **risen),
        wrong_lengths=record["wrong_lengths"],
        sample_failures=record["sample_failures"],
    )


_COUNTERS = (
    "hit_tokens_total",
    "query_tokens_total",
    "computed_tokens_total",
    "generated_tokens_total",
    "preemptions_total",
    "prefill_s_total",
    "decode_s_total",
    "host_hit_tokens_total",
)


def _series(run: ArmRun) -> list[dict[str, Any]]:
    rows = []
    last: ReplaySample | None = None
    before = run.before
    for sample in run.samples:
        now = sample.reading
        since_s = sample.at_s - (last.at_s if last is not None else 0.0)
        hits, queries = (
            _rise(before, now, "hit_tokens_total"),
            _rise(before, now, "query_tokens_total"),
        )
        made = _rise(before, now, "generated_tokens_total")
        row: dict[str, Any] = {
            "at_s": round(sample.at_s, 2),
            "active": sample.active,
            "in_flight": sample.in_flight,
            "waiting": sample.waiting,
            "done": sample.done,
            "kv_usage": _rounded(now.kv_usage if now else None, 4),
            "engine_running": now.running if now else None,
            "engine_waiting": now.waiting if now else None,
            "hit_rate": round(hits / queries, 3) if hits is not None and queries else None,
            "query_tokens": queries,
            "output_tokens_per_s": round(made / since_s, 1)
            if made is not None and since_s > 0
            else None,
        }
        row |= {name: _rounded(value, 3) for name, value in sample.gate.items()}
        rows.append(row)
        last, before = sample, now or before
    return rows


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """A column per name: much smaller on disk than a name per cell."""
    return {name: [row.get(name) for row in rows] for name in (rows[0] if rows else ())}


def _rows(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """The other way round."""
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


def _risen(run: ArmRun, counter: str) -> float | None:
    return _rise(run.before, run.after, counter)


def _rise(before: Reading | None, after: Reading | None, counter: str) -> float | None:
    """By how much a counter rose; None: not reported, or the engine restarted in between."""
    start = getattr(before, counter, None)
    end = getattr(after, counter, None)
    return end - start if start is not None and end is not None and end >= start else None


def _rank(values: Sequence[float], share: float) -> float:
    """Nearest-rank quantile of sorted values; 0 if there are none."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _rounded(value: float | str | None, digits: int) -> float | str | None:
    if isinstance(value, float):
        return round(value, digits) if abs(value) != float("inf") else None
    return value
