"""What a law is shown at each tick: one frozen picture of endpoint, agents and evidence."""

from __future__ import annotations

from dataclasses import dataclass

from concur_agents.core.reading import Reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything a law may decide from.  No clock: `at_s` is the time.

    Sums are since the snapshot before (`interval_s` ago).  Totals are counted from the
    Regulator's start and never fall, also when the engine restarts.
    """

    at_s: float
    interval_s: float
    reading: Reading | None
    """The engine's own words; None: the poll failed."""
    capacity_tokens: float | None
    """KV pool [tokens]: the engine's word, else what hits and misses taught (`learned_tokens`)."""
    learned_tokens: float | None
    """Pool size inferred from which prefixes survived [tokens]; None: no evidence yet."""
    proven_tokens: float
    """The most that prefixes have survived [tokens]: the pool is at least this."""
    hit_tokens_total: float
    """Prompt tokens served from cache; from the engine's counters, else from `usage`."""
    query_tokens_total: float
    """Prompt tokens asked for; same source as `hit_tokens_total`."""
    cached_known: bool
    """Whether responses or counters have ever told about cached tokens."""
    active: int
    reasoning: int
    waiting: int
    """Agents queued or paused."""
    peak_active: int
    was_bound: bool
    """Someone had to wait since the last snapshot: the limit was felt."""
    pressure_tokens: float
    """Sum of claims now [tokens]."""
    reasoning_mean: float
    """Agents reasoning, averaged over time with a memory of about half a minute."""
    reasoning_tokens_mean: float
    """Tokens claimed by reasoning agents, averaged the same way."""
    footprint_mean: float
    """Mean footprint of the agents that have started and not left [tokens]."""
    gaps_s: tuple[float, ...]
    """Recent times from the end of an agent's call to its next boundary: quantiles, rising [s]."""
    prefill_s_per_token: float | None
    """Estimated engine time per uncached prompt token [s]."""
    step_s: float
    """Time of the steps that ended well since the last snapshot, summed [s]."""
    output_tokens: float
    """Their output, summed."""
    steps: int
    """Steps that ended well since the last snapshot."""
    failures: int
    """Steps that ended without usage: they say nothing about capacity."""
    overloads: int
    """Steps the endpoint refused (429, 503) since the last snapshot."""
    retry_after_s: float
    """Longest Retry-After among them [s]."""
    restarts_total: int
    """Engine restarts seen: counters that fell."""
    final_tokens: float = 0.0
    """What an agent is expected to hold when it leaves; 0: not known."""
