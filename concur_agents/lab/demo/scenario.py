"""What a demo runs: which agents, on which engine, under which gates.

The batch is first run in the simulator, without clients and HTTP, which takes a second or two: what
the demo must show, give or take what clients and HTTP change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from concur_agents.core import FIRST_READING_S, Law, Regulator, law_names, make_law
from concur_agents.errors import ConfigError
from concur_agents.sim.gates import Gate
from concur_agents.sim.profile import Profile, load_profile
from concur_agents.sim.runner import RegulatorGate, Ungoverned, simulate
from concur_agents.sim.traces import load_traces
from concur_agents.sim.workload import AgentPlan, plans_from_traces

__all__ = ["FITS_PROFILE", "Arm", "Scenario", "make_scenario", "parse_arms"]

FITS_PROFILE = "2xh100-qwen3-coder-30b"
"""An engine whose pool holds the whole batch, for `--fits`."""

POLL_INTERVAL_S = 5.0
"""Time between the governor's readings [s on the engine's clock]."""


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
    """Makespan of each arm in the simulator [s on the engine's clock]."""

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


def make_scenario(
    *,
    arms: str = "none,fixed,working_set",
    profile: str | Path | Profile = "h200-qwen3-32b",
    traces: str | Path = "miniswe-gemini3pro",
    agents: int = 64,
    max_steps: int | None = None,
    seed: int = 0,
) -> Scenario:
    """Decide everything; the same arguments give the same scenario.

    Args:
        arms: see `parse_arms`.
        profile: the engine.
        traces: a bundled recording or a trace file.
        agents: how many of its agents, drawn by `seed`.
        max_steps: end every agent after so many calls; None: they run whole.
        seed: of the draw, of tool times that were not recorded and of all texts.

    Raises:
        ConfigError: an option is out of its range, or an agent does not fit the engine.
        TraceError: the recording cannot be read.
    """
    engine = profile if isinstance(profile, Profile) else load_profile(profile)
    longest = min(engine.max_model_len, engine.capacity_tokens)
    recorded = load_traces(traces, max_context=longest, cut=True, seed=seed)
    plans = tuple(plans_from_traces(recorded, agents, seed, max_steps=max_steps))
    mean_tokens = sum(plan.peak_tokens for plan in plans) / len(plans)
    chosen = parse_arms(arms, cap=max(1, int(engine.capacity_tokens / mean_tokens)))
    virtual_s = tuple(_virtual_s(plans, engine, arm) for arm in chosen)
    return Scenario(
        traces=Path(traces).name,
        seed=seed,
        profile=engine,
        plans=plans,
        arms=tuple(chosen),
        virtual_s=virtual_s,
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
    gate: Gate = Ungoverned()
    if arm.law is not None:
        # As a Governor does: a law that needs readings waits for the first one.
        wait_s = 0.0 if arm.law.name == "fixed" else FIRST_READING_S
        gate = RegulatorGate(Regulator(arm.law, first_reading_s=wait_s), sizes_told=False)
    return simulate(
        plans, profile, gate, poll_interval_s=POLL_INTERVAL_S, record_series=False
    ).makespan_s
