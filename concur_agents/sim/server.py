"""The simulated engine behind OpenAI's HTTP API, at any multiple of real time.

    with EmbeddedServer("h100-qwen3-8b", time_scale=10) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")

Chat completions, completions and responses, streamed or not, with ``usage`` and its cached tokens;
``/metrics`` in vLLM's or SGLang's words; ``/v1/models``, ``/health``, ``/version``, ``/tokenize``,
``/reset_prefix_cache``, and ``/stats`` for what went through. Prompts and replies have a cache and
take time as in the simulator. What a reply *says* is deterministic and means nothing; see
``concur_agents.sim.text`` for tokens, replies and how to make the model call a tool.

It listens on 127.0.0.1; elsewhere only with a token, which every request must bring.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from concur_agents.errors import ConcurError, ConfigError
from concur_agents.sim.engine import Engine
from concur_agents.sim.listener import guarded, listen, url_of, uvicorn_server
from concur_agents.sim.pages import Kind, RankHeader
from concur_agents.sim.profile import Profile, load_profile
from concur_agents.sim.routers import RouterKind
from concur_agents.sim.server_options import ServerOptions
from concur_agents.sim.text import Script

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

    from concur_agents.sim.app import App, ServerStats
    from concur_agents.sim.client_clock import ClientClock

__all__ = ["READY", "EmbeddedServer"]

_Ready = TypeVar("_Ready", threading.Event, asyncio.Event)

_START_S = 30.0
"""How long a server may take to listen."""

READY = "listening on"
"""What a server in a process of its own says before its address."""


class EmbeddedServer:
    """A server for the length of a ``with`` block, in a thread of this process or in one of its
    own.

    Args:
        profile: the engine, by name, path or value.
        time_scale: simulated seconds per second; ``math.inf``: answers take no time at all.
        metrics: in whose words ``/metrics`` speaks, "vllm" or "sglang".
        host: where to listen; anywhere but on this machine only with a `token`.
        port: 0: any free one.
        token: what requests must send as `Authorization: Bearer TOKEN`; None: nothing.
        seed: of the replies.
        model: name of the model; default: the profile's.
        script: decides replies in place of the model; not with ``process``.
        middleware: put around the ASGI application: an engine that fails, say; not with
            ``process``.
        process: run it in a process of its own, so that it shares no interpreter with its clients.
        clock: virtual time that waits for the clients, in place of `time_scale`. Enter the server
            with ``async with``: it runs on the event loop of its clients.
        engines: how many there are behind the port, as with ``--data-parallel-size``: calls go to
            them in turn, and each has its series on the metrics page.
        rank_header: what `X-data-parallel-rank` does: "honour" it, "refuse" all but 0, "ignore" it,
            or (SGLang) take the rank from the "body" alone.
        worker_header: answers say in `x-smg-routed-worker-id` which engine took the call.
        router: what is in front of the engines: "smg" and "llm-d" keep agents on their engine and
            say which it is, "silent" keeps them, "turn" does not; see `concur_agents.sim.routers`.
        sessions: as with SGLang's ``--enable-session-radix-cache``: calls may name a session, and
            what a closed one leaves is evicted next.

    Raises:
        ConfigError: an option is out of its range, the port is taken, or others could connect
            without a token.
        ImportError: the ``server`` extra is not installed.
    """

    def __init__(
        self,
        profile: Profile | str | Path,
        *,
        time_scale: float = 1.0,
        metrics: Kind = "vllm",
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        seed: int = 0,
        model: str | None = None,
        script: Script | None = None,
        middleware: Callable[[ASGIApp], ASGIApp] | None = None,
        process: bool = False,
        clock: ClientClock | None = None,
        engines: int = 1,
        rank_header: RankHeader = "honour",
        worker_header: bool = False,
        router: RouterKind | None = None,
        sessions: bool = False,
    ) -> None:
        for what, given in (("script", script), ("middleware", middleware)):
            if process and given is not None:
                raise ConfigError(
                    f"a {what} cannot be sent to another process; leave process=True away"
                )
        if clock is not None and (process or time_scale != 1.0):
            raise ConfigError("a clock takes the place of process and time_scale; leave them away")
        self._options = ServerOptions(
            profile=profile if isinstance(profile, Profile) else load_profile(profile),
            model=model,
            time_scale=time_scale,
            metrics=metrics,
            host=host,
            port=port,
            token=token,
            seed=seed,
            engines=engines,
            rank_header=rank_header,
            worker_header=worker_header,
            router=router,
            sessions=sessions,
        )
        self.profile = self._options.profile
        self.model = self._options.name
        self.clock = clock
        self._script = script
        self._middleware = middleware
        self._own_process = process
        self._url: str | None = None
        self._app: App | None = None
        self._uvicorn: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[str] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def url(self) -> str:
        """Where it listens, without ``/v1``."""
        if self._url is None:
            raise ConcurError("the server is not running; use it in a with block, or call start()")
        return self._url

    @property
    def stats(self) -> ServerStats:
        """What has gone through; of a server in a process of its own ask ``/stats``."""
        if self._app is None:
            raise ConcurError(
                "no statistics here: the server never started, or has its own process"
            )
        return self._app.stats

    @property
    def engine(self) -> Engine:
        """The engine, of several the first, to be looked at; it belongs to the server's thread."""
        return self.engines[0]

    @property
    def engines(self) -> tuple[Engine, ...]:
        """All engines, by rank."""
        if self._app is None:
            raise ConcurError("no engine here: the server never started, or has its own process")
        return tuple(driver.engine for driver in self._app.drivers)

    def start(self) -> Self:
        """Returns when it listens."""
        if self._url is not None:
            raise ConcurError(f"the server is running already, at {self._url}")
        if self.clock is not None:
            raise ConcurError("a server with a clock runs on an event loop: use `async with`")
        if self._own_process:
            self._start_process()
        else:
            self._start_thread()
        return self

    def stop(self) -> None:
        """Ends it; calls in flight get a 503. Calling it again does nothing."""
        if self._uvicorn is not None and self._thread is not None:
            self._uvicorn.should_exit = True
            self._thread.join()
        if self._process is not None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.close()  # it ends when this closes, however we go
            self._process.wait()
            self._process.stdout.close()
        self._uvicorn = self._thread = self._process = self._url = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        """Listens on the running event loop; only with a `clock`."""
        if self.clock is None:
            raise ConcurError("a server without a clock has its own event loop: use `with`")
        listener, ready = self._make_uvicorn(asyncio.Event())
        assert self._uvicorn is not None
        serving = asyncio.create_task(self._uvicorn.serve([listener]))
        self._tasks = [serving, asyncio.create_task(self.clock.run())]
        listening = asyncio.create_task(ready.wait())
        await asyncio.wait({serving, listening}, return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        if serving.done():
            raise ConcurError("the embedded server did not start")
        self._url = url_of(listener)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._uvicorn is not None
        self._uvicorn.should_exit = True
        serving, passing = self._tasks
        passing.cancel()
        await asyncio.wait({serving, passing})
        self._uvicorn = self._url = None
        self._tasks = []

    def __repr__(self) -> str:
        where = self._url or "not running"
        return f"<EmbeddedServer {self.profile.name} x{self._options.time_scale:g}, {where}>"

    def _start_thread(self) -> None:
        listener, ready = self._make_uvicorn(threading.Event())
        assert self._uvicorn is not None
        self._thread = threading.Thread(
            target=self._uvicorn.run,
            args=([listener],),
            name="concur-embedded-server",
            daemon=True,
        )
        self._thread.start()
        if not ready.wait(_START_S):
            self.stop()
            raise ConcurError(f"the embedded server did not start within {_START_S:.0f} s")
        self._url = url_of(listener)

    def _make_uvicorn(self, ready: _Ready) -> tuple[socket.socket, _Ready]:
        """A server that sets `ready` once it listens on the socket."""
        self._app = engine_app = self._options.make_app(self._script, self.clock)
        listener = listen(self._options.host, self._options.port)
        app = engine_app.app if self._middleware is None else self._middleware(engine_app.app)
        self._uvicorn = uvicorn_server(
            guarded(app, self._options.token),
            ready=ready.set,
            closing=engine_app.close,
            handles_signals=self.clock is None,
        )
        return listener, ready

    def _start_process(self) -> None:
        # In a group of its own, or a Ctrl-C would end it before its clients.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "concur_agents.sim.serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # it has ended already; see below
            self._process.stdin.write(f"{self._options.to_json()}\n")
            self._process.stdin.flush()
        said = self._process.stdout.readline()
        if not said.startswith(READY):
            self.stop()
            raise ConcurError(
                f"the embedded server did not start; it said: {said.strip() or 'nothing'}"
            )
        self._url = said.removeprefix(READY).strip()


if __name__ == "__main__":
    sys.exit("python -m concur_agents.sim.server is now called concur serve-sim (extra: cli)")
