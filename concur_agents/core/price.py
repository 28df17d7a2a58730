"""What prefill costs here: engine seconds per uncached prompt token, learned from step times.

    t_prefill = mean over steps of  step_s / (uncached + 200 x output)
    t_prefill <= time with calls in flight / uncached tokens of the steps that ended in it

An output token costs about as much as 200 prompt tokens.  The bound is for bursts, whose steps wait
for each other.  A price wrong by a factor of two moves makespans by a few percent
(docs/laws-holding.md).
"""

from __future__ import annotations

from dataclasses import dataclass

_FADE = 0.99  # a memory of about 100 steps
_OUTPUT_RATIO = 200.0


@dataclass(slots=True)
class PriceEstimator:
    """Means over recent steps, old ones fading."""

    unseen_s: float = 0.0  # with calls in flight since the last step ended; the caller adds to it
    _steps: int = 0
    _ratio_s: float = 0.0
    _busy_s: float = 0.0
    _uncached: float = 0.0

    def observe(self, step_s: float, uncached: float, output: float) -> None:
        """One step ended well."""
        if step_s <= 0.0:
            return
        self._steps += 1
        price_s = step_s / (uncached + _OUTPUT_RATIO * output + 1.0)
        self._ratio_s += max(1.0 - _FADE, 1.0 / self._steps) * (price_s - self._ratio_s)
        self._busy_s = self._busy_s * _FADE + self.unseen_s
        self._uncached = self._uncached * _FADE + uncached
        self.unseen_s = 0.0

    @property
    def prefill_s_per_token(self) -> float | None:
        """Engine seconds per uncached prompt token; None before any step."""
        if not self._steps:
            return None
        if self._busy_s and self._uncached:
            return min(self._ratio_s, self._busy_s / self._uncached)
        return self._ratio_s
