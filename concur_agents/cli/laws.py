"""`concur laws`: lists the laws."""

from __future__ import annotations

import json

import typer
from rich.table import Table

from concur_agents.cli.console import Console
from concur_agents.core import law_formulas


def laws_command(
    as_json: bool = typer.Option(False, "--json", help="Print a JSON list of name and formula."),
) -> None:
    """List the laws with their one-line formulas.

    With --json: a list of objects with the keys `name` and `formula`.
    """
    formulas = law_formulas()
    if as_json:
        rows = [{"name": name, "formula": formula} for name, formula in formulas.items()]
        print(json.dumps(rows, indent=2))
        return
    table = Table("law", "formula", box=None, pad_edge=False)
    for row in formulas.items():
        table.add_row(*row)
    Console().print(table)
