"""Every measured arm and the same arm simulated.

The measurements are in `sim/data/measured.json`. Every point is run anew with the workload of the
measurement; nothing is fitted per point. The admission gates of the H100 sweeps are repeated as
they were (`measured_gates`), because the question is whether the *engine* is right: the same gate
and the same agents should give the same numbers.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from importlib import resources
from typing import Any

from concur_agents.sim.engine import Engine, Request, Run
from concur_agents.sim.gates import AgentCap
from concur_agents.sim.measured_gates import make_gate
from concur_agents.sim.profile import Profile, load_profile
from concur_agents.sim.runner import simulate
from concur_agents.sim.timing import LogNormal, ToolTimes, Uniform
from concur_agents.sim.workload import AgentPlan, PlanStep, synthetic

HIT_GOAL = 0.07
RATIO_GOAL = 0.15

TINY = "vllm-cpu-tiny"
H100 = "h100-qwen3-8b"


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
    profile = full.replace(
        kv_blocks=sweep["kv_tokens"] // full.block_size,
        host_tier_tokens=sweep.get("host_tier_tokens", 0),
    )
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
