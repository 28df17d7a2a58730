"""The numbers of a governor for Prometheus.

    from concur_agents.observe.metrics import export, serve

    export(gov)                # into the default registry, which your process may serve itself
    stop = serve(port=9464)    # or this listener on 127.0.0.1 does

Each scrape reads the gauges from `Governor.snapshot()`; counters and histograms come from its
events. Every name begins with `concur_` and ends with its unit; docs/metrics.md lists them.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator

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
from concur_agents.core import Limit
from concur_agents.errors import ConfigError
from concur_agents.observe.metrics_listener import serve
from concur_agents.runtime.events import Event
from concur_agents.runtime.host import Host
from concur_agents.runtime.status import GovernorSnapshot

__all__ = ["export", "serve"]

WAIT_BUCKETS_S = (0.01, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
STEP_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320)

LABEL = "governor"


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
            ("reported_tokens", "KV pool that the engine reports.", now.reported_tokens),
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
            ("stalls", "Agents let in because nothing moved.", now.stalls_total),
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
