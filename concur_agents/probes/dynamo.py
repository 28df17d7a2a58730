"""Where NVIDIA Dynamo writes what: the frontend, and the worker's own gauges.

A worker's page (``DYN_SYSTEM_PORT``) passes its engine's names through, so it is read with that
engine's table and this one only fills the gaps. The frontend has no usage but the capacity and
the best hit counters. Public source: https://docs.nvidia.com/dynamo/latest/observability/metrics.html
"""

from __future__ import annotations

from concur_agents.probes.table import HitRefs, NameTable, Peak, Smallest, Times, Total

TABLE = NameTable(
    engine="dynamo",
    prefix="dynamo_",
    pool_labels=(),  # the frontend speaks for all its workers at once
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
        # of ONE worker serving the model; the page does not say how many there are
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
