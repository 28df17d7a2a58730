"""`concur watch RECORDING`: a governor as it decides, from the file that it writes.

A governor opens no port. It writes its recording (`record=`), and whoever may read that file may
watch: live, while it is being written, or later.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from concur_agents.cli.spark import spark
from concur_agents.core import Regulator
from concur_agents.errors import RecordingError
from concur_agents.record import Happening, Line, Recording, Standing, apply, make_regulator
from concur_agents.report.story import Sample, Teller

MOST_ROWS = 10
"""Agents shown in each table."""

SPARKS = 60
"""Ticks of which the limit is drawn."""

REST_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """One agent that waits."""

    agent: str
    state: str
    waited_s: float
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The governor at one instant; the keys of a `--json` line. None: not told, or no bound."""

    at_s: float
    """Since the recording began [s]."""
    law: str
    reasoning: int
    acting: int
    paused: int
    queued: int
    off: int
    pressure_tokens: float
    capacity_tokens: float | None
    reasoning_tokens: float
    """Held by agents that are reasoning."""
    faded_tokens: float
    """Contexts of acting agents, as far as they are not claimed any more."""
    limit_tokens: float | None
    limit_agents: float | None
    reason: str
    hit_rate: float | None
    hit_deficit: float | None
    pauses_total: int
    overdue_total: int
    """Agents let in because they had waited past the bound."""
    longest_wait_s: float
    blind: bool
    """The last poll failed."""
    closed: bool
    waiting: list[Waiting] = field(default_factory=list)
    """The longest waits."""


class Screen:
    """Follows a recording; `frame()` is where it stands."""

    def __init__(self, recording: Recording) -> None:
        self._header = recording.header
        self.teller = Teller(recording.header)
        self._regulator: Regulator | None = None
        if recording.is_whole:
            with suppress(RecordingError):  # a law of the user's own
                self._regulator = make_regulator(recording)
        self._now = recording.header.now
        self._blind = self._closed = False

    def take(self, line: Line) -> None:
        """The next line."""
        self._now = max(self._now, line.now)
        self.teller.take(line)
        if isinstance(line, Happening):
            if line.kind in ("poll_failed", "poll_recovered"):
                self._blind = line.kind == "poll_failed"
            self._closed |= line.kind == "closed"
        elif self._regulator is not None:
            apply(self._regulator, line)

    @property
    def closed(self) -> bool:
        """The governor has ended."""
        return self._closed

    @property
    def agents(self) -> list[Standing]:
        """Everybody who is here."""
        return list(self.teller.roster.agents.values())

    @property
    def samples(self) -> list[Sample]:
        """All ticks so far."""
        return self.teller.samples

    def frame(self) -> Frame:
        """Where it stands now."""
        agents = [who for who in self.agents if who.parent is None]
        states = [who.state for who in agents]
        last = self.samples[-1] if self.samples else None
        waiting = sorted(
            (who for who in agents if who.state in ("paused", "queued")),
            key=lambda who: who.since_s,
        )
        held: float = sum(who.footprint_tokens for who in self.agents if who.state == "reasoning")
        idle = sum(who.footprint_tokens for who in self.agents if who.state == "acting")
        pressure = last.pressure_tokens if last else 0.0
        held = min(held, pressure)
        return Frame(
            at_s=round(self._now - self._header.now, 3),
            law=str(self._header.law["name"]),
            reasoning=states.count("reasoning"),
            acting=states.count("acting"),
            paused=states.count("paused"),
            queued=states.count("queued"),
            off=states.count("off"),
            pressure_tokens=pressure,
            capacity_tokens=last and last.capacity_tokens,
            reasoning_tokens=held,
            faded_tokens=max(0.0, idle - (pressure - held)),
            limit_tokens=last and last.limit_tokens,
            limit_agents=last and last.limit_agents,
            reason=last.reason if last else "start",
            hit_rate=last and last.hit_rate,
            hit_deficit=last and last.hit_deficit,
            pauses_total=self.teller.pauses,
            overdue_total=self.teller.overdue,
            longest_wait_s=self._now - waiting[0].since_s if waiting else 0.0,
            blind=self._blind,
            closed=self._closed,
            waiting=[self._waiting(who) for who in waiting[:MOST_ROWS]],
        )

    def _waiting(self, who: Standing) -> Waiting:
        why = ""
        if self._regulator is not None:
            said = self._regulator.explain(who.id, self._now)
            why = said.partition(f"{who.state}: ")[2]
        return Waiting(
            agent=who.id,
            state=who.state,
            waited_s=round(self._now - who.since_s, 3),
            why=why,
        )


def watch_recording(
    path: Path, *, interval_s: float, count: int, speed: float, as_json: bool
) -> None:
    """Shows a recording until its governor has ended, or so many frames.

    Args:
        path: the recording.
        interval_s: time between frames [s].
        count: most frames; 0: no bound.
        speed: 0: as of now, then live; else from its beginning, so many times as fast.
        as_json: a JSON object per frame.
    """
    recording = Recording(path)
    screen = Screen(recording)
    frames = _frames(recording, screen, interval_s=interval_s, speed=speed)
    shown = 0
    if as_json:
        for frame in frames:
            print(json.dumps(asdict(frame)), flush=True)
            shown += 1
            if shown == count:
                return
        return
    console = Console()
    with Live(console=console, auto_refresh=False) as live:
        for frame in frames:
            live.update(picture(frame, screen, path.name), refresh=True)
            shown += 1
            if shown == count:
                break
    if not console.is_terminal:
        console.line()  # into a file or pipe, Live leaves the last line open


def _frames(
    recording: Recording, screen: Screen, *, interval_s: float, speed: float
) -> Iterator[Frame]:
    begun_s = time.monotonic()
    next_s = begun_s  # of the wall
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


# --- drawing -------------------------------------------------------------------------------------

_POOL = (
    ("reasoning", "█", "blue"),
    ("acting", "▓", "cyan"),
    ("fading", "▒", "bright_black"),
    ("free", "░", "bright_black"),
)

_STYLES = {"reasoning": "blue", "acting": "cyan", "paused": "yellow", "queued": "bright_black"}


def picture(frame: Frame, screen: Screen, title: str) -> Group:
    """The screen for people."""
    facts = Table(box=None, show_header=False, pad_edge=False, title=title, title_justify="left")
    facts.add_column(style="dim")
    facts.add_column()
    facts.add_row("at", f"{frame.at_s:,.0f} s{'  (closed)' if frame.closed else ''}")
    facts.add_row("law", f"{frame.law}: {frame.reason}")
    facts.add_row("KV pool", pool_bar(frame))
    facts.add_row("agents", _agents(frame))
    facts.add_row("limit", _limit(frame, screen.samples))
    facts.add_row(
        "hit deficit", f"{_share(frame.hit_deficit)}  (hit rate {_share(frame.hit_rate)})"
    )
    facts.add_row(
        "waits",
        f"longest {frame.longest_wait_s:.0f} s; {frame.pauses_total:,} pauses; "
        f"{frame.overdue_total:,} let in as overdue",
    )
    if frame.blind:
        facts.add_row("", Text("the engine cannot be read", style="red"))
    return Group(facts, _waiting_table(frame), _active_table(frame, screen))


def pool_bar(frame: Frame, width: int = 36) -> Text:
    """The KV pool: what is claimed by whom, what has faded, what is free."""
    capacity = frame.capacity_tokens
    if not capacity:
        return Text(f"{frame.pressure_tokens:,.0f} tokens claimed; its size is not known")
    claimed = max(0.0, frame.pressure_tokens - frame.reasoning_tokens)
    parts = [frame.reasoning_tokens, claimed, frame.faded_tokens]
    text, used = Text(), 0
    total = 0.0
    for (_, mark, style), tokens in zip(_POOL, parts, strict=False):
        total = min(capacity, total + tokens)
        end = round(total / capacity * width)
        text.append(mark * (end - used), style)
        used = end
    text.append(_POOL[-1][1] * (width - used), _POOL[-1][2])
    text.append(f" {frame.pressure_tokens / capacity:.0%} of {capacity:,.0f} tokens\n")
    for name, mark, style in _POOL:
        text.append(f"{mark} ", style)
        text.append(f"{name}  ", "dim")
    return text


def _agents(frame: Frame) -> Text:
    text = Text()
    for state in ("reasoning", "acting", "paused", "queued", "off"):
        number = getattr(frame, state)
        if number or state != "off":
            text.append(f"{number} {state}  ", _STYLES.get(state, ""))
    return text


def _limit(frame: Frame, samples: list[Sample]) -> str:
    recent = samples[-SPARKS:]
    if frame.limit_tokens is not None:
        drawn = spark([sample.limit_tokens for sample in recent])
        return f"{drawn} {frame.limit_tokens:,.0f} tokens of pressure"
    if frame.limit_agents is not None:
        drawn = spark([sample.limit_agents for sample in recent])
        return f"{drawn} {frame.limit_agents:.1f} agents"
    return "none"


def _waiting_table(frame: Frame) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("waiting", style="bold")
    for name in ("state", "for", "why"):
        table.add_column(name, justify="right" if name == "for" else "left")
    for row in frame.waiting:
        state = f"[{_STYLES[row.state]}]{row.state}[/]"
        table.add_row(escape(row.agent), state, f"{row.waited_s:.1f} s", escape(row.why))
    more = frame.paused + frame.queued - len(frame.waiting)
    if more > 0:
        table.add_row(f"and {more} more", style="dim")
    return table


def _active_table(frame: Frame, screen: Screen) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("active", style="bold")
    for name in ("state", "for", "tokens", "steps"):
        table.add_column(name, justify="left" if name == "state" else "right")
    active = [who for who in screen.agents if who.state in ("reasoning", "acting")]
    active.sort(key=lambda who: who.since_s)
    now = frame.at_s + screen.teller.start_s
    for who in active[:MOST_ROWS]:
        table.add_row(
            escape(who.id),
            f"[{_STYLES[who.state]}]{who.state}[/]",
            f"{max(0.0, now - who.since_s):.1f} s",
            f"{who.footprint_tokens:,}",
            f"{who.steps}",
        )
    if len(active) > MOST_ROWS:
        table.add_row(f"and {len(active) - MOST_ROWS} more", style="dim")
    return table


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
