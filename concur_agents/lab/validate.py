"""The simulated engine beside measurements of real ones: `python -m concur_agents.lab.validate`.

Writes `docs/simulator.md` and its picture. Every point is run anew with the workload of the
measurement; nothing is fitted per point. The measurements are in `data/measured.json`.

The admission gates of the H100 sweeps were written for that driver and are repeated as they were
(see `measured_gates`), because the question is whether the *engine* is right: the same gate and the
same agents should give the same numbers.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from concur_agents.core import Reading, Usage
from concur_agents.errors import ConfigError
from concur_agents.sim.engine import Engine, Request, Run
from concur_agents.sim.gates import AgentCap
from concur_agents.sim.measured_gates import make_gate
from concur_agents.sim.profile import Profile, load_profile
from concur_agents.sim.runner import simulate
from concur_agents.sim.timing import LogNormal, ToolTimes, Uniform
from concur_agents.sim.traces import load_traces
from concur_agents.sim.workload import (
    AgentPlan,
    PlanStep,
    plans_from_traces,
    synthetic,
)

HIT_GOAL = 0.07
RATIO_GOAL = 0.15

TINY = "vllm-cpu-tiny"
H100 = "h100-qwen3-8b"
CODER = "2xh100-qwen3-coder-30b"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measured arm and the same arm simulated."""

    label: str
    x: float
    """Where it stands on the axis of its curve."""
    measured_hit: float
    simulated_hit: float
    measured_speed: float
    """Work per second, in the unit of its section; arms are compared by ratios of it."""
    simulated_speed: float
    measured: str
    """What was measured, in the words of the table."""
    simulated: str
    draws: tuple[float, ...] = ()
    """Hit rate of every draw of the workload, where `simulated_hit` is the mean of several."""

    @property
    def hit_error(self) -> float:
        """Simulated minus measured hit rate."""
        return self.simulated_hit - self.measured_hit

    def ratio_error(self, reference: Point) -> float:
        """How far the speed relative to another arm is off, as a share."""
        measured = self.measured_speed / reference.measured_speed
        return self.simulated_speed / reference.simulated_speed / measured - 1

    def holds(self, reference: Point) -> bool:
        """Within both goals."""
        return abs(self.hit_error) <= HIT_GOAL and abs(self.ratio_error(reference)) <= RATIO_GOAL


def measured() -> dict[str, Any]:
    """What was measured on real engines, with sources."""
    file = resources.files("concur_agents.sim") / "data" / "measured.json"
    data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return data


# -- a real vLLM on a CPU


def tiny_points() -> list[Point]:
    """Hit rate and makespan per cap on active agents."""
    data = measured()["vllm_cpu_tiny"]
    plans = _tiny_plans(**data["workload"])
    points = []
    for row in data["points"]:
        result = simulate(plans, load_profile(TINY), AgentCap(row["agents"]), record_series=False)
        points.append(
            Point(
                label=f"{row['agents']} agents",
                x=row["agents"],
                measured_hit=row["hit_rate"],
                simulated_hit=result.hit_rate,
                measured_speed=1 / row["makespan_s"],
                simulated_speed=1 / result.makespan_s,
                measured=f"{row['makespan_s']:.1f} s",
                simulated=f"{result.makespan_s:.1f} s",
            )
        )
    return points


def _tiny_plans(
    agents: int,
    steps: int,
    first_prompt_tokens: int,
    growth_tokens: int,
    output_tokens: int,
    tool_s: float,
) -> list[AgentPlan]:
    """Each prompt is the last one and something new. The outputs are not in it: random tokens come
    out of the chat template as other tokens, or so it seems: with only prompts hit again the
    measured 48,592 computed tokens come out exactly, with outputs they do not.
    """
    plans = []
    for i in range(agents):
        prompt: tuple[Run, ...] = (Run((i, "first"), first_prompt_tokens),)
        planned = []
        for k in range(steps):
            output = Run((i, k, "output"), output_tokens)
            planned.append(PlanStep(prompt, output, tool_s if k + 1 < steps else 0.0))
            prompt = (*prompt, Run((i, k), growth_tokens))
        plans.append(AgentPlan(f"agent-{i:02d}", tuple(planned)))
    return plans


# -- a real vLLM on an H100 and on an H200


def sweeps(gpu: str) -> list[dict[str, Any]]:
    """The measured sweeps of a GPU, `h100` or `h200`."""
    found: list[dict[str, Any]] = measured()[gpu]["sweeps"]
    return found


def sweep_points(sweep: dict[str, Any]) -> list[Point]:
    """The arms of one sweep; the speed is steps per second."""
    shape = dict(sweep["workload"])
    tools: ToolTimes = (
        LogNormal(**shape["tools"]["lognormal"])
        if "lognormal" in shape["tools"]
        else Uniform(*shape["tools"]["uniform_s"])
    )
    steps_range = shape["steps_range"]
    plans = synthetic(
        shape["agents"],
        shape["steps"],
        first=tuple(shape["first"]),
        gen=tuple(shape["gen"]),
        obs=tuple(shape["obs"]),
        tools=tools,
        steps_range=tuple(steps_range) if steps_range else None,
        shared=shape["shared"],
    )
    full = load_profile(sweep["profile"])
    profile = full.replace(kv_blocks=sweep["kv_tokens"] // full.block_size)
    points: list[Point] = []
    for arm in sweep["arms"]:
        gate = make_gate(arm["arm"], plans, profile.capacity_tokens)
        result = simulate(plans, profile, gate, record_series=False)
        # An arm that was cut short is compared by what it had done by then.
        end_s = result.makespan_s if arm["complete"] else arm["seconds"]
        calls = [call for row in result.rows for call in row.calls if call.end_s <= end_s]
        total = sum(call.prompt_tokens for call in calls)
        if arm["complete"]:
            said = (f"{arm['seconds']:.1f} s", f"{end_s:.1f} s")
        else:
            said = (
                f"{arm['steps_done']} steps in {end_s:.0f} s",
                f"{len(calls)} steps in {end_s:.0f} s",
            )
        points.append(
            Point(
                label=arm["arm"],
                x=len(points),
                measured_hit=arm["hit_rate"],
                simulated_hit=sum(call.cached_tokens for call in calls) / total,
                measured_speed=arm["steps_done"] / arm["seconds"],
                simulated_speed=len(calls) / end_s,
                measured=said[0],
                simulated=said[1],
            )
        )
    return points


@dataclass(frozen=True)
class Timing:
    """One calibration measurement and what the engine takes for the same."""

    label: str
    measured_s: float
    simulated_s: float


def calibration_timings() -> list[Timing]:
    """Prefill and decode on their own: the profile against what it was fitted to."""
    calibration = measured()["h100"]["calibration"]
    profile = load_profile(H100).replace(request_overhead_s=0.0)
    timings = []
    for row in calibration["prefill_parallel"]:
        events = _batch(profile, row["requests"], row["tokens"], 1)
        label = f"prefill {row['requests']} x {row['tokens']} tokens"
        timings.append(Timing(label, row["wall_s"], events[-1]))
    for row in calibration["decode"]:
        short, long = (
            _batch(profile, row["batch"], row["context_tokens"], output)[-1] for output in (8, 72)
        )
        label = f"decode step, {row['batch']} x {row['context_tokens']} tokens"
        timings.append(Timing(label, row["step_ms"] / 1e3, (long - short) / 64))
    return timings


def _batch(profile: Profile, requests: int, tokens: int, output: int) -> list[float]:
    """Finish times of equal requests sent at once."""
    engine = Engine(profile)
    for i in range(requests):
        request = Request(str(i), (Run(i, tokens),), Run((i, "output"), output), 0.0)
        engine.submit(request)
    return [event.at_s for event in engine.advance(math.inf) if event.kind == "finished"]


# -- public load curves


@dataclass(frozen=True)
class Curve:
    """How a public load curve is approximated with the traces at hand."""

    name: str
    scale: float
    """Recorded prompts are multiplied by this, outputs are not."""
    tool_cap_s: float
    from_s: float
    to_s: float
    gpus: int
    """GPUs that share the measured tokens/s."""
    working_set: float | None
    """Published share of the pool that the sessions of the first point hold; each batch is scaled
    until it holds as much. None: not published, `scale` is all."""


STEP_24 = Curve("step_24", 1.45, 10.0, 300.0, 3600.0, 2, 0.72)
STEP_13 = Curve("step_13", 1.2, 1.0, 0.0, 1800.0, 1, None)
SEEDS = (42, 7, 1)


def curve_points(curve: Curve, seeds: Iterable[int] = SEEDS) -> list[Point]:
    """Output tokens/s and hit rate per number of sessions; the mean over seeds."""
    rows = measured()["coder_30b"][curve.name]["points"]
    profile = load_profile(CODER)
    windows: dict[int, list[_Window]] = {row["sessions"]: [] for row in rows}
    for seed in seeds:
        scale = curve.scale
        if curve.working_set is not None:
            scale = _scale_to(curve.working_set, curve, rows[0]["sessions"], seed, profile)
        for sessions, runs in windows.items():
            runs.append(_sustain(curve, scale, sessions, seed, profile))
    points = []
    for row in rows:
        runs = windows[row["sessions"]]
        hit = sum(window.hit_rate for window in runs) / len(runs)
        tok_s = sum(window.output_tokens_per_s for window in runs) / len(runs) / curve.gpus
        kv_usage = sum(window.kv_usage for window in runs) / len(runs)
        real = row["tok_s_per_gpu" if curve.gpus > 1 else "tok_s"]
        points.append(
            Point(
                label=f"{row['sessions']} sessions",
                x=row["sessions"],
                measured_hit=row["hit_rate"],
                simulated_hit=hit,
                measured_speed=real,
                simulated_speed=tok_s,
                measured=f"{real:.0f} tok/s, {row['kv_usage']:.2f}",
                simulated=f"{tok_s:.0f} tok/s, {kv_usage:.2f}",
                draws=tuple(window.hit_rate for window in runs),
            )
        )
    return points


class _WindowOverError(Exception):
    """The window of the measurement is over."""


class _Window(AgentCap):
    """So many sessions at once, for so long; keeps its own books, because the batch has no end."""

    def __init__(self, sessions: int, from_s: float, to_s: float, capacity_tokens: int) -> None:
        super().__init__(sessions)
        self._from_s, self._to_s = from_s, to_s
        self._capacity_tokens = capacity_tokens
        self._footprints: dict[str, int] = {}
        self._held: list[float] = []
        self._usage: list[float] = []
        self._prompt_tokens = self._cached_tokens = self._output_tokens = 0

    def end_step(self, agent: str, now: float, usage: Usage) -> list[str]:
        """See `Gate`."""
        self._footprints[agent] = usage.prompt_tokens + usage.completion_tokens
        if now >= self._from_s:
            self._prompt_tokens += usage.prompt_tokens
            self._cached_tokens += usage.cached_tokens or 0
            self._output_tokens += usage.completion_tokens
        return []

    def leave(self, agent: str, now: float) -> list[str]:
        """See `Gate`."""
        self._footprints.pop(agent, None)
        return super().leave(agent, now)

    def tick(self, reading: Reading | None, now: float) -> list[str]:
        """See `Gate`."""
        if now >= self._to_s:
            raise _WindowOverError
        assert reading is not None
        if now >= self._from_s:
            self._usage.append(reading.kv_usage or 0.0)
            self._held.append(sum(self._footprints.values()) / self._capacity_tokens)
        return []

    @property
    def working_set(self) -> float:
        """Contexts of the sessions, as a mean share of the pool."""
        return sum(self._held) / len(self._held)

    @property
    def kv_usage(self) -> float:
        """Mean share of the pool that running requests hold."""
        return sum(self._usage) / len(self._usage)

    @property
    def hit_rate(self) -> float:
        """Cached share of the prompt tokens in the window."""
        return self._cached_tokens / self._prompt_tokens

    @property
    def output_tokens_per_s(self) -> float:
        """Output of the calls that ended in the window."""
        return self._output_tokens / (self._to_s - self._from_s)


def _scale_to(
    working_set: float, curve: Curve, sessions: int, seed: int, profile: Profile
) -> float:
    """The factor with which this batch holds `working_set` of the pool, as near as four tries get:
    which sessions fall into the window changes with it.
    """
    scale, tries = curve.scale, []
    for _ in range(4):
        held = _sustain(curve, scale, sessions, seed, profile).working_set
        tries.append((abs(held - working_set), scale))
        scale *= working_set / held
    return min(tries)[1]


def _sustain(curve: Curve, scale: float, sessions: int, seed: int, profile: Profile) -> _Window:
    """Run recorded sessions, always `sessions` at once, until the window is over."""
    cut = int(0.95 * profile.max_model_len / scale)
    traces = load_traces("weka-claude-code", tool_cap_s=curve.tool_cap_s, max_context=cut, cut=True)
    longer = [
        replace(
            trace,
            group_shared_tokens=int(scale * trace.group_shared_tokens),
            steps=tuple(
                replace(
                    step,
                    prompt_tokens=int(scale * step.prompt_tokens),
                    shared_prefix_tokens=int(scale * step.shared_prefix_tokens),
                )
                for step in trace.steps
            ),
        )
        for trace in traces
    ]
    plans = plans_from_traces(longer, 10 * sessions, seed)
    window = _Window(sessions, curve.from_s, curve.to_s, profile.capacity_tokens)
    try:
        simulate(plans, profile, window, poll_interval_s=5.0, record_series=False)
    except _WindowOverError:
        return window
    raise ConfigError(f"{len(plans)} sessions are over before {curve.to_s} s")


# -- the report


def table(points: Sequence[Point], reference: Point, measured_as: str) -> str:
    """A markdown table; rows outside the goals are marked."""
    head = ["arm", "hit rate measured", "simulated", "off by"]
    head += [f"{measured_as} measured", "simulated"]
    head += [f"speed vs {reference.label} measured", "simulated", "off by", ""]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for point in points:
        ratio = point.measured_speed / reference.measured_speed
        simulated_ratio = point.simulated_speed / reference.simulated_speed
        off = f"{point.ratio_error(reference):+.1%}" if point is not reference else "-"
        spread = f" ({min(point.draws):.2f}..{max(point.draws):.2f})" if point.draws else ""
        mark = "" if point.holds(reference) else "**misses**"
        lines.append(
            f"| {point.label} | {point.measured_hit:.3f} | {point.simulated_hit:.3f}{spread} "
            f"| {point.hit_error:+.3f} | {point.measured} | {point.simulated} "
            f"| {ratio:.2f} | {simulated_ratio:.2f} | {off} | {mark} |"
        )
    return "\n".join(lines)


def fast_sections() -> dict[str, str]:
    """Every section of the report that takes a second or two: CPU, H100, calibration."""
    sections = {}
    points = tiny_points()
    sections["tiny"] = table(points, points[-1], "makespan")
    for gpu in ("h100", "h200"):
        for i, sweep in enumerate(sweeps(gpu)):
            points = sweep_points(sweep)
            sections[f"{gpu}-{i}"] = table(points, _named(points, "none"), "makespan")
    lines = ["| what | measured | simulated | off by |", "|---|---|---|---|"]
    lines += [
        f"| {timing.label} | {timing.measured_s * 1e3:.2f} ms | {timing.simulated_s * 1e3:.2f} ms "
        f"| {timing.simulated_s / timing.measured_s - 1:+.1%} |"
        for timing in calibration_timings()
    ]
    sections["calibration"] = "\n".join(lines)
    return sections


def _named(points: Sequence[Point], label: str) -> Point:
    return next(point for point in points if point.label == label)


def report(curves: dict[str, list[Point]]) -> str:
    """The whole page."""
    sections = fast_sections()
    for name, points in curves.items():
        sections[name] = table(points, points[0], "output, pool in use")
    page = (resources.files("concur_agents.lab") / "validate.md").read_text(encoding="utf-8")
    for name, text in sections.items():
        page = page.replace(f"<{name}>", text)
    return page


def draw(path: Path, curves: dict[str, list[Point]]) -> None:
    """The picture of the page: measured as dots, simulated as lines."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ImportError('drawing needs matplotlib: pip install "concur-agents[plot]"') from error
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 8.5), layout="constrained")
    ink, line = "#c0392b", "#2c6fad"

    def curve(axis: Any, points: Sequence[Point], what: str, title: str, x: str, y: str) -> None:
        xs = [point.x for point in points]
        simulated = [getattr(point, f"simulated_{what}") for point in points]
        real = [getattr(point, f"measured_{what}") for point in points]
        axis.plot(xs, simulated, "-", color=line, lw=1.8, marker=".", label="simulated")
        axis.plot(xs, real, "o", color=ink, ms=7, mfc="none", mew=1.8, label="measured")
        axis.set(title=title, xlabel=x, ylabel=y, ylim=(0, None), xticks=xs)
        axis.grid(alpha=0.25)

    curve(
        axes[0][0],
        tiny_points(),
        "hit",
        "vLLM on a CPU: hit rate",
        "cap on active agents",
        "cached share of prompt tokens",
    )
    axes[0][0].legend(frameon=False)

    rows: list[tuple[str, float, float]] = []
    for sweep in sweeps("h100"):
        points = sweep_points(sweep)
        name = sweep["name"].split(",")[0].split()[0]
        base = _named(points, "none")
        rows += [
            (
                f"{point.label}  ({name})",
                point.measured_speed / base.measured_speed,
                point.simulated_speed / base.simulated_speed,
            )
            for point in points
            if point is not base
        ]
    axis = axes[0][1]
    for y, (_, real, simulated) in enumerate(reversed(rows)):
        axis.plot([real, simulated], [y, y], "-", color="#999999", lw=1)
        axis.plot(simulated, y, ".", color=line, ms=9)
        axis.plot(real, y, "o", color=ink, ms=7, mfc="none", mew=1.8)
    axis.axvline(1, color="#999999", lw=0.8, ls=":")
    axis.set_yticks(range(len(rows)), [row[0] for row in reversed(rows)], fontsize=8)
    axis.set(
        title="vLLM on an H100: speed of every arm vs none",
        xlabel="steps per second, none = 1 (agents in the sweep in brackets)",
        xlim=(0, None),
    )
    axis.grid(alpha=0.25, axis="x")

    step_24 = curves[STEP_24.name]
    title = "2x H100, Coder-30B, public curve"
    curve(axes[1][0], step_24, "hit", f"{title}: hit rate", "sessions", "cached share")
    curve(axes[1][1], step_24, "speed", f"{title}: output", "sessions", "output tokens/s per GPU")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Run everything and write the page and its picture."""
    parser = argparse.ArgumentParser(
        prog="python -m concur_agents.lab.validate", description=__doc__
    )
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder to write to")
    folder: Path = parser.parse_args(argv).docs
    began_s = time.perf_counter()
    curves = {curve.name: curve_points(curve) for curve in (STEP_24, STEP_13)}
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "simulator.md").write_text(report(curves), encoding="utf-8")
    draw(folder / "images" / "simulator.png", curves)
    took_s = time.perf_counter() - began_s
    sys.stdout.write(f"wrote {folder / 'simulator.md'} in {took_s:.0f} s\n")


if __name__ == "__main__":
    main()
