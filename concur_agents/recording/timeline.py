"""A recording as people ask about it: lanes of agents, their waits, and numbers over time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from concur_agents.core import Snapshot, Usage
from concur_agents.recording import (
    Happening,
    Header,
    Line,
    RecordedCall,
    Recording,
    Standing,
    Tracker,
)

WINDOW_S = 10.0
"""Rates are taken over this time [s]; a single tick sees a handful of steps."""


class Segment(NamedTuple):
    """An agent was in one state for a while."""

    state: str
    """'queued', 'reasoning', 'acting', 'paused' or 'suspended' (its place given back)."""
    from_s: float
    to_s: float


@dataclass(slots=True)
class Lane:
    """One agent's life."""

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

    def seconds(self, *states: str) -> float:
        """Time in these states [s]."""
        return sum(item.to_s - item.from_s for item in self.segments if item.state in states)


@dataclass(slots=True)
class Wait:
    """One agent waited once."""

    agent: str
    kind: str
    """'queued' or 'paused'."""
    from_s: float
    to_s: float
    ended_by: str
    """What let it in, in words; '' while it waits."""
    entered: list[str]
    """All who were let in during the whole recording, in that order."""
    first: int
    last: int
    """Those of `entered` who were let in meanwhile: from `first`, before `last`."""
    pressure_tokens: float | None
    """At the tick before it began; so for the following."""
    limit_tokens: float | None
    limit_agents: float | None
    active: int | None

    @property
    def waited_s(self) -> float:
        """How long [s]."""
        return self.to_s - self.from_s

    @property
    def before_it(self) -> list[str]:
        """Who was let in meanwhile, each once."""
        others = dict.fromkeys(self.entered[self.first : self.last])
        others.pop(self.agent, None)
        return list(others)


class TimelinePoint(NamedTuple):
    """One tick. None: not told, or no bound."""

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
    """Over the last `WINDOW_S`."""
    hit_deficit: float | None
    kv_usage: float | None
    running: float | None
    output_tokens_per_s: float
    """By the answers' usage, over the last `WINDOW_S`; so for the following."""
    prompt_tokens_per_s: float
    cached_tokens_per_s: float
    longest_wait_s: float
    reason: str
    shadow_tokens: float | None
    """The shadow law's limit."""
    shadow_agents: float | None


class Decision(NamedTuple):
    """The law moved the limit, or gave another reason."""

    at_s: float
    reason: str
    limit_tokens: float | None
    limit_agents: float | None


@dataclass(slots=True)
class Timeline:
    """Everything of it. Times are on the recorded clock [s]."""

    header: Header
    start_s: float
    end_s: float
    lanes: dict[str, Lane]
    waits: list[Wait]
    """In the order in which they began; those of no length are left out."""
    samples: list[TimelinePoint]
    decisions: list[Decision]
    calls: int
    pauses: int
    overdue: int
    done: int


def tell(recording: Recording) -> Timeline:
    """Reads a whole recording."""
    builder = TimelineBuilder(recording.header)
    for line in recording:
        builder.take(line)
    return builder.timeline()


class TimelineBuilder:
    """Follows lines and can tell the story up to now."""

    def __init__(self, header: Header) -> None:
        self._header = header
        self.tracker = Tracker(header.agents)
        self._lanes: dict[str, Lane] = {}
        for who in header.agents:
            self._lanes[who.id] = Lane(who.id, who.parent)
        self._waits: list[Wait] = []
        self._open: dict[str, Wait] = {}
        self._entered: list[str] = []
        self._tools: dict[str, list[tuple[str, float]]] = {}
        self._decisions: list[Decision] = []
        self.samples: list[TimelinePoint] = []
        self._now = header.now
        self._totals = _Totals(header.now)
        self._window = deque([self._totals])
        self._limit: Any = None
        self._calls = self._pauses = self._overdue = self._done = 0
        for who in header.agents:
            if who.state in ("queued", "paused"):
                self._begin_wait(who)

    @property
    def start_s(self) -> float:
        """When it began [s]."""
        return self._header.now

    @property
    def pauses(self) -> int:
        """Pauses so far."""
        return self._pauses

    @property
    def done(self) -> int:
        """Agents that have left so far."""
        return self._done

    @property
    def overdue(self) -> int:
        """Agents let in as overdue so far."""
        return self._overdue

    def take(self, line: Line) -> None:
        """The next line."""
        self._now = max(self._now, line.now)
        if isinstance(line, Happening):
            self._happen(line)
            return
        self._calls += line.name != "ask"
        if line.error is not None:
            return
        if line.name == "arrive" and line.agent is not None:
            lane = self._lanes.setdefault(line.agent, Lane(line.agent))
            lane.parent = line.options.get("parent")
        if line.name == "end_step" and line.agent in self._lanes:
            self._end_step(line)
        if line.name == "leave" and line.agent in self.tracker.agents:
            self._done += self.tracker.agents[line.agent].parent is None
        waiting = {agent for agent in (line.agent, *line.let_in) if agent in self._open}
        for who, state, since_s in self.tracker.take(line):
            self._end_segment(who.id, state, since_s, line.now)
        for agent in waiting:
            self._end_wait(agent, line)
        self._entered.extend(agent for agent in line.let_in if agent in waiting)
        self._begin_waits(line)
        if line.tick is not None:
            self._sample(line)

    def timeline(self) -> Timeline:
        """The story so far; agents that are still there are drawn up to now."""
        lanes = {
            name: Lane(
                lane.id,
                lane.parent,
                list(lane.segments),
                list(lane.tools),
                lane.steps,
                lane.failures,
                lane.prompt_tokens,
                lane.cached_tokens,
                lane.completion_tokens,
                lane.footprint_tokens,
            )
            for name, lane in self._lanes.items()
        }
        for who in self.tracker.agents.values():
            if self._now > who.since_s:
                lanes[who.id].segments.append(Segment(who.state, who.since_s, self._now))
        for wait in self._open.values():
            wait.to_s = self._now
            wait.last = len(self._entered)
        waits = [wait for wait in self._waits if wait.waited_s > 0 or wait.agent in self._open]
        return Timeline(
            header=self._header,
            start_s=self._header.now,
            end_s=self._now,
            lanes=lanes,
            waits=waits,
            samples=self.samples,
            decisions=self._decisions,
            calls=self._calls,
            pauses=self._pauses,
            overdue=self._overdue,
            done=self._done,
        )

    # -- inside ------------------------------------------------------------------------------

    def _happen(self, line: Happening) -> None:
        if line.agent is None or line.agent not in self._lanes:
            return
        lane = self._lanes[line.agent]
        if line.kind == "tool_began":
            self._tools.setdefault(line.agent, []).append((line.reason, line.now))
        elif line.kind == "tool_ended":
            begun = self._tools.get(line.agent, [])
            for item in reversed(begun):
                if item[0] == line.reason:
                    begun.remove(item)
                    lane.tools.append(Segment(line.reason, item[1], line.now))
                    break

    def _end_step(self, line: RecordedCall) -> None:
        assert line.agent is not None
        lane = self._lanes[line.agent]
        who = self.tracker.agents.get(line.agent)
        if who is None or not who.calls:
            return
        usage = line.options.get("usage")
        lane.steps += 1
        if not isinstance(usage, Usage):
            lane.failures += 1
            return
        lane.prompt_tokens += usage.prompt_tokens
        lane.completion_tokens += usage.completion_tokens
        lane.footprint_tokens = usage.prompt_tokens + usage.completion_tokens
        if usage.cached_tokens is not None:
            lane.cached_tokens = (lane.cached_tokens or 0) + usage.cached_tokens
        before = self._totals
        self._totals = before._replace(
            output=before.output + usage.completion_tokens,
            prompt=before.prompt + usage.prompt_tokens,
            cached=before.cached + (usage.cached_tokens or 0),
        )

    def _end_segment(self, agent: str, state: str, from_s: float, to_s: float) -> None:
        if to_s > from_s:
            self._lanes[agent].segments.append(Segment(state, from_s, to_s))

    def _begin_waits(self, line: RecordedCall) -> None:
        if line.name not in ("arrive", "begin_step", "resume") or line.agent in self._open:
            return
        who = self.tracker.agents.get(line.agent or "")
        if who is not None and who.state in ("queued", "paused"):
            self._pauses += who.state == "paused"
            self._begin_wait(who)

    def _begin_wait(self, who: Standing) -> None:
        last = self.samples[-1] if self.samples else None
        wait = Wait(
            agent=who.id,
            kind=who.state,
            from_s=who.since_s,
            to_s=who.since_s,
            ended_by="",
            entered=self._entered,
            first=len(self._entered),
            last=len(self._entered),
            pressure_tokens=last and last.pressure_tokens,
            limit_tokens=last and last.limit_tokens,
            limit_agents=last and last.limit_agents,
            active=last and last.active,
        )
        self._waits.append(wait)
        self._open[who.id] = wait

    def _end_wait(self, agent: str, line: RecordedCall) -> None:
        who = self.tracker.agents.get(agent)
        if who is not None and who.state in ("queued", "paused"):
            return
        wait = self._open.pop(agent)
        wait.to_s = line.now
        wait.last = len(self._entered)
        max_wait_s = self._header.regulator.get("max_wait_s")
        if who is None:
            wait.ended_by = "it left"
        elif max_wait_s is not None and wait.waited_s >= max_wait_s:
            wait.ended_by = "it was overdue"
        else:
            wait.ended_by = ended_by(line)

    def _sample(self, line: RecordedCall) -> None:
        tick = line.tick
        assert tick is not None
        view, reading = tick.view, line.options.get("reading")
        rates = self._rates(line.now, tick.snapshot)
        self._overdue = view.overdue_total
        shadow = (tick.shadow or {}).get("limit", {})
        sample = TimelinePoint(
            at_s=line.now,
            active=view.active,
            reasoning=view.reasoning,
            paused=view.paused,
            queued=view.queued,
            pressure_tokens=view.pressure_tokens,
            capacity_tokens=view.capacity_tokens,
            footprint_tokens=view.footprint_tokens,
            limit_tokens=_finite(view.limit.tokens),
            limit_agents=_finite(view.limit.agents),
            hit_rate=rates.hits / rates.queries if rates.queries > 0 else None,
            hit_deficit=view.hit_deficit,
            kv_usage=None if reading is None else reading.kv_usage,
            running=None if reading is None else reading.running,
            output_tokens_per_s=rates.output,
            prompt_tokens_per_s=rates.prompt,
            cached_tokens_per_s=rates.cached,
            longest_wait_s=view.longest_wait_s,
            reason=view.reason,
            shadow_tokens=shadow.get("tokens"),
            shadow_agents=shadow.get("agents"),
        )
        self.samples.append(sample)
        limit = (view.limit.tokens, view.limit.agents, view.reason)
        if limit != self._limit:
            self._limit = limit
            self._decisions.append(
                Decision(line.now, view.reason, sample.limit_tokens, sample.limit_agents)
            )

    def _rates(self, now: float, snapshot: Snapshot | None) -> _Totals:
        """All per second, over the window that ends now."""
        if snapshot is not None:
            self._totals = self._totals._replace(
                hits=snapshot.hit_tokens_total, queries=snapshot.query_tokens_total
            )
        self._totals = self._totals._replace(at_s=now)
        self._window.append(self._totals)
        while len(self._window) > 2 and self._window[1].at_s <= now - WINDOW_S:
            self._window.popleft()
        before, after = self._window[0], self._window[-1]
        passed_s = max(1e-9, after.at_s - before.at_s)
        return _Totals(
            now, *((b - a) / passed_s for a, b in zip(before[1:], after[1:], strict=True))
        )


class _Totals(NamedTuple):
    """Sums since the beginning, at one instant."""

    at_s: float
    output: float = 0.0
    prompt: float = 0.0
    cached: float = 0.0
    hits: float = 0.0
    queries: float = 0.0


def ended_by(line: RecordedCall) -> str:
    """What a call that let somebody in was about, in words."""
    if line.name == "leave":
        return f"{line.agent} left"
    if line.name == "end_step":
        return f"{line.agent} ended a step"
    if line.name == "tick":
        return f"the limit moved ({line.reason})" if line.reason else "a reading came"
    if line.name == "retry_step":
        return f"{line.agent} tried a call again"
    if line.name == "withdraw_step":
        return f"{line.agent} gave a step up"
    if line.name == "suspend":
        return f"{line.agent} gave its place back for a while"
    if line.name == "begin_step":
        return f"{line.agent} came to a boundary"
    if line.name == "arrive":
        return f"{line.agent} arrived"
    if line.reason:  # no law decides on time alone
        return "the first reading took too long"
    return "idle claims had faded"


class Spread(NamedTuple):
    """A handful of durations [s]."""

    number: int
    total_s: float
    median_s: float
    p99_s: float
    worst_s: float


def spread(durations: Iterable[float]) -> Spread:
    """Their sum and quantiles; zeros for none."""
    ordered = sorted(durations)
    if not ordered:
        return Spread(0, 0.0, 0.0, 0.0, 0.0)
    return Spread(
        len(ordered),
        math.fsum(ordered),
        _quantile(ordered, 0.5),
        _quantile(ordered, 0.99),
        ordered[-1],
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
