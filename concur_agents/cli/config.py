"""`concur config`: the effective options, and the source of each."""

from __future__ import annotations

import json

import typer
from rich.markup import escape
from rich.table import Column, Table

from concur_agents.cli.console import Console
from concur_agents.cli.options import with_governor_options
from concur_agents.runtime.config import Setting


@with_governor_options
def config_command(
    found: dict[str, Setting],
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Show the options that `Governor.from_env()` and `concur run` would use, and their sources.

    Takes the same options as `concur run`. Exit code 2: an option is unknown, or two contradict.
    With --json: one object, by option: value, source and variable; secrets are hidden.
    """
    if as_json:
        shown = {
            name: {
                "value": setting.shown if setting.option.secret else setting.value,
                "source": setting.source,
                "variable": setting.option.variable,
            }
            for name, setting in found.items()
        }
        print(json.dumps(shown, indent=2))
        return
    value = Column("value", overflow="fold")  # an address that is cut says nothing
    table = Table("option", value, "from", "what it is", box=None, pad_edge=False)
    for name, setting in found.items():
        dim = "dim" if setting.source == "default" else ""
        text = escape(setting.option.text)
        table.add_row(name, escape(setting.shown), escape(setting.source), text, style=dim)
    Console().print(table)
