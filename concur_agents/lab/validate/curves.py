"""Public load curves of a real engine, and the simulated engine under sessions like theirs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from concur_agents.core import Reading, Usage
from concur_agents.errors import ConfigError
from concur_agents.lab.validate.points import Point, measured
from concur_agents.sim.gates import AgentCap
from concur_agents.sim.profile import Profile, load_profile
from concur_agents.sim.runner import simulate
from concur_agents.sim.traces import load_traces
from concur_agents.sim.workload import plans_from_traces

CODER = "2xh100-qwen3-coder-30b"


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
