"""The name table of SGLang: `/metrics` (with `--enable-metrics`) and `/v1/loads`.

Public sources: `python/sglang/srt/observability/metrics_collector.py` and `req_time_stats.py` in
https://github.com/sgl-project/sglang, and the page
https://docs.sglang.ai/references/production_metrics.html.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from concur_agents.errors import ProbeError
from concur_agents.probes.table import HitRefs, NameTable, Peak, Smallest, Times, Total

_HITS = ("device_hit", "host_hit", "storage_hit")

TABLE = NameTable(
    engine="sglang",
    prefix="sglang:",
    pool_labels=("dp_rank",),
    model_label="model_name",
    # With --enable-metrics-for-all-schedulers every shard reports the same pool.
    shard_labels=("pp_rank", "tp_rank"),
    # With priority scheduling: priority="" is the total, priority="5" a part of it.
    part_labels=("priority",),
    hits=(
        # First prefills only: a prefill after a retraction is not a look-up of the agent.
        HitRefs(
            Total("sglang:prefill_effective_tokens_total", {"mode": _HITS}),
            Total("sglang:prefill_effective_tokens_total"),
        ),
        HitRefs(
            Total("sglang:realtime_tokens_total", {"mode": ("prefill_cache",)}),
            Total("sglang:realtime_tokens_total", {"mode": ("prefill_cache", "prefill_compute")}),
        ),
        # The tokenizer's own counters, at the end of a request.
        HitRefs(Total("sglang:cached_tokens_total"), Total("sglang:prompt_tokens_total")),
    ),
    fields={
        # `token_usage` is the same, rounded to two decimals. Tokens of idle agents are evictable
        # and count as free. A hybrid model is as full as its fullest pool.
        "kv_usage": (
            Peak("sglang:full_token_usage", ("sglang:swa_token_usage", "sglang:mamba_usage")),
            Peak("sglang:token_usage"),
        ),
        "capacity_tokens": (
            Smallest("sglang:max_total_num_tokens"),
            Times(Smallest("sglang:num_pages"), Smallest("sglang:page_size")),
        ),
        "running": (Total("sglang:num_running_reqs"),),
        "waiting": (Total("sglang:num_queue_reqs"),),
        # The gauge num_retracted_reqs is cleared at each report, so a poll can miss it. The counter
        # appears with the first retraction.
        "preemptions_total": (Total("sglang:num_retracted_requests_total"),),
        "computed_tokens_total": (
            Total("sglang:realtime_tokens_total", {"mode": ("prefill_compute",)}),
            Total("sglang:prefill_effective_tokens_total", {"mode": ("input",)}),
            Total("sglang:uncached_prompt_tokens_histogram_sum"),
        ),
        # From first schedule to first token; the stage `chunked_prefill` is a part of it.
        "prefill_s_total": (
            Total("sglang:per_stage_req_latency_seconds_sum", {"stage": ("prefill_forward",)}),
        ),
        # At the end of a request. realtime_tokens_total{mode="decode"} is live, but lacks the
        # first token of each request.
        "generated_tokens_total": (Total("sglang:generation_tokens_total"),),
        # Of streamed requests only: None until there is one.
        "decode_s_total": (Total("sglang:inter_token_latency_seconds_sum"),),
        # with --enable-hierarchical-cache
        "host_capacity_tokens": (Smallest("sglang:hicache_host_total_tokens"),),
        "host_used_tokens": (Total("sglang:hicache_host_used_tokens"),),
        "host_hit_tokens_total": (
            Total("sglang:prefill_effective_tokens_total", {"mode": ("host_hit", "storage_hit")}),
            Total("sglang:load_back_tokens_total"),
        ),
    },
    block_size=(Smallest("sglang:page_size"),),
    max_model_len=(Smallest("sglang:context_len"),),
)

LOADS_PATH = "/v1/loads"


def read_loads(text: str) -> tuple[str | None, dict[str, dict[str, float | None]]]:
    """Reads the JSON of `GET /v1/loads`, which needs no `--enable-metrics` but has no hit counters.

    Returns:
        The version of the engine, and per data-parallel rank the fields of a Reading.
        `prefill_s_total` is the busy time of the engine: a second shared by several requests
        counts once.

    Raises:
        ProbeError: the text is not JSON, or not a page of loads.
    """
    try:
        page = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProbeError(f"the answer begins like JSON but cannot be read: {error}") from error
    loads = page.get("loads") if isinstance(page, dict) else None
    if not isinstance(loads, list) or not loads:
        raise ProbeError(
            "the answer is JSON without a list 'loads', so it is not SGLang's /v1/loads. "
            "If this is TensorRT-LLM, its text page is at /prometheus/metrics"
        )
    pools = {}
    for position, load in enumerate(loads):
        if not isinstance(load, dict):
            raise ProbeError(f"/v1/loads: entry {position} of 'loads' is not an object")
        busy_us = _number(load, "total_prefill_busy_us")
        pools[str(load.get("dp_rank", position))] = {
            "kv_usage": _number(load, "token_usage"),
            "capacity_tokens": _number(load, "max_total_num_tokens") or None,
            "running": _number(load, "num_running_reqs"),
            "waiting": _number(load, "num_waiting_reqs"),
            "computed_tokens_total": _number(load, "total_prefill_uncached_tokens"),
            "prefill_s_total": None if busy_us is None else busy_us / 1e6,
        }
    version = page.get("version")
    return (version if isinstance(version, str) else None), pools


def _number(load: Mapping[str, Any], key: str) -> float | None:
    value = load.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # JSON allows integers that no float can hold
        return None
    return number if math.isfinite(number) else None
