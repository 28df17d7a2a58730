"""The live page: a governor in a browser, followed by server-sent events. Needs starlette.

    GET /          the page: one file that needs no other
    GET /events    `trail`: the last minutes; then one `frame` each; at last `end`

It answers reads only, and knows no governor: `show` takes the frames, wherever they come from. All
browsers see the same frame, so a governor is asked once, however many look on. A browser that
reads slowly misses frames and delays no other.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from concur_agents._extras import missing_extra
from concur_agents.observe.frame import Frame, Point
from concur_agents.observe.html import lists_html, summary_html
from concur_agents.observe.words import clock_text
from concur_agents.recording.drawing import asset, drawn

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp

MOST_POINTS = 900
"""Points that a browser keeps: a quarter of an hour, with one frame per second."""


class LivePage:
    """An application that shows one governor. Its methods are for the thread of its event loop.

    Args:
        title: name of the governor or file.

    Raises:
        ImportError: the ``server`` extra is not installed.
    """

    def __init__(self, title: str) -> None:
        try:
            from starlette.applications import Starlette
            from starlette.routing import Route
        except ModuleNotFoundError as error:
            raise missing_extra(error) from error
        self._page = drawn(
            asset("concur_agents.observe", "live.html"), {"title": title, "most": MOST_POINTS}
        )
        self._trail: list[Point] = []
        self._newest = ""  # the last frame, as an event
        self._ended = False
        self._changed = asyncio.Event()
        self.app: ASGIApp = Starlette(
            routes=[Route("/", self._get_page), Route("/events", self._get_events)]
        )

    def show(self, frame: Frame, trail: Sequence[Point]) -> None:
        """Sends a frame to every browser; one that comes later first gets the trail before it."""
        self._trail = list(trail)
        self._newest = _event("frame", _shown(frame))
        self._wake()

    def end(self) -> None:
        """Ends every stream of events: no frame will follow."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _get_page(self, request: Request) -> Response:
        from starlette.responses import HTMLResponse

        return HTMLResponse(self._page, headers=_HEADERS)

    async def _get_events(self, request: Request) -> Response:
        from starlette.responses import StreamingResponse

        return StreamingResponse(self._events(), media_type="text/event-stream", headers=_HEADERS)

    async def _events(self) -> AsyncIterator[str]:
        yield _event("trail", self._trail)
        sent = ""
        while True:
            changed = self._changed  # before the look: what comes after it is not missed
            if self._newest != sent:
                sent = self._newest
                yield sent
            if self._ended:
                yield _event("end", None)
                return
            await changed.wait()


_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def _shown(frame: Frame) -> dict[str, Any]:
    where = f" on {len(frame.pools)} pools" if frame.pools else f" on {frame.url}"
    return {
        "point": frame.point,
        "about": f"{frame.law}{where if frame.pools or frame.url else ''}, {clock_text(frame)}",
        "summary": summary_html(frame),
        "lists": lists_html(frame),
    }


def _event(name: str, data: Any) -> str:
    """One server-sent event; JSON has no line break that could end it."""
    return f"event: {name}\ndata: {json.dumps(data, allow_nan=False)}\n\n"
