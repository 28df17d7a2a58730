"""What a demo runs: which agents, on which engine, under which gates, and how fast time passes.

The batch is first run in the virtual-time simulator, which takes a second or two. That tells how
long each arm will be on the engine's clock, and so how many of the engine's seconds must pass in a
real one for the whole demo to fit into about a minute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from concur_agents.core import Law, Regulator, law_names, make_law
from concur_agents.errors import ConfigError
from concur_agents.sim.profile import Profile, load_profile
from concur_agents.sim.runner import RegulatorGate, Ungoverned, simulate
from concur_agents.sim.traces import load_traces
from concur_agents.sim.workload import AgentPlan, plans_from_traces

__all__ = ["FITS_PROFILE", "Arm", "Scenario", "make_scenario", "parse_arms"]

FITS_PROFILE = "2xh100-qwen3-coder-30b"
"""An engine whose pool holds the whole batch, for `--fits`."""

_RUNS_S = 62.0
"""Real time for all arms together [s]; the rest of the 90 s is for starting and drawing."""

_EASY_CALLS_PER_S, _MOST_CALLS_PER_S = 40.0, 140.0
"""Calls in a real second. A small batch runs at the easy rate; nothing runs faster than the other,
beyond which a small machine would measure its own HTTP client."""

POLL_INTERVAL_S = 5.0
"""Time between the governor's readings [s on the engine's clock], 20 of them in a real second."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to run the batch: ungoverned (`law` is None), or under a law."""

    name: str
    law: Law | None

    @property
    def label(self) -> str:
        """For tables and pictures."""
        if self.law is None:
            return "ungoverned"
        cap = getattr(self.law, "agents", None)
        return f"fixed cap of {cap:g}" if self.law.name == "fixed" else self.law.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Everything that is decided before the first call."""

    traces: str
    seed: int
    profile: Profile
    plans: tuple[AgentPlan, ...]
    arms: tuple[Arm, ...]
    virtual_s: tuple[float, ...]
    """Makespan of each arm in the virtual-time simulator [s on the engine's clock]."""
    time_scale: float
    """Seconds on the engine's clock per real second."""

    @property
    def calls(self) -> int:
        """LLM calls of one arm."""
        return sum(len(plan.steps) for plan in self.plans)

    @property
    def final_tokens(self) -> int:
        """All agents' largest contexts together [tokens]."""
        return sum(plan.peak_tokens for plan in self.plans)

    @property
    def oversubscription(self) -> float:
        """`final_tokens` in KV pools."""
        return self.final_tokens / self.profile.capacity_tokens

    @property
    def expected_s(self) -> float:
        """Real time that all arms will take together [s]."""
        return sum(self.virtual_s) / self.time_scale


def make_scenario(
    *,
    arms: str = "none,fixed,working_set",
    profile: str | Path | Profile = "h200-qwen3-32b",
    traces: str | Path = "miniswe-gemini3pro",
    agents: int = 64,
    max_steps: int | None = None,
    seed: int = 0,
    time_scale: float | None = None,
) -> Scenario:
    """Decide everything; the same arguments give the same scenario.

    Args:
        arms: see `parse_arms`.
        profile: the engine.
        traces: a bundled recording or a trace file.
        agents: how many of its agents, drawn by `seed`.
        max_steps: end every agent after so many calls; None: they run whole.
        seed: of the draw, of tool times that were not recorded and of all texts.
        time_scale: seconds on the engine's clock per real second; None: chosen.

    Raises:
        ConfigError: an option is out of its range, or an agent does not fit the engine.
        TraceError: the recording cannot be read.
    """
    if time_scale is not None and not time_scale > 0:
        raise ConfigError(f"time_scale must be above 0, got {time_scale}")
    engine = profile if isinstance(profile, Profile) else load_profile(profile)
    longest = min(engine.max_model_len, engine.capacity_tokens)
    recorded = load_traces(traces, max_context=longest, cut=True, seed=seed)
    plans = tuple(plans_from_traces(recorded, agents, seed, max_steps=max_steps))
    mean_tokens = sum(plan.peak_tokens for plan in plans) / len(plans)
    chosen = parse_arms(arms, cap=max(1, int(engine.capacity_tokens / mean_tokens)))
    virtual_s = tuple(_virtual_s(plans, engine, arm) for arm in chosen)
    if time_scale is None:
        s_per_call = min(virtual_s) / sum(len(plan.steps) for plan in plans)
        fits = max(sum(virtual_s) / _RUNS_S, _EASY_CALLS_PER_S * s_per_call)
        time_scale = min(fits, _MOST_CALLS_PER_S * s_per_call)
    return Scenario(
        traces=Path(traces).name,
        seed=seed,
        profile=engine,
        plans=plans,
        arms=tuple(chosen),
        virtual_s=virtual_s,
        time_scale=time_scale,
    )


def parse_arms(text: str, *, cap: int) -> list[Arm]:
    """Read a comma-separated list: `none`, `fixed` (at `cap`), `fixed:N`, or a law by its name.

    Raises:
        ConfigError: an arm is unknown or named twice, or there is none.
    """
    arms: list[Arm] = []
    for name in filter(None, (part.strip() for part in text.split(","))):
        kind, _, setting = name.partition(":")
        if kind == "none" and not setting:
            arm = Arm(name, None)
        elif kind == "fixed":
            if setting and not (setting.isdecimal() and int(setting) >= 1):
                raise ConfigError(f"arm {name!r} needs a whole number of at least 1 agent")
            arm = Arm(name, make_law("fixed", agents=int(setting or cap)))
        elif name in law_names():
            arm = Arm(name, make_law(name))
        else:
            raise ConfigError(
                f"no arm {name!r}: use none, fixed:N or a law ({', '.join(law_names())})"
            )
        if any(arm.label == other.label for other in arms):
            raise ConfigError(f"arm {name!r} is named twice; name it once")
        arms.append(arm)
    if not arms:
        raise ConfigError("name at least one arm, for example none,fixed:8,working_set")
    return arms


def _virtual_s(plans: Sequence[AgentPlan], profile: Profile, arm: Arm) -> float:
    gate = Ungoverned() if arm.law is None else RegulatorGate(Regulator(arm.law))
    return simulate(
        plans, profile, gate, poll_interval_s=POLL_INTERVAL_S, record_series=False
    ).makespan_s
