"""How far agents have come, in steps, and how far those had come that left."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from concur_agents.core.histogram import Histogram

_REMEMBERED = 64


@dataclass(slots=True)
class Lives:
    """Ages of the active agents and lengths of past lives, both in steps."""

    ages: Histogram = field(default_factory=Histogram)
    """How many active agents have done so many steps."""
    past: deque[int] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    """Steps of the last agents as they left."""
