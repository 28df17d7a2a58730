"""The working-set law: admit by the tokens that are worth keeping, not by the number of agents.

Two loops.

Fast and feed-forward, at every boundary (the Regulator enforces it):

    let in while   pressure + need <= rho x capacity

    claim of a reasoning agent = what its call will hold at its end
    claim of an acting agent   = footprint x exp(-idle / tau)
    tau                        = footprint x hold_s_per_token

The hold is the break-even time of keeping an idle context.  Keeping it costs batch space: the room
could hold another agent's decode, which a step with `b` agents in it would serve for `o / b` of
its time, `o` being the share of a step that is overhead a larger batch amortises.  Dropping it
costs one prefill, `footprint x t_prefill`.  The two are equal after

    tau = footprint x t_prefill x b / o

It is the five-minute rule (J. Gray, F. Putzolu, SIGMOD 1987) for the KV cache.

Slow, feedback, on the dimensionless rho, from the hit deficit D = 1 - H/H* of agents that were not
paused and came back within their hold (the others' misses were our own choice):

    rho' = rho x cut      if D > deficit_high      (then evidence from before says nothing)
         = rho + step     if D < deficit_low and someone had to wait
         = rho            otherwise

Capacity is the engine's word.  If it does not tell, it is learned: reuse distances of prefixes that
survived bound it from below, those of prefixes that did not from above (core/residency.py), and
until something was evicted the guess doubles from `start_tokens` as long as everything survives.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from concur_agents.core.laws.law import LawState, Limit
from concur_agents.core.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class WorkingSetState(LawState):
    """rho, and the evidence gathered since it last moved."""

    rho: float = 1.0
    guess_tokens: float = 0.0
    """Capacity in use: told, learned or still guessed [tokens]."""
    reusable_tokens: float = 0.0
    reused_tokens: float = 0.0
    was_bound: bool = False
    decided_s: float | None = None


@dataclass(frozen=True, slots=True)
class WorkingSet:
    """See the top of this file."""

    name: ClassVar[str] = "working_set"
    formula: ClassVar[str] = (
        "pressure <= rho x capacity; idle claims fade over footprint x t_prefill x b / o; "
        "AIMD on rho by hit deficit"
    )
    needs_readings: ClassVar[bool] = False

    rho_start: float = 0.95
    """Share of the pool to fill before any feedback."""
    rho_low: float = 0.3
    """Floor: below this the pool is not the problem."""
    rho_high: float = 1.1
    """Ceiling: footprints are exact, so there is little to gain beyond the pool."""
    step: float = 0.02
    """Added to rho per decision: ten decisions undo one cut."""
    cut: float = 0.85
    """Factor of a cut."""
    deficit_low: float = 0.05
    """Grow below this: block rounding and retries cost a few percent even when all is well."""
    deficit_high: float = 0.15
    """Cut above this."""
    interval_s: float = 10.0
    """Least time between decisions about rho [s]: a few steps of every agent."""
    overhead_share: float = 0.5
    """o: share of a decode step that a larger batch amortises.  Wrong by 2x costs < 10 %."""
    least_hold_s: float = 0.0
    start_tokens: float = 32_768.0
    """First guess when the engine tells no capacity [tokens]: a few agents."""

    def initial(self) -> WorkingSetState:
        """No bound but the first guess of the pool; idle claims hold until a price is known."""
        return WorkingSetState(
            Limit(tokens=self.start_tokens), rho=self.rho_start, guess_tokens=self.start_tokens
        )

    def decide(self, state: WorkingSetState, snapshot: Snapshot) -> WorkingSetState:
        """Follow the engine's size and speed at once, move rho on evidence."""
        state = replace(
            state,
            guess_tokens=self._capacity(state, snapshot),
            reusable_tokens=state.reusable_tokens + snapshot.reusable_tokens,
            reused_tokens=state.reused_tokens + snapshot.reused_tokens,
            was_bound=state.was_bound or snapshot.was_bound,
            decided_s=snapshot.at_s if state.decided_s is None else state.decided_s,
        )
        state = self._feedback(state, snapshot)
        return replace(
            state,
            limit=Limit(
                tokens=state.rho * state.guess_tokens,
                hold_s_per_token=self._hold_s_per_token(snapshot),
            ),
        )

    def _capacity(self, state: WorkingSetState, snapshot: Snapshot) -> float:
        if snapshot.capacity_tokens is not None:
            return snapshot.capacity_tokens
        if snapshot.learned_tokens is not None:
            return snapshot.learned_tokens
        return max(state.guess_tokens, 2.0 * snapshot.proven_tokens)

    def _hold_s_per_token(self, snapshot: Snapshot) -> float:
        price = snapshot.prefill_s_per_token
        if price is None:
            return float("inf")
        return price * max(1.0, snapshot.reasoning_mean) / self.overhead_share

    def _feedback(self, state: WorkingSetState, snapshot: Snapshot) -> WorkingSetState:
        assert state.decided_s is not None
        if snapshot.at_s - state.decided_s < self.interval_s:
            return state
        if state.reusable_tokens <= 0.0:
            return replace(state, reason="no_evidence", decided_s=snapshot.at_s, was_bound=False)
        deficit = 1.0 - state.reused_tokens / state.reusable_tokens
        rho, reason, epoch_s = state.rho, "hold", state.epoch_s
        if deficit > self.deficit_high:
            rho, reason, epoch_s = max(self.rho_low, rho * self.cut), "cut", snapshot.at_s
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
