"""What the open agents will hold together, told by the sizes at which others have left.

An agent that has been opened cannot be closed again, and under a bound on waiting everyone that
does not fit comes back cold within it.  So before one more is opened, look ahead: every open agent
grows by the same x, and some leave on the way.  The most they hold together, over all x, is what
has to fit.  Agents of all ages never reach their final sizes at once; a batch that started together
does.

How many come further than a size is told by the sizes at which agents left and by those that are
still here, which are larger than theirs and not known (the product-limit estimate, E. L. Kaplan and
P. Meier, JASA 1958): the first to leave are the short ones, and say little of the others.  Beyond
the largest that left, agents leave at their mean rate per token.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field

_REMEMBERED = 64
_REACH, _PARTS = 3, 8
"""How far to look ahead, in largest sizes, and how many looks there are in each."""
_LEAST_SHARE = 1e-9


class Histogram(dict[int, int]):
    """How many there are of each number, to six binary digits: at most 32 keys an octave."""

    def add(self, number: int) -> None:
        """One more of `number`."""
        key = _coarse(number)
        self[key] = self.get(key, 0) + 1

    def remove(self, number: int) -> None:
        """One less of `number`."""
        key = _coarse(number)
        left = self[key] - 1
        if left:
            self[key] = left
        else:
            del self[key]


def _coarse(number: int) -> int:
    """`number` to six binary digits, rounded down."""
    dropped = max(0, number.bit_length() - 6)
    return number >> dropped << dropped


@dataclass(slots=True)
class PeakForecast:
    """Sizes of agents that hold something, final sizes of past ones, and what follows."""

    held: Histogram = field(default_factory=Histogram)
    """How many agents hold so many tokens."""
    finals: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    """What the last agents held as they left [tokens]."""
    _together: list[float] = field(default_factory=list)
    """What the open agents hold once each has grown by so much more."""
    _newcomer: list[float] = field(default_factory=list)
    """What one newcomer does."""
    _first_tokens: float = 0.0

    def change(self, before_tokens: float, after_tokens: float) -> None:
        """An agent that held `before_tokens` holds `after_tokens` from now on; 0: nothing."""
        if before := int(before_tokens):
            self.held.remove(before)
        if after := int(after_tokens):
            self.held.add(after)

    def look(self, open_agents: int, first_tokens: float) -> None:
        """Take stock: `open_agents` agents are open, and a newcomer begins with `first_tokens`."""
        if not self.finals:
            return
        held = self.held
        silent = max(0, open_agents - sum(held.values()))  # open, with no context yet
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
        self._together = [
            together + newcomer
            for together, newcomer in zip(self._together, self._newcomer, strict=True)
        ]

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
