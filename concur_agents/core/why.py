"""Why an agent stands where it stands: data, with words made from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Cause = Literal[
    "absent",
    "active",
    "suspended",
    "max_open",
    "first_reading",
    "hold",
    "agents",
    "tokens",
    "next",
    "pools",
    "daemon",
    "other",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """What keeps an agent waiting, or that nothing does.  `str()` gives one line for people."""

    agent: str
    state: str = ""
    """A value of `State`; '': it is not here."""
    pool: str = ""
    """Of a fleet: the pool that it is in; '': none, or there is one."""
    cause: Cause
    """What binds: most open agents, the wait for a first reading, a hold as during a weight update,
    active agents, or tokens."""
    count: float = 0.0
    """For max_open, agents and pools: how many there are; for active: tokens that it holds."""
    most: float = 0.0
    """For max_open and agents: how many there may be; for first_reading and hold: seconds left at
    most; for pools: how many pools there are."""
    pressure_tokens: float = 0.0
    need_tokens: float = 0.0
    limit_tokens: float = 0.0
    ahead: int | None = None
    """Waiting agents that go first; None: not counted."""
    wake_in_s: float | None = None
    """When time alone may let an agent in [s]; None: it does not, or was not asked."""

    @property
    def numbers(self) -> str:
        """The cause in numbers, without the agent's name and state."""
        match self.cause:
            case "absent":
                return "not here"
            case "active":
                return f"holding {k(self.count)} tokens"
            case "suspended":
                return "its place is free meanwhile"
            case "max_open":
                return f"{self.count:.0f} of {self.most:.0f} agents open"
            case "first_reading":
                return f"waiting for the engine's first reading, at most {self.most:.1f} s"
            case "hold":
                return f"held, as during a weight update, for at most {self.most:.0f} s more"
            case "agents":
                return f"{self.count:.0f} of {self.most:.0f} agents active"
            case "tokens":
                return (
                    f"pressure {k(self.pressure_tokens)} + {k(self.need_tokens)} for its step, "
                    f"limit {k(self.limit_tokens)} tokens"
                )
            case "next":
                return "about to be let in"
            case "daemon":
                return "waits for the daemon, which cannot be reached"
            case "other":
                return "waits, as the daemon decides"
            case "pools":
                others = self.count - 1
                also = f", as do {others:.0f} others" if others > 1 else ", as does 1 other"
                return f"waits for one of {self.most:.0f} pools{also if others > 0 else ''}"

    def __str__(self) -> str:
        parts = [self.numbers]
        if self.ahead is not None:
            parts.append(f"{self.ahead} ahead")
        if self.wake_in_s is not None:
            parts.append(f"next chance by itself in {self.wake_in_s:.0f} s")
        stands = f"{self.state} in {self.pool}" if self.pool else self.state
        return ": ".join(filter(None, (self.agent, stands, "; ".join(parts))))


def k(tokens: float) -> str:
    """Tokens in few characters."""
    return f"{tokens / 1000:.0f}k" if tokens >= 10_000 else f"{tokens:.0f}"
