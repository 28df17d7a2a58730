"""The latency gradient: for endpoints that show neither metrics nor cached tokens.

Source: Gradient2 of Netflix' concurrency-limits (its Gradient2Limit).  Departs from it in: time per
output token in place of a request's round trip, since outputs differ in length; one look per
interval in place of one per request; refusals (429, 503) as a separate outcome.

    gradient = clamp(tolerance x long / short, 0.5, 1)
    agents'  = agents x gradient + sqrt(agents)          smoothed; grows only if an agent waited

    short   step time per output token since the last look
    long    its slow average; drifts down faster while it is more than twice `short`

    refused:  agents' = agents x overload_cut, once, then hold for Retry-After, at least hold_s

A latency that rises with the number of agents shows a queue somewhere, also where the reason is not
the cache; so this law cannot tell thrashing from a batch that is merely full, and is a fallback.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from concur_agents.core.laws.law import LawState
from concur_agents.core.types import Limit, Snapshot


@dataclass(frozen=True, slots=True)
class GradientState(LawState):
    """The slow average, and what was gathered since the last look."""

    long_s: float | None = None  # slow average of step time per output token
    step_s: float = 0.0
    output_tokens: float = 0.0
    steps: int = 0
    was_bound: bool = False
    decided_s: float | None = None
    hold_until_s: float = -math.inf  # no growth before: a refusal is being waited out


@dataclass(frozen=True, slots=True)
class Gradient:
    """See the top of this file."""

    name: ClassVar[str] = "gradient"
    formula: ClassVar[str] = "agents x clamp(long / short latency, 0.5, 1) + sqrt(agents)"
    needs_readings: ClassVar[bool] = False

    start: float = 8.0  # agents before anything is known: a few, as growth is quick
    lowest: float = 1.0
    highest: float = 1024.0
    tolerance: float = 1.5  # times its average before latency shrinks the limit (Netflix: 1.5)
    smoothing: float = 0.2  # share of the way to the new limit per look (Netflix: 0.2)
    long_share: float = 0.05  # weight of a look in the slow average: a memory of about 20
    interval_s: float = 5.0  # least time between looks
    least_steps: int = 4  # fewest steps that make a look
    overload_cut: float = 0.7  # after a refusal: gentler than TCP's half, as refusals come early
    hold_s: float = 10.0  # least time without growth after a refusal

    def __post_init__(self) -> None:
        if not 1 <= self.lowest <= self.start <= self.highest:
            raise ValueError(
                f"lowest <= start <= highest agents, at least 1, "
                f"got {self.lowest}, {self.start}, {self.highest}"
            )
        if not 0 < self.overload_cut < 1:
            raise ValueError(f"overload_cut must lie between 0 and 1, got {self.overload_cut}")
        for name in ("interval_s", "tolerance", "smoothing", "long_share"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")

    def initial(self) -> GradientState:
        """`start` agents."""
        return GradientState(Limit(agents=self.start))

    def decide(self, state: GradientState, snapshot: Snapshot) -> GradientState:
        """A cut at once when refused, else one look per interval."""
        if state.decided_s is None:
            state = replace(state, decided_s=snapshot.at_s)
        if snapshot.overloads:
            return self._refused(state, snapshot)
        state = replace(
            state,
            step_s=state.step_s + snapshot.step_s,
            output_tokens=state.output_tokens + snapshot.output_tokens,
            steps=state.steps + snapshot.steps,
            was_bound=state.was_bound or snapshot.was_bound,
        )
        assert state.decided_s is not None
        if snapshot.at_s - state.decided_s < self.interval_s or state.steps < self.least_steps:
            return state
        return self._look(state, snapshot.at_s)

    def _refused(self, state: GradientState, snapshot: Snapshot) -> GradientState:
        hold_until_s = snapshot.at_s + max(self.hold_s, snapshot.retry_after_s)
        if snapshot.at_s < state.hold_until_s:  # the same episode: one cut is enough
            return replace(state, hold_until_s=max(state.hold_until_s, hold_until_s))
        limit = Limit(agents=max(self.lowest, state.limit.agents * self.overload_cut))
        fresh = _fresh(state, snapshot.at_s)
        return replace(fresh, limit=limit, reason="refused", hold_until_s=hold_until_s)

    def _look(self, state: GradientState, at_s: float) -> GradientState:
        if not (state.output_tokens > 0 and state.step_s > 0):
            return replace(_fresh(state, at_s), reason="no_output")
        short_s = state.step_s / state.output_tokens
        long_s = state.long_s
        long_s = short_s if long_s is None else long_s + self.long_share * (short_s - long_s)
        if long_s > 2.0 * short_s:
            long_s *= 0.95
        agents = state.limit.agents
        gradient = min(1.0, max(0.5, self.tolerance * long_s / short_s))
        wished = agents * gradient + math.sqrt(agents)
        wished = min(self.highest, max(self.lowest, agents + self.smoothing * (wished - agents)))
        reason = "grow" if wished > agents else "shrink"
        if wished > agents and (not state.was_bound or at_s < state.hold_until_s):
            wished, reason = agents, "hold"
        fresh = _fresh(state, at_s)
        return replace(fresh, limit=Limit(agents=wished), reason=reason, long_s=long_s)


def _fresh(state: GradientState, at_s: float) -> GradientState:
    """`state` with nothing gathered since `at_s`."""
    return replace(state, step_s=0.0, output_tokens=0.0, steps=0, was_bound=False, decided_s=at_s)
