"""The console of every command: rich's, with control characters in texts made visible."""

from __future__ import annotations

from collections.abc import Iterable

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from concur_agents._text import escaped


class Console(rich.console.Console):
    """A console of rich that shows control characters in texts instead of passing them on."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """The segments of a thing; only rich's own control codes stay as they are."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else escaped(text, keep="\n"), style, control)
