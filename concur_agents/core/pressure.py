"""Pressure: the sum of all claims.

A reasoning agent claims what its call needs.  An acting agent's claim fades:

    claim(idle) = footprint x exp(-idle / (footprint x hold_s_per_token))

`hold_s_per_token` changes at run time, so fading is measured on a clock of its own,
`theta += dt / hold_s_per_token` [tokens].  Claims of about the same footprint (a quarter of an
octave, so the rate is right within 9 %) share one fading sum: some 15 per decade of size.

Each sum stands at the theta of its last change, so questions change nothing.  No sum goes back in
time: threads may call with a `now` slightly older than the last, and no claim grows by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

_PER_OCTAVE = 4.0
_LEAST_HOLD = 1e-9  # a hold of nothing, as a number to divide by [s/token]
_CRUMB = 1e-6  # what fading and rounding leave of tokens that are not there


@dataclass(slots=True)
class _Fading:
    """Idle claims of about `1 / rate` tokens, as one sum."""

    rate: float
    total: float = 0.0  # their sum at `theta`
    theta: float = 0.0
    count: int = 0


@dataclass(slots=True)
class Claim:
    """One agent's part of the pressure.  Owned by `Claims`."""

    tokens: float = 0.0  # what it claims, or claimed when it began to fade
    theta: float = 0.0
    fading: _Fading | None = None
    held: bool = False


@dataclass(slots=True)
class Claims:
    """All claims and their sum."""

    hold_s_per_token: float = math.inf
    reasoning_tokens: float = 0.0  # sum of the claims that do not fade
    held: int = 0  # how many those are
    _theta: float = 0.0
    _at_s: float = 0.0
    _sums: dict[int, _Fading] = field(default_factory=dict)

    def hold(self, claim: Claim, tokens: float) -> None:
        """`claim` becomes `tokens`, not fading: the agent is reasoning."""
        self.release(claim)
        claim.tokens = tokens
        claim.held = True
        self.held += 1
        self.reasoning_tokens += tokens

    def fade(self, claim: Claim, tokens: float, now: float, *, again: bool = False) -> None:
        """`claim` becomes `tokens`, fading from now on: the agent is acting.

        With `again` it goes on fading from where it last began to, as if never held since.
        """
        self.release(claim)
        if tokens <= 0.0:
            return
        key = int(_PER_OCTAVE * math.log2(tokens)) if tokens > 1.0 else 0
        fading = self._sums.get(key)
        if fading is None:
            fading = self._sums[key] = _Fading(2.0 ** ((-0.5 - key) / _PER_OCTAVE))
        theta = max(self._theta_at(now), fading.theta)
        began = claim.theta if again else theta
        fading.total *= math.exp((fading.theta - theta) * fading.rate)
        fading.total += tokens * math.exp((began - theta) * fading.rate)
        fading.theta = theta
        fading.count += 1
        claim.tokens, claim.theta, claim.fading = tokens, began, fading

    def release(self, claim: Claim) -> None:
        """`claim` becomes nothing: the agent paused or left."""
        if claim.held:
            self.held -= 1
            # Sums of fractions keep what rounding left of them, so the last one empties the sum.
            self.reasoning_tokens = self.reasoning_tokens - claim.tokens if self.held else 0.0
            claim.held = False
        elif claim.fading is not None:
            fading, claim.fading = claim.fading, None
            fading.count -= 1
            part = fading.total
            if fading.count:
                part = claim.tokens * math.exp((claim.theta - fading.theta) * fading.rate)
            fading.total = max(0.0, fading.total - part)
        claim.tokens = 0.0

    def pressure(self, now: float) -> float:
        """Sum of all claims now [tokens]."""
        theta, idle = self._theta_at(now), 0.0
        for fading in self._sums.values():
            if fading.count:
                idle += fading.total * math.exp(min(0.0, fading.theta - theta) * fading.rate)
        return self.reasoning_tokens + idle

    def fits(self, tokens: float, now: float) -> bool:
        """Whether pressure is at most `tokens` now."""
        return tokens == math.inf or self.pressure(now) <= tokens + _CRUMB

    def set_hold(self, hold_s_per_token: float, now: float) -> None:
        """From now on claims fade at this rate; what has faded stays faded."""
        self._theta, self._at_s = self._theta_at(now), max(now, self._at_s)
        self.hold_s_per_token = max(hold_s_per_token, _LEAST_HOLD)

    def seconds_until(self, tokens: float, now: float) -> float | None:
        """When pressure will have faded to `tokens`, if nothing moves [s from now]; None: never."""
        # Newton's method from the left on a sum of falling exponentials: convex, so each step stays
        # short of its target, which is set a hair lower than `tokens`, more than rounding can blur.
        target = tokens - self.reasoning_tokens
        if target <= 0.0 or self.hold_s_per_token == math.inf:
            return None
        theta = self._theta_at(now)
        sums = [fading for fading in self._sums.values() if fading.count]
        aim, passed = target - min(0.5 * target, 1e-9 * tokens), 0.0
        for _ in range(64):
            rest = [f.total * math.exp(min(0.0, f.theta - theta - passed) * f.rate) for f in sums]
            excess = sum(rest) - aim
            if excess <= 0.5 * (target - aim):
                break
            passed += excess / sum(part * f.rate for part, f in zip(rest, sums, strict=True))
        # Both clocks have their own rounding: a double counts 1e9 s in steps of 1e-7 s.
        passed += 2.0 * math.ulp(self._theta)
        return passed * self.hold_s_per_token + 4.0 * math.ulp(now) + 1e-6

    def _theta_at(self, now: float) -> float:
        if now <= self._at_s:
            return self._theta
        return self._theta + (now - self._at_s) / self.hold_s_per_token
