"""A law that shows what it sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from concur_agents.core import Law, LawState, Snapshot


@dataclass(frozen=True)
class WatchedLaw:
    """Decides as another law does, and keeps the snapshots."""

    name: ClassVar[str] = "watched"
    formula: ClassVar[str] = "as the other law"
    needs_readings: ClassVar[bool] = False

    law: Law
    seen: list[Snapshot] = field(default_factory=list)

    def initial(self) -> LawState:
        return self.law.initial()

    def decide(self, state: LawState, snapshot: Snapshot) -> LawState:
        self.seen.append(snapshot)
        return self.law.decide(state, snapshot)

    @property
    def steps(self) -> int:
        """Steps that have ended well."""
        return sum(snapshot.steps for snapshot in self.seen)

    @property
    def overloads(self) -> int:
        """Steps that the endpoint has refused."""
        return sum(snapshot.overloads for snapshot in self.seen)


@pytest.fixture
def watched() -> Callable[[Law], WatchedLaw]:
    """`watched(law)`: a law that keeps what it sees."""
    return WatchedLaw
