"""How far agents have come, in steps, and how far those had come that left."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

_REMEMBERED = 64
_BITS = 6
_EXACT = 1 << _BITS


def coarse(number: int) -> int:
    """`number` to six binary digits: exact up to 64, then less by 3 % at most.

    So there are at most 32 different ones an octave, however many agents there are and however
    far they come.
    """
    dropped = max(0, number.bit_length() - _BITS)
    return number >> dropped << dropped


@dataclass(slots=True)
class Lives:
    """Ages of the active agents and lengths of past lives, both in steps."""

    ages: dict[int, int] = field(default_factory=dict)
    """How many active agents have done so many steps, by `coarse`."""
    past: deque[int] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    """Steps of the last agents as they left."""

    def come(self, steps: int) -> None:
        """One that has done so many steps is active from now on."""
        age = steps if steps < _EXACT else coarse(steps)
        self.ages[age] = self.ages.get(age, 0) + 1

    def go(self, steps: int) -> None:
        """One that has done so many steps is active no longer."""
        age = steps if steps < _EXACT else coarse(steps)
        left = self.ages[age] - 1
        if left:
            self.ages[age] = left
        else:
            del self.ages[age]
