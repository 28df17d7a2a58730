"""How long tools take, and when agents arrive: models that draw both from a seeded generator."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from concur_agents.errors import ConfigError

__all__ = [
    "Arrival",
    "AsRecorded",
    "Burst",
    "Constant",
    "HeavyTailed",
    "LogNormal",
    "Poisson",
    "Staggered",
    "ToolTimes",
    "Uniform",
    "parse_arrival",
    "parse_tools",
]


class ToolTimes(Protocol):
    """Where tool times come from."""

    def draw(self, rng: random.Random, recorded_s: float | None) -> float:
        """Seconds of one tool call; ``recorded_s`` is what the recording says, if anything."""
        ...


@dataclass(frozen=True, slots=True)
class AsRecorded:
    """The recording's own times; 0 where it has none."""

    def draw(self, rng: random.Random, recorded_s: float | None) -> float:
        """See ``ToolTimes``."""
        return recorded_s or 0.0


@dataclass(frozen=True, slots=True)
class Constant:
    """Every tool call takes as long."""

    seconds: float

    def draw(self, rng: random.Random, recorded_s: float | None) -> float:
        """See ``ToolTimes``."""
        return self.seconds


@dataclass(frozen=True, slots=True)
class Uniform:
    """Evenly between two bounds [s]."""

    low_s: float
    high_s: float

    def draw(self, rng: random.Random, recorded_s: float | None) -> float:
        """See ``ToolTimes``."""
        return rng.uniform(self.low_s, self.high_s)


@dataclass(frozen=True, slots=True)
class LogNormal:
    """exp(N(ln median, sigma)), cut at ``cap_s``: the usual shape of tool times."""

    median_s: float
    sigma: float  # of ln seconds
    cap_s: float = math.inf

    def draw(self, rng: random.Random, recorded_s: float | None) -> float:
        """See ``ToolTimes``."""
        return min(self.cap_s, rng.lognormvariate(math.log(self.median_s), self.sigma))


@dataclass(frozen=True, slots=True)
class HeavyTailed:
    """Pareto: P(t > x) = (x / least)^-alpha beyond the least time, cut at ``cap_s``.

    With alpha near 1, as measured for coding agents, calls above a minute are few and hold most of
    the tool seconds.
    """

    median_s: float
    alpha: float = 1.1
    cap_s: float = 600.0

    def draw(self, rng: random.Random, recorded_s: float | None) -> float:
        """See ``ToolTimes``."""
        least_s = self.median_s / math.pow(2.0, 1.0 / self.alpha)
        return min(self.cap_s, least_s * rng.paretovariate(self.alpha))


def parse_tools(text: str) -> ToolTimes:
    """Read a tool-time model: ``recorded``, ``constant:0.5``, ``uniform:0.5,2.5``,
    ``lognormal:4,1,20``, ``heavy:1,1.1,600``.

    Raises:
        ConfigError: the text is none of these.
    """
    kinds = {
        "recorded": AsRecorded,
        "constant": Constant,
        "uniform": Uniform,
        "lognormal": LogNormal,
        "heavy": HeavyTailed,
    }
    model: ToolTimes = _parse(text, "tool times", kinds)
    return model


class Arrival(Protocol):
    """When the agents of a batch ask to start."""

    def times(self, n: int, rng: random.Random) -> list[float]:
        """``n`` rising instants [s]."""
        ...


@dataclass(frozen=True, slots=True)
class Burst:
    """All at once."""

    def times(self, n: int, rng: random.Random) -> list[float]:
        """See ``Arrival``."""
        return [0.0] * n


@dataclass(frozen=True, slots=True)
class Staggered:
    """One every ``interval_s``."""

    interval_s: float

    def times(self, n: int, rng: random.Random) -> list[float]:
        """See ``Arrival``."""
        return [i * self.interval_s for i in range(n)]


@dataclass(frozen=True, slots=True)
class Poisson:
    """Independent arrivals, ``per_s`` agents a second on average."""

    per_s: float

    def times(self, n: int, rng: random.Random) -> list[float]:
        """See ``Arrival``."""
        at, out = 0.0, []
        for _ in range(n):
            at += rng.expovariate(self.per_s)
            out.append(at)
        return out


def parse_arrival(text: str) -> Arrival:
    """Read an arrival pattern: ``burst``, ``staggered:2`` (seconds apart) or ``poisson:0.5``
    (agents a second).

    Raises:
        ConfigError: the text is none of these.
    """
    pattern: Arrival = _parse(
        text, "arrival", {"burst": Burst, "staggered": Staggered, "poisson": Poisson}
    )
    return pattern


def _parse(text: str, what: str, kinds: Mapping[str, Callable[..., Any]]) -> Any:
    kind, _, rest = text.partition(":")
    try:
        numbers = [float(number) for number in rest.split(",")] if rest else []
        if any(not number >= 0 for number in numbers):
            raise ValueError("numbers must be at least 0")
        return kinds[kind](*numbers)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{what} {text!r} not understood ({error}); "
            f"give one of {', '.join(kinds)}, then ':' and its numbers"
        ) from error
