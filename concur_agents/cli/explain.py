"""`concur explain RECORDING`: why an agent waited."""

from __future__ import annotations

import json
from collections import Counter
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape
from rich.table import Table

from concur_agents._text import wire_id
from concur_agents.cli.advice import (
    CAUSES,
    cause_of,
    pool_advice,
    stall_advice,
    waits_by_cause,
    what_to_do,
)
from concur_agents.cli.console import Console
from concur_agents.cli.damage import readable
from concur_agents.cli.pools import pool_rows, print_pools
from concur_agents.core import Usage
from concur_agents.errors import RecordingError
from concur_agents.recording import Happening, RecordedCall, Recording
from concur_agents.recording.spread import spread
from concur_agents.recording.timeline import Lane, Timeline, Wait
from concur_agents.recording.timeline_builder import read_timeline

MOST_NAMES = 5


def explain_command(
    recording: Path = typer.Argument(help="File written by record=."),
    agent: str = typer.Option(
        "", help="Show the timeline of this agent; default: all agents, by waits."
    ),
    most: int = typer.Option(20, min=1, help="Most agents listed without --agent."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Say why agents waited: when, how long, which agents went first, and with which numbers.

    The last line says what to do about it. Times are seconds from the start of the recording.

    With --json and --agent the keys are agent, steps, queued_s, paused_s, running_s and waits
    (kind, from_s, waited_s, cause, why, ended_by, before_it); without --agent: agents, waits
    (number, total_s, median_s, p99_s, worst_s), pauses, overdue, stalls, reported_tokens, ended_by,
    waited_s (by cause) and longest (agent, steps, queued_s, paused_s, running_s). Both have
    what_to_do.

    With several pools, agents and waits also have the key pool, an agent has pools (since_s, pool),
    and the whole has pools (pool, agents, steps, prompt_tokens, cached_tokens, output_tokens,
    limit_tokens, limit_agents, reason, down_s, why_down, removed).
    """
    with readable(recording):
        _explain(recording, agent, most, as_json=as_json)


def _explain(recording: Path, agent: str, most: int, *, as_json: bool) -> None:
    recorded = Recording(recording)
    timeline = read_timeline(recorded)
    agent = wire_id(agent) if agent else ""
    if not agent:
        _show_all(timeline, most, as_json=as_json)
        return
    if agent not in timeline.lanes:
        hint = f"; it holds {len(timeline.lanes)} agents"
        if close := get_close_matches(agent, timeline.lanes, n=1):
            hint = f": did you mean {close[0]!r}?"
        elif timeline.lanes:
            hint += f", such as {next(iter(timeline.lanes))!r}"
        raise RecordingError(f"no agent {agent!r} in {recording}{hint}")
    whys = reasons(recorded, agent)
    if as_json:
        print(json.dumps(_agent_dict(timeline, timeline.lanes[agent], whys), indent=2))
    else:
        _show_agent(recorded, timeline, timeline.lanes[agent], whys)


def reasons(recording: Recording, agent: str) -> dict[float, str]:
    """Why an agent had to wait, as written with each wait, by when the wait began [s]."""
    return {
        line.now: line.why
        for line in recording
        if isinstance(line, RecordedCall) and line.agent == agent and line.why is not None
    }


def _show_all(timeline: Timeline, most: int, *, as_json: bool) -> None:
    waits = spread(wait.waited_s for wait in timeline.waits)
    ends = Counter(
        "they still wait" if wait.ended_by is None else wait.ended_by.kind
        for wait in timeline.waits
    )
    lanes = sorted(timeline.lanes.values(), key=lambda lane: -lane.seconds("queued", "paused"))
    if as_json:
        shown = {
            "agents": len(timeline.lanes),
            "waits": waits._asdict(),
            "pauses": timeline.pauses,
            "overdue": timeline.overdue,
            "stalls": timeline.stalls,
            "reported_tokens": timeline.reported_tokens,
            "ended_by": dict(ends.most_common()),
            "waited_s": waits_by_cause(timeline),
            "what_to_do": what_to_do(timeline),
            "longest": [_sums(lane) for lane in lanes[:most]],
        }
        if timeline.pools:
            shown["pools"] = pool_rows(timeline)
        print(json.dumps(shown, indent=2))
        return
    console = Console()
    console.print(
        f"{len(timeline.lanes)} agents in {timeline.end_s - timeline.start_s:.0f} s under "
        f"{escape(timeline.header.law['name'])}: {waits.number} waits, {waits.total_s:.0f} s "
        f"in all, median {waits.median_s:.1f} s, worst {waits.worst_s:.1f} s; "
        f"{timeline.pauses} pauses, {timeline.overdue} let in as overdue.",
        soft_wrap=True,
    )
    for note in _notes(timeline):
        console.print(f"[yellow]{escape(note)}[/]", soft_wrap=True)
    if ends:
        text = ", ".join(f"{kind} ({number})" for kind, number in ends.most_common())
        console.print(f"Waits ended because {text}.", soft_wrap=True)
    if timeline.pools:
        print_pools(console, timeline)
        console.print()
    table = Table("agent", box=None, pad_edge=False)
    if timeline.pools:
        table.add_column("pool")
    for column in ("steps", "queued", "paused", "running", "waits"):
        table.add_column(column, justify="right")
    numbers = Counter(wait.agent for wait in timeline.waits)
    for lane in lanes[:most]:
        sums = _sums(lane)
        table.add_row(
            escape(lane.id),
            *([escape(lane.pool or "-")] if timeline.pools else []),
            str(lane.steps),
            *(f"{sums[name]:.1f} s" for name in ("queued_s", "paused_s", "running_s")),
            str(numbers[lane.id]),
        )
    console.print(table)
    if len(lanes) > most:
        console.print(f"[dim]and {len(lanes) - most} more (--most shows them)[/]")
    console.print(f"\n{escape(what_to_do(timeline))}", soft_wrap=True)


def _notes(timeline: Timeline) -> list[str]:
    """What a reader should know of the whole run."""
    notes = []
    if timeline.stalls:
        notes.append(stall_advice(timeline.stalls))
    reported = timeline.reported_tokens
    used = timeline.samples[-1].capacity_tokens if timeline.samples else None
    if reported is not None and used is not None and used > reported:
        notes.append(pool_advice(reported, used))
    return notes


def _show_agent(
    recording: Recording, timeline: Timeline, lane: Lane, whys: dict[float, str]
) -> None:
    console = Console()
    sums = _sums(lane)
    where = f" in {escape(lane.pool)}" if lane.pool else ""
    life_s = sum(item.to_s - item.from_s for item in lane.segments)
    waited_s = sums["queued_s"] + sums["paused_s"]
    share = f" ({waited_s / life_s:.0%} of its life)" if life_s else ""
    cached = ""
    if lane.cached_tokens is not None and lane.prompt_tokens:
        cached = f", {lane.cached_tokens / lane.prompt_tokens:.0%} of its prompt tokens cached"
    console.print(
        f"[bold]{escape(lane.id)}[/]{where}: {lane.steps} steps, "
        f"queued {sums['queued_s']:.1f} s and paused {sums['paused_s']:.1f} s{share}, "
        f"{lane.footprint_tokens:,} tokens at the end{cached}.",
        soft_wrap=True,
    )
    table = Table("at", "what", box=None, pad_edge=False, show_header=False)
    for at_s, text in _rows_of(recording, timeline, lane.id, whys):
        table.add_row(f"{at_s - timeline.start_s:8.1f} s", text)
    console.print(table)
    console.print(f"\n{escape(what_to_do(timeline, lane.id))}", soft_wrap=True)


def _rows_of(
    recording: Recording, timeline: Timeline, agent: str, whys: dict[float, str]
) -> list[tuple[float, str]]:
    """The life of one agent: one row for steps in a row, two for each wait."""
    rows = _steps(recording, agent)
    for wait in timeline.waits:
        if wait.agent != agent:
            continue
        why = whys.get(wait.from_s) or _numbers(wait)
        cause = CAUSES.get(cause_of(wait), cause_of(wait))
        rows.append((wait.from_s, f"[yellow]{wait.kind}[/], because {cause}: {escape(why)}"))
        if wait.ended_by is not None:
            end = escape(str(wait.ended_by))
            where = f" in {escape(wait.pool)}" if wait.pool else ""
            text = f"goes on{where} after [bold]{wait.waited_s:.1f} s[/], because {end}"
        else:
            text = f"still waits after [bold]{wait.waited_s:.1f} s[/]"
        names = wait.before_it
        if names:
            more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
            text += f"; let in before it: {escape(', '.join(names[:MOST_NAMES]))}{more}"
        rows.append((wait.to_s, text))
    return sorted(rows, key=lambda row: row[0])


def _steps(recording: Recording, agent: str) -> list[tuple[float, str]]:
    """Its steps between waits, and its other calls."""
    rows: list[tuple[float, str]] = []
    run: list[tuple[float, Usage | None]] = []
    total = 0

    def close() -> None:
        if not run:
            return
        first = total - len(run) + 1
        name = f"step {total}" if len(run) == 1 else f"steps {first}-{total}"
        known = [usage for _, usage in run if usage is not None]
        text = f"{name} done"
        if known:
            text += f", {known[-1].prompt_tokens + known[-1].completion_tokens:,} tokens held"
            sent = sum(usage.prompt_tokens for usage in known)
            hits = [usage.cached_tokens for usage in known if usage.cached_tokens is not None]
            if hits and sent:
                text += f", {sum(hits) / sent:.0%} of the prompts cached"
        if len(known) < len(run):
            text += f", {len(run) - len(known)} without usage"
        rows.append((run[-1][0], f"[dim]{text}[/]"))
        run.clear()

    for line in recording:
        if line.agent != agent:
            continue
        if isinstance(line, Happening):
            continue
        if line.error is not None:
            continue
        if line.name == "end_step":
            total += 1
            run.append((line.now, line.options.get("usage")))
        elif line.name in _TEXT:
            close()
            name = "refused" if line.options.get("overloaded") else line.name
            rows.append((line.now, _TEXT[name]))
        elif agent not in line.let_in:
            close()
    close()
    return rows


_TEXT = {
    "arrive": "arrives",
    "leave": "leaves",
    "retry_step": "[dim]tries a call again[/]",
    "refused": "[yellow]is refused by the endpoint[/]",
    "suspend": "[dim]gives its place back for a while[/]",
    "resume": "[dim]asks for its place again[/]",
}
"""Call -> its row in the timeline of an agent."""


def _numbers(wait: Wait) -> str:
    """The numbers of the tick before a wait, for a wait without a reason of its own."""
    if wait.active is None or wait.pressure_tokens is None:
        return "no numbers were recorded"
    parts = [f"{wait.active} active"]
    if wait.limit_agents is not None:
        parts[0] += f" of {wait.limit_agents:.0f}"
    if wait.limit_tokens is not None:
        parts.append(f"pressure {wait.pressure_tokens:,.0f} of {wait.limit_tokens:,.0f} tokens")
    return ", ".join(parts) + " at the tick before"


def _sums(lane: Lane) -> dict[str, Any]:
    return {
        "agent": lane.id,
        **({"pool": lane.pool} if lane.pool else {}),
        "steps": lane.steps,
        "queued_s": lane.seconds("queued"),
        "paused_s": lane.seconds("paused"),
        "running_s": lane.seconds("reasoning", "acting"),
    }


def _agent_dict(timeline: Timeline, lane: Lane, whys: dict[float, str]) -> dict[str, Any]:
    waits = [
        {
            "kind": wait.kind,
            "from_s": wait.from_s - timeline.start_s,
            "waited_s": wait.waited_s,
            "cause": cause_of(wait),
            "why": whys.get(wait.from_s) or _numbers(wait),
            "ended_by": None if wait.ended_by is None else str(wait.ended_by),
            "before_it": wait.before_it,
            **({"pool": wait.pool} if timeline.pools else {}),
        }
        for wait in timeline.waits
        if wait.agent == lane.id
    ]
    pools = [{"since_s": at_s - timeline.start_s, "pool": pool} for at_s, pool in lane.pools]
    return {
        **_sums(lane),
        "waits": waits,
        **({"pools": pools} if pools else {}),
        "what_to_do": what_to_do(timeline, lane.id),
    }
