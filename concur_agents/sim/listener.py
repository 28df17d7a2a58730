"""How our servers listen: the socket, uvicorn's server, and the token in front of it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from concur_agents._access import CHALLENGE, is_allowed
from concur_agents._extras import missing_extra
from concur_agents.errors import ConfigError

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["guarded", "listen", "url_of", "uvicorn_server"]


def guarded(app: ASGIApp, token: str | None) -> ASGIApp:
    """The application behind a token."""
    if not token:
        return app

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        given = headers.get(b"authorization", b"").decode("latin-1")
        if scope["type"] != "http" or is_allowed(given, token):
            await app(scope, receive, send)
            return
        body = b'{"error": {"message": "a token is needed", "type": "authentication_error"}}'
        start = {"type": "http.response.start", "status": 401}
        shown = [(b"content-type", b"application/json"), (b"www-authenticate", CHALLENGE.encode())]
        await send(start | {"headers": shown})
        await send({"type": "http.response.body", "body": body})

    return checked


def uvicorn_server(
    app: ASGIApp,
    *,
    ready: Callable[[], None],
    closing: Callable[[], None],
    handles_signals: bool = True,
) -> uvicorn.Server:
    """A server that calls `ready` once it listens, and `closing` before it ends its connections.

    Raises:
        ImportError: the ``server`` extra is not installed.
    """
    try:
        import uvicorn
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            closing()
            await super().shutdown(sockets)

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            with super().capture_signals() if handles_signals else contextlib.nullcontext():
                yield

    return Server(
        uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            interface="asgi3",  # and no guess at what a middleware of the user's is
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=2,
            # The default of 5 s is when clients drop idle connections, too: each would now and then
            # send a call into one that is just being closed.
            timeout_keep_alive=600,
        )
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ConfigError: the port is taken.
    """
    # With the protocol spelt out, or asyncio would leave Nagle's algorithm on: 40 ms per answer.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host}:{port} ({error.strerror}); port 0 takes any free one"
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """The address of a socket."""
    host, port = listener.getsockname()[:2]
    return f"http://{host}:{port}"
