"""The gateway: it listens, and has pages of its own beside what it passes on.

    async with Gateway(governor, ["http://gpu1:8000"], port=8484) as gateway:
        print(gateway.url)

`/healthz` says that it lives, `/metrics` has the governor's numbers and its own, and
`DELETE /agent/ID` ends an agent. Everything else is for an engine.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote

from concur_agents._access import check_host
from concur_agents._extras import missing_extra

try:
    import aiohttp
    from aiohttp import web
    from aiohttp.http_exceptions import HttpProcessingError
except ModuleNotFoundError as error:
    raise missing_extra(error) from error
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from concur_agents._text import wire_id
from concur_agents.errors import ConcurError, ConfigError
from concur_agents.gateway.agents import Agents
from concur_agents.gateway.engines import Engines
from concur_agents.gateway.holding import Times
from concur_agents.gateway.numbers import Numbers, note_malformed
from concur_agents.gateway.processes import Processes, is_alive
from concur_agents.gateway.proxy import Proxy
from concur_agents.gateway.relay import Relay, problem
from concur_agents.gateway.sending import Sender
from concur_agents.observe.metrics import export
from concur_agents.runtime.host import Host

PORT = 8484

_LOOK_S = 1.0  # between looks for agents that have ended, and for readers that take nothing
_BACKLOG = 2048
_KEPT_S = 3.0
"""A connection to an engine is not used again after so long [s]: engines close it after 5."""
_CLIENTS_KEPT_S = 600.0
"""One of a client is kept for so long [s], so that it is the client who closes it."""
_LONGEST_HEADER = 64 * 1024


_connections = logging.getLogger("concur_agents.gateway.connections")
"""For what the HTTP library logs."""


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether it is no client's error, which is a line and not a trace."""
    error = record.exc_info[1] if record.exc_info else None
    if not isinstance(error, HttpProcessingError):
        return True
    note_malformed(error.message.partition(":")[0])  # what follows quotes a header, maybe a key
    return False


_connections.addFilter(_is_ours)


class Gateway:
    """An address that governs the agents who call it.

    Args:
        governor: decides. It is not closed with the gateway.
        engines: the addresses that the governor was given.
        key: sent to the engines as a bearer token.
        host: where to listen; elsewhere than on this machine only with a `token`.
        port: 0: any free one.
        token: what clients send as their key, or as `sk-agent-ID:TOKEN`; None: nothing.
        times: how calls are held.
        may_guess: whether to guess which agent makes a call that does not say so. Without it such
            a call has no agent, see `Governor(ungoverned=...)`.
        processes: each process below this one is an agent.

    Raises:
        ConfigError: an option is out of its range, or others could connect without a token.
        ImportError: the `gateway` extra is not installed.
    """

    def __init__(
        self,
        governor: Host,
        engines: str | Iterable[str],
        *,
        key: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        times: Times | None = None,
        may_guess: bool = True,
        processes: bool = False,
    ) -> None:
        check_host(
            host,
            token,
            wish="a token (token=, --client-token or CONCUR_GATEWAY_TOKEN), "
            "which they send as their key",
        )
        self._governor = governor
        self._engines = Engines(governor, engines, key)
        self._host = host
        self._port = port
        self._token = token
        self._times = times
        self._may_guess = may_guess
        self._processes = processes
        self._url: str | None = None
        self._ends: list[Callable[[], Any]] = []

    @property
    def url(self) -> str:
        """Where it listens, without `/v1`."""
        if self._url is None:
            raise ConcurError("the gateway is not running: use it in an `async with` block")
        return self._url

    @property
    def agents(self) -> Agents:
        """The agents that are alive."""
        return self._agents

    async def start(self) -> None:
        """Returns when it listens.

        Raises:
            ConfigError: the port is taken.
        """
        loop = asyncio.get_running_loop()
        self._agents = Agents(self._governor, loop.time)
        self._registry = CollectorRegistry()
        self._ends.append(export(self._governor, self._registry))
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEPT_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=30.0),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            max_line_size=_LONGEST_HEADER,
            max_field_size=_LONGEST_HEADER,
        )
        self._relay = Relay(self._governor)
        self._proxy = Proxy(
            self._governor,
            self._agents,
            Sender(self._engines, self._session),
            self._relay,
            Numbers(self._registry, lambda: (len(self._agents), self._agents.guessed())),
            token=self._token,
            times=self._times,
            processes=Processes() if self._processes else None,
            may_guess=self._may_guess,
        )
        server = web.Server(
            self._handle,
            handler_cancellation=True,
            auto_decompress=False,
            access_log=None,
            logger=_connections,
            keepalive_timeout=_CLIENTS_KEPT_S,
            lingering_time=2.0,
            max_line_size=_LONGEST_HEADER,
            max_field_size=_LONGEST_HEADER,
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=0.5)
        try:
            await self._runner.setup()
            site = web.TCPSite(self._runner, self._host, self._port, backlog=_BACKLOG)
            await site.start()
        except OSError as error:
            await self.stop()
            raise ConfigError(
                f"cannot listen on {self._host}:{self._port} ({error.strerror}); "
                "port 0 takes any free one"
            ) from error
        host, port = self._runner.addresses[0][:2]
        self._url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        if self._engines.has(self._url):
            await self.stop()
            raise ConfigError(
                f"the engine's address is the gateway's own, http://{host}:{port}: it would call "
                "itself; give the engine's with --engine, because OPENAI_BASE_URL may be set to "
                "the gateway"
            )
        self._looking = asyncio.create_task(self._look())
        self._ends.append(self._looking.cancel)

    async def stop(self) -> None:
        """Ends it and its agents. Calls in flight are cut off."""
        self._url = None
        await self._runner.cleanup()
        await self._proxy.close()
        self._agents.end_all()
        while self._ends:
            self._ends.pop()()
        await self._session.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            self._agents.end_idle()
            if self._processes:
                self._agents.end_processes(is_alive)
            now = self._governor.snapshot()
            if now.queued + now.paused:
                self._agents.give_way()
            self._relay.give_up_readers()

    # Pages of its own

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.raw_path.partition("?")[0]
        if path == "/healthz":
            return self._health()
        agent = path.removeprefix("/agent/")
        is_end = request.method == "DELETE" and agent != path and agent and "/" not in agent
        if path != "/metrics" and not is_end:
            return await self._proxy.serve(request)
        if not self._proxy.admits(request):
            return problem("other", 401, "a token is needed")
        if is_end:
            return self._end(wire_id(unquote(agent)))
        page = generate_latest(self._registry)
        return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _health(self) -> web.Response:
        now = self._governor.snapshot()
        state = {
            "status": "ok",
            "agents": len(self._agents),
            "guesses": self._agents.guessed(),
            "waiting": now.queued + now.paused,
            "passing": now.closed,
        }
        return web.json_response(state)

    def _end(self, agent: str) -> web.StreamResponse:
        if self._agents.end(agent):
            return web.Response(status=204)
        return problem("other", 404, f"no agent {agent} is alive")


@contextmanager
def in_thread(gateway: Gateway) -> Iterator[Gateway]:
    """Runs a gateway on an event loop in a thread of its own, for synchronous code.

    Raises:
        ConfigError: as `Gateway.start`.
    """
    ready = threading.Event()
    failed: list[BaseException] = []
    loop = asyncio.new_event_loop()
    ended = asyncio.Event()

    async def serve() -> None:
        try:
            await gateway.start()
        except BaseException as error:
            failed.append(error)
            return
        finally:
            ready.set()
        await ended.wait()
        await gateway.stop()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run, name="concur-gateway", daemon=True)
    thread.start()
    ready.wait()
    if failed:
        thread.join()
        raise failed[0]
    try:
        yield gateway
    finally:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(ended.set)
        thread.join()
