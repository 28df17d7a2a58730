"""`concur laws`: which laws there are."""

from __future__ import annotations

import json

import typer
from rich.console import Console
from rich.table import Table

from concur_agents.core import law_names, make_law


def laws_command(
    as_json: bool = typer.Option(False, "--json", help="Print a JSON list of name and formula."),
) -> None:
    """List the laws with their one-line formulas.

    With --json: a list of objects with the keys `name` and `formula`.
    """
    laws = [make_law(name) for name in law_names()]
    if as_json:
        print(json.dumps([{"name": law.name, "formula": law.formula} for law in laws], indent=2))
        return
    table = Table("law", "formula", box=None, pad_edge=False)
    for law in laws:
        table.add_row(law.name, law.formula)
    Console().print(table)
