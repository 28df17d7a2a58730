"""A listener for scrapers: one registry at `/metrics`, on few connections."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import REGISTRY, CollectorRegistry, make_wsgi_app

from concur_agents._access import check_host, is_allowed
from concur_agents.errors import ConfigError

MOST_CONNECTIONS = 16
"""Connections of the listener at once; a scraper needs one."""

REQUEST_S = 5.0
"""Longest wait for a request [s]."""

ANSWER_S = 30.0
"""Longest time in which a scraper may take its page [s]."""


def serve(
    registry: CollectorRegistry = REGISTRY,
    *,
    host: str = "127.0.0.1",
    port: int = 9464,
    token: str | None = None,
) -> Served:
    """Serves a registry at `/metrics`, in its own thread.

    It holds at most `MOST_CONNECTIONS`, and closes those that send nothing.

    Args:
        registry: the registry.
        host: address to listen on; other machines can connect only if there is a `token`.
        port: 0: any free port.
        token: the scraper must send it as `Authorization: Bearer TOKEN`; None: no token.

    Returns:
        The function that stops the listener; its attribute `url` is the address.

    Raises:
        ConfigError: the port is taken, or other machines could connect without a token.
    """
    check_host(host, token)
    page = make_wsgi_app(registry)

    def guarded(environ: Any, start_response: Any) -> Any:
        if is_allowed(environ.get("HTTP_AUTHORIZATION"), token):
            return page(environ, start_response)
        start_response("401 Unauthorized", [("WWW-Authenticate", "Bearer")])
        return [b"a token is needed, as Authorization: Bearer TOKEN\n"]

    try:
        server = make_server(host, port, guarded, _Server, _Quiet)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port} ({error.strerror}); port 0 takes any free port"
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="concur-metrics", daemon=True)
    thread.start()
    return Served(f"http://{host}:{server.server_port}", server, thread)


class Served:
    """A listener for scrapers; a call stops it."""

    def __init__(self, url: str, server: WSGIServer, thread: threading.Thread) -> None:
        self.url = url
        """Its address, without `/metrics`."""
        self._server = server
        self._thread = thread

    def __call__(self) -> None:
        """Stops the listener; a second call does nothing."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


class _Server(ThreadingMixIn, WSGIServer):
    """A thread per connection, and few connections: they share descriptors with the agents.

    If all are taken, the connection that has been silent for the longest is closed for a new one.
    """

    daemon_threads = True
    request_queue_size = 128  # so that a scraper comes through while others connect

    def __init__(self, *args: Any) -> None:
        self._guard = threading.Lock()
        self._silent: dict[socket.socket, float] = {}  # no request yet -> since when [s]
        self._busy: dict[socket.socket, float] = {}  # being answered -> since when [s]
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Takes a connection, or refuses it."""
        with self._guard:
            if len(self._silent) + len(self._busy) >= MOST_CONNECTIONS:
                if not self._silent:
                    self.shutdown_request(request)
                    return
                _hang_up(oldest := next(iter(self._silent)))
                del self._silent[oldest]
            self._silent[request] = time.monotonic()
        super().process_request(request, client_address)

    def asked(self, request: socket.socket) -> None:
        """A connection has sent its request."""
        with self._guard:
            if self._silent.pop(request, None) is not None:
                self._busy[request] = time.monotonic()

    def close_request(self, request: Any) -> None:
        """Forgets a connection, and frees its descriptor."""
        self._silent.pop(request, None)
        self._busy.pop(request, None)
        super().close_request(request)

    def service_actions(self) -> None:
        """Closes connections that are too slow; the accepting thread calls it twice a second."""
        now = time.monotonic()
        with self._guard:
            for found, longest_s in ((self._silent, REQUEST_S), (self._busy, ANSWER_S)):
                for request in [one for one, at_s in found.items() if now - at_s > longest_s]:
                    _hang_up(request)
                    del found[request]

    def server_close(self) -> None:
        """Closes the listener and its connections."""
        super().server_close()
        with self._guard:
            for request in (*self._silent, *self._busy):
                _hang_up(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Writes nothing: a scraper that has gone is not worth a traceback."""


def _hang_up(request: socket.socket) -> None:
    """Ends a connection under the thread that reads or writes it; that thread closes it."""
    with suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


class _Quiet(WSGIRequestHandler):
    timeout = REQUEST_S

    def parse_request(self) -> bool:
        """The request has come; from here on the connection is not silent."""
        is_whole = super().parse_request()
        cast("_Server", self.server).asked(self.connection)
        return is_whole

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (its name upstream)
        """Writes nothing: a scrape is not worth a line."""
