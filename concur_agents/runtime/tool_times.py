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

MOST_TOOLS = 1000
"""Tools whose times are kept apart: a name may be a whole command line, and so ever new."""

OTHER_TOOLS = "(other tools)"


def learn_time(times: dict[str, ToolTime], name: str, took_s: float) -> None:
    """Adds a call of a tool [s]; a tool too many counts for `OTHER_TOOLS`."""
    if name not in times and len(times) >= MOST_TOOLS:
        name = OTHER_TOOLS
    times[name] = times.get(name, NO_CALLS).after(took_s)
