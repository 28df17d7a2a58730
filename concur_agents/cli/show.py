"""Shows frames: as a dashboard on a terminal, as lines of JSON, or only the last one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import TypeAlias, TypeVar

from rich.console import RenderableType
from rich.live import Live

from concur_agents.cli.console import Console
from concur_agents.cli.dashboard import dashboard
from concur_agents.observe.frame import Frame, Point

T = TypeVar("T")

Show: TypeAlias = Callable[[Iterator[Frame], Callable[[], Sequence[Point]], str], None]
"""Shows frames somewhere: takes the frames, what gives the past, and a title."""

PAGE = 60
"""Rows of the dashboard without a terminal."""


def show_frames(
    frames: Iterator[Frame],
    trail: Callable[[], Sequence[Point]],
    title: str,
    *,
    as_json: bool = False,
) -> None:
    """Shows each frame on the terminal until there are no more.

    Args:
        frames: the frames; each may block until it is due.
        trail: the past of the governor, oldest first.
        title: name of the governor or file.
        as_json: a JSON object per frame.
    """
    if as_json:
        for frame in frames:
            print(json.dumps(asdict(frame)), flush=True)
        return

    def draw(frame: Frame, console: Console) -> RenderableType:
        height = max(24, console.height) if console.is_terminal else PAGE
        return dashboard(frame, trail(), title, width=console.width, height=height)

    show(frames, draw)


def show(things: Iterator[T], draw: Callable[[T, Console], RenderableType]) -> None:
    """Draws each in place of the one before; the last stays. Without a terminal: only the last."""
    console = Console()
    screen: AbstractContextManager[Live | None] = nullcontext()
    if console.is_terminal:
        screen = Live(console=console, auto_refresh=False, screen=True)
    picture: RenderableType | None = None
    try:
        with screen as live:
            for thing in things:
                picture = draw(thing, console)
                if live is not None:
                    live.update(picture, refresh=True)
    finally:
        if picture is not None:
            console.print(picture)
