"""How far agents have come, in steps, and how far those had come that left."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

_REMEMBERED = 64


@dataclass(slots=True)
class Lives:
    """Ages of the active agents and lengths of past lives, both in steps."""

    ages: dict[int, int] = field(default_factory=dict)
    """How many active agents have done so many steps."""
    past: deque[int] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    """Steps of the last agents as they left."""

    def come(self, steps: int) -> None:
        """One that has done so many steps is active from now on."""
        self.ages[steps] = self.ages.get(steps, 0) + 1

    def go(self, steps: int) -> None:
        """One that has done so many steps is active no longer."""
        left = self.ages[steps] - 1
        if left:
            self.ages[steps] = left
        else:
            del self.ages[steps]
