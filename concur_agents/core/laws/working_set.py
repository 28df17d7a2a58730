"""The working-set law: admit by the tokens that are worth keeping, not by the number of agents.

The Regulator enforces, at every boundary:

    an agent goes on          while   pressure + need <= limit          limit = fill x pool
    an agent enters cold      while   pressure + need <= entry x limit
    agents that have begun come before new ones   while   open > breadth x limit / final context

    claim of a reasoning agent = what its call will hold at its end
    claim of an acting agent   = context x exp(-idle / tau)

*tau, how long an idle context is worth keeping.*  Keeping it takes room in which another agent
could decode; dropping it costs one prefill.  Both grow with the context, so one break-even time
holds for all agents (the five-minute rule, J. Gray, F. Putzolu, SIGMOD 1987; docs/laws-holding.md):

    break_even = hold_scale x t_prefill x tokens in calls

Over recent gaps x between a call and the next, a claim that fades with tau gains, in prefills,

    gain(tau) = mean(exp(-x / tau)) - tau / break_even x mean(1 - exp(-x / tau))

and the law takes the tau with the largest gain: for ever if tools are quick; not at all if tools
are slow and the engine has prefill to spare (reason `let_go`).  Beyond the breadth a cold agent
takes the room and pays a prefill as well: break_even is doubled.

*pool.*  The smaller of what the engine reports and what is learned from which prefixes survived
(core/residency.py); until something was evicted, a guess that doubles.  If neither a pool nor
cached tokens are reported, the latency gradient stands in (gradient.py).

*A host tier* behind the pool counts as pool while agents are away long enough between calls
(core/meter.py): one that returns to it is restored and not prefilled, and calls beyond the pool
wait in the engine.  Contexts of agents that are always in calls are restored for nothing.  And they
grow, and what grows out of both tiers costs a prefill; so beyond the pool itself (`near`) a cold
agent enters only while the open agents will fit at their peak (core/peak_forecast.py).

*breadth.*  New agents first is good for the batch, but a long queue then opens every agent and
finishes none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from concur_agents.core.laws.gradient import Gradient, GradientState
from concur_agents.core.laws.law import LawState
from concur_agents.core.types import Limit, Snapshot

_LEAST_GAPS = 3  # more were the whole first round of a pool of four agents
_TAUS = (0.25, 1.0, 4.0)  # candidates in break-even times; never and for ever are tried as well
_LEAST_SILENT_STEPS = 8  # steps without a word on cached tokens before latency stands in
_LEAST_SHARE = 0.2  # less than this of a reported pool is never believed to be left
_ROTATION = 2.0  # prefills that dropping a context costs where a cold agent takes its room
_GRADIENT = Gradient()


@dataclass(frozen=True, slots=True)
class WorkingSetState(LawState):
    """The pool in use, and the fallback."""

    pool_tokens: float = 0.0
    silent_steps: int = 0  # ended without a word on cached tokens
    by_latency: GradientState | None = None  # the latency gradient while it stands in


@dataclass(frozen=True, slots=True)
class WorkingSet:
    """See the top of this file.  No option needs tuning to a workload or an engine."""

    name: ClassVar[str] = "working_set"
    formula: ClassVar[str] = (
        "pressure <= fill x pool; idle claims fade with the tau of largest gain, "
        "judged by break-even = t_prefill x tokens in calls"
    )
    needs_readings: ClassVar[bool] = False

    fill: float = 0.95  # share of the pool: engines round up to blocks, outputs are estimates
    entry: float = 0.9  # share of the limit up to which cold agents enter: the rest is for growth
    hold_scale: float = 0.6  # on break-even: a context that no longer counts often survives anyway
    breadth: float = 6.0  # open agents, in those that fit, beyond which begun ones go first
    start_tokens: float = 32_768.0  # first guess of a pool that is not reported: a few agents

    def __post_init__(self) -> None:
        for name in ("fill", "entry"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a share above 0, got {getattr(self, name)}")
        for name in ("hold_scale", "breadth", "start_tokens"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")

    def initial(self) -> WorkingSetState:
        """The first guess of the pool; idle claims hold until a price is known."""
        tokens = self.fill * self.start_tokens
        return WorkingSetState(Limit(tokens=tokens), pool_tokens=self.start_tokens)

    def decide(self, state: WorkingSetState, snapshot: Snapshot) -> WorkingSetState:
        """Follow the pool and the price."""
        if snapshot.capacity_tokens is None and not snapshot.cached_known:
            return self._by_latency(state, snapshot)
        pool, reason = self._pool(state, snapshot)
        rotates = snapshot.paused > 0 and snapshot.open_agents >= state.limit.open_agents
        tau_s, footprint = self._tau_s(snapshot, rotates), snapshot.footprint_mean
        tokens, final, near = self.fill * pool, snapshot.final_tokens, snapshot.near_tokens
        limit = Limit(
            tokens=tokens,
            hold_s_per_token=tau_s / footprint if footprint else math.inf,
            enter_tokens=self.entry * tokens,
            near_tokens=math.inf if near is None else self.entry * self.fill * near,
            open_agents=max(1.0, self.breadth * tokens / final) if final else math.inf,
        )
        return WorkingSetState(limit, reason if tau_s else "let_go", pool_tokens=pool)

    def _pool(self, state: WorkingSetState, snapshot: Snapshot) -> tuple[float, str]:
        told, learned = snapshot.capacity_tokens, snapshot.learned_tokens
        # What is learned is in our own units, and is filled whole: its rim has to be tried.
        if learned is not None and (told is None or learned < self.fill * told):
            return max(learned / self.fill, _LEAST_SHARE * (told or 0.0)), "learned"
        if told is not None:
            return told, "reported"
        return max(state.pool_tokens, 2.0 * snapshot.proven_tokens), "guess"

    def _tau_s(self, snapshot: Snapshot, rotates: bool) -> float:
        """The hold of an idle context of mean size with the largest gain [s]."""
        price, footprint = snapshot.prefill_s_per_token, snapshot.footprint_mean
        if price is None or not footprint:
            return math.inf
        break_even_s = self.hold_scale * price * max(snapshot.reasoning_tokens_mean, footprint)
        if rotates:
            break_even_s *= _ROTATION
        gaps = snapshot.gaps_s
        if len(gaps) < _LEAST_GAPS or not break_even_s:
            return break_even_s or math.inf
        best = max((0.0, 0.0), (1.0 - sum(gaps) / len(gaps) / break_even_s, math.inf))
        for tau_s in (share * break_even_s for share in _TAUS):
            kept = sum([math.exp(-gap / tau_s) for gap in gaps]) / len(gaps)
            best = max(best, (kept - tau_s / break_even_s * (1.0 - kept), tau_s))
        return best[1]

    def _by_latency(self, state: WorkingSetState, snapshot: Snapshot) -> WorkingSetState:
        state = replace(state, silent_steps=state.silent_steps + snapshot.steps)
        if state.silent_steps < _LEAST_SILENT_STEPS:
            return state
        now = _GRADIENT.decide(state.by_latency or _GRADIENT.initial(), snapshot)
        return replace(state, limit=now.limit, reason=f"latency_{now.reason}", by_latency=now)
