"""The name table of NVIDIA Dynamo: the frontend, and the gauges of a worker.

The page of a worker (`DYN_SYSTEM_PORT`) exports the names of its engine too, so the table of that
engine reads it and this one fills the gaps. The frontend does not report usage, but the capacity
and the best hit counters. Public source: https://docs.nvidia.com/dynamo/latest/observability/metrics.html
"""

from __future__ import annotations

from concur_agents.probes.table import HitRefs, NameTable, Peak, Smallest, Times, Total

TABLE = NameTable(
    engine="dynamo",
    prefix="dynamo_",
    pool_labels=(),  # the frontend reports all its workers together
    model_label="model",
    hits=(
        # sums of histograms over requests, hence counters of tokens
        HitRefs(
            Total("dynamo_frontend_cached_tokens_sum"),
            Total("dynamo_frontend_input_sequence_tokens_sum"),
        ),
    ),
    fields={
        # a share, 0..1, despite its name
        "kv_usage": (Peak("dynamo_component_gpu_cache_usage_percent"),),
        # of ONE worker that serves the model; the page does not say how many there are
        "capacity_tokens": (
            Times(
                Smallest("dynamo_frontend_model_total_kv_blocks"),
                Smallest("dynamo_frontend_model_kv_cache_block_size"),
            ),
        ),
        "running": (
            Total("dynamo_frontend_inflight_requests"),
            Total("dynamo_frontend_active_requests"),
        ),
        "waiting": (Total("dynamo_frontend_queued_requests"),),
        "generated_tokens_total": (
            Total("dynamo_frontend_output_tokens_total"),
            Total("dynamo_frontend_output_sequence_tokens_sum"),
        ),
        "decode_s_total": (Total("dynamo_frontend_inter_token_latency_seconds_sum"),),
    },
    block_size=(Smallest("dynamo_frontend_model_kv_cache_block_size"),),
    max_model_len=(Smallest("dynamo_frontend_model_context_length"),),
)
