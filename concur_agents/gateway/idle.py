"""When an agent that makes no call counts as ended.

A request does not say that it is its agent's last one. An agent that is kept for too long keeps its
place from others; one that is ended too early comes back as a new one, behind the others. So the
bound follows the gaps that agents have shown between their calls: four times as long as all but the
longest fiftieth of the last 512.
"""

from __future__ import annotations

from collections import deque

_SHORTEST_S, _LONGEST_S = 30.0, 1800.0
_FEW = 32  # gaps; with fewer the bound is `UNLEARNED_S`
_KEPT = 512
_TIMES = 4.0
_FIFTIETH = 50

UNLEARNED_S = 600.0
"""The bound before enough gaps are known [s]."""


class IdleTimes:
    """Learns from gaps how long an agent may be silent."""

    def __init__(self) -> None:
        self._gaps: deque[float] = deque(maxlen=_KEPT)
        self._bound_s = UNLEARNED_S
        self._stale = 0  # gaps since the bound was computed

    @property
    def bound_s(self) -> float:
        """After so long [s] without a call an agent has ended."""
        if self._stale and len(self._gaps) >= _FEW:
            ordered = sorted(self._gaps)
            usual_s = ordered[-1 - len(ordered) // _FIFTIETH]
            self._bound_s = min(max(_TIMES * usual_s, _SHORTEST_S), _LONGEST_S)
            self._stale = 0
        return self._bound_s

    def note(self, gap_s: float) -> None:
        """An agent has made a call, so long [s] after the end of its last one."""
        self._gaps.append(gap_s)
        self._stale += 1
