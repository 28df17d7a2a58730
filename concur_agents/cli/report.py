"""`concur report RECORDING`: one self-contained HTML page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from concur_agents._text import printable
from concur_agents.cli.console import Console
from concur_agents.cli.damage import readable
from concur_agents.cli.pools import pool_rows, print_pools
from concur_agents.cli.terminal import say
from concur_agents.errors import ConfigError
from concur_agents.recording import Recording
from concur_agents.recording.page import page
from concur_agents.recording.timeline_builder import read_timeline


def report_command(
    recording: Path = typer.Argument(help="File written by record=."),
    output: Path = typer.Option(
        Path("report.html"), "--output", "-o", dir_okay=False, help="The page."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Make one self-contained HTML page from a recording; it needs no network.

    It shows agents as lanes over time, pressure against capacity and limit, hit rate, throughput
    and waits. All plots zoom together. Of several pools it shows each, all together or one by one.
    With --json the keys are output, bytes and agents; with several pools also pools, as in `concur
    explain`.
    """
    with readable(recording):
        timeline = read_timeline(Recording(recording))
        text = page(timeline, title=printable(recording.name))
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror}") from error
    size = len(text.encode())
    if as_json:
        shown: dict[str, Any] = {
            "output": str(output),
            "bytes": size,
            "agents": len(timeline.lanes),
        }
        if timeline.pools:
            shown["pools"] = pool_rows(timeline)
        print(json.dumps(shown))
    else:
        say(f"{output}: {len(timeline.lanes)} agents, {size / 1e3:,.0f} kB; open it in a browser")
        if timeline.pools:
            print_pools(Console(), timeline)
