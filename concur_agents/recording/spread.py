"""Statistics of durations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """Number, sum and quantiles of durations [s]."""

    number: int
    total_s: float
    median_s: float
    p99_s: float
    worst_s: float


def spread(durations: Iterable[float]) -> Spread:
    """The spread of durations [s]; all zeros if there is none."""
    ordered = sorted(durations)
    if not ordered:
        return Spread(0, 0.0, 0.0, 0.0, 0.0)
    return Spread(
        len(ordered),
        math.fsum(ordered),
        _quantile(ordered, 0.5),
        _quantile(ordered, 0.99),
        ordered[-1],
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]
