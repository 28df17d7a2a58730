"""What a demo runs: which agents, on which engine, under which gates.

The batch is first run in the simulator, without clients and HTTP, which takes a second or two: what
the demo must show, give or take what clients and HTTP change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from concur_agents.core import FIRST_READING_S, Fleet, Law, Regulator, law_names, make_law
from concur_agents.errors import ConfigError
from concur_agents.sim.gates import Gate
from concur_agents.sim.profile import Profile, load_profile
from concur_agents.sim.replicas import FleetGate, RoutingGate, UngovernedFleet, simulate_fleet
from concur_agents.sim.runner import RegulatorGate, Ungoverned, simulate
from concur_agents.sim.traces import load_traces
from concur_agents.sim.workload import AgentPlan, plans_from_traces

__all__ = ["FITS_PROFILE", "FLEET_PROFILE", "Arm", "Scenario", "make_scenario", "parse_arms"]

FITS_PROFILE = "2xh100-qwen3-coder-30b"
"""An engine whose pool holds the whole batch, for `--fits`."""

FLEET_PROFILE = "demo"
"""The engine of each of several replicas, small enough for a batch that runs in half a minute."""

POLL_INTERVAL_S = 5.0
"""Time between the governor's readings [s on the engine's clock]."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to run the batch: ungoverned (`law` is None), or under a law."""

    name: str
    law: Law | None
    router: str = "ungoverned"
    """Ungoverned, with several replicas: how calls get to them, "round robin" or "sticky"."""

    @property
    def label(self) -> str:
        """For tables and pictures."""
        if self.law is None:
            return self.router
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
    replicas: int = 1
    """Engines like that."""
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
        """`final_tokens` in KV pools, of several replicas in all of them."""
        return self.final_tokens / (self.replicas * self.profile.capacity_tokens)


def make_scenario(
    *,
    arms: str = "none,fixed,working_set",
    replicas: int = 1,
    profile: str | Path | Profile = "h200-qwen3-32b",
    traces: str | Path = "miniswe-gemini3pro",
    agents: int = 64,
    max_steps: int | None = None,
    seed: int = 0,
) -> Scenario:
    """Decide everything; the same arguments give the same scenario.

    Args:
        arms: see `parse_arms`.
        replicas: how many engines.
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
    longest = engine.longest_context
    recorded = load_traces(traces, max_context=longest, cut=True, seed=seed)
    plans = tuple(plans_from_traces(recorded, agents, seed, max_steps=max_steps))
    mean_tokens = sum(plan.peak_tokens for plan in plans) / len(plans)
    cap = max(1, int(engine.capacity_tokens / mean_tokens))
    chosen = parse_arms(arms, cap=cap, replicas=replicas)
    virtual_s = tuple(_virtual_s(plans, engine, arm, replicas) for arm in chosen)
    return Scenario(
        traces=Path(traces).name,
        seed=seed,
        profile=engine,
        plans=plans,
        arms=tuple(chosen),
        replicas=replicas,
        virtual_s=virtual_s,
    )


def parse_arms(text: str, *, cap: int, replicas: int = 1) -> list[Arm]:
    """Read a comma-separated list: `none`, `fixed` (at `cap`), `fixed:N`, or a law by its name.

    With several replicas `none` sends calls to them in turn, there is `sticky` too, and caps and
    laws hold for each.

    Raises:
        ConfigError: an arm is unknown or named twice, or there is none.
    """
    arms: list[Arm] = []
    for name in filter(None, (part.strip() for part in text.split(","))):
        kind, _, setting = name.partition(":")
        if kind == "none" and not setting:
            arm = Arm(name, None) if replicas == 1 else Arm(name, None, "round robin")
        elif name == "sticky" and replicas > 1:
            arm = Arm(name, None, "sticky")
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


def _virtual_s(plans: Sequence[AgentPlan], profile: Profile, arm: Arm, replicas: int = 1) -> float:
    law = arm.law
    # As a Governor does: a law that needs readings waits for the first one.
    first_reading_s = 0.0 if law is not None and law.name == "fixed" else FIRST_READING_S
    how: dict[str, Any] = {"poll_interval_s": POLL_INTERVAL_S, "record_series": False}
    if replicas > 1:
        fleet_gate: RoutingGate = UngovernedFleet(replicas, sticky=arm.router == "sticky")
        if law is not None:
            pools = [str(n) for n in range(replicas)]
            fleet = Fleet(law, pools, first_reading_s=first_reading_s)
            fleet_gate = FleetGate(fleet, sizes_told=False)
        return simulate_fleet(plans, [profile] * replicas, fleet_gate, **how).makespan_s
    gate: Gate = Ungoverned()
    if law is not None:
        gate = RegulatorGate(Regulator(law, first_reading_s=first_reading_s), sizes_told=False)
    return simulate(plans, profile, gate, **how).makespan_s
