"""`concur doctor --stack NAME`: how a stack that trains or grades agents is connected."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from concur_agents.adapters.stacks import ALSO, STACKS
from concur_agents.cli.console import Console
from concur_agents.errors import ConfigError


def show_stack(name: str, console: Console) -> None:
    """Prints which hook, which flags, and what several engines and processes need.

    Raises:
        ConfigError: there is no such stack.
    """
    stack = STACKS.get(ALSO.get(name.lower(), name.lower()))
    if stack is None:
        raise ConfigError(f"there is no stack {name!r}; there are {', '.join([*STACKS, *ALSO])}")
    facts = [
        ("stack", f"{stack.name}, written against {stack.version}"),
        ("an agent is", stack.agent),
        ("a step is", stack.step or "each call of the governed client"),
        *(("set", flag) for flag in stack.flags),
        ("weight update", stack.update),
        ("several engines", stack.replicas),
        ("processes", stack.processes),
        ("the hook", f"docs/frameworks/{stack.page}"),
    ]
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")  # a setting is copied: it is never cut off
    for fact, value in facts:
        table.add_row(fact, escape(value))
    console.print(table)
