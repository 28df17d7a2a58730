"""A recording as a timeline: the lanes of the agents, their waits, and numbers over time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from concur_agents import _moved
from concur_agents.recording.model import Header


class Segment(NamedTuple):
    """A period that an agent spent in one state."""

    state: str
    """'queued', 'reasoning', 'acting', 'paused' or 'suspended' (its place given back)."""
    from_s: float
    to_s: float


@dataclass(slots=True)
class Lane:
    """The life of one agent."""

    id: str
    parent: str | None = None
    segments: list[Segment] = field(default_factory=list)
    tools: list[Segment] = field(default_factory=list)
    """`state` is the name of the tool."""
    steps: int = 0
    failures: int = 0
    """Steps that ended without usage."""
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    completion_tokens: int = 0
    footprint_tokens: int = 0
    pools: list[tuple[float, str]] = field(default_factory=list)
    """Of a fleet: since when it was in which pool."""

    @property
    def pool(self) -> str | None:
        """Where it was last; None: nowhere, or there is one pool."""
        return self.pools[-1][1] if self.pools else None

    def seconds(self, *states: str) -> float:
        """Time in these states [s]."""
        return sum(item.to_s - item.from_s for item in self.segments if item.state in states)


Cause: TypeAlias = Literal[
    "arrive",
    "begin_step",
    "found",
    "end_step",
    "retry_step",
    "withdraw_step",
    "suspend",
    "resume",
    "leave",
    "flushed",
    "add_pool",
    "remove_pool",
    "regroup",
    "limit_changed",
    "reading",
    "no_reading",
    "time",
    "overdue",
    "left",
]
"""What ended a wait: a call of another agent, by its name, or one of the others.

`limit_changed`: the law moved the limit; `reading`: a reading of the engine; `no_reading`: the
first reading took too long; `time`: idle claims had faded, or a stall ended; `overdue`: the wait
had reached its bound; `left`: the waiting agent itself left.
"""

_TEXT: dict[Cause, str] = {
    "arrive": "{agent} arrived",
    "begin_step": "{agent} came to a boundary",
    "found": "{agent} was served by another pool",
    "end_step": "{agent} ended a step",
    "retry_step": "{agent} tried a call again",
    "withdraw_step": "{agent} withdrew a step",
    "suspend": "{agent} gave its place back for a while",
    "resume": "{agent} asked for its place again",
    "leave": "{agent} left",
    "flushed": "the cache was emptied",
    "add_pool": "a pool was added",
    "remove_pool": "a pool was removed",
    "regroup": "the pools turned out to be others",
    "limit_changed": "the limit moved",
    "reading": "a reading came",
    "no_reading": "the first reading took too long",
    "time": "idle claims had faded or a stall ended",
    "overdue": "it was overdue",
    "left": "it left",
}


class WaitEnd(NamedTuple):
    """What ended a wait."""

    cause: Cause
    agent: str = ""
    """The other agent whose call it was; "": none."""
    reason: str = ""
    """Code of the law's decision."""

    def __str__(self) -> str:
        text = _TEXT[self.cause].format(agent=self.agent)
        return f"{text} ({self.reason})" if self.reason else text

    @property
    def kind(self) -> str:
        """The same without names, to count by."""
        return _TEXT[self.cause].format(agent="another agent")


@dataclass(slots=True)
class Wait:
    """One wait of one agent."""

    agent: str
    kind: str
    """'queued' or 'paused'."""
    from_s: float
    to_s: float
    ended_by: WaitEnd | None
    """None: it still waits."""
    entered: list[str]
    """Every agent let in during the whole recording, in that order."""
    first: int
    last: int
    """Those of `entered` that were let in during this wait: from `first`, before `last`."""
    pressure_tokens: float | None
    """At the tick before the wait began, like the next three."""
    limit_tokens: float | None
    limit_agents: float | None
    active: int | None
    cause: str | None = None
    """What bound when it began, a `core.why.Cause`; None: the recording does not say."""
    pool: str | None = None
    """Of a fleet: where it was let in; None: nowhere yet."""

    @property
    def waited_s(self) -> float:
        """Length of the wait [s]."""
        return self.to_s - self.from_s

    @property
    def before_it(self) -> list[str]:
        """The other agents let in during the wait, each once."""
        others = dict.fromkeys(self.entered[self.first : self.last])
        others.pop(self.agent, None)
        return list(others)


class TimelinePoint(NamedTuple):
    """One tick; of a fleet one round of ticks, or one tick of one pool. None: unknown, no bound."""

    at_s: float
    active: int
    reasoning: int
    paused: int
    queued: int
    pressure_tokens: float
    capacity_tokens: float | None
    footprint_tokens: float
    limit_tokens: float | None
    limit_agents: float | None
    hit_rate: float | None
    """Over the last `rates.WINDOW_S`."""
    hit_deficit: float | None
    kv_usage: float | None
    running: float | None
    output_tokens_per_s: float
    """From the usage of the answers, over the last `rates.WINDOW_S`, like the next two."""
    prompt_tokens_per_s: float
    cached_tokens_per_s: float
    longest_wait_s: float
    reason: str
    shadow_tokens: float | None
    """Limit of the shadow law."""
    shadow_agents: float | None


class LimitChange(NamedTuple):
    """The law moved the limit, or gave another reason."""

    at_s: float
    reason: str
    limit_tokens: float | None
    limit_agents: float | None
    pool: str | None = None
    """Of a fleet: whose limit."""


@dataclass(slots=True)
class PoolTimeline:
    """One pool of a fleet."""

    name: str
    samples: list[TimelinePoint] = field(default_factory=list)
    """Its own ticks."""
    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    completion_tokens: int = 0
    removed_s: float | None = None
    """When it was removed [s]; None: it was not."""
    unread: str | None = None
    """Why the last reading of it failed; None: it did not."""
    why_down: str = ""
    """Why the last of its readings that failed did so; '': none failed."""

    @property
    def is_down(self) -> bool:
        """Whether it was down at its last tick."""
        return bool(self.samples) and self.samples[-1].reason == "down"

    @property
    def down_s(self) -> float:
        """Time that it was down [s]."""
        pairs = zip(self.samples, self.samples[1:], strict=False)
        return sum(after.at_s - at.at_s for at, after in pairs if at.reason == "down")


@dataclass(slots=True)
class Timeline:
    """A whole recording. Times are on its clock [s]."""

    header: Header
    start_s: float
    end_s: float
    lanes: dict[str, Lane]
    waits: list[Wait]
    """By their beginning, without those of no length."""
    samples: list[TimelinePoint]
    limit_changes: list[LimitChange]
    calls: int
    pauses: int
    overdue: int
    done: int
    stalls: int = 0
    """Agents let in because nothing moved."""
    reported_tokens: float | None = None
    """KV pool that the engine reported last [tokens]."""
    pools: dict[str, PoolTimeline] = field(default_factory=dict)
    """Of a fleet: each pool by its name; empty: there is one pool."""


def __getattr__(name: str) -> Any:
    names = {"tell": "recording.timeline_builder:read_timeline"}
    return _moved.attribute(__name__, names, name)
