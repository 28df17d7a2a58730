"""The numbers of a governor for Prometheus.

    from concur_agents.observe.metrics import export, serve

    export(gov)                # into the default registry, which your process may serve itself
    stop = serve(port=9464)    # or this listener on 127.0.0.1 does

Each scrape reads the gauges from `Governor.snapshot()`; counters and histograms come from its
events. Every name begins with `concur_` and ends with its unit; docs/metrics.md lists them.
"""

from __future__ import annotations

import math
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import REGISTRY, CollectorRegistry, Histogram, make_wsgi_app
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from concur_agents._access import check_host, is_allowed
from concur_agents._text import MOST_ID, printable, shown_id
from concur_agents._version import __version__
from concur_agents.core import Limit
from concur_agents.errors import ConfigError
from concur_agents.runtime.events import Event
from concur_agents.runtime.host import Host
from concur_agents.runtime.status import GovernorSnapshot

WAIT_BUCKETS_S = (0.01, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
STEP_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320)

LABEL = "governor"

MOST_CONNECTIONS = 16
"""Connections of the listener at once; a scraper needs one."""

REQUEST_S = 5.0
"""Longest wait for a request [s]."""

ANSWER_S = 30.0
"""Longest time in which a scraper may take its page [s]."""


def export(
    governor: Host,
    registry: CollectorRegistry = REGISTRY,
    *,
    name: str = "default",
) -> Callable[[], None]:
    """Exports the numbers of a governor to a registry.

    Args:
        governor: the governor; the export does not keep it alive.
        registry: the registry; default: that of `prometheus_client`.
        name: value of the label `governor`, which separates the governors of one process.

    Returns:
        The function that ends the export.

    Raises:
        ConfigError: the registry exports a governor of that name already.
    """
    exports = _exports.get(registry)
    if exports is None:
        exports = _exports[registry] = _Exports()
        registry.register(exports)
    if name in exports.governors:
        raise ConfigError(
            f"this registry exports a governor {name!r} already: give another name, or another "
            "registry"
        )
    numbers = exports.governors[name] = _Numbers(governor, name)
    unsubscribe = governor.on_event(numbers.note)

    def stop() -> None:
        unsubscribe()
        if exports.governors.get(name) is numbers:
            del exports.governors[name]

    return stop


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
        return [b"a token is needed\n"]

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


class _Exports(Collector):
    """All governors of one registry, because it may expose each name only once."""

    def __init__(self) -> None:
        self.governors: dict[str, _Numbers] = {}

    def describe(self) -> Iterable[Metric]:
        """No metric in advance: which exist depends on what the engines report."""
        return []

    def collect(self) -> Iterable[Metric]:
        """The metrics of all governors now."""
        merged: dict[str, Metric] = {}
        for numbers in list(self.governors.values()):
            for metric in numbers.collect():
                if metric.name in merged:
                    merged[metric.name].samples.extend(metric.samples)
                else:
                    merged[metric.name] = metric
        return merged.values()


_exports: weakref.WeakKeyDictionary[CollectorRegistry, _Exports] = weakref.WeakKeyDictionary()


class _Numbers:
    """The metrics of one governor."""

    def __init__(self, governor: Host, name: str) -> None:
        self._governor = weakref.ref(governor)
        self._name = shown_id(name)
        self._counts = {
            "steps": 0.0,
            "steps_untold": 0.0,
            "prompt": 0.0,
            "cached": 0.0,
            "output": 0.0,
            "polls": 0.0,
        }
        self._decisions: dict[str, float] = {}
        self._wait = Histogram(
            "concur_wait_seconds",
            "Time that an agent waited before it was let in.",
            [LABEL, "kind"],
            buckets=WAIT_BUCKETS_S,
            registry=None,
        )
        self._step = Histogram(
            "concur_step_seconds",
            "Time from the start of a step to its end.",
            [LABEL],
            buckets=STEP_BUCKETS_S,
            registry=None,
        )
        for kind in ("queued", "paused"):
            self._wait.labels(self._name, kind)
        self._step.labels(self._name)

    def note(self, event: Event) -> None:
        """Counts an event of the governor."""
        counts = self._counts
        if event.kind in ("admitted", "resumed"):
            kind = "queued" if event.kind == "admitted" else "paused"
            self._wait.labels(self._name, kind).observe(event.waited_s or 0.0)
        elif event.kind == "step_ended":
            self._step.labels(self._name).observe(event.waited_s or 0.0)
            counts["steps"] += 1
            if event.usage is None:
                counts["steps_untold"] += 1
            else:
                counts["prompt"] += event.usage.prompt_tokens
                counts["cached"] += event.usage.cached_tokens or 0
                counts["output"] += event.usage.completion_tokens
        elif event.kind == "polled":
            counts["polls"] += 1
        elif event.kind == "limit_changed":
            self._decisions[event.reason] = self._decisions.get(event.reason, 0.0) + 1

    def collect(self) -> Iterator[Metric]:
        """The metrics now; none once the governor is gone."""
        governor = self._governor()
        if governor is None:
            return
        now = governor.snapshot()
        yield from self._gauges(now)
        yield from self._counters(now)
        yield from self._wait.collect()
        yield from self._step.collect()

    def _gauges(self, now: GovernorSnapshot) -> Iterator[Metric]:
        info = InfoMetricFamily(
            "concur_governor", "Law, engine and version of a governor.", labels=[LABEL]
        )
        info.add_metric(
            [self._name],
            {
                "law": printable(now.law, MOST_ID),
                "engine": now.engine or "",
                "version": __version__,
            },
        )
        yield info
        agents = GaugeMetricFamily("concur_agents", "Agents by state.", labels=[LABEL, "state"])
        for state in ("reasoning", "acting", "paused", "queued", "suspended"):
            agents.add_metric([self._name, state], getattr(now, state))
        yield agents
        reading = now.last_reading
        shadow = None if now.shadow is None else now.shadow.state.limit
        limit = now.limit
        usage = None if reading is None else reading.kv_usage
        running = None if reading is None else reading.running
        waiting = None if reading is None else reading.waiting
        for name, text, value in (
            ("pressure_tokens", "Sum of all claims on the KV pool.", now.pressure_tokens),
            ("capacity_tokens", "KV pool of the engine.", now.capacity_tokens),
            ("footprint_tokens", "Sum of the contexts of all agents.", now.footprint_tokens),
            ("limit_tokens", "Limit on the pressure.", _bound(limit.tokens)),
            ("limit_agents", "Limit on active agents.", _bound(limit.agents)),
            *_shadow_rows(shadow),
            ("hit_ratio", "Cached share of prompt tokens between two ticks.", now.hit_rate),
            ("hit_deficit_ratio", "1 - H/H*: reusable tokens that missed.", now.hit_deficit),
            ("longest_wait_seconds", "Longest wait among waiting agents.", now.longest_wait_s),
            ("blind_seconds", "Time since the last good reading.", now.blind_s),
            ("passing", "1: closed or failed, so every agent passes.", float(now.closed)),
            ("engine_kv_usage_ratio", "KV pool held by running requests.", usage),
            ("engine_running_requests", "Requests that the engine computes.", running),
            ("engine_waiting_requests", "Requests queued in the engine.", waiting),
        ):  # fmt: skip
            if value is not None:
                gauge = GaugeMetricFamily(f"concur_{name}", text, labels=[LABEL])
                gauge.add_metric([self._name], value)
                yield gauge

    def _counters(self, now: GovernorSnapshot) -> Iterator[Metric]:
        counts = self._counts
        for name, text, value in (
            ("agents_done", "Agents that have left.", now.done_total),
            ("pauses", "Pauses of agents at a boundary.", now.pauses_total),
            ("overdue", "Agents let in because they had waited past the bound.", now.overdue_total),
            ("steps", "LLM calls that have ended.", counts["steps"]),
            ("steps_untold", "Steps that ended without usage.", counts["steps_untold"]),
            ("prompt_tokens", "Prompt tokens of steps.", counts["prompt"]),
            ("cached_tokens", "Prompt tokens of steps found in the cache.", counts["cached"]),
            ("output_tokens", "Output tokens of steps.", counts["output"]),
            ("polls", "Readings that succeeded.", counts["polls"]),
            ("poll_failures", "Readings that failed.", now.poll_failures_total),
        ):  # fmt: skip
            counter = CounterMetricFamily(f"concur_{name}", text, labels=[LABEL])
            counter.add_metric([self._name], value)
            yield counter
        decisions = CounterMetricFamily(
            "concur_limit_changes", "Changes of the limit, by reason.", labels=[LABEL, "reason"]
        )
        for reason, value in list(self._decisions.items()):
            decisions.add_metric([self._name, printable(reason, MOST_ID)], value)
        yield decisions


def _shadow_rows(limit: Limit | None) -> list[tuple[str, str, float | None]]:
    if limit is None:
        return []
    return [
        ("shadow_limit_tokens", "Limit of the shadow law.", _bound(limit.tokens)),
        ("shadow_limit_agents", "Limit of the shadow law.", _bound(limit.agents)),
    ]


def _bound(value: float) -> float | None:
    return value if math.isfinite(value) else None
