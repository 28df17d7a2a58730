"""Two laws at once; the tighter wins.

    limit' = min(first, second), each bound by itself

For signals that mean different things: the cache is one, refusals (429) are another, and neither
says anything of the other.  Both laws see every snapshot and keep their own state.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from concur_agents.core.laws.gradient import Gradient
from concur_agents.core.laws.law import Law, LawState
from concur_agents.core.laws.working_set import WorkingSet
from concur_agents.core.types import Limit, Snapshot


@dataclass(frozen=True, slots=True)
class MinimumState(LawState):
    """Where both laws stand."""

    first: LawState = field(default_factory=lambda: LawState(Limit()))
    second: LawState = field(default_factory=lambda: LawState(Limit()))


@dataclass(frozen=True, slots=True)
class Minimum:
    """See the top of this file."""

    name: ClassVar[str] = "minimum"
    formula: ClassVar[str] = "the tighter of `first` and `second`"

    first: Law = field(default_factory=WorkingSet)
    second: Law = field(default_factory=Gradient)

    @property
    def needs_readings(self) -> bool:
        """Whether both laws are lost without metrics; one that is not still guards."""
        return self.first.needs_readings and self.second.needs_readings

    def initial(self) -> MinimumState:
        """The tighter of both."""
        return _tighter(self.first.initial(), self.second.initial())

    def decide(self, state: MinimumState, snapshot: Snapshot) -> MinimumState:
        """Let both decide."""
        return _tighter(
            self.first.decide(state.first, snapshot), self.second.decide(state.second, snapshot)
        )


def _tighter(first: LawState, second: LawState) -> MinimumState:
    a, b = first.limit, second.limit
    tokens = min(a, b, key=lambda limit: limit.tokens)  # a hold belongs to its bound on tokens
    limit = replace(tokens, agents=min(a.agents, b.agents))
    reason = f"{first.reason}+{second.reason}"
    return MinimumState(limit, reason, first, second)
