"""The name table of vLLM 0.6 to 0.33, also with the labels of Ray and of the production stack.

Not only names but also meanings changed, see the notes. Public sources:
`vllm/v1/metrics/loggers.py` (names), `vllm/v1/core/block_pool.py` (what "usage" counts), and the
metrics page of the docs,
https://docs.vllm.ai/en/latest/design/metrics.html.
"""

from __future__ import annotations

from concur_agents.probes.table import (
    HitRefs,
    Label,
    NameTable,
    Peak,
    Plus,
    Ratio,
    Scaled,
    Times,
    Total,
)

_CONFIG = "vllm:cache_config_info"
_COMPUTED = Total("vllm:prompt_tokens_by_source_total", {"source": ("local_compute",)})
_FROM_TIER = Total("vllm:prompt_tokens_by_source_total", {"source": ("external_kv_transfer",)})

TABLE = NameTable(
    engine="vllm",
    prefix="vllm:",
    # `engine` is the data-parallel rank; a router adds `server`, Ray adds `ReplicaId`.
    pool_labels=("server", "ReplicaId", "engine"),
    model_label="model_name",
    hits=(
        # Counted once per request, when its prefill is done.
        HitRefs(Total("vllm:prompt_tokens_cached_total"), Total("vllm:prompt_tokens_total")),
        # Counted at each look-up, and before 0.32 also at those after which the request did not
        # fit and had to wait: under pressure several times the prompt tokens.
        HitRefs(
            Plus(
                Total("vllm:prefix_cache_hits_total"),
                # hits of a KV connector; its queries are part of the counter above already
                (Total("vllm:external_prefix_cache_hits_total"),),
            ),
            Total("vllm:prefix_cache_queries_total"),
        ),
        HitRefs(
            Total("vllm:gpu_prefix_cache_hits_total"),
            Total("vllm:gpu_prefix_cache_queries_total"),
        ),
    ),
    fields={
        # Blocks of requests in flight only: cached blocks of an idle agent count as free.
        "kv_usage": (Peak("vllm:kv_cache_usage_perc"), Peak("vllm:gpu_cache_usage_perc")),
        "capacity_tokens": (
            # right for hybrid models too, where blocks x block_size is too large
            Label(_CONFIG, "kv_cache_size_tokens"),
            Times(Label(_CONFIG, "num_gpu_blocks"), Label(_CONFIG, "block_size")),
        ),
        "running": (Total("vllm:num_requests_running"),),
        "waiting": (
            # `deferred` requests wait for an adapter, a grammar or a transfer, not for KV blocks
            Total("vllm:num_requests_waiting_by_reason", {"reason": ("capacity",)}),
            Total("vllm:num_requests_waiting"),
        ),
        "preemptions_total": (Total("vllm:num_preemptions_total"),),
        # These two move together, when a request ends: their quotient is seconds per token.
        "computed_tokens_total": (
            Total("vllm:request_prefill_kv_computed_tokens_sum"),
            _COMPUTED,
        ),
        "prefill_s_total": (Total("vllm:request_prefill_time_seconds_sum"),),
        # These two move together, at every token.
        "generated_tokens_total": (Total("vllm:generation_tokens_total"),),
        "decode_s_total": (
            Total("vllm:inter_token_latency_seconds_sum"),
            Total("vllm:time_per_output_token_seconds_sum"),
            Total("vllm:request_decode_time_seconds_sum"),
        ),
        "host_capacity_tokens": (
            Times(
                Label("vllm:simple_kv_offload_info", "capacity_blocks"),
                Label(_CONFIG, "block_size"),
            ),
            # The option is in GiB. What a token takes is known once tokens were loaded.
            Ratio(
                Scaled(Label(_CONFIG, "kv_offloading_size"), 2**30),
                Ratio(Total("vllm:kv_offload_load_bytes_total"), _FROM_TIER),
            ),
            Ratio(
                Scaled(Label(_CONFIG, "kv_offloading_size"), 2**30),
                Ratio(
                    Total("vllm:kv_offload_total_bytes_total", {"transfer_type": ("CPU_to_GPU",)}),
                    _FROM_TIER,
                ),
            ),
            # Before that by what was stored: what was computed and generated.
            Ratio(
                Scaled(Label(_CONFIG, "kv_offloading_size"), 2**30),
                Ratio(
                    Total("vllm:kv_offload_store_bytes_total"),
                    Plus(_COMPUTED, (Total("vllm:generation_tokens_total"),)),
                ),
            ),
        ),
        # No usage: kv_offload_cpu_cache_usage_perc is what transfers pin, not what the tier holds.
        "host_hit_tokens_total": (_FROM_TIER, Total("vllm:external_prefix_cache_hits_total")),
    },
    block_size=(Label(_CONFIG, "block_size"),),
    prefix_caching=Label(_CONFIG, "enable_prefix_caching"),
)
