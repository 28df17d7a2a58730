"""`concur watch URL`: an endpoint, with what a law would do about it.

This is a dry run: nothing is governed, and the only request sent is for the metrics page. The law
gets real readings, but it does not see the endpoint's agents. A law that learns from the steps of
its own agents stays at its start.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import typer
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from concur_agents.cli.chart import chart
from concur_agents.cli.console import Console
from concur_agents.cli.dashboard import CHART_ROWS, chart_width, side_by_side
from concur_agents.cli.show import show
from concur_agents.core import Reading, Regulator, make_law
from concur_agents.errors import ConfigError, ProbeError
from concur_agents.probes import HttpProbe

TRAIL = 300
"""Readings that are drawn."""

WINDOW_S = 10.0
"""Window of the hit rate [s]: engines update their counters every few seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointFrame:
    """One reading of the endpoint; the keys of a `--json` line. None: unknown, or no bound."""

    at_s: float
    """Time since the command started [s]."""
    ok: bool
    """Whether the endpoint's metrics could be read."""
    error: str | None
    """Why not."""
    engine: str | None
    """vllm, sglang or dynamo."""
    kv_usage: float | None
    """Share of the KV pool held by requests in flight, 0..1."""
    capacity_tokens: float | None
    """KV pool [tokens]."""
    hit_rate: float | None
    """Cached share of the prompt tokens of the last ten seconds, 0..1."""
    running: float | None
    """Requests being computed."""
    waiting: float | None
    """Requests queued in the engine."""
    preemptions_total: float | None
    """Requests removed from the batch so far."""
    law: str
    """Name of the law."""
    limit_agents: float | None
    """Most agents the law would let run."""
    limit_tokens: float | None
    """Most pressure it would allow [tokens]."""
    reason: str
    """The law's reason code."""


def watch_endpoint(url: str, law: str, *, interval_s: float, count: int, as_json: bool) -> None:
    """Shows an endpoint until Ctrl-C or `count` readings.

    Raises:
        ConfigError: there is no such law, or `url` is not an http(s) address.
        typer.Exit: code 1, if no reading succeeded.
    """
    with HttpProbe(url) as probe:
        looks = _looks(EndpointWatcher(probe, law), interval_s=interval_s, count=count)
        succeeded = _print_json(looks) if as_json else _show_live(looks, probe.url)
    if not succeeded:
        raise typer.Exit(1)


class EndpointWatcher:
    """Feeds the readings of an endpoint to a law; `look()` is one poll and one decision.

    Args:
        probe: reads the endpoint.
        law: name of the law.
        clock: the probe's monotonic clock [s].

    Raises:
        ConfigError: there is no such law; the message names the nearest.
    """

    def __init__(
        self, probe: HttpProbe, law: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._probe = probe
        self._clock = clock
        self._start_s = clock()
        try:
            self._regulator = Regulator(make_law(law), start_s=self._start_s)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self._recent: list[Reading] = []

    def look(self) -> EndpointFrame:
        """Reads the endpoint and ticks the law with the reading, or with None if it failed."""
        reading, error = None, None
        try:
            reading = self._probe.read()
        except ProbeError as problem:
            error = str(problem)
        now = self._clock()
        self._regulator.tick(reading, now)
        view = self._regulator.view(now)
        known = reading or Reading(at_s=now)
        return EndpointFrame(
            at_s=round(now - self._start_s, 3),
            ok=reading is not None,
            error=error,
            engine=self._probe.engine,
            kv_usage=known.kv_usage,
            capacity_tokens=known.capacity_tokens,
            hit_rate=self._hit_rate(reading),
            running=known.running,
            waiting=known.waiting,
            preemptions_total=known.preemptions_total,
            law=self._regulator.law.name,
            limit_agents=_finite(view.limit.agents),
            limit_tokens=_finite(view.limit.tokens),
            reason=view.reason,
        )

    def _hit_rate(self, reading: Reading | None) -> float | None:
        """Cached share of the prompt tokens in the window."""
        if reading is None or reading.hit_tokens_total is None or not reading.query_tokens_total:
            return None
        recent = self._recent
        if recent and reading.query_tokens_total < (recent[-1].query_tokens_total or 0.0):
            recent.clear()  # the engine restarted
        recent.append(reading)
        while len(recent) > 2 and recent[1].at_s <= reading.at_s - WINDOW_S:
            del recent[0]
        queries = reading.query_tokens_total - (recent[0].query_tokens_total or 0.0)
        found = reading.hit_tokens_total - (recent[0].hit_tokens_total or 0.0)
        return found / queries if queries > 0 else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _looks(watcher: EndpointWatcher, *, interval_s: float, count: int) -> Iterator[EndpointFrame]:
    """One look per `interval_s`; a late one comes at once, and no interval has two."""
    done, due = 0, time.monotonic()
    while True:
        yield watcher.look()
        done += 1
        if done == count:
            return
        now = time.monotonic()
        due = max(due + interval_s, now)
        time.sleep(due - now)


def _print_json(looks: Iterator[EndpointFrame]) -> bool:
    succeeded = False
    for frame in looks:
        print(json.dumps(asdict(frame)), flush=True)
        succeeded |= frame.ok
    return succeeded


def _show_live(looks: Iterator[EndpointFrame], url: str) -> bool:
    board = _Board(url)
    show(looks, board.draw)
    return board.last is not None


class _Board:
    """Draws looks; keeps the last good one and the trail."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._failures = 0
        self._seen: EndpointFrame | None = None  # the newest, good or not
        self._trail: deque[EndpointFrame] = deque(maxlen=TRAIL)
        self.last: EndpointFrame | None = None
        """The last look that succeeded."""

    def draw(self, frame: EndpointFrame, console: Console) -> RenderableType:
        """The screen: the endpoint at the last good look, and the law now."""
        if frame is not self._seen:
            self._seen = frame
            self._failures = 0 if frame.ok else self._failures + 1
            self.last = frame if frame.ok else self.last
            self._trail.append(frame)
        title = f"[bold]{escape(self._url)}[/] · {frame.law} (dry run)"
        title += f": {frame.reason}" if self.last else ""
        facts = Panel(
            self._facts(frame), title=title, title_align="left", border_style="bright_black"
        )
        return Group(facts, side_by_side(self._charts(frame, console.width), console.width))

    def _facts(self, frame: EndpointFrame) -> Table:
        seen = self.last or frame
        table = Table.grid(padding=(0, 1))
        table.add_column(style="dim", width=13)
        table.add_column()
        requests = f"{_number(seen.running)} running, {_number(seen.waiting)} waiting, "
        requests += f"{_number(seen.preemptions_total)} preemptions"
        rows: list[tuple[str, Any]] = [
            ("engine", seen.engine or "-"),
            ("KV pool", f"{_bar(seen.kv_usage)} of {_tokens(seen.capacity_tokens)} in calls"),
            ("hit rate", _bar(seen.hit_rate)),
            ("requests", requests),
            ("would allow", _limit(frame) if self.last else "-"),
        ]
        for row in rows:
            table.add_row(*row)
        if self._failures:
            seen_s = f"values of {self.last.at_s:.0f} s" if self.last else "no reading yet"
            problem = escape(frame.error or "")
            table.add_row(
                f"[red]{self._failures} failed[/]", f"[red]{problem}[/] [dim]({seen_s})[/]"
            )
        return table

    def _charts(self, frame: EndpointFrame, width: int) -> list[tuple[str, list[Text]]]:
        each = chart_width(width)
        frames = list(self._trail)[-each:]
        line: list[float | None]
        area: list[float | None]
        if frame.limit_tokens is None and frame.limit_agents is not None:
            title = "running [blue]▇[/] requests, would allow [green]━[/] agents"
            area, line = [item.running for item in frames], [item.limit_agents for item in frames]
        else:
            title = "in calls [blue]▇[/], would allow [green]━[/], tokens"
            area = [_used(item) for item in frames]
            line = [item.limit_tokens for item in frames]
        hits = [item.hit_rate for item in frames]
        return [
            (title, chart(area, line, width=each, height=CHART_ROWS)),
            (
                "hit rate [cyan]▇[/], 0 to 100%",
                chart(hits, width=each, height=CHART_ROWS, most=1.0, styles=("cyan", "")),
            ),
        ]


def _used(frame: EndpointFrame) -> float | None:
    if frame.kv_usage is None or frame.capacity_tokens is None:
        return None
    return frame.kv_usage * frame.capacity_tokens


def _limit(frame: EndpointFrame) -> str:
    bounds = []
    if frame.limit_agents is not None:
        bounds.append(f"{frame.limit_agents:.1f} agents")
    if frame.limit_tokens is not None:
        bounds.append(f"{_tokens(frame.limit_tokens)} of pressure")
    return " and ".join(bounds) or "no bound"


def _bar(share: float | None) -> str:
    if share is None:
        return "-"
    full = round(20 * min(1.0, max(0.0, share)))
    return f"{'█' * full}{'░' * (20 - full)} {share:6.1%}"


def _tokens(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f} tokens"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
