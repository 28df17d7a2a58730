"""One number of a verdict: what it says, its goal, and which scenario is the worst one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from concur_agents.lab.bench.figure_texts import TEXTS

Better = Literal["higher", "lower"]


def geomean(values: Iterable[float]) -> float:
    """Geometric mean; nan of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(math.fsum(logs) / len(logs)) if logs else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number of the verdict on a law."""

    key: str
    text: str
    value: float | None
    """None: no scenario that was run says anything about it."""
    goal: float | None
    """None: for information."""
    better: Better
    scenarios: int
    """How many it is drawn from."""
    worst: str | None = None
    """Which of them is the worst one."""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None: there is no goal or no value."""
        if self.value is None or self.goal is None:
            return None
        return self.value >= self.goal if self.better == "higher" else self.value <= self.goal

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "text": self.text,
            "value": short(self.value),
            "goal": self.goal,
            "better": self.better,
            "met": self.met,
            "scenarios": self.scenarios,
            "worst": self.worst,
        }


def make_figure(
    key: str,
    values: Mapping[str, float],
    goal: float | None,
    better: Better,
    *,
    mean: bool = False,
    text: str | None = None,
) -> Figure:
    """A figure of `values` by scenario: their geometric mean, or the worst of them."""
    worst = (min if better == "higher" else max)(values, key=values.__getitem__, default=None)
    value = None if worst is None else geomean(values.values()) if mean else values[worst]
    return Figure(
        key=key,
        text=TEXTS[key] if text is None else text,
        value=value,
        goal=goal,
        better=better,
        scenarios=len(values),
        worst=worst,
    )


def short(value: float | None) -> float | None:
    """Six significant digits are enough, and make small files."""
    if value is None or isinstance(value, int):
        return value
    return float(f"{value:.6g}")
