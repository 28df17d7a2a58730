"""A recording through another law: what that law would have decided, and which agents would wait.

This is open loop. Agents, tools and readings are as recorded, and every step takes its recorded
time; only the moment when each agent may go on is decided anew. A longer or shorter wait moves
everything that this agent (with its children) does afterwards. The recording does not say what the
engine would have done with the other load, so misses that the law would have caused or avoided do
not count. The result is which agents would have waited and for how long, not what would have been
faster; the simulator answers that.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from concur_agents.core import Law, Regulator, View
from concur_agents.errors import RecordingError
from concur_agents.recording.model import CALLS_OF_NO_AGENT, RecordedCall
from concur_agents.recording.reader import Recording
from concur_agents.recording.replay import Difference, answered, apply, make_regulator, replay
from concur_agents.recording.spread import Spread, spread
from concur_agents.recording.tracker import Tracker

LEAST_REST_S = 0.001
"""Least time between two wakes, for a regulator that asks to be woken at once again and again."""

PATIENCE = 50.0
"""The replay ends after this many times the length of the recording, or as many times its calls."""

MOST_STEPS = 10_000
"""Calls of the replay beyond that; a time far off the others would mean billions of ticks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LawOutcome:
    """What a law did to the agents."""

    law: str
    agents: int
    steps: int
    pauses: int
    waits: Spread
    """Per agent, the sum of its waits."""
    mean_active: float
    """Over the time when an agent was present [agents]."""
    over_capacity_s: float
    """Time with the pressure above the capacity [s]; 0 for a law that is right."""
    lasts_s: float
    """From the first arrival to the last departure [s]."""
    unfinished: int
    """Agents that were still present at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """The outcome of a recording, and of the same recording through another law."""

    recorded: LawOutcome
    other: LawOutcome
    first: Difference | None
    """The first answer that differs; None: all are the same."""


@dataclass(slots=True)
class _Op:
    call: RecordedCall
    gap_s: float
    """Time since the family's call before it, or since that call was let in [s]."""
    in_wait: bool
    """It came while the family waited, so it does not wait for the end of that wait."""


def what_if(recording: Recording, law: Law) -> WhatIf:
    """Replays a recording through another law.

    Raises:
        RecordingError: the beginning is missing, or the law or a call is unknown to this version.
    """
    first = next(replay(recording, make_regulator(recording, law)), None)
    regulator = make_regulator(recording)
    recorded = _Meter(regulator)
    for line in recording:
        if isinstance(line, RecordedCall):
            apply(regulator, line)
            recorded.take(line)
    regulator = make_regulator(recording, law)
    other = _Meter(regulator)
    for call in _replayed(recording, regulator):
        other.take(call)
    return WhatIf(recorded=recorded.outcome(), other=other.outcome(), first=first)


def _replayed(recording: Recording, regulator: Regulator) -> Iterator[RecordedCall]:
    """The calls that the recorded agents would have made, each with its answer."""
    scripts, ticks, end_s = _scripts(recording)
    families = {op.call.agent or "": name for name, script in scripts.items() for op in script}
    done = dict.fromkeys(scripts, 0)
    held: dict[str, float] = {}  # family -> time from being let in to its next call [s]
    order = itertools.count()
    todo = [(script[0].gap_s, next(order), name) for name, script in scripts.items()]
    heapq.heapify(todo)
    timed = _timed(ticks)
    tick = next(timed)
    now = recording.header.start_s
    horizon_s = now + PATIENCE * (end_s - now) + 1.0
    steps_left = MOST_STEPS + int(PATIENCE) * (sum(map(len, scripts.values())) + len(ticks))
    while (todo or held) and steps_left > 0:
        steps_left -= 1
        wake_s = regulator.next_wake(now)
        wake_s = math.inf if wake_s is None else max(wake_s, now + LEAST_REST_S)
        call_s = todo[0][0] if todo else math.inf
        now = min(call_s, tick.now, wake_s)
        if now > horizon_s:
            return
        family = ""
        if now == call_s:
            family = heapq.heappop(todo)[2]
            recorded = scripts[family][done[family]].call
            done[family] += 1
            call = replace(recorded, now=now)
        elif now == tick.now:
            call, tick = tick, next(timed)
        else:
            call = RecordedCall(name="advance", now=now)
        call = answered(regulator, call)
        yield call
        for name in dict.fromkeys(families[agent] for agent in call.let_in):
            gap_s = held.pop(name, None)
            if gap_s is not None:
                heapq.heappush(todo, (now + gap_s, next(order), name))
        if family and done[family] < len(scripts[family]):
            following = scripts[family][done[family]]
            waits = regulator.agent_state(family) in ("queued", "paused")
            if waits and not following.in_wait:
                held[family] = following.gap_s
            else:
                heapq.heappush(todo, (now + following.gap_s, next(order), family))


def _timed(recorded: list[RecordedCall]) -> Iterator[RecordedCall]:
    """The recorded calls of no agent, then the last tick of each pool for ever, as often."""
    yield from recorded
    ticks = [call for call in recorded if call.name == "tick"]
    last = {call.options.get("pool"): call for call in ticks}
    for call in recorded:
        if call.name == "remove_pool":
            last.pop(call.options["name"], None)
    if not last:
        yield RecordedCall(name="tick", now=math.inf, options={"reading": None})
        return
    at_s, rounds = ticks[-1].now, len(ticks) // len(last)
    interval_s = max(0.1, (at_s - ticks[0].now) / max(1, rounds - 1))
    while True:
        at_s += interval_s
        for call in last.values():
            reading = call.options.get("reading")
            new = None if reading is None else replace(reading, at_s=at_s)
            yield replace(call, now=at_s, options={**call.options, "reading": new})


def _scripts(
    recording: Recording,
) -> tuple[dict[str, list[_Op]], list[RecordedCall], float]:
    """The calls of each family of agents, by its root; those of no agent; and the end [s]."""
    tracker = Tracker()
    roots: dict[str, str] = {}
    scripts: dict[str, list[_Op]] = {}
    since: dict[str, float] = {}
    ticks: list[RecordedCall] = []
    end_s = recording.header.start_s
    for line in recording:
        end_s = max(end_s, line.now)
        if not isinstance(line, RecordedCall) or line.error is not None:
            continue
        if line.name == "regroup":
            raise RecordingError(
                "the pools turned out to be others while this was recorded, and what another law "
                "would have done from there on cannot be known: give ranks= from the start"
            )
        if line.name in CALLS_OF_NO_AGENT and line.name != "advance":
            ticks.append(RecordedCall(name=line.name, now=line.now, options=line.options))
        elif line.agent is not None:
            parent = line.options.get("parent")
            if line.name == "arrive":
                roots[line.agent] = roots.get(parent, parent) if parent else line.agent
            root = roots.get(line.agent)
            if root is not None:
                stands = tracker.agents.get(root)
                in_wait = stands is not None and stands.waits
                gap_s = line.now - since.get(root, 0.0)  # the first one's is its instant
                scripts.setdefault(root, []).append(_Op(line, gap_s, in_wait))
                since[root] = line.now
        tracker.take(line)
        for agent in line.let_in:
            since[roots.get(agent, agent)] = line.now
    return scripts, ticks, end_s


def _is_over(pool: View) -> bool:
    return pool.capacity_tokens is not None and pool.pressure_tokens > pool.capacity_tokens


class _Meter:
    """Adds up the outcome; takes each call after the regulator has made it."""

    def __init__(self, regulator: Regulator) -> None:
        self._regulator = regulator
        self._tracker = Tracker()
        self._waited: dict[str, float] = {}
        self._view: View | None = None
        self._first_s = math.nan
        self._left_s = 0.0
        self._present_s = self._active_s = self._over_s = 0.0
        self._steps = 0

    def take(self, call: RecordedCall) -> None:
        """Counts one call with its answer."""
        before = self._view
        if before is not None and self._tracker.agents:
            passed_s = call.now - before.at_s
            self._present_s += passed_s
            self._active_s += before.active * passed_s
            if any(map(_is_over, before.pools.values() or (before,))):
                self._over_s += passed_s
        self._view = self._regulator.view(call.now)
        who = self._tracker.agents.get(call.agent or "")
        if call.name == "arrive" and call.error is None and call.agent is not None:
            self._waited.setdefault(call.agent, 0.0)
            self._first_s = call.now if math.isnan(self._first_s) else self._first_s
        elif who is not None and call.name == "end_step" and who.state == "reasoning":
            self._steps += 1
        elif who is not None and call.name == "leave":
            self._left_s = call.now
        for move in self._tracker.take(call):
            if move.before in ("queued", "paused") and move.who.parent is None:
                self._waited[move.who.id] += call.now - move.since_s

    def outcome(self) -> LawOutcome:
        """The sums."""
        view = self._view or self._regulator.view(0.0)
        return LawOutcome(
            law=self._regulator.law.name,
            agents=len(self._waited),
            steps=self._steps,
            pauses=view.pauses_total,
            waits=spread(self._waited.values()),
            mean_active=self._active_s / self._present_s if self._present_s else 0.0,
            over_capacity_s=self._over_s,
            lasts_s=max(0.0, (self._left_s or view.at_s) - self._first_s) if self._waited else 0.0,
            unfinished=len(self._tracker.agents),
        )
