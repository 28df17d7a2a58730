"""What the embedded server says of itself on ``/metrics``: pages in vLLM's and in SGLang's words.

Names, types, labels and the moment at which each number moves follow pages recorded from vLLM 0.32
and SGLang 0.5.23; numbers that this engine does not have are left out. Seconds are those of the
server's clients: with a time scale of 10, a prefill that takes the simulated machine 2 s is 0.2 s
here, as it is for a client that waits for it.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from concur_agents.sim.engine import Engine, Request
from concur_agents.sim.profile import Profile
from concur_agents.sim.tier_pages import offloading_gib, sglang_tier, vllm_tier

__all__ = ["Kind", "MetricsPage", "RankHeader", "text_of"]

Kind = Literal["vllm", "sglang"]
RankHeader = Literal["honour", "refuse", "ignore", "body"]
"""What the server does about `X-data-parallel-rank` (with SGLang's page also `routed_dp_rank` in
the body): it sends the call to that engine; it refuses all but 0, as an engine behind a router that
passes the header on; it does not look; or it looks at the body alone. SGLang's `/v1/responses`
never looks.
"""

_S = "1 2.5 5 7.5 10 20 40 80"
_SHORT_S = f"0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 {_S} 160 640 2560"
_TOKEN_S = f"0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 {_S}"
_LONG_S = "0.3 0.5 0.8 1 1.5 2 2.5 5 10 15 20 30 40 50 60 120 240 480 960 1920 7680"
_TOKENS = "1 2 5 10 20 50 100 200 500 1000 2000 5000 10000 20000 50000 100000"


_Value = float | Mapping[str, float]
"""One number, or one per value of a further label."""


class _Histogram:
    """Counts of observations per bucket."""

    def __init__(self, bounds: str) -> None:
        self._bounds = [float(bound) for bound in bounds.split()]
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def write(self, metric: HistogramMetricFamily, labels: Sequence[str]) -> None:
        total, buckets = 0, []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        metric.add_metric(labels, buckets, self._sum)


def text_of(pages: Sequence[MetricsPage]) -> bytes:
    """Several data-parallel engines on one page, in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(pages[0] if len(pages) == 1 else _Together(pages))
    return generate_latest(registry)


class _Together(Collector):
    """The series of several pages; those with the same labels are of all engines, so they add."""

    def __init__(self, pages: Sequence[MetricsPage]) -> None:
        self._pages = pages

    def collect(self) -> Iterator[Metric]:
        metrics: dict[str, Metric] = {}
        sums: dict[str, dict[Hashable, Sample]] = {}
        for page in self._pages:
            for metric in page.collect():
                metrics.setdefault(metric.name, metric)
                of_metric = sums.setdefault(metric.name, {})
                for sample in metric.samples:
                    key = sample.name, *sorted(sample.labels.items())
                    before = of_metric.get(key)
                    value = sample.value + (before.value if before is not None else 0.0)
                    of_metric[key] = sample._replace(value=value)
        for name, metric in metrics.items():
            metric.samples = list(sums[name].values())
            yield metric

    def describe(self) -> Iterable[Metric]:
        return ()


class MetricsPage(Collector):
    """The page of one engine. Tell it of every request that has finished.

    Args:
        engine: whose counters are shown.
        kind: in whose words.
        time_scale: simulated seconds per second of the clients.
        model: the name that labels the series.
        rank: of several data-parallel engines: which one; None: there is one.
    """

    def __init__(
        self,
        engine: Engine,
        kind: Kind,
        time_scale: float,
        model: str,
        rank: int | None = None,
    ) -> None:
        self._engine = engine
        self._rank = rank
        self._profile: Profile = engine.profile
        self._kind = kind
        self._time_scale = time_scale
        self._model = model
        self._created_s = time.time()
        self._finished: dict[str, int] = {"stop": 0, "length": 0, "abort": 0}
        self._ttft = _Histogram(_SHORT_S)
        self._between = _Histogram(_TOKEN_S)
        self._whole, self._queue, self._prefill, self._decode = (
            _Histogram(_LONG_S) for _ in range(4)
        )
        self._prompt, self._output, self._computed = (_Histogram(_TOKENS) for _ in range(3))

    def finished(self, request: Request, reason: str) -> None:
        """A request has ended: ``stop``, ``length`` or ``abort``, which adds to no histogram."""
        self._finished[reason] += 1
        if reason == "abort":
            return
        assert request.finish_s is not None
        assert request.first_token_s is not None
        assert request.scheduled_s is not None
        scale = self._time_scale
        output = request.output.tokens
        decode_s = (request.finish_s - request.first_token_s) / scale
        self._ttft.observe((request.first_token_s - request.at_s) / scale)
        self._whole.observe((request.finish_s - request.at_s) / scale)
        self._queue.observe((request.scheduled_s - request.at_s) / scale)
        self._prefill.observe((request.first_token_s - request.scheduled_s) / scale)
        self._decode.observe(decode_s)
        if output > 1:
            self._between.observe(decode_s / (output - 1), output - 1)
        self._prompt.observe(request.prompt_tokens)
        self._output.observe(output)
        self._computed.observe(request.prompt_tokens - (request.cached_tokens or 0))

    def text(self) -> bytes:
        """The page, in Prometheus' text format."""
        return text_of([self])

    def collect(self) -> Iterator[Metric]:
        """See ``prometheus_client``: everything on the page."""
        return self._vllm() if self._kind == "vllm" else self._sglang()

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: the names are this page's own."""
        return ()

    # -- vLLM

    def _vllm(self) -> Iterator[Metric]:
        at = self._engine.counters()
        profile = self._profile
        rank = str(self._rank or 0)
        labels = {"engine": rank, "model_name": self._model}
        gauge, counter, histogram = self._writers("vllm:", labels)
        cached, external = at.cached_tokens_total, at.cached_host_tokens_total
        sources = {
            "local_compute": at.prompt_tokens_total - cached,
            "local_cache_hit": cached - external,
            "external_kv_transfer": external,
        }
        behind = at.query_tokens_total - at.hit_tokens_total if profile.host_tier_tokens else 0

        yield gauge(
            "num_requests_running", "Number of requests in model execution batches.", at.running
        )
        yield gauge(
            "num_requests_waiting", "Number of requests waiting to be processed.", at.waiting
        )
        yield gauge(
            "num_requests_waiting_by_reason",
            "Number of waiting requests by reason.",
            {"capacity": at.waiting, "deferred": 0},
            "reason",
        )
        yield gauge(
            "kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", at.kv_usage
        )
        yield counter(
            "prefix_cache_queries", "Prefix cache queries [tokens].", at.query_tokens_total
        )
        yield counter("prefix_cache_hits", "Prefix cache hits [tokens].", at.hit_tokens_total)
        yield counter(
            "external_prefix_cache_queries", "Queries of a KV connector [tokens].", behind
        )
        yield counter(
            "external_prefix_cache_hits",
            "Hits of a KV connector [tokens].",
            at.host_hit_tokens_total,
        )
        yield counter("num_preemptions", "Number of preemptions.", at.preemptions_total)
        yield counter(
            "prompt_tokens", "Number of prefill tokens processed.", at.prompt_tokens_total
        )
        yield counter(
            "prompt_tokens_by_source",
            "Number of prompt tokens by source.",
            sources,
            "source",
        )
        yield counter("prompt_tokens_cached", "Number of cached prompt tokens.", cached)
        yield counter(
            "generation_tokens", "Number of generation tokens processed.", at.generated_tokens_total
        )
        yield counter(
            "request_success",
            "Count of successfully processed requests.",
            self._finished,
            "finished_reason",
        )
        yield histogram("request_prompt_tokens", "Prefill tokens per request.", self._prompt)
        yield histogram("request_generation_tokens", "Output tokens per request.", self._output)
        yield histogram("time_to_first_token_seconds", "Time to first token [s].", self._ttft)
        yield histogram("inter_token_latency_seconds", "Inter-token latency [s].", self._between)
        yield histogram("e2e_request_latency_seconds", "Latency of requests [s].", self._whole)
        yield histogram("request_queue_time_seconds", "Time in the WAITING phase [s].", self._queue)
        yield histogram("request_prefill_time_seconds", "Time in PREFILL [s].", self._prefill)
        yield histogram("request_decode_time_seconds", "Time in DECODE [s].", self._decode)
        yield histogram(
            "request_prefill_kv_computed_tokens", "New KV tokens per prefill.", self._computed
        )
        if profile.host_tier_tokens:
            yield from vllm_tier(at, profile, self._time_scale, gauge, counter)
        config = {
            "block_size": profile.block_size,
            "cache_dtype": "auto",
            "enable_prefix_caching": True,
            "engine": rank,
            "gpu_memory_utilization": 0.92,
            "kv_cache_max_concurrency": profile.capacity_tokens / profile.longest_context,
            "kv_cache_size_tokens": profile.capacity_tokens,
            "kv_offloading_backend": "native",
            "kv_offloading_size": offloading_gib(profile),
            "num_cpu_blocks": None,
            "num_gpu_blocks": profile.kv_blocks,
            "num_gpu_blocks_override": None,
            "prefix_caching_hash_algo": "sha256",
            "sliding_window": None,
        }
        info = GaugeMetricFamily(
            "vllm:cache_config_info",
            "Information of the LLMEngine CacheConfig",
            labels=list(config),
        )
        info.add_metric([str(value) for value in config.values()], 1.0)
        yield info

    # -- SGLang

    def _sglang(self) -> Iterator[Metric]:
        at = self._engine.counters()
        profile = self._profile
        scheduler = {
            "engine_type": "unified",
            "model_name": self._model,
            "moe_ep_rank": "0",
            "pp_rank": "0",
            "tp_rank": "0",
        }
        if self._rank is not None:  # with --enable-metrics-for-all-schedulers
            scheduler["dp_rank"] = str(self._rank)
        gauge, counter, histogram = self._writers("sglang:", scheduler)
        tokenizer = {"engine_type": "unified", "is_streaming": "false", "model_name": self._model}
        _, requests, of_requests = self._writers("sglang:", tokenizer)
        tokenizer = {"engine_type": "unified", "model_name": self._model}
        _, prompts, of_prompts = self._writers("sglang:", tokenizer)
        cache = self._engine.cache
        size = profile.block_size
        computed = at.query_tokens_total - at.hit_tokens_total - at.host_hit_tokens_total
        of_tier = {"host": at.cached_host_tokens_total} if profile.host_tier_tokens else {}

        yield gauge("num_running_reqs", "The number of running requests.", at.running)
        yield gauge("num_queue_reqs", "The number of requests in the waiting queue.", at.waiting)
        yield gauge("token_usage", "The token usage.", round(at.kv_usage, 2))
        yield gauge("full_token_usage", "The token usage of full attention layers.", at.kv_usage)
        yield gauge("num_used_tokens", "The number of used tokens.", cache.used_blocks * size)
        yield gauge("kv_available_tokens", "Free token slots.", cache.empty_blocks * size)
        yield gauge("kv_evictable_tokens", "Cached, unlocked slots.", cache.evictable_blocks * size)
        yield gauge("max_total_num_tokens", "Size of the KV pool [tokens].", at.capacity_tokens)
        yield gauge("page_size", "KV cache page size in tokens.", size)
        yield gauge("num_pages", "Number of KV cache pages.", profile.kv_blocks)
        yield gauge("context_len", "Maximum context length.", profile.longest_context)
        yield counter(
            "prefill_effective_tokens",
            "Effective prefill tokens by mode.",
            {
                "input": computed,
                "device_hit": at.hit_tokens_total,
                "host_hit": at.host_hit_tokens_total,
                "storage_hit": 0,
            },
            "mode",
        )
        yield counter(
            "realtime_tokens",
            "Total number of tokens processed by mode.",
            {
                "prefill_compute": at.computed_tokens_total,
                "prefill_cache": at.hit_tokens_total + at.host_hit_tokens_total,
                "decode": at.generated_tokens_total,
            },
            "mode",
        )
        yield counter("evicted_tokens", "Device KV tokens evicted.", at.evicted_tokens_total)
        if at.preemptions_total:  # it appears with the first one
            yield counter(
                "num_retracted_requests", "Number of retracted requests.", at.preemptions_total
            )
        yield requests(
            "prompt_tokens", "Number of prefill tokens processed.", at.prompt_tokens_total
        )
        yield requests(
            "generation_tokens", "Number of generation tokens processed.", at.generated_tokens_total
        )
        yield prompts(
            "cached_tokens",
            "Number of cached prompt tokens by source.",
            {"device": at.cached_tokens_total - at.cached_host_tokens_total, **of_tier},
            "cache_source",
        )
        if profile.host_tier_tokens:
            yield from sglang_tier(at, gauge, counter)
        yield of_requests("time_to_first_token_seconds", "Time to first token [s].", self._ttft)
        yield of_requests("e2e_request_latency_seconds", "Latency of requests [s].", self._whole)
        yield of_requests("inter_token_latency_seconds", "Inter-token latency [s].", self._between)
        yield of_prompts("uncached_prompt_tokens_histogram", "Computed tokens.", self._computed)
        yield histogram("queue_time_seconds", "Histogram of queueing time [s].", self._queue)
        yield histogram(
            "per_stage_req_latency_seconds",
            "The latency of each stage of requests [s].",
            self._prefill,
            ("stage", "prefill_forward"),
        )

    # -- shared

    def _writers(
        self, prefix: str, labels: dict[str, str]
    ) -> tuple[
        Callable[..., Metric],
        Callable[..., Metric],
        Callable[..., Metric],
    ]:
        names, values = list(labels), list(labels.values())

        def series(value: _Value) -> Iterator[tuple[list[str], float]]:
            if isinstance(value, Mapping):
                for part, number in value.items():
                    yield [*values, part], float(number)
            else:
                yield values, float(value)

        def gauge(name: str, text: str, value: _Value, label: str = "") -> Metric:
            labels = [*names, label] if label else names
            metric = GaugeMetricFamily(prefix + name, text, labels=labels)
            for at, number in series(value):
                metric.add_metric(at, number)
            return metric

        # SGLang's pages come from several processes, and those have no `_created` twins.
        created_s = self._created_s if self._kind == "vllm" else None

        def counter(name: str, text: str, value: _Value, label: str = "") -> Metric:
            labels = [*names, label] if label else names
            metric = CounterMetricFamily(prefix + name, text, labels=labels)
            for at, number in series(value):
                metric.add_metric(at, number, created=created_s)
            return metric

        def histogram(
            name: str, text: str, value: _Histogram, label: tuple[str, str] | None = None
        ) -> Metric:
            extra_names, extra_values = ([label[0]], [label[1]]) if label else ([], [])
            metric = HistogramMetricFamily(prefix + name, text, labels=[*names, *extra_names])
            value.write(metric, [*values, *extra_values])
            return metric

        return gauge, counter, histogram
