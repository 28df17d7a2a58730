"""`concur replay-law RECORDING`: replays a recording through its law, or through another."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from concur_agents.cli.console import Console
from concur_agents.cli.damage import readable
from concur_agents.cli.options import import_law_from_here
from concur_agents.cli.terminal import say
from concur_agents.errors import ConfigError
from concur_agents.recording import Difference, RecordedCall, Recording, replay
from concur_agents.recording.what_if import LawOutcome, what_if
from concur_agents.runtime.config import parse_options
from concur_agents.runtime.law_choice import law_by_name

OPEN_LOOP = (
    "Open loop: agents, tools, readings and the length of every step are as recorded; only the "
    "moment when each agent may go on is decided anew. What the engine would have done with the "
    "other load is unknown, so this shows which agents would have waited, not what would have been "
    "faster (`concur bench` shows that)."
)


def replay_law_command(
    recording: Path = typer.Argument(help="File written by record=."),
    law: str = typer.Option("", help="Another law; default: the recorded one, as a check."),
    options: list[str] = typer.Option([], "--set", help="Option of that law, as name=value."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Make the recorded calls on a fresh Regulator: the same law must answer the same to the bit.

    --law takes another law, --set alone the recorded law with another option; then the differences
    are shown, in open loop. Exit code 1: the recorded law answered differently, so this version
    decides differently from the one that recorded.

    With --json: `same`, `calls` and `first_difference`, or `recorded`, `other` (law, agents,
    steps, pauses, waits, mean_active, over_capacity_s, lasts_s, unfinished) and `first_difference`
    (call, now, agent, recorded, replayed; null: none).
    """
    with readable(recording):
        _replay_law(recording, law, options, as_json=as_json)


def _replay_law(recording: Path, law: str, options: list[str], *, as_json: bool) -> None:
    recorded = Recording(recording)
    if not law and not options:
        _check(recorded, as_json=as_json)
        return
    config = parse_options(options)
    if not law:
        own: Any = recorded.header.make_law()
        config = {item.name: getattr(own, item.name) for item in fields(own)} | config
    try:
        if law:
            import_law_from_here(law)
        other = law_by_name(law or recorded.header.law["name"], **config)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except TypeError as error:
        raise ConfigError(f"{', '.join(options)} cannot be used: {error}") from error
    found = what_if(recorded, other)
    if as_json:
        shown = {
            "recorded": _as_dict(found.recorded),
            "other": _as_dict(found.other),
            "first_difference": _difference(found.first),
        }
        print(json.dumps(shown, indent=2))
        return
    console = Console()
    console.print(_table(found.recorded, found.other))
    console.print()
    if found.first is None:
        console.print("All answers are the same.")
    else:
        first = _text(found.first, recorded.header.now)
        console.print(f"The first answer that differs: {first}", markup=False)
    console.print(f"[dim]{OPEN_LOOP}[/]")


def _check(recording: Recording, *, as_json: bool) -> None:
    differences = replay(recording)
    first = next(differences, None)
    calls = sum(isinstance(line, RecordedCall) for line in recording)
    if as_json:
        shown = {"same": first is None, "calls": calls, "first_difference": _difference(first)}
        print(json.dumps(shown, indent=2))
    elif first is None:
        say(f"The same answers to the bit: {calls:,} calls, {recording.header.law['name']}.")
    else:
        say(f"Another answer: {_text(first, recording.header.now)}")
        say(
            f"It was recorded by {recording.header.version} (format {recording.format}) under "
            f"Python {recording.header.python}; this version decides differently."
        )
    if first is not None:
        raise typer.Exit(1)


def _text(difference: Difference, start_s: float) -> str:
    """A difference as text; times count from the start of the recording."""
    call = difference.call
    what = f"{call.name} {call.agent}" if call.agent else call.name
    at = f"at {call.now - start_s:.3f} s, {what}"
    recorded, replayed = call.let_in or "no agent", difference.let_in or "no agent"
    if difference.error != call.error:
        return f"{at}: raised {call.error or 'nothing'}, replayed {difference.error or 'nothing'}"
    if recorded == replayed:
        return f"{at}: the same agents, another limit or state of the law"
    return f"{at}: let in {_names(recorded)}, replayed {_names(replayed)}"


def _names(agents: tuple[str, ...] | str) -> str:
    return agents if isinstance(agents, str) else ", ".join(agents)


def _difference(difference: Difference | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    call = difference.call
    return {
        "call": call.name,
        "now": call.now,
        "agent": call.agent,
        "recorded": list(call.let_in),
        "replayed": list(difference.let_in),
    }


def _as_dict(outcome: LawOutcome) -> dict[str, Any]:
    return {**asdict(outcome), "waits": outcome.waits._asdict()}


def _table(recorded: LawOutcome, other: LawOutcome) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column(f"recorded: {recorded.law}", justify="right")
    table.add_column(f"open loop: {other.law}", justify="right")
    for name, show in _ROWS:
        table.add_row(name, show(recorded), show(other))
    return table


_ROWS: list[tuple[str, Callable[[LawOutcome], str]]] = [
    ("agents", lambda item: f"{item.agents}"),
    ("steps", lambda item: f"{item.steps:,}"),
    ("pauses", lambda item: f"{item.pauses:,}"),
    ("mean active agents", lambda item: f"{item.mean_active:.1f}"),
    ("wait per agent, median", lambda item: f"{item.waits.median_s:.1f} s"),
    ("wait per agent, worst", lambda item: f"{item.waits.worst_s:.1f} s"),
    ("waits, sum", lambda item: f"{item.waits.total_s:.1f} s"),
    ("pressure above capacity", lambda item: f"{item.over_capacity_s:.1f} s"),
    ("duration", lambda item: f"{item.lasts_s:.1f} s"),
    ("unfinished", lambda item: f"{item.unfinished}"),
]
