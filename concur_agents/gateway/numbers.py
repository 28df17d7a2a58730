"""What the gateway shows of its requests: metrics, and a line in the log for each."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from concur_agents._text import printable
from concur_agents.gateway.holding import Dialect
from concur_agents.runtime.events import told

logger = logging.getLogger("concur_agents.gateway")

HELD_BUCKETS_S = (0.01, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


def note_malformed(what: str) -> None:
    """What came is no HTTP request: a line among those of the requests."""
    logger.info("a request is no HTTP: %s", printable(what), extra=told("malformed", status=400))


@dataclass(slots=True)
class Record:
    """One request, for the metrics and the log."""

    method: str
    path: str
    dialect: Dialect
    began_s: float
    agent: str = ""
    is_guess: bool = False
    status: int = 0
    outcome: str = "answered"
    """How it ended, if it was not answered by the engine."""
    held_s: float = 0.0
    passed: bool = False
    joined: bool = False


class Numbers:
    """The metrics of a gateway.

    Args:
        registry: gets them.
        agents: how many agents are alive, and how many of them are guesses.
    """

    def __init__(self, registry: CollectorRegistry, agents: Callable[[], tuple[int, int]]) -> None:
        self._requests = Counter(
            "concur_gateway_requests",
            "Requests, by API and by how they ended.",
            ["dialect", "outcome"],
            registry=registry,
        )
        self._held = Histogram(
            "concur_gateway_held_seconds",
            "Time that a call was held.",
            buckets=HELD_BUCKETS_S,
            registry=registry,
        )
        self._passed = Counter(
            "concur_gateway_passed",
            "Calls that were sent without their turn, because their client would not have waited.",
            registry=registry,
        )
        self._joined = Counter(
            "concur_gateway_joined", "Retries that took over their call.", registry=registry
        )
        alive = Gauge("concur_gateway_agents", "Agents alive.", ["identity"], registry=registry)
        alive.labels("given").set_function(lambda: agents()[0] - agents()[1])
        alive.labels("guess").set_function(lambda: agents()[1])

    def note(self, record: Record, now: float) -> None:
        """A request is over."""
        self._requests.labels(record.dialect, record.outcome).inc()
        if record.agent:
            self._held.observe(record.held_s)
        if record.passed:
            self._passed.inc()
        if record.joined:
            self._joined.inc()
        if logger.isEnabledFor(logging.INFO):
            took_s = now - record.began_s
            logger.info(
                "%s %s of %s: %s %s, held %.3f s of %.3f s",
                record.method,
                printable(record.path),
                record.agent or "no agent",
                record.status or "-",
                record.outcome,
                record.held_s,
                took_s,
                extra=told(
                    "request",
                    method=record.method,
                    path=record.path,
                    agent=record.agent or None,
                    guess=record.is_guess,
                    status=record.status or None,
                    outcome=record.outcome,
                    held_s=round(record.held_s, 6),
                    took_s=round(took_s, 6),
                    passed=record.passed,
                    joined=record.joined,
                ),
            )
