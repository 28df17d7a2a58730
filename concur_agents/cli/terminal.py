"""What the commands print: text from outside reaches the terminal without control characters.

Ids, pages, headers and error texts may hold escapes that clear a screen, set its title or answer in
the user's name. So every command prints through `say`, or through the `Console` of `console.py`,
and through nothing else.
"""

from __future__ import annotations

import sys
from typing import TextIO

from concur_agents._text import escaped


def say(text: str, file: TextIO | None = None) -> None:
    """Prints a text; its line breaks stay, other control characters are shown as escapes."""
    print(escaped(text, keep="\n"), file=file or sys.stdout, flush=True)
