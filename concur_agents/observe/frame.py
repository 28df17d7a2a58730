"""What `concur watch` shows: a governor at one instant, live or from a recording."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from concur_agents._text import shown_id

if TYPE_CHECKING:
    from concur_agents.core import AgentView
    from concur_agents.runtime.host import Host

MOST_ROWS = 20
"""Most agents named in each list of a frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """One agent that waits."""

    agent: str
    state: str
    """'queued' or 'paused'."""
    waited_s: float
    why: str
    pool: str | None = None
    """Of several pools: the one that it waits for or is in; None: any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Active:
    """One agent that holds a place."""

    agent: str
    state: str
    """'reasoning' or 'acting'."""
    for_s: float
    """Time in this state [s]."""
    tokens: int
    """Its context after its last step."""
    steps: int
    pool: str | None = None
    """Of several pools: the one that it is in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolFrame:
    """One of several pools. None: unknown, or no bound."""

    pool: str
    active: int
    waiting: int
    """Agents that wait in it; those that have no pool yet are in none."""
    pressure_tokens: float
    capacity_tokens: float | None
    limit_tokens: float | None
    limit_agents: float | None
    hit_rate: float | None
    reason: str
    """Code of the decision in force; 'down': neither its page nor its engine answers."""
    unread: str | None = None
    """Why the last reading of it failed; None: it did not."""


class Point(NamedTuple):
    """The numbers that are drawn over time."""

    at_s: float
    limit_tokens: float | None
    limit_agents: float | None
    pressure_tokens: float
    active: int
    hit_deficit: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A governor at one instant; the keys of a `--json` line. None: unknown, or no bound."""

    at_s: float
    """Time since the recording or the socket began [s]."""
    law: str
    reasoning: int
    acting: int
    paused: int
    queued: int
    suspended: int
    done_total: int = 0
    pressure_tokens: float
    capacity_tokens: float | None
    reasoning_tokens: float
    """Claims of reasoning agents."""
    faded_tokens: float
    """The part of acting agents' contexts that is no longer claimed."""
    limit_tokens: float | None
    limit_agents: float | None
    reason: str
    hit_rate: float | None
    hit_deficit: float | None
    pauses_total: int
    overdue_total: int
    """Agents let in because they had waited past the bound."""
    longest_wait_s: float
    stalls_total: int = 0
    """Agents let in because nothing moved."""
    reported_tokens: float | None = None
    """KV pool that the engine reports; less than `capacity_tokens` where more is proven."""
    blind: bool
    """The last poll failed."""
    closed: bool
    url: str | None = None
    """The endpoint that is read."""
    waiting: list[Waiting] = field(default_factory=list)
    """Waiting agents, the longest wait first."""
    active: list[Active] = field(default_factory=list)
    """Agents that hold a place, the longest in their state first."""
    pools: list[PoolFrame] = field(default_factory=list)
    """Each of several pools; empty: there is one."""

    @property
    def acting_tokens(self) -> float:
        """Claims of acting agents."""
        return max(0.0, self.pressure_tokens - self.reasoning_tokens)

    @property
    def point(self) -> Point:
        """The numbers that are drawn over time."""
        return Point(
            self.at_s,
            self.limit_tokens,
            self.limit_agents,
            self.pressure_tokens,
            self.reasoning + self.acting,
            self.hit_deficit,
        )

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """A frame from JSON, without the keys that only another version knows.

        Raises:
            KeyError, TypeError: it is not a frame.
        """
        names = {item.name for item in fields(cls)}
        known = {name: value for name, value in found.items() if name in names}
        known["waiting"] = [Waiting(**row) for row in found["waiting"]]
        known["active"] = [Active(**row) for row in found["active"]]
        known["pools"] = [PoolFrame(**row) for row in found.get("pools", ())]
        return cls(**known)


def frame_of(governor: Host, *, start_s: float = 0.0) -> Frame:
    """Where a governor stands.

    Args:
        governor: the governor.
        start_s: zero of the frame's time, on the governor's clock [s].
    """
    snapshot = governor.snapshot()
    agents = _agents_of(governor, snapshot.pressure_tokens)
    now, limit = snapshot.at_s, snapshot.limit
    # The reason is read after the list, so an agent may have gone on since: then it has none.
    whys = [] if snapshot.closed else [(who, governor.why(who.agent)) for who in agents.waiting]
    unread = {name: why for each in snapshot.endpoints for name, why in each.unread.items()}
    return Frame(
        at_s=round(now - start_s, 3),
        law=snapshot.law,
        reasoning=snapshot.reasoning,
        acting=snapshot.acting,
        paused=snapshot.paused,
        queued=snapshot.queued,
        suspended=snapshot.suspended,
        done_total=snapshot.done_total,
        pressure_tokens=snapshot.pressure_tokens,
        capacity_tokens=snapshot.capacity_tokens,
        reasoning_tokens=agents.reasoning_tokens,
        faded_tokens=agents.faded_tokens,
        limit_tokens=finite(limit.tokens),
        limit_agents=finite(limit.agents),
        reason=snapshot.reason,
        hit_rate=snapshot.hit_rate,
        hit_deficit=snapshot.hit_deficit,
        pauses_total=snapshot.pauses_total,
        overdue_total=snapshot.overdue_total,
        longest_wait_s=snapshot.longest_wait_s,
        stalls_total=snapshot.stalls_total,
        reported_tokens=snapshot.reported_tokens,
        blind=any(engine.poll_error is not None for engine in snapshot.endpoints),
        closed=snapshot.closed,
        url=snapshot.url,
        waiting=[
            Waiting(
                agent=shown_id(who.agent),
                state=who.state,
                waited_s=round(max(0.0, now - who.since_s), 3),
                why=why.numbers,
                pool=who.pool,
            )
            for who, why in whys
            if why
        ],
        active=[
            Active(
                agent=shown_id(who.agent),
                state=who.state,
                for_s=round(max(0.0, now - who.since_s), 3),
                tokens=round(who.footprint_tokens),
                steps=who.steps,
                pool=who.pool,
            )
            for who in agents.active
        ],
        pools=[
            PoolFrame(
                pool=name,
                active=view.active,
                waiting=view.paused + view.queued,
                pressure_tokens=view.pressure_tokens,
                capacity_tokens=view.capacity_tokens,
                limit_tokens=finite(view.limit.tokens),
                limit_agents=finite(view.limit.agents),
                hit_rate=view.hit_rate,
                reason=view.reason,
                unread=unread.get(name),
            )
            for name, view in snapshot.pools.items()
        ],
    )


class _Agents(NamedTuple):
    """The rows of a frame, and the split of the pressure."""

    waiting: list[AgentView]
    active: list[AgentView]
    reasoning_tokens: float
    faded_tokens: float


def _agents_of(governor: Host, pressure_tokens: float) -> _Agents:
    """Rows and sums. Only this reads all agents; everything else costs O(rows)."""
    agents = governor.agents()
    active = [who for who in agents if who.state in ("reasoning", "acting")]
    waiting = [who for who in agents if who.state in ("queued", "paused") and who.parent is None]
    held, faded = split_pressure(
        pressure_tokens,
        (who.held_tokens for who in active),
        (who.footprint_tokens for who in active if who.state == "acting"),
    )
    return _Agents(
        heapq.nsmallest(MOST_ROWS, waiting, key=_since_s),
        heapq.nsmallest(MOST_ROWS, active, key=_since_s),
        held,
        faded,
    )


def _since_s(agent: AgentView) -> float:
    return agent.since_s


def split_pressure(
    pressure_tokens: float, held: Iterable[float], acting: Iterable[float]
) -> tuple[float, float]:
    """Splits the pressure between reasoning and acting agents.

    Args:
        pressure_tokens: the sum of all claims.
        held: claims of reasoning agents [tokens].
        acting: footprints of acting agents [tokens].

    Returns:
        Claims of reasoning agents, and the unclaimed part of acting agents' footprints [tokens].
    """
    reasoning = min(pressure_tokens, sum(held))
    return reasoning, max(0.0, sum(acting) - (pressure_tokens - reasoning))


def finite(value: float) -> float | None:
    """The value, or None for infinity, which JSON does not have."""
    return value if math.isfinite(value) else None
