"""What every law is: a frozen config, a first state, and one pure step from state to state."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from concur_agents.core.types import Limit, Snapshot


@dataclass(frozen=True, slots=True)
class LawState:
    """Where a law stands.  Frozen and JSON-able; a law that remembers more subclasses it."""

    limit: Limit
    reason: str = "start"
    """Short code for the last decision: 'start', 'grow', 'cut', 'hold', ..."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: infinities become None."""
        finite: dict[str, Any] = _finite(asdict(self))
        return finite


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
