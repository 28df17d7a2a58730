"""What the agents of a replay will ask for: a published synthetic shape, or recorded agents."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from concur_agents.errors import ConfigError
from concur_agents.sim.traces import bundled_sources, load_traces
from concur_agents.sim.workload import (
    AgentPlan,
    Constant,
    LogNormal,
    Uniform,
    arrange,
    parse_arrival,
    parse_tools,
    plans_from_traces,
    synthetic,
)

__all__ = ["SHAPES", "WorkloadOptions", "make_plans"]

_SEED_STEP = 1000
"""Between two draws of a shape. Agent i draws from the seed of its draw + i, so two draws have no
agent in common up to so many agents; the first draw is that of published measurements.
"""


@dataclass(frozen=True, slots=True)
class _Shape:
    """One synthetic workload; see ``sim.workload.synthetic`` for the fields."""

    agents: int
    steps: int
    tools: Uniform | LogNormal | Constant
    first: tuple[int, int]
    gen: tuple[int, int]
    obs: tuple[int, int]
    steps_range: tuple[int, int] | None = None
    shared: int = 1024

    def plans(self, agents: int, tools: str | None, seed: int) -> list[AgentPlan]:
        return synthetic(
            agents,
            self.steps,
            first=self.first,
            gen=self.gen,
            obs=self.obs,
            tools=parse_tools(tools) if tools else self.tools,
            steps_range=self.steps_range,
            shared=self.shared,
            seed=_SEED_STEP * (1 + seed),
        )


SHAPES = {
    # 2.6 times a pool of 408,000 tokens: where thrashing was measured on one H100 with an 8B shape
    "main": _Shape(96, 8, Uniform(0.5, 2.5), (3000, 6000), (60, 140), (400, 1000)),
    # long tool calls and idle prefill: where every cap on agents loses to no gate at all
    "slow-tools": _Shape(
        60, 8, LogNormal(4.0, 1.0, 20.0), (3000, 9000), (30, 80), (300, 1300), steps_range=(3, 8)
    ),
    # for an engine on two CPU cores with a pool of 9,600 tokens: finals are 5 times the pool
    "cpu": _Shape(16, 6, Constant(0.3), (1240, 1240), (32, 32), (300, 300), shared=0),
}


@dataclass(frozen=True, slots=True)
class WorkloadOptions:
    """Which agents, and how many.

    ``source``: a name of ``SHAPES``, with changes after colons (``main:steps=12:gen=20-40``), or a
    bundled recording or trace file, several of them joined by ``+``. ``agents``: how many; None:
    the shape's own number, or as many as recorded. ``overload``: as many agents as it takes for all
    their largest contexts together to be so many times the KV pool, instead of a number.
    ``max_context``: recorded agents are cut where they exceed it [tokens]. ``scale``: factor on
    recorded token counts. ``tools`` and ``arrival``: models in the words of ``sim.workload``; None:
    the source's own, and all at once. ``seed``: of the draw of agents.
    """

    source: str = "main"
    agents: int | None = None
    overload: float | None = None
    max_steps: int | None = None
    max_context: int | None = None
    scale: float = 1.0
    tools: str | None = None
    arrival: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.agents is not None and self.agents < 1:
            raise ConfigError(f"agents must be at least 1, got {self.agents}")
        if self.overload is not None and not self.overload > 0:
            raise ConfigError(f"overload must be above 0, got {self.overload}")


def make_plans(options: WorkloadOptions, capacity_tokens: float | None) -> list[AgentPlan]:
    """The agents, with everything they will ask for.

    Args:
        options: which and how many.
        capacity_tokens: KV pool [tokens], for ``overload``; None: not known.

    Raises:
        ConfigError: an option does not fit, or no recorded agent is left.
        TraceError: a trace file cannot be used.
    """
    if options.overload is None:
        plans = _draw(options, options.agents)
    elif capacity_tokens is None:
        raise ConfigError(
            "overload needs the size of the KV pool, which this endpoint does not tell; give agents"
        )
    else:
        plans = _enough(options, options.overload * capacity_tokens)
    if options.arrival:
        plans = arrange(plans, parse_arrival(options.arrival), seed=options.seed)
    return plans


def _enough(options: WorkloadOptions, tokens: float) -> list[AgentPlan]:
    """The fewest agents whose largest contexts together reach ``tokens``."""
    count = 64
    while True:
        plans = _draw(options, count)
        total = 0
        for number, plan in enumerate(plans, start=1):
            total += plan.peak_tokens
            if total >= tokens:
                return plans[:number]
        count *= 2


def _draw(options: WorkloadOptions, agents: int | None) -> list[AgentPlan]:
    name, *changes = options.source.split(":")
    if name in SHAPES:
        shape = _changed(SHAPES[name], changes)
        plans = shape.plans(agents or shape.agents, options.tools, options.seed)
        if options.max_steps:
            plans = [replace(plan, steps=plan.steps[: options.max_steps]) for plan in plans]
        return plans
    traces = []
    for source in options.source.split("+"):
        if source not in bundled_sources() and not Path(source).exists():
            raise ConfigError(
                f"workload {source!r} is neither a shape ({', '.join(SHAPES)}) nor a recording "
                f"({', '.join(bundled_sources())}) nor a file"
            )
        traces += load_traces(
            source,
            max_context=options.max_context,
            cut=True,
            scale=options.scale,
            seed=options.seed,
        )
    return plans_from_traces(
        traces,
        agents or len(traces),
        options.seed,
        tools=parse_tools(options.tools) if options.tools else None,
        max_steps=options.max_steps,
    )


def _changed(shape: _Shape, changes: list[str]) -> _Shape:
    """A shape with some of its numbers replaced: ``steps=12``, ``gen=20-40``."""
    new: dict[str, Any] = {}
    for change in changes:
        name, _, value = change.partition("=")
        bounds = value.split("-")
        if not all(bound.isdecimal() for bound in bounds):
            raise ConfigError(f"workload setting {change!r} is not name=number or name=low-high")
        if name in ("steps", "shared") and len(bounds) == 1:
            new[name] = int(value)
        elif name in ("first", "gen", "obs", "steps_range") and len(bounds) == 2:
            new[name] = (int(bounds[0]), int(bounds[1]))
        else:
            raise ConfigError(
                f"workload setting {change!r} is unknown; use steps=N, shared=N, or LOW-HIGH for "
                "first, gen, obs and steps_range"
            )
    if "steps" in new:
        new.setdefault("steps_range", None)  # a number given by hand holds for every agent
    return replace(shape, **new)
