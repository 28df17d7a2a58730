"""The working-set law: admit by the tokens that are worth keeping, not by the number of agents.

Fast and feed-forward, at every boundary (the Regulator enforces it):

    go on          while   pressure + need <= limit         limit = rho x capacity
    come in cold   while   pressure + need <= enter         enter = limit - growth ahead

    claim of a reasoning agent = what its call will hold at its end
    claim of an acting agent   = footprint x exp(-idle / tau)

*How long an idle context is worth keeping.*  Keeping it takes room that another agent could decode
in; dropping it costs one prefill.  Per token of context both are the same for all agents, so there
is one break-even time: what it would take to prefill everything that is in calls now,

    break_even = hold_scale x t_prefill x tokens in calls

(the five-minute rule, J. Gray and F. Putzolu, SIGMOD 1987, for the KV cache; docs/laws.md derives
it).  Whether to wait that long depends on when agents come back, which we have seen.  Over recent
gaps x between a call and the next, a claim that fades with tau gains and costs, in prefills,

    gain(tau) = mean(exp(-x / tau)) - tau / break_even x mean(1 - exp(-x / tau))

and the law holds for the tau with the largest gain: for ever if tools are quick, not at all if
they are slow and the engine has prefill to spare.  Then the gate lets go (reason `let_go`): only
calls in flight count.

*How much room those inside will need.*  Letting a cold agent in now uses room that those inside
will grow into; then somebody has to pause, and its context is prefilled once more.  It is the same
bargain: room that stays free for longer than the break-even time is worth filling.  So cold agents
leave room for what those inside grow by in that time (growth.py), whatever their number.  Only
decoding gains from a larger batch, about half of what an engine does, so the time counts
`growth_scale` = 2 times.  While fewer than half of those inside have come for a second step, growth
is unknown, and cold agents (but for the first few) fill only `entry_low` of the limit, for at most
as long.

*How large the pool is.*  `capacity` is the smaller of what the engine says and what the reuse
distances of prefixes that did and did not survive teach (core/residency.py): another tenant, wrong
sizes or tokens that never get cached show there, in our own units.  If the engine says nothing, it
is what they teach, and until something was evicted a guess that doubles from `start_tokens` as
long as everything survives.

If responses do not tell cached tokens either, nothing can be learned of the cache, and the latency
gradient (gradient.py) stands in.

*Slow feedback* on rho finds room that has come back since it was learned to be gone.  With the hit
deficit D = 1 - H/H* of agents that came back within their hold and were not paused:

    rho' = rho_low           if D > deficit_high        (evidence from before says nothing then)
         = rho + step        if D < deficit_low and someone had to wait
         = rho               otherwise

never beyond rho_low x what the engine says.  This departs from a multiplicative cut: what a cut
would have to find out by trying is measured by the distances.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

from concur_agents.core.laws.gradient import Gradient, GradientState
from concur_agents.core.laws.growth import Growth, kept
from concur_agents.core.laws.law import LawState, Limit
from concur_agents.core.snapshot import Snapshot

_LEAST_GAPS = 3
"""Gaps seen before they count.  On a pool of four agents, eight were the whole first round: claims
faded during quick tools, and a fifth came in."""
_TAUS = tuple(2.0**k for k in range(-3, 7))
"""Candidate holds in break-even times; never and for ever are tried as well."""
_FEW = 4
"""So many agents may always come in while growth is unknown: each is much of what gets done."""
_LEAST_SILENT_STEPS = 8
"""Steps without a word on cached tokens before latency stands in."""
_GRADIENT = Gradient()
_LEAST_SHARE = 0.2
"""Never believe that less than this is left of the pool the engine tells of."""


@dataclass(frozen=True, slots=True)
class WorkingSetState(LawState):
    """rho, the pool, and the evidence gathered since rho was last looked at."""

    rho: float = 1.0
    pool_tokens: float = 0.0
    """Capacity in use: told, learned or guessed [tokens]."""
    reusable_tokens: float = 0.0
    reused_tokens: float = 0.0
    was_bound: bool = False
    decided_s: float | None = None
    growth: Growth = field(default_factory=Growth)
    """What agents have grown by lately."""
    grace_spent: float = 0.0
    """Share that is over of the time for which growth may stay unknown.  A share, as the price that
    sets this time is least certain while it runs: a fall for a moment costs only that moment."""
    by_latency: GradientState | None = None
    """Where the latency gradient stands while it stands in; None: it does not."""
    steps: int = 0
    """Steps that told nothing of the cache, so far without any that did."""


@dataclass(frozen=True, slots=True)
class WorkingSet:
    """See the top of this file.  No field needs tuning to a workload or an engine."""

    name: ClassVar[str] = "working_set"
    formula: ClassVar[str] = (
        "pressure <= rho x capacity; idle claims fade with the tau of largest gain, "
        "judged by break-even = t_prefill x tokens in calls"
    )
    needs_readings: ClassVar[bool] = False

    rho_low: float = 0.95
    """Share of the pool to fill: blocks are rounded up and outputs are only estimated."""
    rho_high: float = 1.02
    """Most that rho may exceed what was learned of the pool: a little, so that room that has come
    back is tried and then learned.  At 1.3 the trying cost 3 % wherever the pool is learned."""
    entry: float = 0.9
    """Most of the limit up to which cold agents come in, however little those inside grow."""
    entry_low: float = 0.5
    """Least of it, however much they grow, and all of it while that is unknown."""
    growth_scale: float = 2.0
    """Factor on the break-even time for which those inside are left room to grow."""
    step: float = 0.02
    """Added to rho per look."""
    deficit_low: float = 0.05
    """Grow below this: block rounding and retries cost a few percent even when all is well."""
    deficit_high: float = 0.15
    """Fall back above this."""
    interval_s: float = 10.0
    """Time between looks at rho [s]: a few steps of every agent."""
    hold_scale: float = 0.7
    """Factor on the break-even time, as a context that is no longer held often survives anyway.
    Half or twice as much changes most makespans by a few percent; twice costs a sixth where quick
    and slow tools are mixed, a third of it as much on long sessions."""
    start_tokens: float = 32_768.0
    """First guess when the engine tells no capacity [tokens]: a few agents."""

    def __post_init__(self) -> None:
        if not 0 < self.rho_low <= self.rho_high:
            raise ValueError(f"rho_low must lie between 0 and rho_high, got {self.rho_low}")
        if not 0 < self.entry_low <= self.entry <= 1:
            raise ValueError(
                "entry_low and entry must be shares above 0, at most 1, and entry not the smaller, "
                f"got {self.entry_low} and {self.entry}"
            )
        if not self.growth_scale >= 0:
            raise ValueError(f"growth_scale must be at least 0, got {self.growth_scale}")
        for name in ("interval_s", "hold_scale", "start_tokens"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")

    def initial(self) -> WorkingSetState:
        """The first guess of the pool; idle claims hold until a price is known."""
        return WorkingSetState(
            Limit(tokens=self.rho_low * self.start_tokens),
            rho=self.rho_low,
            pool_tokens=self.start_tokens,
        )

    def decide(self, state: WorkingSetState, snapshot: Snapshot) -> WorkingSetState:
        """Follow the pool and the prices at once, move rho on evidence."""
        if snapshot.capacity_tokens is None and not snapshot.cached_known:
            return self._by_latency(state, snapshot)
        if state.by_latency is not None:
            state = replace(state, by_latency=None, reason="cache_told")
        state = replace(
            state,
            pool_tokens=self._pool(state, snapshot),
            reusable_tokens=state.reusable_tokens + snapshot.reusable_tokens,
            reused_tokens=state.reused_tokens + snapshot.reused_tokens,
            was_bound=state.was_bound or snapshot.was_bound,
            decided_s=snapshot.at_s if state.decided_s is None else state.decided_s,
            growth=state.growth.after(snapshot),
        )
        ahead_s = self._ahead_s(snapshot)
        if ahead_s is not None and state.grace_spent < 1.0:
            passed = snapshot.interval_s / ahead_s if ahead_s else 1.0
            state = replace(state, grace_spent=state.grace_spent + passed)
        state = self._feedback(state, snapshot)
        tokens = state.rho * state.pool_tokens
        if snapshot.capacity_tokens is not None:
            tokens = min(tokens, self.rho_low * snapshot.capacity_tokens)
        hold = self._hold_s_per_token(snapshot)
        limit = Limit(math.inf, tokens, hold, self._enter_tokens(state, snapshot, tokens, hold))
        if hold == 0.0:
            return replace(state, limit=limit, reason="let_go")
        reason = "hold" if state.reason == "let_go" else state.reason
        return replace(state, limit=limit, reason=reason)

    def _by_latency(self, state: WorkingSetState, snapshot: Snapshot) -> WorkingSetState:
        """Neither the pool's size nor cached tokens are told: latency has to do."""
        state = replace(state, steps=state.steps + snapshot.steps)
        if state.steps < _LEAST_SILENT_STEPS:
            return state
        before = state.by_latency or _GRADIENT.initial()
        now = _GRADIENT.decide(before, snapshot)
        return replace(state, limit=now.limit, reason=f"latency_{now.reason}", by_latency=now)

    def _pool(self, state: WorkingSetState, snapshot: Snapshot) -> float:
        told, learned = snapshot.capacity_tokens, snapshot.learned_tokens
        if told is not None:
            return told if learned is None else min(told, max(learned, _LEAST_SHARE * told))
        if learned is not None:
            return learned
        return max(state.pool_tokens, 2.0 * snapshot.proven_tokens)

    def _hold_s_per_token(self, snapshot: Snapshot) -> float:
        """The tau of largest gain, per token of mean footprint [s/token]."""
        break_even_s = _break_even_s(snapshot)
        gaps, n = snapshot.gaps_s, len(snapshot.gaps_s)
        if not break_even_s:
            return math.inf
        break_even_s *= self.hold_scale
        if n < _LEAST_GAPS:
            return break_even_s / snapshot.footprint_mean
        best_gain, best_tau = 0.0, 0.0
        for tau in (*(share * break_even_s for share in _TAUS), math.inf):
            if tau == math.inf:
                gain = 1.0 - sum(gaps) / n / break_even_s
            else:
                left = kept(gaps, tau)
                gain = left - tau / break_even_s * (1.0 - left)
            if gain > best_gain:
                best_gain, best_tau = gain, tau
        return best_tau / snapshot.footprint_mean

    def _enter_tokens(
        self, state: WorkingSetState, snapshot: Snapshot, tokens: float, hold_s_per_token: float
    ) -> float:
        """Pressure up to which cold agents come in: what those inside will grow by is left free."""
        low, high = self.entry_low * tokens, self.entry * tokens
        few = _FEW * snapshot.pressure_tokens / max(1, snapshot.active)
        ahead_s, growth = self._ahead_s(snapshot), state.growth
        if snapshot.capacity_tokens is None and snapshot.learned_tokens is None:
            return high
        if ahead_s is None:
            return min(high, max(low, few))
        if not growth.is_known(snapshot.active):
            if state.grace_spent < 1.0:
                return min(high, max(low, few))
            if not growth.is_seen:
                return high
        hold_s = hold_s_per_token * snapshot.footprint_mean
        room = growth.ahead(snapshot, ahead_s) * kept(snapshot.gaps_s, hold_s)
        return min(high, max(low, tokens - room))

    def _ahead_s(self, snapshot: Snapshot) -> float | None:
        """How long those inside are left room to grow for [s]; None: no price is known yet."""
        break_even_s = _break_even_s(snapshot)
        return self.growth_scale * break_even_s if break_even_s else None

    def _feedback(self, state: WorkingSetState, snapshot: Snapshot) -> WorkingSetState:
        assert state.decided_s is not None
        if snapshot.at_s - state.decided_s < self.interval_s:
            return state
        rho, reason, epoch_s = state.rho, "hold", state.epoch_s
        if state.reusable_tokens <= 0.0:
            reason = "no_evidence"
        else:
            deficit = 1.0 - state.reused_tokens / state.reusable_tokens
            if deficit > self.deficit_high:
                reason = "cut" if rho > self.rho_low else "at_floor"
                rho, epoch_s = self.rho_low, snapshot.at_s
            elif deficit < self.deficit_low and state.was_bound and rho < self.rho_high:
                rho, reason = min(self.rho_high, rho + self.step), "grow"
        return replace(
            state,
            rho=rho,
            reason=reason,
            epoch_s=epoch_s,
            reusable_tokens=0.0,
            reused_tokens=0.0,
            was_bound=False,
            decided_s=snapshot.at_s,
        )


def _break_even_s(snapshot: Snapshot) -> float | None:
    """What it would take to prefill all that is in calls [s]; None: not known yet."""
    price, footprint = snapshot.prefill_s_per_token, snapshot.footprint_mean
    if price is None or not footprint:
        return None
    return price * max(snapshot.reasoning_tokens_mean, footprint)
