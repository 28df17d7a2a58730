"""`concur watch RECORDING`: a governor through its recording, live or later."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from concur_agents.cli.damage import readable
from concur_agents.cli.show import Show
from concur_agents.core import Regulator
from concur_agents.errors import RecordingError
from concur_agents.observe.frame import (
    MOST_ROWS,
    Active,
    Frame,
    Point,
    PoolFrame,
    Waiting,
    split_pressure,
)
from concur_agents.recording import (
    Happening,
    Line,
    RecordedCall,
    Recording,
    Standing,
    apply,
    make_regulator,
)
from concur_agents.recording.standing import why_waiting
from concur_agents.recording.timeline_builder import TimelineBuilder

TRAIL = 300
"""Ticks that are drawn."""

REST_S = 0.05
"""Time between two looks for new lines [s]."""


class Screen:
    """Follows a recording; `frame()` is where its governor stands.

    A Regulator makes the recorded calls too, because it knows the claims and reasons of this
    instant. Where it cannot (another law, the first files gone) or answers differently from the
    recording, the numbers written in the lines are used.
    """

    def __init__(self, recording: Recording) -> None:
        self._header = recording.header
        self.builder = TimelineBuilder(recording.header)
        self._regulator: Regulator | None = None
        if recording.is_whole:
            with suppress(RecordingError):  # a law of the caller's own
                self._regulator = make_regulator(recording)
        self._now = recording.header.now
        self._blind: set[str | None] = set()  # the pools whose last poll failed; None: there is one
        self._closed = False
        self._whys: dict[str, str] = {}  # as written when each wait began

    def take(self, line: Line) -> None:
        """Follows one line."""
        self._now = max(self._now, line.now)
        self.builder.take(line)
        if isinstance(line, Happening):
            if line.kind == "poll_failed":
                self._blind.add(line.pool)
            elif line.kind == "poll_recovered":
                self._blind.discard(line.pool)
            self._closed |= line.kind == "closed"
            return
        if line.name == "remove_pool":
            self._blind.discard(line.options["name"])
        if self._regulator is not None:
            self._apply(self._regulator, line)
        if line.agent is not None and line.why is not None:
            self._whys[line.agent] = line.why
        for agent in line.let_in:
            self._whys.pop(agent, None)

    def _apply(self, regulator: Regulator, call: RecordedCall) -> None:
        try:
            let_in, error = apply(regulator, call)
        except RecordingError:
            self._regulator = None
            return
        if (let_in, error) != (call.let_in, call.error):
            self._regulator = None  # this version decides differently

    @property
    def closed(self) -> bool:
        """Whether the governor has ended."""
        return self._closed

    @property
    def agents(self) -> list[Standing]:
        """Every agent that is present."""
        return list(self.builder.tracker.agents.values())

    def trail(self) -> list[Point]:
        """Its last ticks."""
        start_s = self._header.now
        return [
            Point(
                round(sample.at_s - start_s, 3),
                sample.limit_tokens,
                sample.limit_agents,
                sample.pressure_tokens,
                sample.active,
                sample.hit_deficit,
            )
            for sample in self.builder.samples[-TRAIL:]
        ]

    def frame(self) -> Frame:
        """Where the governor stands now."""
        agents = [who for who in self.agents if who.parent is None]
        states = [who.state for who in agents]
        last = self.builder.latest
        waiting = [who for who in agents if who.waits]
        active = [who for who in self.agents if who.state in ("reasoning", "acting")]
        waiting.sort(key=lambda who: who.since_s)
        active.sort(key=lambda who: who.since_s)
        pressure = last.pressure_tokens if last else 0.0
        held, faded = split_pressure(
            pressure,
            self._held(active),
            (who.footprint_tokens for who in active if who.state == "acting"),
        )
        return Frame(
            at_s=round(self._now - self._header.now, 3),
            law=str(self._header.law["name"]),
            reasoning=states.count("reasoning"),
            acting=states.count("acting"),
            paused=states.count("paused"),
            queued=states.count("queued"),
            suspended=states.count("suspended"),
            done_total=self.builder.done,
            pressure_tokens=pressure,
            capacity_tokens=last and last.capacity_tokens,
            reasoning_tokens=held,
            faded_tokens=faded,
            limit_tokens=last and last.limit_tokens,
            limit_agents=last and last.limit_agents,
            reason=last.reason if last else "start",
            hit_rate=last and last.hit_rate,
            hit_deficit=last and last.hit_deficit,
            pauses_total=self.builder.pauses,
            overdue_total=self.builder.overdue,
            stalls_total=self.builder.stalls,
            reported_tokens=self.builder.reported_tokens,
            longest_wait_s=self._now - waiting[0].since_s if waiting else 0.0,
            blind=bool(self._blind),
            closed=self._closed,
            waiting=[self._waiting(who) for who in waiting[:MOST_ROWS]],
            active=[
                Active(
                    agent=who.id,
                    state=who.state,
                    for_s=round(self._now - who.since_s, 3),
                    tokens=who.footprint_tokens,
                    steps=who.steps,
                    pool=who.pool,
                )
                for who in active[:MOST_ROWS]
            ],
            pools=self._pools(agents),
        )

    def _pools(self, agents: list[Standing]) -> list[PoolFrame]:
        """The pools that are there, or still have agents."""
        active = Counter(who.pool for who in agents if who.state in ("reasoning", "acting"))
        waiting = Counter(self._pool_of(who) for who in agents if who.waits)
        found = []
        for pool in self.builder.pools.values():
            if pool.removed_s is not None and not active[pool.name]:
                continue
            last = pool.samples[-1] if pool.samples else None
            found.append(
                PoolFrame(
                    pool=pool.name,
                    active=active[pool.name],
                    waiting=waiting[pool.name],
                    pressure_tokens=last.pressure_tokens if last else 0.0,
                    capacity_tokens=last and last.capacity_tokens,
                    limit_tokens=last and last.limit_tokens,
                    limit_agents=last and last.limit_agents,
                    hit_rate=last and last.hit_rate,
                    reason="leaving" if pool.removed_s else last.reason if last else "start",
                    unread=pool.unread,
                )
            )
        return found

    def _pool_of(self, who: Standing) -> str | None:
        """Where an agent waits; without a Regulator, where it was let in last."""
        return who.pool if self._regulator is None else self._regulator.pool_of(who.id)

    def _held(self, active: list[Standing]) -> list[float]:
        """Claims of reasoning agents; without a Regulator, their footprints."""
        if self._regulator is not None:
            return [who.held_tokens for who in self._regulator.agents()]
        return [who.footprint_tokens for who in active if who.state == "reasoning"]

    def _waiting(self, who: Standing) -> Waiting:
        why = self._whys.get(who.id, "")
        if self._regulator is not None:
            why = why_waiting(self._regulator, who.id, self._now)
        return Waiting(
            agent=who.id,
            state=who.state,
            waited_s=round(self._now - who.since_s, 3),
            why=why,
            pool=self._pool_of(who),
        )


def watch_recording(path: Path, show: Show, *, interval_s: float, speed: float) -> None:
    """Shows a recording until its governor ends.

    Args:
        path: the recording.
        show: shows its frames.
        interval_s: time between frames [s].
        speed: 0: from now on, live; else from its beginning, this many times as fast.
    """
    with readable(path):
        recording = Recording(path)
        screen = Screen(recording)
        frames = _frames(recording, screen, interval_s=interval_s, speed=speed)
        show(frames, screen.trail, path.name)


def _frames(
    recording: Recording, screen: Screen, *, interval_s: float, speed: float
) -> Iterator[Frame]:
    begun_s = time.monotonic()
    next_s = begun_s  # on the wall clock
    start_s = recording.header.now
    for line in recording.follow(lambda: time.sleep(REST_S)):
        if line is None:
            if screen.closed:
                break
            if time.monotonic() >= next_s:
                next_s = time.monotonic() + interval_s
                yield screen.frame()
            continue
        if speed:
            due_s = begun_s + (line.now - start_s) / speed
            while time.monotonic() < due_s:
                if time.monotonic() >= next_s:
                    next_s = time.monotonic() + interval_s
                    yield screen.frame()
                time.sleep(max(0.0, min(due_s, next_s) - time.monotonic()))
        screen.take(line)
    yield screen.frame()
