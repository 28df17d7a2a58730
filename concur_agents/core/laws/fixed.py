"""A fixed cap on active agents.

    agents' = agents

The honest baseline: a cap tuned by search to one workload is hard to beat on that workload.  It
knows nothing of sizes, tools or other tenants, and the best value moves with each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from concur_agents.core.laws.law import LawState
from concur_agents.core.types import Limit, Snapshot


@dataclass(frozen=True, slots=True)
class Fixed:
    """See the top of this file."""

    name: ClassVar[str] = "fixed"
    formula: ClassVar[str] = "at most `agents` active agents"
    needs_readings: ClassVar[bool] = False

    agents: float = 8
    """Active agents at once; at least one is always let in, also at 0."""

    def __post_init__(self) -> None:
        if not self.agents >= 0:
            raise ValueError(f"agents must be at least 0, got {self.agents}")

    def initial(self) -> LawState:
        """The cap."""
        return LawState(Limit(agents=self.agents), reason="fixed")

    def decide(self, state: LawState, snapshot: Snapshot) -> LawState:
        """The same cap."""
        return state
