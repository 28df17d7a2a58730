"""How much those inside will soon need on top of what they hold, as their last steps tell.

    tokens_per_s = active x growth per step / (step + gap) - footprints of those that leave, per s

What an agent has grown by, how long its steps took and who left are summed up with a memory of half
a minute; the gap, its tools' time, comes from the snapshot.  The rate is that of claims which are
kept: of an agent whose claim has faded by the time it comes back, nothing has grown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from concur_agents.core.snapshot import Snapshot

_MEMORY_S = 30.0
_LEAST_STEPS = 4.0
_LEAST_S = 1e-3
"""Shortest time to divide by: clocks of tests stand still [s]."""


@dataclass(frozen=True, slots=True)
class Growth:
    """Sums over recent time, old ones fading."""

    span_s: float = 0.0
    """Time looked at."""
    grown_tokens: float = 0.0
    """What agents grew by in steps after their first."""
    grown_steps: float = 0.0
    left_tokens: float = 0.0
    """Footprints of active agents that left."""
    steps: float = 0.0
    """All steps that ended well."""
    step_s: float = 0.0

    def after(self, snapshot: Snapshot) -> Growth:
        """The sums once `snapshot` has been taken in."""
        rest = math.exp(-snapshot.interval_s / _MEMORY_S)
        return Growth(
            self.span_s * rest + snapshot.interval_s,
            self.grown_tokens * rest + snapshot.grown_tokens,
            self.grown_steps * rest + snapshot.grown_steps,
            self.left_tokens * rest + snapshot.left_tokens,
            self.steps * rest + snapshot.steps,
            self.step_s * rest + snapshot.step_s,
        )

    @property
    def is_seen(self) -> bool:
        """Whether some agents have come for more than their first step."""
        return self.grown_steps >= _LEAST_STEPS

    def is_known(self, active: int) -> bool:
        """Whether it has been seen of as many as half of those inside."""
        return self.grown_steps >= max(_LEAST_STEPS, 0.5 * active)

    def tokens_per_s(self, snapshot: Snapshot, hold_s: float) -> float:
        """How fast the claims inside grow, all together; below 0 if more leaves [tokens/s].

        Args:
            snapshot: how many are inside, and the gaps between their steps.
            hold_s: how long an idle claim holds: it fades as exp(-idle / this) [s].
        """
        gaps = snapshot.gaps_s
        gap_s = sum(gaps) / len(gaps) if gaps else 0.0
        turn_s = max(_LEAST_S, self.step_s / self.steps + gap_s)
        grows = snapshot.active * self.grown_tokens / self.grown_steps / turn_s
        leaves = self.left_tokens / max(_LEAST_S, self.span_s)
        return (grows - leaves) * kept(gaps, hold_s)


def kept(gaps_s: tuple[float, ...], hold_s: float) -> float:
    """Mean share of an idle claim that is still there when its agent comes back, 0 to 1."""
    if hold_s == math.inf or not gaps_s:
        return 1.0
    if hold_s <= 0.0:
        return 0.0
    return sum([math.exp(-gap / hold_s) for gap in gaps_s]) / len(gaps_s)
