"""When an agent that makes no call gives its place back, and when it counts as ended.

A request does not say that it is its agent's last one. An agent that is kept for too long keeps its
place from others; one that is ended too early comes back as a new one, behind the others. So it
first gives its place to an agent that waits, and asks for a place again with its next call; later
it ends. Both bounds follow the gaps that agents have shown between their calls: twice and eight
times the longest of the last 512, without the longest fiftieth.
"""

from __future__ import annotations

from collections import deque

_AWAY_S = (10.0, 300.0)  # the least and the most
_ENDED_S = (60.0, 3600.0)
_FEW = 32  # gaps; with fewer the bounds are the unlearned ones
_KEPT = 512
_FIFTIETH = 50

UNLEARNED_AWAY_S = 10.0
UNLEARNED_ENDED_S = 600.0
"""The bounds before enough gaps are known [s]."""


class IdleTimes:
    """Learns from gaps how long an agent may be silent."""

    def __init__(self) -> None:
        self._gaps: deque[float] = deque(maxlen=_KEPT)
        self._usual_s: float | None = None
        self._is_stale = False

    @property
    def away_s(self) -> float:
        """After so long [s] without a call an agent gives its place to one that waits."""
        usual_s = self._usual()
        return UNLEARNED_AWAY_S if usual_s is None else _within(2 * usual_s, _AWAY_S)

    @property
    def ended_s(self) -> float:
        """After so long [s] without a call an agent has ended."""
        usual_s = self._usual()
        return UNLEARNED_ENDED_S if usual_s is None else _within(8 * usual_s, _ENDED_S)

    def note(self, gap_s: float) -> None:
        """An agent has made a call, so long [s] after the end of its last one."""
        self._gaps.append(gap_s)
        self._is_stale = True

    def _usual(self) -> float | None:
        """The longest usual gap [s]; None: too few are known."""
        if self._is_stale and len(self._gaps) >= _FEW:
            ordered = sorted(self._gaps)
            self._usual_s = ordered[-1 - len(ordered) // _FIFTIETH]
            self._is_stale = False
        return self._usual_s


def _within(value_s: float, bounds_s: tuple[float, float]) -> float:
    low_s, high_s = bounds_s
    return min(max(value_s, low_s), high_s)
