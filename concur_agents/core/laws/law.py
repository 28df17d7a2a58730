"""What every law is: a frozen config, a first state, and one pure step from state to state."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from concur_agents.core.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Limit:
    """What a law decides.  All three bounds hold at once; infinity means that one does not bind."""

    agents: float = math.inf
    """At most this many active agents (rounded down, but at least one is always let in)."""
    tokens: float = math.inf
    """At most this much pressure, the sum of all claims [tokens]."""
    hold_s_per_token: float = math.inf
    """How long an idle claim holds: it fades as exp(-idle / (footprint x this)) [s/token]."""

    enter_tokens: float = math.inf
    """At most this much pressure once an agent is in whose context has to be prefilled first, new
    or gone cold [tokens].  Below `tokens` it leaves those inside room to grow."""

    open_agents: float = math.inf
    """Beyond this many open agents (admitted once, not done), agents that have begun come before
    new ones.  It never keeps a new agent out while no other one waits."""

    def __post_init__(self) -> None:
        for name in ("agents", "tokens", "hold_s_per_token", "enter_tokens", "open_agents"):
            value = getattr(self, name)
            if not value >= 0:
                raise ValueError(f"limit on {name} must be at least 0, got {value}")


@dataclass(frozen=True, slots=True)
class LawState:
    """Where a law stands.  Frozen and JSON-able; a law that remembers more subclasses it."""

    limit: Limit
    reason: str = "start"
    """Short code for the last decision: 'start', 'grow', 'cut', 'hold', ..."""
    epoch_s: float = -math.inf
    """Steps that began before this instant say nothing any more [s]: set by a cut."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: infinities become None."""
        finite: dict[str, Any] = _finite(asdict(self))
        return finite


S = TypeVar("S", bound=LawState)


@runtime_checkable
class Law(Protocol):
    """A control law.  Implementations are frozen dataclasses: equal configs are equal laws."""

    name: ClassVar[str]
    formula: ClassVar[str]
    """One line a user reads in `concur laws`."""

    @property
    def needs_readings(self) -> bool:
        """Whether the law is lost without metrics: after a long silence the safe limit applies."""
        ...

    def initial(self) -> LawState:
        """The state before anything is known."""
        ...

    def decide(self, state: Any, snapshot: Snapshot) -> LawState:
        """The next state.  Pure: the same arguments give the same state."""
        ...


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
