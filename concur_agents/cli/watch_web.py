"""`concur watch --web`: the frames of a governor in a browser."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from starlette.concurrency import iterate_in_threadpool
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp

from concur_agents._access import check_host
from concur_agents.cli.terminal import say
from concur_agents.observe.frame import Frame, Point
from concur_agents.observe.live import LivePage
from concur_agents.sim.listener import guarded, listen, url_of, uvicorn_server

TOKEN_VARIABLE = "CONCUR_WATCH_TOKEN"
"""Where the command finds the token of its page."""


@dataclass(frozen=True, slots=True)
class WebAddress:
    """Where the page is served.

    Raises:
        ConfigError: other machines could connect without a token.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    """0: any free one."""
    token: str | None = None
    """The password that a browser asks for, or `Authorization: Bearer TOKEN`; None: no token."""

    def __post_init__(self) -> None:
        check_host(self.host, self.token)


def serve_frames(
    frames: Iterator[Frame],
    trail: Callable[[], Sequence[Point]],
    title: str,
    address: WebAddress,
    *,
    as_json: bool = False,
) -> None:
    """Shows frames to browsers until there are no more, or until Ctrl-C.

    Args:
        frames: the frames; each may block until it is due.
        trail: the past of the governor, oldest first.
        title: name of the governor or file.
        address: where the page is served.
        as_json: a JSON object says where it listens.

    Raises:
        ConfigError: the port is taken.
        Exception: what reading a frame raised.
    """
    page = LivePage(title)
    listener = listen(address.host, address.port)
    following: list[asyncio.Task[None]] = []

    async def follow() -> None:
        try:
            async for frame in iterate_in_threadpool(frames):
                page.show(frame, trail())
        finally:
            server.should_exit = True

    def ready() -> None:
        url = url_of(listener)
        following.append(asyncio.ensure_future(follow()))
        if as_json:
            print(json.dumps({"url": url}), flush=True)
        else:
            say(f"{title} at {url}/. Ctrl-C ends it.")

    server = uvicorn_server(_guarded(page.app, address), ready=ready, closing=page.end)
    server.run([listener])
    for task in following:
        if not task.cancelled():
            task.result()


def _guarded(app: ASGIApp, address: WebAddress) -> ASGIApp:
    """The application behind its token, or open to pages that come from this machine only."""
    if address.token:
        return guarded(app, address.token)
    # Because a page of another site may point a name of its own to 127.0.0.1 and read from there.
    return TrustedHostMiddleware(app, allowed_hosts=["localhost", "127.0.0.1", address.host])
