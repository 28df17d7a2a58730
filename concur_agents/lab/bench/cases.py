"""From the plain values of a scenario to agents, engine and faults."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from concur_agents.sim.faults import (
    CachedHidden,
    CacheEmptied,
    CapacityHidden,
    EngineRestart,
    Fault,
    MetricsLost,
    ReplicaDies,
    SecondTenant,
    WeightUpdate,
)
from concur_agents.sim.profile import Profile, load_profile
from concur_agents.sim.samples import samples
from concur_agents.sim.timing import Constant, parse_arrival, parse_tools
from concur_agents.sim.traces import TraceAgent, load_traces
from concur_agents.sim.workload import (
    AgentPlan,
    arrange,
    mix,
    plans_from_traces,
    steady,
    synthetic,
)

__all__ = ["FAULTS", "Case", "Options", "build_case", "make_fault"]

Options = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One scenario with one seed, ready to run."""

    plans: list[AgentPlan]
    profile: Profile
    faults: tuple[Fault, ...]
    replicas: tuple[Profile, ...] = ()
    """The engines of a fleet; empty: there is one, `profile`."""

    @property
    def oversubscription(self) -> float:
        """Largest contexts of all agents together, in pools (of a fleet: in all its pools)."""
        engines = self.replicas or (self.profile,)
        tokens = sum(engine.capacity_tokens for engine in engines)
        return sum(plan.peak_tokens for plan in self.plans) / tokens


def build_case(
    *,
    profile: str,
    kv_tokens: int | None,
    host_tier_tokens: int = 0,
    restore_tokens_per_s: float | None = None,
    arrival: str,
    batch: Sequence[Options],
    faults: Sequence[Options],
    seed: int,
    replicas: int | None = None,
    shares: Sequence[float] | None = None,
) -> Case:
    """The agents of one draw, the engine and what goes wrong; see `Scenario` for the values."""
    engine = load_profile(profile)
    if kv_tokens is not None:
        engine = engine.replace(kv_blocks=max(1, kv_tokens // engine.block_size))
    if host_tier_tokens:
        engine = engine.replace(
            host_tier_tokens=host_tier_tokens,
            restore_tokens_per_s=restore_tokens_per_s or engine.restore_tokens_per_s,
        )
    parts = [_agents(part, seed) for part in batch]
    plans = parts[0] if len(parts) == 1 else mix(*parts, seed=seed)
    if any(part["source"] != "samples" for part in batch):  # whose waves say when they arrive
        plans = arrange(plans, parse_arrival(arrival), seed=seed)
    return Case(
        plans,
        engine,
        tuple(make_fault(options) for options in faults),
        _fleet(engine, shares or [1.0] * (replicas or 0)),
    )


def _fleet(engine: Profile, shares: Sequence[float]) -> tuple[Profile, ...]:
    """An engine for each share; together they have as many blocks as if all were alike."""
    per_share = len(shares) * engine.kv_blocks / sum(shares) if shares else 0.0
    return tuple(engine.replace(kv_blocks=max(1, round(share * per_share))) for share in shares)


def make_fault(options: Options) -> Fault:
    """`{"kind": "engine_restart", "at_s": 5}` -> `EngineRestart(5)`.

    Raises:
        TypeError: a keyword that this kind does not take, or lacks.
    """
    return FAULTS[options["kind"]](**{k: v for k, v in options.items() if k != "kind"})


def _second_tenant(
    agents: int,
    context_tokens: int,
    tool_s: float = 1.0,
    from_s: float = 0.0,
    to_s: float = math.inf,
    seed: int = 0,
) -> Fault:
    plans = steady(agents, context_tokens, tools=Constant(tool_s), seed=seed)
    return SecondTenant(tuple(plans), from_s=from_s, to_s=to_s)


FAULTS: dict[str, Callable[..., Fault]] = {
    "metrics_lost": MetricsLost,
    "capacity_hidden": CapacityHidden,
    "cached_hidden": CachedHidden,
    "cache_emptied": CacheEmptied,
    "engine_restart": EngineRestart,
    "replica_dies": ReplicaDies,
    "second_tenant": _second_tenant,
    "weight_update": WeightUpdate,
}


def _agents(part: Options, seed: int) -> list[AgentPlan]:
    """The agents of one part; of a group of their own if it names one, else each on its own."""
    plans = _draw(part, seed)
    if part["source"] == "samples":
        return plans
    return [replace(plan, group=part.get("group")) for plan in plans]


def _draw(part: Options, seed: int) -> list[AgentPlan]:
    tools = parse_tools(part["tools"]) if "tools" in part else None
    if part["source"] == "samples":
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in part.items()
            if key not in ("source", "prompts", "tools")
        }
        return samples(part["prompts"], tools=tools, seed=seed, **given)
    if part["source"] == "synthetic":
        ranges = {
            key: tuple(part[key]) for key in ("first", "gen", "obs", "steps_range") if key in part
        }
        shared = {key: part[key] for key in ("shared", "steps_tail") if key in part}
        return synthetic(
            part["agents"],
            part["steps"],
            tools=tools,
            seed=1000 * seed,
            **shared,
            **ranges,  # type: ignore[arg-type]  # pairs of integers, as TOML lists
        )
    traces = _traces(
        part["source"],
        part.get("max_context"),
        part.get("tool_cap_s"),
        float(part.get("scale", 1.0)),
        seed,
    )
    return plans_from_traces(
        traces, part["agents"], seed, tools=tools, max_steps=part.get("max_steps")
    )


@lru_cache(maxsize=8)
def _traces(
    source: str, max_context: int | None, tool_cap_s: float | None, scale: float, seed: int
) -> Sequence[TraceAgent]:
    return load_traces(
        source, max_context=max_context, cut=True, tool_cap_s=tool_cap_s, scale=scale, seed=seed
    )
