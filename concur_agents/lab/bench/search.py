"""The best cap on a workload, found by search: what an operator with endless patience would use.

How long a batch takes is not a smooth function of the cap, nor has it only one valley: past the
knee a cap may fall into thrashing on one draw of agents and not on the next. So a coarse grid over
all caps comes first, then the gaps around the best few points are closed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

__all__ = ["best_cap"]


def best_cap(
    makespan_s: Callable[[int], float],
    most: int,
    *,
    least: int = 1,
    serial_s: float = 0.0,
    ratio: float = 1.3,
    valleys: int = 3,
) -> tuple[int, dict[int, float]]:
    """The cap from `least` to `most` with the shortest makespan, and the makespans of all tried.

    Args:
        makespan_s: tries a cap [s]; called at most once per cap.
        most: the largest cap that makes sense: the number of agents.
        least: the smallest cap to try.
        serial_s: no cap finishes before `serial_s / cap`; caps that cannot win are not tried [s].
        ratio: of neighbours on the coarse grid.
        valleys: around how many of the best points gaps are closed; 0: the grid is all.
    """
    tried: dict[int, float] = {}

    def attempt(caps: list[int]) -> bool:
        before = len(tried)
        for cap in caps:
            if cap not in tried and cap > _hopeless(tried, serial_s):
                tried[cap] = makespan_s(cap)
        return len(tried) > before

    attempt(_grid(least, most, ratio))
    while attempt(_middles(tried, valleys, max(least - 1, _hopeless(tried, serial_s)), most)):
        pass
    best = min(tried, key=lambda cap: (tried[cap], cap))
    return best, dict(sorted(tried.items()))


def _grid(least: int, most: int, ratio: float) -> list[int]:
    """From `most` down to `least`, neighbours `ratio` apart, or one where that is less than one."""
    caps, cap = [most], float(most)
    while caps[-1] > least:
        cap = min(cap / ratio, caps[-1] - 1.0)
        caps.append(max(least, round(cap)))
    return caps


def _hopeless(tried: Mapping[int, float], serial_s: float) -> int:
    """The largest cap that cannot beat the best one so far, however well it shares."""
    return math.ceil(serial_s / min(tried.values())) - 1 if tried else 0


def _middles(tried: Mapping[int, float], valleys: int, hopeless: int, most: int) -> list[int]:
    """Caps half-way between each of the best points and its tried neighbours."""
    caps = sorted(tried)
    middles = set()
    for cap in sorted(caps, key=lambda cap: (tried[cap], cap))[:valleys]:
        i = caps.index(cap)
        below = max(hopeless, caps[i - 1] if i else 0)
        above = caps[i + 1] if i + 1 < len(caps) else most + 1
        middles |= {(below + cap) // 2, (cap + above) // 2}
    return sorted((cap for cap in middles if cap > hopeless), reverse=True)
