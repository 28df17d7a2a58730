"""Builds a timeline from the lines of a recording."""

from __future__ import annotations

import math
from copy import copy
from typing import Any, cast

from concur_agents.core import Reading, Usage, View
from concur_agents.recording.model import Happening, Header, Line, RecordedCall, Standing
from concur_agents.recording.rates import Rates
from concur_agents.recording.reader import Recording
from concur_agents.recording.timeline import (
    Cause,
    Lane,
    LimitChange,
    PoolTimeline,
    Segment,
    Timeline,
    TimelinePoint,
    Wait,
    WaitEnd,
)
from concur_agents.recording.tracker import Move, Tracker


def read_timeline(recording: Recording) -> Timeline:
    """Reads a whole recording."""
    builder = TimelineBuilder(recording.header)
    for line in recording:
        builder.take(line)
    return builder.timeline()


class TimelineBuilder:
    """Follows the lines of a recording; `timeline()` is the timeline up to the last line."""

    def __init__(self, header: Header) -> None:
        self._header = header
        self.tracker = Tracker(header.agents)
        self._lanes: dict[str, Lane] = {}
        for who in header.agents:
            lane = self._lanes[who.id] = Lane(who.id, who.parent)
            if who.pool is not None:
                lane.pools.append((header.now, who.pool))
        self.pools = {name: PoolTimeline(name) for name in header.pools}
        """Of a fleet: each pool so far."""
        self._waits: list[Wait] = []
        self._open: dict[str, Wait] = {}
        self._entered: list[str] = []
        self._tools: dict[str, list[tuple[str, float]]] = {}
        self._limit_changes: list[LimitChange] = []
        self.samples: list[TimelinePoint] = []
        self.latest: TimelinePoint | None = None
        """The last tick: as the last of `samples`, or of a fleet later than it."""
        self._round: set[str] = set()  # pools ticked since the last of `samples`
        self._now = header.now
        # By pool; None: all together.
        self._rates: dict[str | None, Rates] = {None: Rates(header.now)}
        self._counts: dict[str | None, tuple[float, float]] = {}  # hits and queries
        self._readings: dict[str | None, Reading | None] = {}
        self._limits: dict[str | None, Any] = {}
        self._calls = 0
        self.pauses = 0
        """Pauses so far."""
        self.overdue = 0
        """Agents let in as overdue so far."""
        self.stalls = 0
        """Agents let in because nothing moved so far."""
        self.reported_tokens: float | None = None
        """KV pool that the engine reported last [tokens]."""
        self.done = 0
        """Agents that have left so far, without nested ones."""
        for who in header.agents:
            if who.waits:
                self._begin_wait(who)

    def take(self, line: Line) -> None:
        """Follows one line."""
        self._now = max(self._now, line.now)
        if isinstance(line, Happening):
            self._happen(line)
            return
        self._calls += 1
        if line.error is not None:
            return
        if line.name == "end_step":
            self._end_step(line)
        elif line.name == "add_pool":
            self._pool(line.options["name"]).removed_s = None
        elif line.name == "remove_pool":
            self._pool(line.options["name"]).removed_s = line.now
        elif line.name == "regroup":
            names = line.options["names"]
            for name in dict.fromkeys([*self.pools, *names]):
                known = self._pool(name)
                known.removed_s = None if name in names else known.removed_s or line.now
        moves = self.tracker.take(line)
        for agent, pool in line.pools.items():
            if agent in self.tracker.agents:
                self._lanes.setdefault(agent, Lane(agent)).pools.append((line.now, pool))
        for move in moves:
            self._move(move, line.now)
        over = [move for move in moves if move.who.id in self._open and not move.waits]
        for move in over:
            self._end_wait(move, line)
        ended = {move.who.id for move in over}
        self._entered.extend(agent for agent in line.let_in if agent in ended)
        for move in moves:
            if move.waits and move.who.id not in self._open:
                self._begin_wait(move.who)
        if line.cause is not None and line.agent in self._open:
            self._open[line.agent].cause = line.cause
        if line.tick is not None:
            self._sample(line)

    def timeline(self) -> Timeline:
        """The timeline so far; lanes of agents that are still here end now."""
        lanes = {name: copy(lane) for name, lane in self._lanes.items()}
        for lane in lanes.values():
            lane.segments, lane.tools = list(lane.segments), list(lane.tools)
            lane.pools = list(lane.pools)
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
            limit_changes=self._limit_changes,
            calls=self._calls,
            pauses=self.pauses,
            overdue=self.overdue,
            stalls=self.stalls,
            reported_tokens=self.reported_tokens,
            done=self.done,
            pools=self.pools,
        )

    # -- inside ------------------------------------------------------------------------------

    def _happen(self, line: Happening) -> None:
        if line.pool is not None and line.kind in ("poll_failed", "poll_recovered"):
            pool = self._pool(line.pool)
            pool.unread = line.reason if line.kind == "poll_failed" else None
            pool.why_down = pool.unread or pool.why_down
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
        who = self.tracker.agents.get(line.agent or "")
        if who is None or who.state != "reasoning":
            return
        lane = self._lanes[who.id]
        pool = None if who.pool is None else self._pool(who.pool)
        usage = line.options.get("usage")
        lane.steps += 1
        if pool is not None:
            pool.steps += 1
        if not isinstance(usage, Usage):
            lane.failures += 1
            return
        lane.footprint_tokens = usage.prompt_tokens + usage.completion_tokens
        self._rates[None].add(usage)
        _add_up(lane, usage)
        if pool is not None:
            self._rates_of(pool.name).add(usage)
            _add_up(pool, usage)

    def _move(self, move: Move, now: float) -> None:
        who = move.who
        if move.before is None:
            self._lanes.setdefault(who.id, Lane(who.id)).parent = who.parent
        elif now > move.since_s:
            self._lanes[who.id].segments.append(Segment(move.before, move.since_s, now))
        if move.left:
            self.done += who.parent is None
        elif move.before in ("reasoning", "acting") and who.state == "paused":
            # A family pauses once, whichever of its members came to the boundary.
            root = self.tracker.root(who)
            self.pauses += root is who or not root.waits

    def _begin_wait(self, who: Standing) -> None:
        own = self.pools.get(who.pool or "")
        last = own.samples[-1] if own is not None and own.samples else self.latest
        wait = Wait(
            agent=who.id,
            kind=who.state,
            from_s=who.since_s,
            to_s=who.since_s,
            ended_by=None,
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

    def _end_wait(self, move: Move, line: RecordedCall) -> None:
        wait = self._open.pop(move.who.id)
        wait.to_s = line.now
        wait.last = len(self._entered)
        wait.pool = None if move.left else move.who.pool
        max_wait_s = self._header.regulator.get("max_wait_s")
        if move.left:
            wait.ended_by = WaitEnd("left")
        elif max_wait_s is not None and wait.waited_s >= max_wait_s:
            wait.ended_by = WaitEnd("overdue")
        else:
            wait.ended_by = wait_end(line)

    def _sample(self, line: RecordedCall) -> None:
        tick = line.tick
        assert tick is not None
        view, name = tick.view, line.options.get("pool")
        self._readings[name] = line.options.get("reading")
        if tick.snapshot is not None:
            self._counts[name] = (tick.snapshot.hit_tokens_total, tick.snapshot.query_tokens_total)
        self.overdue = view.overdue_total
        self.stalls = view.stalls_total
        self.reported_tokens = view.reported_tokens
        shadow = (tick.shadow or {}).get("limit", {})
        self.latest = self._point(line.now, view, None)._replace(
            shadow_tokens=shadow.get("tokens"), shadow_agents=shadow.get("agents")
        )
        point = self.latest
        if name is not None and name in view.pools:
            point = self._point(line.now, view.pools[name], name)
            self._pool(name).samples.append(point)
        # Of a fleet a sample of all is taken once in a round, because each pool has its own ticks.
        if name is None or name in self._round or not self.samples:
            self.samples.append(self.latest)
            self._round.clear()
        if name is not None:
            self._round.add(name)
        limit = (point.limit_tokens, point.limit_agents, point.reason)
        if limit != self._limits.get(name):
            self._limits[name] = limit
            self._limit_changes.append(
                LimitChange(line.now, point.reason, point.limit_tokens, point.limit_agents, name)
            )

    def _point(self, now: float, view: View, pool: str | None) -> TimelinePoint:
        """The numbers of one pool, or (None) of all."""
        if pool is None:
            hits = sum(counts[0] for counts in self._counts.values())
            queries = sum(counts[1] for counts in self._counts.values())
            readings = [reading for reading in self._readings.values() if reading is not None]
        else:
            hits, queries = self._counts.get(pool, (0.0, 0.0))
            reading = self._readings.get(pool)
            readings = [] if reading is None else [reading]
        rates = self._rates_of(pool).tick(now, hits, queries)
        usages = [reading.kv_usage for reading in readings if reading.kv_usage is not None]
        running = [reading.running for reading in readings if reading.running is not None]
        return TimelinePoint(
            at_s=now,
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
            kv_usage=sum(usages) / len(usages) if usages else None,
            running=sum(running) if running else None,
            output_tokens_per_s=rates.output,
            prompt_tokens_per_s=rates.prompt,
            cached_tokens_per_s=rates.cached,
            longest_wait_s=view.longest_wait_s,
            reason=view.reason,
            shadow_tokens=None,
            shadow_agents=None,
        )

    def _rates_of(self, pool: str | None) -> Rates:
        return self._rates.setdefault(pool, Rates(self._header.now))

    def _pool(self, name: str) -> PoolTimeline:
        return self.pools.setdefault(name, PoolTimeline(name))


def _add_up(sums: Lane | PoolTimeline, usage: Usage) -> None:
    sums.prompt_tokens += usage.prompt_tokens
    sums.completion_tokens += usage.completion_tokens
    if usage.cached_tokens is not None:
        sums.cached_tokens = (sums.cached_tokens or 0) + usage.cached_tokens


def wait_end(line: RecordedCall) -> WaitEnd:
    """What a call that let an agent in says about the end of its wait."""
    if line.agent is not None:
        return WaitEnd(cast("Cause", line.name), agent=line.agent)
    if line.name in ("flushed", "add_pool", "remove_pool", "regroup"):
        return WaitEnd(cast("Cause", line.name))
    if line.name == "tick":
        return WaitEnd("limit_changed", reason=line.reason) if line.reason else WaitEnd("reading")
    # A law decides at ticks only, so another reason means that the wait for the first one is over.
    return WaitEnd("no_reading" if line.reason else "time")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
