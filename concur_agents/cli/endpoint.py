"""One endpoint as `concur watch URL` sees it: its readings, and what a law would do about them.

This is a dry run: nothing is governed, and the only request sent is for the metrics page. The law
gets real readings, but it does not see the endpoint's agents. A law that learns from the steps of
its own agents stays at its start.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from concur_agents.core import Reading, Regulator
from concur_agents.errors import ConfigError, ProbeError
from concur_agents.probes import HttpProbe
from concur_agents.runtime.law_choice import law_by_name

WINDOW_S = 10.0
"""Window of the hit rate [s]: engines update their counters every few seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointFrame:
    """One reading of the endpoint; the keys of a `--json` line. None: unknown, or no bound."""

    url: str
    """The endpoint."""
    at_s: float
    """Time since the command started [s]."""
    ok: bool
    """Whether the endpoint's metrics could be read."""
    error: str | None
    """Why not."""
    engine: str | None
    """vllm, sglang or dynamo."""
    kv_usage: float | None
    """Share of the KV pool held by requests in flight, 0..1."""
    capacity_tokens: float | None
    """KV pool [tokens]."""
    hit_rate: float | None
    """Cached share of the prompt tokens of the last ten seconds, 0..1."""
    running: float | None
    """Requests being computed."""
    waiting: float | None
    """Requests queued in the engine."""
    preemptions_total: float | None
    """Requests removed from the batch so far."""
    law: str
    """Name of the law."""
    limit_agents: float | None
    """Most agents the law would let run."""
    limit_tokens: float | None
    """Most pressure it would allow [tokens]."""
    reason: str
    """The law's reason code."""


class EndpointWatcher:
    """Feeds the readings of an endpoint to a law; `look()` is one poll and one decision.

    Args:
        probe: reads the endpoint.
        law: name of the law.
        clock: the probe's monotonic clock [s].

    Raises:
        ConfigError: there is no such law; the message names the nearest.
    """

    def __init__(
        self, probe: HttpProbe, law: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._probe = probe
        self._clock = clock
        self._start_s = clock()
        try:
            self._regulator = Regulator(law_by_name(law), start_s=self._start_s)
        except (ValueError, TypeError) as error:
            raise ConfigError(str(error)) from error
        self._recent: list[Reading] = []

    def look(self) -> EndpointFrame:
        """Reads the endpoint and ticks the law with the reading, or with None if it failed."""
        reading, error = None, None
        try:
            reading = self._probe.read()
        except ProbeError as problem:
            error = str(problem)
        now = self._clock()
        self._regulator.tick(reading, now)
        view = self._regulator.view(now)
        known = reading or Reading(at_s=now)
        return EndpointFrame(
            url=self._probe.url,
            at_s=round(now - self._start_s, 3),
            ok=reading is not None,
            error=error,
            engine=self._probe.engine,
            kv_usage=known.kv_usage,
            capacity_tokens=known.capacity_tokens,
            hit_rate=self._hit_rate(reading),
            running=known.running,
            waiting=known.waiting,
            preemptions_total=known.preemptions_total,
            law=self._regulator.law.name,
            limit_agents=_finite(view.limit.agents),
            limit_tokens=_finite(view.limit.tokens),
            reason=view.reason,
        )

    def _hit_rate(self, reading: Reading | None) -> float | None:
        """Cached share of the prompt tokens in the window."""
        if reading is None or reading.hit_tokens_total is None or not reading.query_tokens_total:
            return None
        recent = self._recent
        if recent and reading.query_tokens_total < (recent[-1].query_tokens_total or 0.0):
            recent.clear()  # the engine restarted
        recent.append(reading)
        while len(recent) > 2 and recent[1].at_s <= reading.at_s - WINDOW_S:
            del recent[0]
        queries = reading.query_tokens_total - (recent[0].query_tokens_total or 0.0)
        found = reading.hit_tokens_total - (recent[0].hit_tokens_total or 0.0)
        return found / queries if queries > 0 else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
