"""What the open agents will hold together, as the sizes say at which others have left.

An agent that has been opened cannot be closed again, and under a bound on waiting every one that
does not fit comes back cold within it.  So before one more is opened, look ahead: every open agent
grows by the same x, and some leave on the way.  The most they hold together, over all x, has to
fit.  Agents of all ages never reach their final sizes at once; a batch that started together does.

How many come further than a size follows from the sizes at which agents left, with those still
here counted as larger than theirs (the product-limit estimate, E. L. Kaplan and P. Meier, JASA
1958): the first to leave are the short ones.  Beyond the largest that left, agents leave at their
mean rate per token.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, deque
from dataclasses import dataclass, field

_REMEMBERED = 64
_REACH, _PARTS = 3, 8  # how far to look ahead, in largest sizes, and looks in each
_LEAST_SHARE = 1e-9


def coarse(tokens: float) -> int:
    """`tokens` to six binary digits, rounded down: at most 32 sizes an octave."""
    whole = int(tokens)
    dropped = max(0, whole.bit_length() - 6)
    return whole >> dropped << dropped


@dataclass(slots=True)
class PeakForecast:
    """Sizes of agents that hold something, final sizes of past ones, and what follows."""

    held: Counter[int] = field(default_factory=Counter)  # agents by the tokens that they hold
    finals: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    _together: list[float] = field(default_factory=list)  # the open agents, each grown so far
    _newcomer: list[float] = field(default_factory=list)  # and what one newcomer holds then
    _first_tokens: float = 0.0

    def change(self, before_tokens: float, after_tokens: float) -> None:
        """An agent that held `before_tokens` holds `after_tokens` from now on; 0: nothing."""
        held, before, after = self.held, coarse(before_tokens), coarse(after_tokens)
        if before:  # an agent that holds nothing is not counted
            held[before] -= 1
            if not held[before]:
                del held[before]
        if after:
            held[after] = held.get(after, 0) + 1

    def look(self, open_agents: int, first_tokens: float) -> None:
        """Take stock: `open_agents` agents are open, and a newcomer begins with `first_tokens`."""
        if not self.finals:
            return
        held = self.held
        silent = max(0, open_agents - held.total())  # open, with no context yet
        come_further = _Survival(sorted(self.finals), sorted(held.items()))
        largest = max(come_further.largest, first_tokens, *held)
        grown = [largest / _PARTS * look for look in range(_REACH * _PARTS + 1)]
        self._first_tokens = first_tokens
        self._newcomer = [come_further.of(first_tokens, x) * (first_tokens + x) for x in grown]
        self._together = [
            silent * newcomer
            + sum(agents * come_further.of(size, x) * (size + x) for size, agents in held.items())
            for x, newcomer in zip(grown, self._newcomer, strict=True)
        ]

    def opens(self) -> None:
        """One more is open since the last `look`."""
        self._together = [*map(sum, zip(self._together, self._newcomer, strict=True))]

    def peak_tokens(self, need_tokens: float) -> float | None:
        """Most that the open agents and one more hold together [tokens]; None: unknown.

        Args:
            need_tokens: what the new one holds at the end of its first step.
        """
        if not self._together:
            return None
        more = max(0.0, need_tokens - self._first_tokens)
        return more + max(map(sum, zip(self._together, self._newcomer, strict=True)))


class _Survival:
    """The share of agents that come further than a size."""

    def __init__(self, finals: list[float], held: list[tuple[int, int]]) -> None:
        self._finals = finals
        self._shares: list[float] = []
        self.largest = finals[-1]
        share, here, smaller = 1.0, sum(agents for _, agents in held), 0
        for place, final in enumerate(finals):
            while smaller < len(held) and held[smaller][0] < final:
                here -= held[smaller][1]
                smaller += 1
            share *= 1.0 - 1.0 / (len(finals) - place + here)
            self._shares.append(max(share, _LEAST_SHARE))
        seen = sum(finals) + sum(size * agents for size, agents in held)
        self._rate = len(finals) / max(1.0, seen)

    def of(self, size: float, more: float) -> float:
        """The share of those that have come to `size` that grow by `more`."""
        return self._to(size + more) / self._to(size)

    def _to(self, size: float) -> float:
        place = bisect_right(self._finals, size)
        if place < len(self._finals):
            return self._shares[place - 1] if place else 1.0
        beyond = size - self.largest
        # not to nothing: the share of those still here is divided by it
        return max(1e-300, self._shares[-1] * math.exp(-self._rate * beyond))
