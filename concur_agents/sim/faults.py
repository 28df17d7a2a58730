"""What can go wrong in a simulated run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from concur_agents.sim.workload import AgentPlan

__all__ = [
    "CacheEmptied",
    "CachedHidden",
    "CapacityHidden",
    "EngineRestart",
    "Fault",
    "MetricsLost",
    "ReplicaDies",
    "SecondTenant",
    "WeightUpdate",
]


@dataclass(frozen=True, slots=True)
class MetricsLost:
    """Polls fail in an interval; the default is: always, an endpoint without metrics."""

    from_s: float = 0.0
    to_s: float = math.inf


@dataclass(frozen=True, slots=True)
class CapacityHidden:
    """The engine does not say how large its pool is."""


@dataclass(frozen=True, slots=True)
class CachedHidden:
    """Responses do not say how many prompt tokens were cached."""


@dataclass(frozen=True, slots=True)
class EngineRestart:
    """The engine loses its cache and its counters; clients send what was in flight again."""

    at_s: float


@dataclass(frozen=True, slots=True)
class ReplicaDies:
    """One engine of a fleet is gone for a while: calls in flight fail, as do those sent meanwhile,
    and clients send them again after a second.
    """

    replica: int
    at_s: float
    to_s: float = math.inf


@dataclass(frozen=True, slots=True)
class CacheEmptied:
    """Every so often the engine forgets what no running request holds, as at a weight update."""

    every_s: float


@dataclass(frozen=True, slots=True)
class SecondTenant:
    """Other agents use the same engine without a gate; each begins anew when it has finished.

    They count for the engine's counters and for nothing in the `Result`.
    """

    plans: tuple[AgentPlan, ...]
    from_s: float = 0.0
    to_s: float = math.inf


@dataclass(frozen=True, slots=True)
class WeightUpdate:
    """Every so often the engine stands still for a while, and then has forgotten its cache.

    What it computes meanwhile goes on afterwards.
    """

    every_s: float
    lasts_s: float = 5.0
    flushes: bool = True
    """Whether the cache is emptied."""
    is_announced: bool = True
    """Whether a governor holds its agents meanwhile, and hears of the flush."""


Fault = (
    MetricsLost
    | CapacityHidden
    | CachedHidden
    | EngineRestart
    | ReplicaDies
    | CacheEmptied
    | SecondTenant
    | WeightUpdate
)
