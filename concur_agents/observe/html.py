"""A frame as HTML: a governor in a notebook, and the parts of the live page between its plots.

Pure text without scripts. Names of agents and pools may hold anything, so every text is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from concur_agents.observe.frame import Frame, PoolFrame
from concur_agents.observe.words import (
    larger_pool,
    limit_text,
    pool_limit_text,
    share_text,
    short_pool,
)
from concur_agents.recording.drawing import style


def notebook_html(frame: Frame) -> str:
    """A governor for a notebook: its numbers, its pools, its agents, and why they wait."""
    where, closed = frame.url or "", "closed" if frame.closed else ""
    title = " ".join(filter(None, ("Governor", where, f"({frame.law})", closed)))
    inside = f"<h2>{escape(title)}</h2>{summary_html(frame)}{lists_html(frame)}"
    return f'<div class="concur" style="padding:.6rem"><style>{style()}</style>{inside}</div>'


def summary_html(frame: Frame) -> str:
    """The numbers on cards, the KV pool as a bar, what is wrong, and a table of several pools."""
    facts = [
        ("reason", frame.reason),
        ("reasoning", f"{frame.reasoning:,}"),
        ("acting", f"{frame.acting:,}"),
        ("waiting", f"{frame.paused + frame.queued:,}"),
        ("done", f"{frame.done_total:,}"),
        ("limit", limit_text(frame)),
        ("hit deficit", share_text(frame.hit_deficit)),
        ("longest wait", f"{frame.longest_wait_s:,.0f} s"),
        ("pauses", f"{frame.pauses_total:,}"),
    ]
    cards = "".join(
        f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in facts
    )
    wrong = "".join(f'<p class="bad">{escape(text)}</p>' for text in _warnings(frame))
    pools = _section("Pools", _pools(frame)) if frame.pools else ""
    return f'<div class="facts">{cards}</div>{_section("KV pool", _kv(frame))}{wrong}{pools}'


def lists_html(frame: Frame) -> str:
    """Waiting agents with their reasons, and active agents, the longest first."""
    pool = ["pool"] if frame.pools else []
    waiting = _table(
        ["agent", *pool, "state", "for", "why"],
        (
            [row.agent, *_pool(row.pool, frame), row.state, f"{row.waited_s:.1f} s", row.why]
            for row in frame.waiting
        ),
    )
    active = _table(
        ["agent", *pool, "state", "for", "tokens", "steps"],
        (
            [
                *(row.agent, *_pool(row.pool, frame), row.state),
                *(f"{row.for_s:.1f} s", f"{row.tokens:,}", f"{row.steps:,}"),
            ]
            for row in frame.active
        ),
    )
    waits, holds = frame.paused + frame.queued, frame.reasoning + frame.acting
    return _section(f"Waiting: {waits:,}", waiting + _more(waits - len(frame.waiting))) + _section(
        f"Active: {holds:,}", active + _more(holds - len(frame.active))
    )


def _warnings(frame: Frame) -> list[str]:
    found = []
    if frame.blind:
        found.append("The engine cannot be read.")
    if frame.stalls_total:
        found.append(f"{frame.stalls_total:,} agents let in because nothing moved.")
    if frame.overdue_total:
        found.append(f"{frame.overdue_total:,} agents let in as overdue.")
    if larger := larger_pool(frame):
        found.append(larger[0].upper() + larger[1:] + ".")
    down = [pool for pool in frame.pools if pool.reason == "down" and pool.unread]
    found += [f"{short_pool(pool.pool)} is down: {pool.unread}" for pool in down]
    return found


def _kv(frame: Frame) -> str:
    """The pool as a bar: claims of reasoning and acting agents, faded contexts, the limit."""
    capacity = frame.capacity_tokens
    if not capacity:
        return f"<p>{frame.pressure_tokens:,.0f} tokens claimed; its size is unknown</p>"
    parts = (
        ("reasoning", frame.reasoning_tokens),
        ("acting", frame.acting_tokens),
        ("queued", frame.faded_tokens),
    )
    legend = "".join(
        f'<span><i class="area" style="background:var(--{color})"></i> {name}</span>'
        for name, color in (
            *(("reasoning", "reasoning"), ("acting", "acting"), ("fading", "queued")),
            *(("free", "line"), ("limit", "limit")),
        )
    )
    full = f"{frame.pressure_tokens / capacity:.0%} of {capacity:,.0f} tokens"
    bar = _bar(parts, capacity, frame.limit_tokens)
    return f'{bar}<p>{full}</p><div class="legend">{legend}</div>'


def _bar(
    parts: Sequence[tuple[str, float]], capacity_tokens: float, limit_tokens: float | None
) -> str:
    inside, left = "", capacity_tokens
    for color, tokens in parts:
        shown = min(left, tokens)
        left -= shown
        inside += f'<i style="width:{shown / capacity_tokens:.2%};background:var(--{color})"></i>'
    if limit_tokens is not None and limit_tokens <= capacity_tokens:
        inside += f'<u style="left:{min(0.99, limit_tokens / capacity_tokens):.2%}"></u>'
    return f'<div class="kv">{inside}</div>'


def _pools(frame: Frame) -> str:
    head = ["pool", "pressure", "", "limit", "active", "waiting", "hit rate", "reason"]
    rows = "".join(_row(_cells(pool), head) for pool in frame.pools)
    return _framed(head, rows)


def _cells(pool: PoolFrame) -> list[str]:
    share, bar = "-", ""
    if pool.capacity_tokens:
        share = f"{pool.pressure_tokens / pool.capacity_tokens:.0%}"
        parts = [("acting", pool.pressure_tokens)]
        bar = _bar(parts, pool.capacity_tokens, pool.limit_tokens)
    reason = escape(pool.reason)
    return [
        *(escape(short_pool(pool.pool)), share, bar, pool_limit_text(pool)),
        *(f"{pool.active:,}", f"{pool.waiting:,}", share_text(pool.hit_rate)),
        f'<b class="bad">{reason}</b>' if pool.reason == "down" else reason,
    ]


def _pool(name: str | None, frame: Frame) -> list[str]:
    return [short_pool(name or "-")] if frame.pools else []


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    inside = "".join(_row([escape(cell) for cell in row], head) for row in rows)
    return _framed(head, inside) if inside else "<p>none</p>"


_NUMBERS = {"for", "tokens", "steps", "active", "waiting", "hit rate", "limit", "pressure"}
"""Columns that stand on the right."""


def _framed(head: list[str], rows: str) -> str:
    names = "".join(f"<th{_side(name)}>{name}</th>" for name in head)
    table = f"<table><thead><tr>{names}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def _row(cells: Iterable[str], head: list[str]) -> str:
    pairs = zip(head, cells, strict=True)
    return f"<tr>{''.join(f'<td{_side(name)}>{cell}</td>' for name, cell in pairs)}</tr>"


def _side(name: str) -> str:
    return ' class="n"' if name in _NUMBERS else ""


def _section(title: str, inside: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{inside}</section>"


def _more(number: int) -> str:
    return f"<p>and {number:,} more</p>" if number > 0 else ""
