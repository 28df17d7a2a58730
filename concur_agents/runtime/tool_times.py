"""How long tools take, learned from `agent.tool(name)` blocks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ToolTime:
    """How long a tool takes."""

    calls: int
    mean_s: float
    longest_s: float

    def after(self, took_s: float) -> ToolTime:
        """The same with one more call, which took so long [s]."""
        calls = self.calls + 1
        mean_s = self.mean_s + (took_s - self.mean_s) / calls
        return ToolTime(calls, mean_s, max(self.longest_s, took_s))


NO_CALLS = ToolTime(0, 0.0, 0.0)
