"""The pools of a recorded fleet as a table."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.markup import escape
from rich.table import Table

from concur_agents.cli.console import Console
from concur_agents.recording.timeline import PoolTimeline, Timeline


def pool_rows(timeline: Timeline) -> list[dict[str, Any]]:
    """A row of JSON for each pool; none where there is one."""
    agents = Counter(
        pool for lane in timeline.lanes.values() for pool in {name for _, name in lane.pools}
    )
    return [_row(pool, agents[pool.name]) for pool in timeline.pools.values()]


def _row(pool: PoolTimeline, agents: int) -> dict[str, Any]:
    last = pool.samples[-1] if pool.samples else None
    return {
        "pool": pool.name,
        "agents": agents,
        "steps": pool.steps,
        "prompt_tokens": pool.prompt_tokens,
        "cached_tokens": pool.cached_tokens,
        "output_tokens": pool.completion_tokens,
        "limit_tokens": last and last.limit_tokens,
        "limit_agents": last and last.limit_agents,
        "reason": last and last.reason,
        "down_s": pool.down_s,
        "why_down": pool.why_down if pool.down_s else "",
        "removed": pool.removed_s is not None,
    }


def print_pools(console: Console, timeline: Timeline) -> None:
    """Prints the same for people: a table, and why pools were down."""
    console.print(_table(timeline))
    for row in pool_rows(timeline):
        if row["why_down"]:
            text = escape(f"{row['pool']} was down: {row['why_down']}")
            console.print(f"[red]{text}[/]", soft_wrap=True)


def _table(timeline: Timeline) -> Table:
    table = Table("pool", box=None, pad_edge=False)
    for column in ("agents", "steps", "prompts cached", "limit"):
        table.add_column(column, justify="right")
    table.add_column("")
    for row in pool_rows(timeline):
        cached, sent = row["cached_tokens"], row["prompt_tokens"]
        table.add_row(
            escape(row["pool"]),
            str(row["agents"]),
            f"{row['steps']:,}",
            f"{cached / sent:.0%}" if cached is not None and sent else "-",
            _limit(row["limit_tokens"], row["limit_agents"]),
            _note(row),
        )
    return table


def _limit(tokens: float | None, agents: float | None) -> str:
    parts = [] if tokens is None else [f"{tokens:,.0f} tokens"]
    if agents is not None:
        parts.append(f"{agents:.0f} agents")
    return ", ".join(parts) or "none"


def _note(row: dict[str, Any]) -> str:
    notes = ["removed"] if row["removed"] else []
    if row["down_s"]:
        notes.append(f"[red]down for {row['down_s']:.0f} s[/]")
    return ", ".join(notes)
