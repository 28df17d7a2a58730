"""Sessions of the embedded server, as SGLang has them with `--enable-session-radix-cache`.

A request names its session in `session_id`; there is nothing to open. Once the session is closed,
what only it used is evicted before everything else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from concur_agents._version import __version__

if TYPE_CHECKING:
    from concur_agents.sim.engine import Run
    from concur_agents.sim.realtime import Driver, ServerStats

__all__ = ["SimulatedSessions"]


class SimulatedSessions:
    """The sessions of one server.

    Args:
        stats: told of those that are closed.
        engines: how many there are behind the port.
    """

    def __init__(self, stats: ServerStats, engines: int) -> None:
        self._stats, self._engines = stats, engines
        self._open: dict[str, dict[Driver, tuple[Run, ...]]] = {}

    @property
    def routes(self) -> list[Route]:
        """What SGLang has and vLLM has not."""
        return [
            Route("/server_info", self._about),
            Route("/close_session", self._close, methods=["POST"]),
        ]

    def note(self, body: Mapping[str, Any], driver: Driver, runs: tuple[Run, ...]) -> None:
        """A call was sent; `runs` is its prompt and its output."""
        name = body.get("session_id")
        if isinstance(name, str):
            self._open.setdefault(name, {})[driver] = runs

    async def _about(self, http: HttpRequest) -> Response:
        return JSONResponse(
            {
                "version": f"{__version__} (simulated)",
                "dp_size": self._engines,
                "enable_session_radix_cache": True,
            }
        )

    async def _close(self, http: HttpRequest) -> Response:
        try:
            name = json.loads(await http.body())["session_id"]
        except (ValueError, KeyError, TypeError):
            return JSONResponse({"error": {"message": "session_id is missing"}}, 400)
        self._stats.closed_sessions.append(name)
        for driver, runs in self._open.pop(name, {}).items():
            driver.let_go(runs)
        return Response()
