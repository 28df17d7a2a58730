"""Draws endpoints, for `concur watch URL...`."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from concur_agents.cli.chart import chart
from concur_agents.cli.console import Console
from concur_agents.cli.dashboard import CHART_ROWS, chart_width, side_by_side
from concur_agents.cli.endpoint import EndpointFrame
from concur_agents.observe.words import short_pool

TRAIL = 300
"""Readings that are drawn."""


class EndpointBoard:
    """Draws endpoints: one with charts, several as rows."""

    def __init__(self) -> None:
        self._histories: list[_History] = []

    @property
    def succeeded(self) -> bool:
        """Whether a look at any of them did."""
        return any(history.last is not None for history in self._histories)

    def draw(self, frames: Sequence[EndpointFrame], console: Console) -> RenderableType:
        """The screen: each endpoint at its last good look, and the law now."""
        self._histories = self._histories or [_History() for _ in frames]
        for history, frame in zip(self._histories, frames, strict=True):
            history.take(frame)
        if len(frames) == 1:
            return self._histories[0].draw(frames[0], console)
        title = f"[bold]{len(frames)} endpoints[/] · {frames[0].law} (dry run)"
        parts: list[RenderableType] = [self._table(frames, console.width)]
        for history, frame in zip(self._histories, frames, strict=True):
            if history.failures:
                text = f"{short_pool(frame.url)}: {history.failures} failed: {frame.error or ''}"
                parts.append(Text(text, "red"))
        return Panel(Group(*parts), title=title, title_align="left", border_style="bright_black")

    def _table(self, frames: Sequence[EndpointFrame], width: int) -> Table:
        is_wide = width >= 100
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("endpoint", no_wrap=True, overflow="ellipsis")
        if is_wide:
            table.add_column("engine", no_wrap=True)
        for column in ("in calls", "KV pool", "hit rate", "running", "waiting"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("would allow", justify="right", no_wrap=is_wide)
        for history, frame in zip(self._histories, frames, strict=True):
            seen = history.last or frame
            table.add_row(
                escape(short_pool(frame.url)),
                *([seen.engine or "-"] if is_wide else []),
                _bar(seen.kv_usage, 10) if is_wide else _share(seen.kv_usage),
                _number(seen.capacity_tokens),
                _share(seen.hit_rate),
                _number(seen.running),
                _number(seen.waiting),
                _limit(frame) if history.last else "-",
                style="dim" if history.failures else "",
            )
        return table


class _History:
    """What was seen of one endpoint: the last good look, and the trail."""

    def __init__(self) -> None:
        self.failures = 0
        """Looks that failed, in a row."""
        self.last: EndpointFrame | None = None
        """The last look that succeeded."""
        self._seen: EndpointFrame | None = None  # the newest, good or not
        self._trail: deque[EndpointFrame] = deque(maxlen=TRAIL)

    def take(self, frame: EndpointFrame) -> None:
        """One more look; the same one again, which is only drawn anew, changes nothing."""
        if frame is not self._seen:
            self._seen = frame
            self.failures = 0 if frame.ok else self.failures + 1
            self.last = frame if frame.ok else self.last
            self._trail.append(frame)

    def draw(self, frame: EndpointFrame, console: Console) -> RenderableType:
        """The whole screen."""
        title = f"[bold]{escape(frame.url)}[/] · {frame.law} (dry run)"
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
            ("would allow", _limit(frame, " of pressure") if self.last else "-"),
        ]
        for row in rows:
            table.add_row(*row)
        if self.failures:
            seen_s = f"values of {self.last.at_s:.0f} s" if self.last else "no reading yet"
            problem = escape(frame.error or "")
            table.add_row(
                f"[red]{self.failures} failed[/]", f"[red]{problem}[/] [dim]({seen_s})[/]"
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


def _limit(frame: EndpointFrame, of: str = "") -> str:
    bounds = []
    if frame.limit_agents is not None:
        bounds.append(f"{frame.limit_agents:.1f} agents")
    if frame.limit_tokens is not None:
        bounds.append(f"{_tokens(frame.limit_tokens)}{of}")
    return " and ".join(bounds) or "no bound"


def _bar(share: float | None, width: int = 20) -> str:
    if share is None:
        return "-"
    full = round(width * min(1.0, max(0.0, share)))
    return f"{'█' * full}{'░' * (width - full)} {share:6.1%}"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _tokens(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f} tokens"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
