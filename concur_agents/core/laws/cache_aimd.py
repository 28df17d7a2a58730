"""CONCUR as published: additive increase, multiplicative decrease on cache pressure.

Source: "CONCUR: Congestion control for agentic LLM inference", arXiv:2601.22705.

    every interval:
        W' = W + increase     if U < usage_low
           = W * decrease     if U > usage_high and H < hit_low
           = W                otherwise

    U   share of the KV pool held by requests in flight, at the tick
    H   prefix hit rate over the interval, from differences of the engine's counters

The five constants are the paper's (2, 0.5, 0.2, 0.5, 0.2).  The paper leaves open, and we chose:
  * the interval: 5 s, long enough for counters that engines update every few seconds;
  * the start: no limit, as TCP starts without a threshold, so that a batch that fits is left alone;
    the first cut, which finds no W, starts from the agents that are active then, or, if we have
    none (in a dry run), from the calls that the engine has;
  * no prompt tokens in the interval: no evidence, so no cut;
  * U not told: hold;
  * floor: one agent (the Regulator always lets one in, so W stays at or above 1);
  * order: the Regulator's (warm paused agents first, then new ones, then cold ones).
Growth does not ask whether the window was full, as in the paper.  These constants do not transfer
between engines and are kept as they are for comparison; `working_set` needs none of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from concur_agents.core.laws.law import LawState
from concur_agents.core.types import Limit, Reading, Snapshot


@dataclass(frozen=True, slots=True)
class CacheAimdState(LawState):
    """Counters and clock of the last decision."""

    decided_s: float | None = None  # when W was last decided; None: never
    hit_tokens_total: float = 0.0
    query_tokens_total: float = 0.0


@dataclass(frozen=True, slots=True)
class CacheAimd:
    """See the top of this file."""

    name: ClassVar[str] = "cache_aimd"
    formula: ClassVar[str] = "W += 2 if U < 0.2; W *= 0.5 if U > 0.5 and H < 0.2; else hold"
    needs_readings: ClassVar[bool] = True

    start: float = math.inf
    """Agents before the first decision; infinity: all, until the first cut (ours)."""
    increase: float = 2.0
    """Agents added per interval while usage is low (paper: alpha)."""
    decrease: float = 0.5
    """Factor of a cut (paper: beta)."""
    usage_low: float = 0.2
    """Grow below this KV usage, a share (paper: U_low)."""
    usage_high: float = 0.5
    """Cut only above this KV usage, a share (paper: U_high)."""
    hit_low: float = 0.2
    """Cut only below this hit rate, a share (paper: H_thresh)."""
    interval_s: float = 5.0
    """Time between decisions [s] (ours)."""

    def __post_init__(self) -> None:
        if not self.interval_s > 0:
            raise ValueError(f"interval_s must be above 0, got {self.interval_s}")
        if not 0 < self.decrease < 1:
            raise ValueError(f"decrease must lie between 0 and 1, got {self.decrease}")
        if not self.start >= 1:
            raise ValueError(f"start must be at least 1 agent, got {self.start}")

    def initial(self) -> CacheAimdState:
        """`start` agents; by default no limit."""
        return CacheAimdState(Limit(agents=self.start))

    def decide(self, state: CacheAimdState, snapshot: Snapshot) -> CacheAimdState:
        """Grow, cut or hold, once per `interval_s`."""
        if state.decided_s is None:
            return self._next(state, snapshot, state.limit.agents, "start")
        # a poll that comes a little early still closes its interval
        if snapshot.at_s - state.decided_s < self.interval_s - 0.05:
            return state
        usage = snapshot.reading.kv_usage if snapshot.reading is not None else None
        if usage is None:
            return replace(state, reason="no_usage")
        queries = snapshot.query_tokens_total - state.query_tokens_total
        hits = snapshot.hit_tokens_total - state.hit_tokens_total
        window = state.limit.agents
        if usage < self.usage_low:
            return self._next(state, snapshot, window + self.increase, "grow")
        if usage > self.usage_high and queries > 0 and hits / queries < self.hit_low:
            if math.isinf(window):
                window = snapshot.active or _calls(snapshot.reading)
            return self._next(state, snapshot, max(1.0, window * self.decrease), "cut")
        return self._next(state, snapshot, window, "hold" if queries > 0 else "no_traffic")

    def _next(
        self, state: CacheAimdState, snapshot: Snapshot, window: float, reason: str
    ) -> CacheAimdState:
        return replace(
            state,
            limit=Limit(agents=window),
            reason=reason,
            decided_s=snapshot.at_s,
            hit_tokens_total=snapshot.hit_tokens_total,
            query_tokens_total=snapshot.query_tokens_total,
        )


def _calls(reading: Reading | None) -> float:
    return 0.0 if reading is None else (reading.running or 0) + (reading.waiting or 0)
