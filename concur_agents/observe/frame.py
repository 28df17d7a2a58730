"""What `concur watch` shows: a governor at one instant, wherever the numbers are from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Self

MOST_ROWS = 20
"""Agents told by name in each list of a frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """One agent that waits."""

    agent: str
    state: str
    """'queued' or 'paused'."""
    waited_s: float
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Active:
    """One agent that holds a place."""

    agent: str
    state: str
    """'reasoning' or 'acting'."""
    for_s: float
    """In this state [s]."""
    tokens: int
    """Its context after its last step."""
    steps: int


class Point(NamedTuple):
    """What is drawn over time."""

    at_s: float
    limit_tokens: float | None
    limit_agents: float | None
    pressure_tokens: float
    active: int
    hit_deficit: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A governor at one instant; the keys of a `--json` line. None: not told, or no bound."""

    at_s: float
    """Since the recording, or the looking on, began [s]."""
    law: str
    reasoning: int
    acting: int
    paused: int
    queued: int
    suspended: int
    done_total: int = 0
    pressure_tokens: float
    capacity_tokens: float | None
    reasoning_tokens: float
    """Held by agents that are reasoning."""
    faded_tokens: float
    """Contexts of acting agents, as far as they are not claimed any more."""
    limit_tokens: float | None
    limit_agents: float | None
    reason: str
    hit_rate: float | None
    hit_deficit: float | None
    pauses_total: int
    overdue_total: int
    """Agents let in because they had waited past the bound."""
    longest_wait_s: float
    blind: bool
    """The last poll failed."""
    closed: bool
    waiting: list[Waiting] = field(default_factory=list)
    """The longest waits."""
    active: list[Active] = field(default_factory=list)
    """Agents that hold a place, the longest in their state first."""

    @property
    def acting_tokens(self) -> float:
        """Claimed by agents that are acting."""
        return max(0.0, self.pressure_tokens - self.reasoning_tokens)

    @property
    def point(self) -> Point:
        """What of it is drawn over time."""
        return Point(
            self.at_s,
            self.limit_tokens,
            self.limit_agents,
            self.pressure_tokens,
            self.reasoning + self.acting,
            self.hit_deficit,
        )

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """The way back from JSON; what only another version knows is left out.

        Raises:
            KeyError, TypeError: it is no frame.
        """
        names = {item.name for item in fields(cls)}
        known = {name: value for name, value in found.items() if name in names}
        known["waiting"] = [Waiting(**row) for row in found["waiting"]]
        known["active"] = [Active(**row) for row in found["active"]]
        return cls(**known)


def split_pressure(
    pressure_tokens: float, held: Iterable[float], acting: Iterable[float]
) -> tuple[float, float]:
    """How much of the pressure is held by agents in calls, and how much of the others' has faded.

    Args:
        pressure_tokens: the sum of all claims.
        held: what agents in calls claim [tokens].
        acting: footprints of the others that hold a place [tokens].
    """
    in_calls = min(pressure_tokens, sum(held))
    return in_calls, max(0.0, sum(acting) - (pressure_tokens - in_calls))
