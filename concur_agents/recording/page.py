"""A timeline as one self-contained HTML page: `page.html` with the numbers filled in."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from concur_agents.recording.drawing import asset, drawn
from concur_agents.recording.spread import spread
from concur_agents.recording.timeline import (
    Lane,
    PoolTimeline,
    Segment,
    Timeline,
    TimelinePoint,
    Wait,
)

STATES = ("queued", "reasoning", "acting", "paused", "suspended")

MOST_SAMPLES = 3000
"""More than a screen has pixels; a longer recording is thinned."""

MOST_SEGMENTS = 150_000
"""Above this, segments too short to see are merged with their neighbours."""

MOST_WAITS = 20_000
"""Waits on the page, the longest first."""

_SERIES = (
    "active",
    "reasoning",
    "paused",
    "queued",
    "pressure_tokens",
    "capacity_tokens",
    "footprint_tokens",
    "limit_tokens",
    "limit_agents",
    "hit_rate",
    "hit_deficit",
    "kv_usage",
    "running",
    "output_tokens_per_s",
    "prompt_tokens_per_s",
    "cached_tokens_per_s",
    "longest_wait_s",
    "shadow_tokens",
    "shadow_agents",
)


def page(timeline: Timeline, *, title: str) -> str:
    """The page, as text in UTF-8."""
    return drawn(asset("concur_agents.recording", "page.html"), _data(timeline, title))


def _data(timeline: Timeline, title: str) -> dict[str, Any]:
    start_s, waits = timeline.start_s, _longest(timeline.waits)
    lanes = sorted(timeline.lanes.values(), key=_first_s)
    samples = _thinned(timeline.samples)
    names = list(timeline.pools)
    begun = datetime.fromtimestamp(timeline.header.unix_s, UTC)
    return {
        "title": title,
        "begun": begun.isoformat(timespec="seconds"),
        "version": timeline.header.version,
        "law": timeline.header.law["name"],
        "shadow": None if timeline.header.shadow is None else timeline.header.shadow["name"],
        "url": timeline.header.url,
        "whole": timeline.header.from_start and timeline.header.part == 0,
        "end_s": _short(timeline.end_s - start_s),
        "facts": _facts(timeline),
        "states": STATES,
        **_series(samples, start_s),
        "limit_changes": [
            [
                _short(item.at_s - start_s),
                item.reason,
                *([_index(names, item.pool)] if item.pool else []),
            ]
            for item in timeline.limit_changes
            if item.reason in ("cut", "blind", "down")
        ],
        "lanes": [_lane(lane, timeline) for lane in lanes],
        "waits": [[*_wait(wait, start_s), _where(wait, timeline)] for wait in waits],
        "pools": [_pool(pool, timeline, samples) for pool in timeline.pools.values()],
    }


def _series(samples: Sequence[TimelinePoint], start_s: float) -> dict[str, Any]:
    """The numbers over time, of all or of one pool."""
    return {
        "t": [_short(sample.at_s - start_s) for sample in samples],
        "series": {
            name: _column([getattr(sample, name) for sample in samples]) for name in _SERIES
        },
    }


def _index(names: Sequence[str], pool: str | None) -> int | None:
    return names.index(pool) if pool in names else None


def _where(wait: Wait, timeline: Timeline) -> int | None:
    """The pool of a wait: where it ended, else where the agent is."""
    return _index(list(timeline.pools), wait.pool or timeline.lanes[wait.agent].pool)


def _pool(
    pool: PoolTimeline, timeline: Timeline, samples: Sequence[TimelinePoint]
) -> dict[str, Any]:
    """One of several pools; `share` is its pressure by capacity at the instants of `samples`."""
    share: list[float | None] = []
    own = iter(pool.samples)
    last, following = None, next(own, None)
    for sample in samples:
        while following is not None and following.at_s <= sample.at_s:
            last, following = following, next(own, None)
        known = last is not None and bool(last.capacity_tokens) and last.reason != "down"
        share.append(last.pressure_tokens / last.capacity_tokens if known else None)  # type: ignore[union-attr,operator]
    lanes = timeline.lanes.values()
    return {
        "name": pool.name,
        **_series(_thinned(pool.samples), timeline.start_s),
        "share": _column(share),
        "agents": sum(any(name == pool.name for _, name in lane.pools) for lane in lanes),
        "steps": pool.steps,
        "output": pool.completion_tokens,
        "cached": None
        if pool.cached_tokens is None or not pool.prompt_tokens
        else _short(pool.cached_tokens / pool.prompt_tokens),
        "down_s": _short(pool.down_s),
        "why_down": pool.why_down,
        "removed": pool.removed_s is not None,
    }


def _facts(timeline: Timeline) -> list[tuple[str, str]]:
    """Names and values for the top of the page."""
    roots = [lane for lane in timeline.lanes.values() if lane.parent is None]
    waits = spread(lane.seconds("queued", "paused") for lane in roots)
    lanes = timeline.lanes.values()
    passed_s = max(1e-9, timeline.end_s - timeline.start_s)
    output = sum(lane.completion_tokens for lane in lanes)
    known = [lane for lane in lanes if lane.cached_tokens is not None]
    prompt = sum(lane.prompt_tokens for lane in known)
    facts = [
        ("agents", f"{len(roots):,}"),
        ("done", f"{timeline.done:,}"),
        ("steps", f"{sum(lane.steps for lane in lanes):,}"),
        ("pauses", f"{timeline.pauses:,}"),
        ("median wait per agent", f"{waits.median_s:.1f} s"),
        ("worst wait per agent", f"{waits.worst_s:.1f} s"),
        ("output", f"{output / passed_s:,.0f} tokens/s"),
    ]
    if prompt:
        cached = sum(lane.cached_tokens or 0 for lane in known)
        facts.append(("prompt tokens cached", f"{cached / prompt:.1%}"))
    if timeline.overdue:
        facts.append(("let in as overdue", f"{timeline.overdue:,}"))
    return facts


def _lane(lane: Lane, timeline: Timeline) -> dict[str, Any]:
    """A lane for the page. Its segments are flat: state, start, end, state, start, end, ..."""
    count = sum(len(other.segments) for other in timeline.lanes.values())
    least_s = 0.0 if count <= MOST_SEGMENTS else (timeline.end_s - timeline.start_s) / 4000
    flat: list[float] = []
    for item in _merged(sorted(lane.segments, key=lambda item: item.from_s), least_s):
        flat += [
            STATES.index(item.state),
            _short(item.from_s - timeline.start_s),
            _short(item.to_s - timeline.start_s),
        ]
    return {
        "id": lane.id,
        "parent": lane.parent,
        "segments": flat,
        "tools": [
            [
                item.state,
                _short(item.from_s - timeline.start_s),
                _short(item.to_s - timeline.start_s),
            ]
            for item in lane.tools
        ],
        "steps": lane.steps,
        "waited_s": _short(lane.seconds("queued", "paused")),
        "tokens": lane.footprint_tokens,
        "pools": [
            [_short(at_s - timeline.start_s), _index(list(timeline.pools), pool)]
            for at_s, pool in lane.pools
        ],
    }


def _merged(segments: Sequence[Segment], least_s: float) -> list[Segment]:
    merged: list[Segment] = []
    for item in segments:
        last = merged[-1] if merged else None
        follows = last is not None and item.from_s <= last.to_s
        if last is not None and follows and item.to_s - item.from_s < least_s:
            merged[-1] = last._replace(to_s=item.to_s)
        else:
            merged.append(item)
    return merged


def _wait(wait: Wait, start_s: float) -> list[Any]:
    names = wait.before_it
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return [
        wait.agent,
        wait.kind,
        _short(wait.from_s - start_s),
        _short(wait.waited_s),
        "" if wait.ended_by is None else str(wait.ended_by),
        ", ".join(names[:5]) + more,
    ]


def _longest(waits: list[Wait]) -> list[Wait]:
    return sorted(waits, key=lambda wait: -wait.waited_s)[:MOST_WAITS]


def _thinned(samples: list[TimelinePoint]) -> list[TimelinePoint]:
    """At most `MOST_SAMPLES`: the mean of each rate, the last value of each gauge."""
    every = -(-len(samples) // MOST_SAMPLES)
    if every <= 1:
        return samples
    thinned = []
    for at in range(0, len(samples), every):
        group = samples[at : at + every]
        means = {
            name: sum(getattr(item, name) for item in group) / len(group)
            for name in ("output_tokens_per_s", "prompt_tokens_per_s", "cached_tokens_per_s")
        }
        thinned.append(group[-1]._replace(**means))
    return thinned


def _column(values: list[Any]) -> list[float | None] | None:
    """Values rounded for drawing; None: there is none."""
    if all(value is None for value in values):
        return None
    return [None if value is None else _short(value) for value in values]


def _short(value: float) -> float:
    rounded = round(value, 3)
    return int(rounded) if rounded == int(rounded) else rounded


def _first_s(lane: Lane) -> tuple[float, str]:
    return (min((item.from_s for item in lane.segments), default=0.0), lane.id)
