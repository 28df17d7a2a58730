"""How much those inside will need on top of what they hold, as their last steps tell.

Looked at some time ahead, every agent inside has done that many more steps and grown by as much in
each; some have left, and what they held is free.  Who leaves is told by age: of the last lives
that were longer than an agent's so far, the share that ended within as many steps.  One that is
older than all of them may go on for as long again as it has so far.  A batch that started together
is not the one whose agents leave now and then: it grows as a whole, and leaves as a whole.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

from concur_agents.core.snapshot import Snapshot

_MEMORY_S = 30.0
_LEAST_STEPS = 4.0
"""Steps after a first one before growth is believed at all."""
_LEAST_S = 1e-3
"""Shortest time to divide by: clocks of tests stand still [s]."""
_LOOKS = (0.25, 0.5, 0.75, 1.0)
"""Shares of the time ahead at which to look: the most may be needed before its end."""


@dataclass(frozen=True, slots=True)
class Growth:
    """Sums over recent time, old ones fading with a memory of half a minute."""

    grown_tokens: float = 0.0
    """What agents grew by in steps after their first."""
    grown_steps: float = 0.0
    steps: float = 0.0
    """All steps that ended well."""
    step_s: float = 0.0
    """Their time."""

    def after(self, snapshot: Snapshot) -> Growth:
        """The sums once `snapshot` has been taken in."""
        rest = math.exp(-snapshot.interval_s / _MEMORY_S)
        return Growth(
            self.grown_tokens * rest + snapshot.grown_tokens,
            self.grown_steps * rest + snapshot.grown_steps,
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

    def ahead(self, snapshot: Snapshot, horizon_s: float) -> float:
        """The most that those inside will need within `horizon_s`, beyond what they hold [tokens].

        Only once it `is_seen`.
        """
        gaps = snapshot.gaps_s
        gap_s = sum(gaps) / len(gaps) if gaps else 0.0
        turn_s = max(_LEAST_S, self.step_s / self.steps + gap_s)
        grown = self.grown_tokens / self.grown_steps
        most = 0.0
        for look in _LOOKS:
            steps = look * horizon_s / turn_s
            leave = leaving(snapshot, steps)
            need = (snapshot.active - leave) * steps * grown - leave * snapshot.final_tokens
            most = max(most, need)
        return most


def leaving(snapshot: Snapshot, steps: float) -> float:
    """How many of the active agents will have left after so many more steps of each."""
    lives = snapshot.lives
    if not lives:
        return 0.0
    leave = 0.0
    for age, agents in snapshot.ages:
        longer = len(lives) - bisect_right(lives, age)
        if longer:
            still = len(lives) - bisect_right(lives, age + steps)
            leave += agents * (1.0 - still / longer)
        else:
            leave += agents * steps / (age + steps)
    return leave


def kept(gaps_s: tuple[float, ...], hold_s: float) -> float:
    """Mean share of an idle claim that is still there when its agent comes back, 0 to 1.

    Args:
        gaps_s: times from the end of a call to the next boundary [s].
        hold_s: the claim fades as exp(-idle / this) [s].
    """
    if hold_s == math.inf or not gaps_s:
        return 1.0
    if hold_s <= 0.0:
        return 0.0
    return sum([math.exp(-gap / hold_s) for gap in gaps_s]) / len(gaps_s)
