"""The numbers of a governor for Prometheus.

    from concur_agents.observe.metrics import export, serve

    export(gov)                # into the default registry, which your process may serve itself
    stop = serve(port=9464)    # or this listener on 127.0.0.1 does

Each scrape reads the gauges from `Governor.snapshot()`; counters and histograms come from its
events. Every name begins with `concur_` and ends with its unit; docs/metrics.md lists them. A
governor with several pools has a series for each, with the label `pool`, and none of their sum.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from prometheus_client import REGISTRY, CollectorRegistry, Histogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from concur_agents._text import MOST_ID, printable, shown_id
from concur_agents._version import __version__
from concur_agents.core import Limit, Reading, Usage, View
from concur_agents.errors import ConfigError
from concur_agents.observe.metrics_listener import serve
from concur_agents.runtime.events import Event
from concur_agents.runtime.host import Host
from concur_agents.runtime.status import GovernorSnapshot

__all__ = ["export", "serve"]

WAIT_BUCKETS_S = (0.01, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
STEP_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320)

LABEL = "governor"
POOL = "pool"
"""Label of a governor with several pools; '': an agent that has none yet."""


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
        self._counts: dict[str, _Counts] = {}  # by pool; '': there is one
        self._decisions: dict[tuple[str, str], float] = {}  # by pool and reason
        self._readings: dict[str, Reading] = {}  # the last one of each pool
        self._begin(governor)

    def _begin(self, governor: Host) -> None:
        """At first, and where the pools turn out to be several, or to be one."""
        self._is_fleet = bool(governor.addresses)
        self._labels = [LABEL, POOL] if self._is_fleet else [LABEL]
        self._wait = Histogram(
            "concur_wait_seconds",
            "Time that an agent waited before it was let in.",
            [*self._labels, "kind"],
            buckets=WAIT_BUCKETS_S,
            registry=None,
        )
        self._step = Histogram(
            "concur_step_seconds",
            "Time from the start of a step to its end.",
            self._labels,
            buckets=STEP_BUCKETS_S,
            registry=None,
        )
        for pool in governor.addresses or ("",):
            self._counts_of(pool)
            for kind in ("queued", "paused"):
                self._wait.labels(*self._values(pool), kind)
            self._step.labels(*self._values(pool))

    def _values(self, pool: str) -> list[str]:
        """Of the labels that every series of a pool has."""
        return [self._name, printable(pool)] if self._is_fleet else [self._name]

    def _counts_of(self, pool: str) -> _Counts:
        return self._counts.setdefault(pool, _Counts())

    def note(self, event: Event) -> None:
        """Counts an event of the governor."""
        pool = event.pool or ""
        if bool(pool) > self._is_fleet or event.kind == "polled":
            self._follow_pools()
        if event.kind in ("admitted", "resumed"):
            kind = "queued" if event.kind == "admitted" else "paused"
            if event.waited_s is not None:  # of agents that a daemon found waiting or in: unknown
                self._wait.labels(*self._values(pool), kind).observe(event.waited_s)
        elif event.kind == "step_ended":
            if event.waited_s is not None:
                self._step.labels(*self._values(pool)).observe(event.waited_s)
            self._counts_of(pool).add(event.usage)
        elif event.kind == "polled":
            self._counts_of(pool).polls += 1
            if event.reading is not None:
                self._readings[pool] = event.reading
        elif event.kind == "limit_changed":
            key = (pool, event.reason)
            self._decisions[key] = self._decisions.get(key, 0.0) + 1

    def _follow_pools(self) -> None:
        """The label `pool` is there while there are several."""
        governor = self._governor()
        if governor is not None and bool(governor.addresses) is not self._is_fleet:
            self._begin(governor)

    def collect(self) -> Iterator[Metric]:
        """The metrics now; none once the governor is gone."""
        self._follow_pools()
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
        agents = GaugeMetricFamily(
            "concur_agents", "Agents by state.", labels=[*self._labels, "state"]
        )
        for state in ("reasoning", "acting", "paused", "queued", "suspended"):
            without = getattr(now, state)
            for name, view in now.pools.items():
                agents.add_metric([*self._values(name), state], getattr(view, state))
                without -= getattr(view, state)
            if without or not self._is_fleet or state == "queued":
                agents.add_metric([*self._values(""), state], without)
        yield agents
        gauges: dict[str, GaugeMetricFamily] = {}
        for pool in self._pools(now):
            for name, text, value in _gauge_rows(pool):
                if value is not None:
                    gauge = GaugeMetricFamily(f"concur_{name}", text, labels=self._labels)
                    gauges.setdefault(name, gauge).add_metric(self._values(pool.name), value)
        if self._is_fleet:  # of the agents without a pool, which are in none of the views
            in_line = now.queued > sum(view.queued for view in now.pools.values())
            gauges["longest_wait_seconds"].add_metric(
                self._values(""), now.longest_wait_s if in_line else 0.0
            )
        yield from gauges.values()
        shadow = None if now.shadow is None else now.shadow.state.limit
        passing = ("passing", "1: closed or failed, so every agent passes.", float(now.closed))
        for name, text, value in (*_shadow_rows(shadow), passing):
            if value is not None:
                gauge = GaugeMetricFamily(f"concur_{name}", text, labels=[LABEL])
                gauge.add_metric([self._name], value)
                yield gauge

    def _pools(self, now: GovernorSnapshot) -> list[_Pool]:
        """Each pool with its engine; the whole governor where there is one."""
        if not self._is_fleet:
            return [_Pool("", now, now.blind_s, now.poll_failures_total, now.last_reading)]
        engines = {name: engine for engine in now.endpoints for name in engine.pools}
        found = []
        for name, view in now.pools.items():
            engine = engines.get(name)  # None: it is being removed
            blind_s = None if engine is None else engine.blind_s
            failures = None if engine is None else engine.poll_failures_total
            found.append(_Pool(name, view, blind_s, failures, self._readings.get(name)))
        return found

    def _counters(self, now: GovernorSnapshot) -> Iterator[Metric]:
        done = CounterMetricFamily("concur_agents_done", "Agents that have left.", labels=[LABEL])
        done.add_metric([self._name], now.done_total)
        yield done
        counters: dict[str, CounterMetricFamily] = {}
        rows = [(pool.name, *row) for pool in self._pools(now) for row in _counter_rows(pool)]
        rows += [(pool, *row) for pool, counts in self._counts.items() for row in counts.rows()]
        for pool, name, text, value in rows:
            if value is not None:
                counter = CounterMetricFamily(f"concur_{name}", text, labels=self._labels)
                counters.setdefault(name, counter).add_metric(self._values(pool), value)
        yield from counters.values()
        decisions = CounterMetricFamily(
            "concur_limit_changes",
            "Changes of the limit, by reason.",
            labels=[*self._labels, "reason"],
        )
        for (pool, reason), value in list(self._decisions.items()):
            decisions.add_metric([*self._values(pool), printable(reason, MOST_ID)], value)
        yield decisions


@dataclass(slots=True)
class _Counts:
    """What the events of one pool add up to."""

    steps: float = 0.0
    untold: float = 0.0
    prompt: float = 0.0
    cached: float = 0.0
    output: float = 0.0
    polls: float = 0.0

    def add(self, usage: Usage | None) -> None:
        """A step has ended."""
        self.steps += 1
        if usage is None:
            self.untold += 1
        else:
            self.prompt += usage.prompt_tokens
            self.cached += usage.cached_tokens or 0
            self.output += usage.completion_tokens

    def rows(self) -> list[_Row]:
        """Names, texts and values of its counters."""
        return [
            ("steps", "LLM calls that have ended.", self.steps),
            ("steps_untold", "Steps that ended without usage.", self.untold),
            ("prompt_tokens", "Prompt tokens of steps.", self.prompt),
            ("cached_tokens", "Prompt tokens of steps found in the cache.", self.cached),
            ("output_tokens", "Output tokens of steps.", self.output),
            ("polls", "Readings that succeeded.", self.polls),
        ]


class _Pool(NamedTuple):
    """One pool and its engine at one instant."""

    name: str
    view: View
    blind_s: float | None
    poll_failures: int | None
    reading: Reading | None


_Row: TypeAlias = tuple[str, str, float | None]


def _gauge_rows(pool: _Pool) -> list[_Row]:
    view, limit, reading = pool.view, pool.view.limit, pool.reading
    usage = None if reading is None else reading.kv_usage
    running = None if reading is None else reading.running
    waiting = None if reading is None else reading.waiting
    is_down = float(view.reason == "down") if pool.name else None
    return [
        ("pressure_tokens", "Sum of all claims on the KV pool.", view.pressure_tokens),
        ("capacity_tokens", "KV pool of the engine.", view.capacity_tokens),
        ("reported_tokens", "KV pool that the engine reports.", view.reported_tokens),
        ("footprint_tokens", "Sum of the contexts of all agents.", view.footprint_tokens),
        ("limit_tokens", "Limit on the pressure.", _bound(limit.tokens)),
        ("limit_agents", "Limit on active agents.", _bound(limit.agents)),
        ("hit_ratio", "Cached share of prompt tokens between two ticks.", view.hit_rate),
        ("hit_deficit_ratio", "1 - H/H*: reusable tokens that missed.", view.hit_deficit),
        ("longest_wait_seconds", "Longest wait among waiting agents.", view.longest_wait_s),
        ("blind_seconds", "Time since the last good reading.", pool.blind_s),
        ("pool_down", "1: neither its page nor its engine answers.", is_down),
        ("engine_kv_usage_ratio", "KV pool held by running requests.", usage),
        ("engine_running_requests", "Requests that the engine computes.", running),
        ("engine_waiting_requests", "Requests queued in the engine.", waiting),
    ]


def _counter_rows(pool: _Pool) -> list[_Row]:
    view = pool.view
    return [
        ("pauses", "Pauses of agents at a boundary.", view.pauses_total),
        ("overdue", "Agents let in because they had waited past the bound.", view.overdue_total),
        ("stalls", "Agents let in because nothing moved.", view.stalls_total),
        ("poll_failures", "Readings that failed.", pool.poll_failures),
    ]


def _shadow_rows(limit: Limit | None) -> list[_Row]:
    if limit is None:
        return []
    return [
        ("shadow_limit_tokens", "Limit of the shadow law.", _bound(limit.tokens)),
        ("shadow_limit_agents", "Limit of the shadow law.", _bound(limit.agents)),
    ]


def _bound(value: float) -> float | None:
    return value if math.isfinite(value) else None
