"""Pressure: the sum of all claims, in constant time per question.

A reasoning agent claims what its call needs.  An acting agent's claim fades:

    claim(idle) = footprint x exp(-idle / (footprint x hold_s_per_token))

`hold_s_per_token` changes at run time, so fading is measured on a clock of its own,
`theta += dt / hold_s_per_token` [tokens], on which every claim fades as exp(-d_theta / footprint)
whatever the law decides.  Claims of about the same footprint (an eighth of an octave, so the
rate is right within 4.5 %) share one exponentially fading sum; there are some 20 sums per decade
of context length, however many agents there are.  (The same trick keeps load averages.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

_PER_OCTAVE = 8.0
_NEVER = math.inf
_LEAST_HOLD = 1e-9
"""A hold of nothing, as a number one can divide by [s/token]."""

_FAR = 1.0
"""How far, in time constants of a sum, its base may lie back when a claim joins it."""

_CRUMB = 1e-6
"""What fading and rounding leave of tokens that are not there [tokens]."""


@dataclass(slots=True)
class _Fading:
    """Idle claims of about `1 / rate` tokens, as one sum."""

    rate: float
    """How fast they fade: exp(-d_theta x rate) [1/token]."""
    total: float = 0.0
    """Their sum at `Claims._base`; those that came later count as if they had been larger then."""
    count: int = 0


@dataclass(slots=True)
class Claim:
    """One agent's part of the pressure.  Owned by `Claims`."""

    tokens: float = 0.0
    """What it claims, or claimed when it began to fade [tokens]."""
    theta: float = 0.0
    fading: _Fading | None = None
    held: bool = False


@dataclass(slots=True)
class Claims:
    """All claims and their sum.

    All sums stand at one theta, `_base`, and are brought forward together.  Most questions are
    whether the pressure exceeds something, and most are answered by bounds that are kept up to
    date with each move: a falling exponential lies above its tangent, and below what it was and
    its parabola: 1 - x <= exp(-x) <= min(1, 1 - x + x^2 / 2).
    """

    hold_s_per_token: float = math.inf
    reasoning_tokens: float = 0.0
    """Sum of the claims that do not fade [tokens]."""
    _held: int = 0
    _theta: float = 0.0
    _at_s: float = 0.0
    _sums: dict[int, _Fading] = field(default_factory=dict)
    _faded: int = 0
    """Claims that fade."""
    _base: float = 0.0
    """Theta at which all sums stand."""
    _idle: float = 0.0
    """Sum of `total` over `_sums`."""
    _slope: float = 0.0
    """Sum of `total x rate`."""
    _curve: float = 0.0
    """Sum of `total x rate^2`."""

    def __post_init__(self) -> None:
        self.hold_s_per_token = max(self.hold_s_per_token, _LEAST_HOLD)

    def hold(self, claim: Claim, tokens: float) -> None:
        """`claim` becomes `tokens`, not fading: the agent is reasoning."""
        if claim.held or claim.fading is not None:
            self.release(claim)
        claim.tokens = tokens
        claim.held = True
        self._held += 1
        self.reasoning_tokens += tokens

    def fade(self, claim: Claim, tokens: float, now: float, *, again: bool = False) -> None:
        """`claim` becomes `tokens`, fading from now on: the agent is acting.

        With `again` it goes on fading from where it last began to, as if never held since.
        """
        self.release(claim)
        if tokens <= 0.0:
            return
        theta = self._advance(now)
        began = claim.theta if again else theta
        key = int(_PER_OCTAVE * math.log2(tokens)) if tokens > 1.0 else 0
        fading = self._sums.get(key)
        if fading is None:
            fading = self._sums[key] = _Fading(2.0 ** ((-0.5 - key) / _PER_OCTAVE))
        if (theta - self._base) * fading.rate > _FAR:
            self._settle(now)
        self._change(fading, tokens * math.exp((began - self._base) * fading.rate))
        fading.count += 1
        self._faded += 1
        claim.tokens, claim.theta, claim.fading = tokens, began, fading

    def release(self, claim: Claim) -> None:
        """`claim` becomes nothing: the agent paused or left."""
        if claim.held:
            self._held -= 1
            # Of nothing, nothing is left: sums of fractions would keep what rounding left of them.
            self.reasoning_tokens = self.reasoning_tokens - claim.tokens if self._held else 0.0
            claim.held = False
        elif claim.fading is not None:
            fading = claim.fading
            fading.count -= 1
            self._faded -= 1
            part = claim.tokens * math.exp((claim.theta - self._base) * fading.rate)
            self._change(fading, -min(part, fading.total) if fading.count else -fading.total)
            if not self._faded:
                self._idle = self._slope = self._curve = 0.0
            claim.fading = None
        claim.tokens = 0.0

    def value(self, claim: Claim, now: float) -> float:
        """What `claim` is worth now [tokens]."""
        if claim.fading is None:
            return claim.tokens
        return claim.tokens * math.exp((claim.theta - self._advance(now)) * claim.fading.rate)

    def pressure(self, now: float) -> float:
        """Sum of all claims now [tokens]."""
        return self.reasoning_tokens + self._settle(now)

    def fits(self, tokens: float, now: float) -> bool:
        """Whether pressure is at most `tokens` now; most often without summing it up."""
        room = tokens - self.reasoning_tokens + _CRUMB
        if room < 0.0:
            return False
        if self._idle <= room:
            return True
        theta = self._theta if now <= self._at_s else self._advance(now)
        passed = theta - self._base
        least = self._idle - passed * self._slope
        if least > 0.0:  # else the bounds are wide, and lose digits
            if least > room:
                return False
            if least + 0.5 * passed * passed * self._curve <= room:
                return True
        return self._settle(now) <= room

    def set_hold(self, hold_s_per_token: float, now: float) -> None:
        """From now on claims fade at this rate; what has faded stays faded."""
        self._advance(now)
        self.hold_s_per_token = max(hold_s_per_token, _LEAST_HOLD)

    def seconds_until(self, tokens: float, now: float) -> float | None:
        """When pressure will have faded to `tokens`, if nobody moves [s from now]; None: never.

        Newton's method from the left on a sum of falling exponentials: convex, so each step stays
        short of its target.  That is set a hair lower than `tokens`, more than rounding can blur,
        so that the answer lies just past the instant asked for.
        """
        target = tokens - self.reasoning_tokens
        if target <= 0.0 or self.hold_s_per_token == _NEVER:
            return None
        self._settle(now)
        parts = [(fading.total, fading.rate) for fading in self._sums.values() if fading.count]
        aim = target - min(0.5 * target, 1e-9 * tokens)
        passed = 0.0
        for _ in range(64):
            rest = [(total * math.exp(-passed * rate), rate) for total, rate in parts]
            excess = sum([total for total, _ in rest]) - aim
            if excess <= 0.5 * (target - aim):
                break
            passed += excess / sum([total * rate for total, rate in rest])
        # Both clocks have their own rounding: a double counts 1e9 s in steps of 1e-7 s.
        passed += 2.0 * math.ulp(self._theta)
        return passed * self.hold_s_per_token + 4.0 * math.ulp(now) + 1e-6

    def _change(self, fading: _Fading, tokens: float) -> None:
        """`fading` becomes larger by `tokens`."""
        fading.total += tokens
        falling = tokens * fading.rate
        self._idle += tokens
        self._slope += falling
        self._curve += falling * fading.rate

    def _settle(self, now: float) -> float:
        """Brings all sums to now; returns theirs [tokens]."""
        theta = self._advance(now)
        passed, self._base = theta - self._base, theta
        idle = slope = curve = 0.0
        for fading in self._sums.values():
            if fading.count:
                fading.total *= math.exp(-passed * fading.rate)
                idle += fading.total
                falling = fading.total * fading.rate
                slope += falling
                curve += falling * fading.rate
        self._idle, self._slope, self._curve = idle, slope, curve
        return idle

    def _advance(self, now: float) -> float:
        if now > self._at_s:
            self._theta += (now - self._at_s) / self.hold_s_per_token
            self._at_s = now
        return self._theta
