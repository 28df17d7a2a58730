"""What prefill costs here: engine seconds per uncached prompt token, learned from step times.

A step takes about

    step_s = fixed + uncached x prefill_s_per_token + output x s_per_output_token

so a least-squares fit over recent steps, old ones fading, gives the price of a token.  Each step
is weighted by 1 / step_s, as noise grows with length, and a weak prior (an output token costs as
much as `_PRIOR_RATIO` prompt tokens) keeps the first answers sane.  A wrong price does little
harm: doubling or halving it moves the makespan by a few percent, see docs/laws.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_FADE = 0.98  # a memory of about 50 steps
_PRIOR_RATIO = 200.0
_LEAST_STEPS = 8


@dataclass(slots=True)
class CostEstimator:
    """Least squares over recent steps, old ones fading."""

    steps: int = 0
    _xx: list[float] = field(default_factory=lambda: [0.0] * 6)  # upper triangle, row by row
    _xy: list[float] = field(default_factory=lambda: [0.0] * 3)
    _simple: float = 0.0

    def observe(self, step_s: float, uncached: float, output: float) -> None:
        """One step ended well after `step_s` seconds."""
        if step_s <= 0.0:
            return
        self.steps += 1
        w = 1.0 / step_s
        x = self._xx
        x[0] = x[0] * _FADE + w
        x[1] = x[1] * _FADE + w * uncached
        x[2] = x[2] * _FADE + w * output
        x[3] = x[3] * _FADE + w * uncached * uncached
        x[4] = x[4] * _FADE + w * uncached * output
        x[5] = x[5] * _FADE + w * output * output
        y = self._xy
        y[0] = y[0] * _FADE + 1.0
        y[1] = y[1] * _FADE + uncached
        y[2] = y[2] * _FADE + output
        price = step_s / (uncached + _PRIOR_RATIO * output + 1.0)
        gain = max(0.05, 1.0 / self.steps)
        self._simple += gain * (price - self._simple)

    @property
    def prefill_s_per_token(self) -> float | None:
        """Seconds per uncached prompt token; None before any step."""
        if not self.steps:
            return None
        if self.steps < _LEAST_STEPS:
            return self._simple
        a, b, c, d, e, f = self._xx
        p, q, r = self._xy
        ridge = 1e-6
        a, d, f = a * (1 + ridge) + 1e-12, d * (1 + ridge) + 1e-12, f * (1 + ridge) + 1e-12
        det = a * (d * f - e * e) - b * (b * f - c * e) + c * (b * e - c * d)
        if det <= 1e-9 * a * d * f:
            return self._simple
        slope = (a * (q * f - e * r) - p * (b * f - c * e) + c * (b * r - q * c)) / det
        return min(max(slope, 0.1 * self._simple), 10.0 * self._simple)
