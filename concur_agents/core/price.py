"""What prefill costs here: engine seconds per uncached prompt token, learned from step times.

A step that shares the engine with others takes about

    step_s = fixed + uncached x t_prefill + output x (overhead + per_token x R)

with R the tokens of all contexts in calls meanwhile, so a least-squares fit over recent steps, old
ones fading, tells the price of a prompt token from that of decoding in a fuller or emptier batch.
Steps count by their relative error (weight 1 / step_s^2), and a weak prior (an output token costs
as much as `_PRIOR_RATIO` prompt tokens, half of it overhead) keeps first answers sane and holds
what the steps so far cannot tell apart.  A wrong price does little harm: doubling or halving it
moves the makespan by a few percent, see docs/laws.md.

The fit takes a step's time for its own doing.  In a burst it is not: sixty prompts that arrive at
once wait for each other, and on a real engine the price came out twenty times too high.  What the
engine has prefilled in a while it cannot have spent more on than the while, so there is a bound:

    t_prefill <= time with calls in flight / uncached tokens of the steps that ended in it

There is a bound below as well, a share of what the prior makes of the same steps.  After two dozen
calls of a burst whose long prompts happened to end first, the fit sees them as free.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

_FADE = 0.99  # a memory of about 100 steps
_KEPT = 512
"""Steps kept until somebody asks.  Of those before them 0.99^512 = 0.6 % would be left."""
_PRIOR_RATIO = 200.0
_PRIOR_STEPS = 0.5
_RANGE = (0.2, 10.0)
"""How far the fit may lie from what the prior alone says, as factors."""
_N = 4
_CELLS = tuple((i, j) for i in range(_N) for j in range(i, _N))
"""Where the upper triangle of a symmetric matrix has its cells, row by row."""


@dataclass(slots=True)
class PriceEstimator:
    """Least squares over recent steps, old ones fading.

    Many steps end between two questions, so a step is only noted when it ends, and the last few
    hundred are summed up when somebody asks.
    """

    steps: int = 0
    unseen_s: float = 0.0
    """Time that the engine has had calls in flight since the last step that ended well [s]; added
    to by whoever knows."""
    _noted: deque[tuple[float, float, float, float, float]] = field(
        default_factory=lambda: deque(maxlen=_KEPT)
    )
    """Steps not summed up yet: what `observe` was told, and `unseen_s`."""
    _xx: list[float] = field(default_factory=lambda: [0.0] * len(_CELLS))
    _xy: list[float] = field(default_factory=lambda: [0.0] * _N)
    _simple: float = 0.0
    _in_calls: float = 0.0
    _busy_s: float = 0.0
    _uncached: float = 0.0
    _price: float | None = None

    def observe(self, step_s: float, uncached: float, output: float, in_calls: float) -> None:
        """One step ended well, with `in_calls` tokens of context in calls meanwhile."""
        if step_s <= 0.0:
            return
        self.steps += 1
        self._noted.append((step_s, uncached, output, in_calls, self.unseen_s))
        self.unseen_s = 0.0

    @property
    def prefill_s_per_token(self) -> float | None:
        """Engine seconds per uncached prompt token; None before any step."""
        if self._noted:
            self._sum_up()
            low, high = _RANGE
            price = min(max(self._solve()[1], low * self._simple), high * self._simple)
            if self._busy_s and self._uncached:
                price = min(price, self._busy_s / self._uncached)
            self._price = price
        return self._price

    def _sum_up(self) -> None:
        first = self.steps - len(self._noted) + 1
        for number, noted in enumerate(self._noted, first):
            step_s, uncached, output, in_calls, busy_s = noted
            x = (1.0 / step_s, uncached / step_s, output / step_s, output * in_calls / step_s)
            for cell, (i, j) in enumerate(_CELLS):
                self._xx[cell] = self._xx[cell] * _FADE + x[i] * x[j]
            for i in range(_N):
                self._xy[i] = self._xy[i] * _FADE + x[i]
            self._busy_s = self._busy_s * _FADE + busy_s
            self._uncached = self._uncached * _FADE + uncached
            gain = max(1.0 - _FADE, 1.0 / number)
            price = step_s / (uncached + _PRIOR_RATIO * output + 1.0)
            self._simple += gain * (price - self._simple)
            self._in_calls += gain * (in_calls - self._in_calls)
        self._noted.clear()

    def _solve(self) -> tuple[float, ...]:
        effective = (1.0 - _FADE ** min(self.steps, 2000)) / (1.0 - _FADE)
        half = 0.5 * _PRIOR_RATIO * self._simple
        prior = (0.0, self._simple, half, half / max(1.0, self._in_calls))
        cells = dict(zip(_CELLS, self._xx, strict=True))
        a = [[cells[min(i, j), max(i, j)] for j in range(_N)] for i in range(_N)]
        b = list(self._xy)
        for i in range(_N):
            weight = _PRIOR_STEPS * a[i][i] / effective + 1e-30
            a[i][i] += weight
            b[i] += weight * prior[i]
        for i in range(_N):  # Gauss; the prior makes every pivot positive
            for k in range(i + 1, _N):
                factor = a[k][i] / a[i][i]
                for j in range(i, _N):
                    a[k][j] -= factor * a[i][j]
                b[k] -= factor * b[i]
        for i in reversed(range(_N)):
            b[i] = (b[i] - sum([a[i][j] * b[j] for j in range(i + 1, _N)])) / a[i][i]
        return tuple(b)
