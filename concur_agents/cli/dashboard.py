"""Draws frames as panels of text, for `concur watch` and `concur run`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from concur_agents.cli.advice import STALLS_PAGE
from concur_agents.cli.chart import chart
from concur_agents.observe.frame import Frame, Point, PoolFrame
from concur_agents.observe.words import (
    clock_text,
    larger_pool,
    limit_text,
    pool_limit_text,
    share_text,
    short_pool,
)

CHART_ROWS = 4

MOST_WHYS = 2
"""Most pools of which it is said why they are down."""

MOST_NAME = 32
"""Columns for the name of an agent."""

POOL = (
    ("reasoning", "█", "blue"),
    ("acting", "▓", "cyan"),
    ("fading", "▒", "bright_black"),
    ("free", "░", "bright_black"),
)
"""Parts of the KV pool: name, mark and style."""

STYLES = {"reasoning": "blue", "acting": "cyan", "paused": "yellow", "queued": "magenta"}


def dashboard(
    frame: Frame, trail: Sequence[Point], title: str, *, width: int, height: int
) -> Group:
    """The whole screen.

    Args:
        frame: the governor now.
        trail: its past, oldest first.
        title: name of the governor or file.
        width: columns of the screen.
        height: rows of the screen; the lists of agents are cut to fit.
    """
    charts = _charts(frame, trail, width)
    most_pools = max(1, min(len(frame.pools), height // 4))
    rows = height - 22 - frame.blind
    if frame.pools:
        rows -= 3 + most_pools + (len(frame.pools) > most_pools) + len(_why_down(frame))
    rows = max(2, rows)  # rows left for the two lists
    waiting = max(1, min(len(frame.waiting), max(rows // 2, rows - len(frame.active))))
    parts: list[RenderableType] = [
        _panel(summary(frame, width - 4), title, f"{frame.law}: {frame.reason}", clock_text(frame)),
        *([_panel(_pools(frame, most_pools, width), _pools_title(frame))] if frame.pools else []),
        charts,
        _panel(_waiting(frame, waiting), f"waiting: {frame.paused + frame.queued}"),
        _panel(_active(frame, max(1, rows - waiting)), f"active: {_count(frame)}"),
    ]
    return Group(*parts)


def strip(frame: Frame, title: str, *, width: int) -> RenderableType:
    """A few rows, which `concur run` shows below the output of the program."""
    rows: list[RenderableType] = [summary(frame, width - 4)]
    if frame.pools:
        rows += [_fact("pools", pools_line(frame)), *(_fact("", why) for why in _why_down(frame))]
    if frame.waiting:
        who = frame.waiting[0]
        why = f"{who.agent} {who.state} for {who.waited_s:.0f} s: {who.why}"
        rows.append(_fact("first", Text(why, overflow="ellipsis", no_wrap=True)))
    return _panel(Group(*rows), title, f"{frame.law}: {frame.reason}", clock_text(frame))


def summary(frame: Frame, width: int) -> Table:
    """A row each for pool, agents, limit, hit deficit and waits."""
    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim", width=11)
    table.add_column(overflow="ellipsis", no_wrap=True)
    table.add_row("KV pool", pool_bar(frame, max(10, min(60, width - 40))))
    table.add_row("agents", _agents(frame))
    table.add_row("limit", limit_text(frame))
    deficit = Text(share_text(frame.hit_deficit), _warmth(frame.hit_deficit))
    deficit.append(
        f" of the reusable tokens missed the cache (hit rate {share_text(frame.hit_rate)})", "dim"
    )
    table.add_row("hit deficit", deficit)
    waits = Text(f"longest {frame.longest_wait_s:.0f} s; {frame.pauses_total:,} pauses; ")
    late = "yellow" if frame.overdue_total else ""
    waits.append(f"{frame.overdue_total:,} let in as overdue", late)
    table.add_row("waits", waits)
    if frame.stalls_total:
        stalls = f"{frame.stalls_total:,} agents let in because nothing moved; see {STALLS_PAGE}"
        table.add_row("stalls", Text(stalls, "yellow"))
    if pool := larger_pool(frame):
        table.add_row("", Text(pool, "yellow"))
    if frame.blind:
        table.add_row("", Text("the engine cannot be read", style="red"))
    return table


def pools_line(frame: Frame) -> Text:
    """Each pool with its pressure, in one line."""
    text = Text(overflow="ellipsis", no_wrap=True)
    for pool in frame.pools:
        share = "-"
        if pool.capacity_tokens:
            share = f"{pool.pressure_tokens / pool.capacity_tokens:.0%}"
        if pool.reason == "down":
            text.append(f"{short_pool(pool.pool)} down  ", "red")
        else:
            text.append(f"{short_pool(pool.pool)} {share}  ")
    return text


def _pools_title(frame: Frame) -> str:
    down = sum(pool.reason == "down" for pool in frame.pools)
    return f"pools: {len(frame.pools)}" + (f", {down} down" if down else "")


def _why_down(frame: Frame) -> list[Text]:
    """Why pools are down: a line for each of the first."""
    down = [pool for pool in frame.pools if pool.reason == "down" and pool.unread]
    texts = [f"{short_pool(pool.pool)} is down: {pool.unread}" for pool in down[:MOST_WHYS]]
    return [Text(text, "red", overflow="ellipsis", no_wrap=True) for text in texts]


def _pools(frame: Frame, most: int, width: int) -> Group:
    """A row for each pool, those that are down first if not all fit; then why they are."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("pool", no_wrap=True, overflow="ellipsis", max_width=MOST_NAME)
    table.add_column("pressure", no_wrap=True)
    for column in ("limit", "active", "waiting", "hit rate"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    shown = frame.pools
    if len(shown) > most:
        shown = sorted(shown, key=lambda pool: pool.reason != "down")
    for pool in shown[:most]:
        table.add_row(
            escape(short_pool(pool.pool)),
            _pressure(pool, max(8, min(30, width - 86))),
            pool_limit_text(pool),
            str(pool.active),
            str(pool.waiting),
            share_text(pool.hit_rate),
            f"[red]{pool.reason}[/]" if pool.reason == "down" else escape(pool.reason),
        )
    _add_more(table, len(shown) - most)
    return Group(table, *_why_down(frame))


def _pressure(pool: PoolFrame, width: int) -> Text:
    """The pressure as a bar, with the limit marked."""
    capacity = pool.capacity_tokens
    if not capacity:
        return Text(f"{pool.pressure_tokens:,.0f} tokens")
    full = round(min(1.0, pool.pressure_tokens / capacity) * width)
    bar = ["█"] * full + ["░"] * (width - full)
    styles = ["blue"] * full + ["bright_black"] * (width - full)
    if pool.limit_tokens is not None and pool.limit_tokens <= capacity:
        mark = min(width - 1, round(pool.limit_tokens / capacity * width))
        bar[mark], styles[mark] = "│", "green"
    text = Text()
    for mark_, style in zip(bar, styles, strict=True):
        text.append(mark_, style)
    text.append(f" {pool.pressure_tokens / capacity:4.0%}")
    return text


def pool_bar(frame: Frame, width: int = 36) -> Text:
    """The KV pool as a bar: claims of reasoning and acting agents, faded contexts, free room."""
    capacity = frame.capacity_tokens
    if not capacity:
        return Text(f"{frame.pressure_tokens:,.0f} tokens claimed; its size is unknown")
    parts = [frame.reasoning_tokens, frame.acting_tokens, frame.faded_tokens]
    text, used = Text(), 0
    total = 0.0
    for (_, mark, style), tokens in zip(POOL, parts, strict=False):
        total = min(capacity, total + tokens)
        end = round(total / capacity * width)
        text.append(mark * (end - used), style)
        used = end
    text.append(POOL[-1][1] * (width - used), POOL[-1][2])
    text.append(f" {frame.pressure_tokens / capacity:.0%} of {capacity:,.0f} tokens\n")
    for name, mark, style in POOL:
        text.append(f"{mark} ", style)
        text.append(f"{name}  ", "dim")
    return text


def side_by_side(charts: Sequence[tuple[str, list[Text]]], width: int) -> RenderableType:
    """Charts in panels; on a narrow screen one below the other."""
    each = chart_width(width)
    panels = [
        Panel(Group(*rows), title=title, width=each + 4, border_style="bright_black")
        for title, rows in charts
    ]
    if each + 4 > width // 2:
        return Group(*panels)
    table = Table.grid()
    table.add_row(*panels)
    return table


def chart_width(width: int) -> int:
    """Columns of one of two charts, without its border."""
    return (width if width < 70 else width // 2) - 4


def thinned(trail: Sequence[Point], width: int) -> list[Point]:
    """At most `width` points: the last of each group."""
    every = -(-len(trail) // max(1, width))
    return list(trail) if every <= 1 else list(trail[::-1][::every])[::-1]


def _charts(frame: Frame, trail: Sequence[Point], width: int) -> RenderableType:
    each = chart_width(width)
    points = thinned([*trail, frame.point], each)
    deficits = [point.hit_deficit for point in points]
    if frame.limit_tokens is not None or frame.limit_agents is None:
        title = "pressure [blue]▇[/] and limit [green]━[/], tokens"
        area: list[float | None] = [point.pressure_tokens for point in points]
        line = [point.limit_tokens for point in points]
    else:
        title = "active [blue]▇[/] and limit [green]━[/], agents"
        area = [point.active for point in points]
        line = [point.limit_agents for point in points]
    passed = f"{points[-1].at_s - points[0].at_s:,.0f} s"
    drawn = [
        (f"{title}, {passed}", chart(area, line, width=each, height=CHART_ROWS)),
        (
            "hit deficit [yellow]▇[/], 0 to 100%",
            chart(deficits, width=each, height=CHART_ROWS, most=1.0, styles=("yellow", "")),
        ),
    ]
    return side_by_side(drawn, width)


def _waiting(frame: Frame, most: int) -> RenderableType:
    if not frame.waiting:
        return Text("none", "dim")
    table = _list("agent", *_pool_column(frame), "state", "for", "why")
    for row in frame.waiting[:most]:
        state = f"[{STYLES[row.state]}]{row.state}[/]"
        pool = [escape(short_pool(row.pool or "-"))] if frame.pools else []
        table.add_row(escape(row.agent), *pool, state, f"{row.waited_s:.1f} s", escape(row.why))
    _add_more(table, frame.paused + frame.queued - min(most, len(frame.waiting)))
    return table


def _active(frame: Frame, most: int) -> RenderableType:
    if not frame.active:
        return Text("none", "dim")
    table = _list("agent", *_pool_column(frame), "state", "for", "tokens", "steps")
    for row in frame.active[:most]:
        state = f"[{STYLES[row.state]}]{row.state}[/]"
        pool = [escape(short_pool(row.pool or "-"))] if frame.pools else []
        table.add_row(
            escape(row.agent),
            *pool,
            state,
            f"{row.for_s:.1f} s",
            f"{row.tokens:,}",
            str(row.steps),
        )
    _add_more(table, frame.reasoning + frame.acting - min(most, len(frame.active)))
    return table


def _pool_column(frame: Frame) -> list[str]:
    return ["pool"] if frame.pools else []


def _list(*names: str) -> Table:
    """A table with rows of one line; long names and the last column are cut to fit."""
    table = Table(box=None, pad_edge=False, header_style="dim", expand="why" in names)
    for name in names:
        justify: Literal["left", "right"] = "left"
        if name in ("for", "tokens", "steps"):
            justify = "right"
        table.add_column(
            name,
            justify=justify,
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if name == "why" else None,
            max_width=MOST_NAME if name in ("agent", "pool") else None,
        )
    return table


def _add_more(table: Table, number: int) -> None:
    if number > 0:
        table.add_row(f"and {number} more", style="dim")


def _panel(inside: RenderableType, title: str, *more: str) -> Panel:
    words = [f"[bold]{escape(title)}[/]", *(escape(text) for text in more)]
    return Panel(inside, title=" · ".join(words), title_align="left", border_style="bright_black")


def _fact(name: str, value: RenderableType) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim", width=11)
    table.add_row(name, value)
    return table


def _agents(frame: Frame) -> Text:
    text = Text()
    for state in ("reasoning", "acting", "paused", "queued", "suspended"):
        number = getattr(frame, state)
        if number or state != "suspended":
            text.append(f"{number} {state}  ", STYLES.get(state, "") if number else "dim")
    text.append(f"{frame.done_total} done", "dim")
    return text


def _count(frame: Frame) -> str:
    text = str(frame.reasoning + frame.acting)
    return text if frame.limit_agents is None else f"{text} of {frame.limit_agents:.0f}"


def _warmth(deficit: float | None) -> str:
    if deficit is None:
        return ""
    return "red" if deficit > 0.3 else "yellow" if deficit > 0.1 else "green"
