"""`concur explain RECORDING`: why did my agent wait?"""

from __future__ import annotations

import json
from collections import Counter
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from concur_agents.core import Usage
from concur_agents.errors import RecordingError
from concur_agents.recording import Happening, RecordedCall, Recording, apply, make_regulator
from concur_agents.recording.timeline import Lane, Timeline, Wait, spread, tell

MOST_NAMES = 5


def explain_command(
    recording: Path = typer.Argument(help="File written by record=."),
    agent: str = typer.Option("", help="This agent's timeline; default: all agents, by waits."),
    most: int = typer.Option(20, min=1, help="Agents listed at most, without --agent."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Say why agents waited: when, for how long, behind whom, and with which numbers.

    Times are seconds from the start of the recording.

    With --json and --agent the keys are agent, steps, queued_s, paused_s, running_s and waits
    (kind, from_s, waited_s, why, ended_by, before_it); without --agent: agents, waits (number,
    total_s, median_s, p99_s, worst_s), pauses, overdue, ended_by and longest (agent, steps,
    queued_s, paused_s, running_s).
    """
    recorded = Recording(recording)
    timeline = tell(recorded)
    if not agent:
        _show_all(timeline, most, as_json=as_json)
        return
    if agent not in timeline.lanes:
        close = get_close_matches(agent, timeline.lanes, n=1)
        hint = (
            f": did you mean {close[0]!r}?" if close else f"; it holds {len(timeline.lanes)} agents"
        )
        raise RecordingError(f"no agent {agent!r} in {recording}{hint}")
    whys = reasons(recorded, agent)
    if as_json:
        print(json.dumps(_agent_dict(timeline, timeline.lanes[agent], whys), indent=2))
    else:
        _show_agent(recorded, timeline, timeline.lanes[agent], whys)


def reasons(recording: Recording, agent: str) -> dict[float, str]:
    """Why an agent had to wait, in the Regulator's words, by when the wait began [s].

    The recording is replayed up to each of its waits, and the Regulator of that moment is asked.
    Where it cannot be replayed, the numbers that were written with the wait must do.
    """
    try:
        regulator = make_regulator(recording)
    except RecordingError:  # a law of the user's own, or the first files are gone
        lines = (
            line for line in recording if isinstance(line, RecordedCall) and line.agent == agent
        )
        return {line.now: line.why for line in lines if line.why is not None}
    found: dict[float, str] = {}
    for line in recording:
        if isinstance(line, RecordedCall):
            apply(regulator, line)
            is_ask = line.name in ("arrive", "begin_step") and line.agent == agent
            if is_ask and line.error is None and agent not in line.let_in:
                said = str(regulator.explain(agent, line.now))
                found.setdefault(line.now, said.partition(": ")[2])
    return found


def _show_all(timeline: Timeline, most: int, *, as_json: bool) -> None:
    waits = spread(wait.waited_s for wait in timeline.waits)
    ends = Counter(_kind_of_end(wait) for wait in timeline.waits)
    lanes = sorted(timeline.lanes.values(), key=lambda lane: -lane.seconds("queued", "paused"))
    if as_json:
        shown = {
            "agents": len(timeline.lanes),
            "waits": waits._asdict(),
            "pauses": timeline.pauses,
            "overdue": timeline.overdue,
            "ended_by": dict(ends.most_common()),
            "longest": [_sums(lane) for lane in lanes[:most]],
        }
        print(json.dumps(shown, indent=2))
        return
    console = Console()
    console.print(
        f"{len(timeline.lanes)} agents in {timeline.end_s - timeline.start_s:.0f} s under "
        f"{timeline.header.law['name']}: {waits.number} waits, {waits.total_s:.0f} s in all, "
        f"median {waits.median_s:.1f} s, worst {waits.worst_s:.1f} s; {timeline.pauses} pauses, "
        f"{timeline.overdue} let in as overdue.",
        soft_wrap=True,
    )
    if ends:
        text = ", ".join(f"{kind} ({number})" for kind, number in ends.most_common())
        console.print(f"Waits ended because {text}.", soft_wrap=True)
    table = Table("agent", box=None, pad_edge=False)
    for column in ("steps", "queued", "paused", "running", "waits"):
        table.add_column(column, justify="right")
    numbers = Counter(wait.agent for wait in timeline.waits)
    for lane in lanes[:most]:
        sums = _sums(lane)
        table.add_row(
            escape(lane.id),
            str(lane.steps),
            *(f"{sums[name]:.1f} s" for name in ("queued_s", "paused_s", "running_s")),
            str(numbers[lane.id]),
        )
    console.print(table)
    if len(lanes) > most:
        console.print(f"[dim]and {len(lanes) - most} more; --most shows them[/]")


def _show_agent(
    recording: Recording, timeline: Timeline, lane: Lane, whys: dict[float, str]
) -> None:
    console = Console()
    sums = _sums(lane)
    life_s = sum(item.to_s - item.from_s for item in lane.segments)
    waited_s = sums["queued_s"] + sums["paused_s"]
    share = f" ({waited_s / life_s:.0%} of its life)" if life_s else ""
    cached = ""
    if lane.cached_tokens is not None and lane.prompt_tokens:
        cached = f", {lane.cached_tokens / lane.prompt_tokens:.0%} of its prompt tokens cached"
    console.print(
        f"[bold]{escape(lane.id)}[/]: {lane.steps} steps, queued {sums['queued_s']:.1f} s and "
        f"paused {sums['paused_s']:.1f} s{share}, {lane.footprint_tokens:,} tokens in the end"
        f"{cached}.",
        soft_wrap=True,
    )
    table = Table("at", "what", box=None, pad_edge=False, show_header=False)
    for at_s, text in _rows_of(recording, timeline, lane.id, whys):
        table.add_row(f"{at_s - timeline.start_s:8.1f} s", text)
    console.print(table)


def _rows_of(
    recording: Recording, timeline: Timeline, agent: str, whys: dict[float, str]
) -> list[tuple[float, str]]:
    """What happened to one agent: steps in a row are one line, each wait is two."""
    rows = _steps(recording, agent)
    for wait in timeline.waits:
        if wait.agent != agent:
            continue
        why = whys.get(wait.from_s) or _numbers(wait)
        rows.append((wait.from_s, f"[yellow]{wait.kind}[/]: {escape(_without_state(why))}"))
        if wait.ended_by:
            text = f"goes on after [bold]{wait.waited_s:.1f} s[/], since {escape(wait.ended_by)}"
        else:
            text = f"still waits after [bold]{wait.waited_s:.1f} s[/]"
        names = wait.before_it
        if names:
            more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
            text += f"; went before it: {escape(', '.join(names[:MOST_NAMES]))}{more}"
        rows.append((wait.to_s, text))
    return sorted(rows, key=lambda row: row[0])


def _steps(recording: Recording, agent: str) -> list[tuple[float, str]]:
    """Its steps between waits, and everything else that it did."""
    rows: list[tuple[float, str]] = []
    run: list[tuple[float, Usage | None]] = []
    total = 0

    def close() -> None:
        if not run:
            return
        first = total - len(run) + 1
        name = f"step {total}" if len(run) == 1 else f"steps {first}-{total}"
        told = [usage for _, usage in run if usage is not None]
        text = f"{name} done"
        if told:
            text += f", {told[-1].prompt_tokens + told[-1].completion_tokens:,} tokens held"
            asked = sum(usage.prompt_tokens for usage in told)
            hits = [usage.cached_tokens for usage in told if usage.cached_tokens is not None]
            if hits and asked:
                text += f", {sum(hits) / asked:.0%} of the prompts cached"
        if len(told) < len(run):
            text += f", {len(run) - len(told)} without an answer"
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
        elif line.name in _SAID:
            close()
            said = "refused" if line.options.get("overloaded") else line.name
            rows.append((line.now, _SAID[said]))
        elif agent not in line.let_in:
            close()
    close()
    return rows


_SAID = {
    "arrive": "arrives",
    "leave": "leaves",
    "retry_step": "[dim]tries a call again[/]",
    "refused": "[yellow]is refused by the endpoint[/]",
    "suspend": "[dim]gives its place back for a while[/]",
    "resume": "[dim]asks for its place again[/]",
}
"""What a call of an agent is in a timeline."""


def _numbers(wait: Wait) -> str:
    """What the tick before a wait said, where the Regulator cannot be asked."""
    if wait.active is None or wait.pressure_tokens is None:
        return "nothing is known of that moment"
    parts = [f"{wait.active} active"]
    if wait.limit_agents is not None:
        parts[0] += f" of {wait.limit_agents:.0f}"
    if wait.limit_tokens is not None:
        parts.append(f"pressure {wait.pressure_tokens:,.0f} of {wait.limit_tokens:,.0f} tokens")
    return ", ".join(parts) + " at the tick before"


def _without_state(why: str) -> str:
    for state in ("queued: ", "paused: "):
        why = why.removeprefix(state)
    return why


def _kind_of_end(wait: Wait) -> str:
    if not wait.ended_by:
        return "they have not"
    for end in ("left", "ended a step", "came to a boundary", "arrived"):
        if wait.ended_by.endswith(end) and wait.ended_by != "it left":
            return f"another agent {end}"
    return wait.ended_by.partition(" (")[0]


def _sums(lane: Lane) -> dict[str, Any]:
    return {
        "agent": lane.id,
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
            "why": _without_state(whys.get(wait.from_s) or _numbers(wait)),
            "ended_by": wait.ended_by or None,
            "before_it": wait.before_it,
        }
        for wait in timeline.waits
        if wait.agent == lane.id
    ]
    return {**_sums(lane), "waits": waits}
