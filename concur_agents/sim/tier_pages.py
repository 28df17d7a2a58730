"""What the metrics pages of engines with a host tier say of it, in vLLM's and in SGLang's words.

vLLM counts bytes and not tokens, and has the size of the tier only as the option that it was
started with, in GiB. `kv_offload_cpu_cache_usage_perc` is what transfers pin at this moment, not
what the tier holds, so it is 0 here, where transfers are over when a page is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import Metric

from concur_agents.sim.counters import EngineCounters
from concur_agents.sim.profile import Profile

_LINK_BYTES_PER_S = 34e9
"""Host to GPU, as measured on an H200. With a profile's rate it gives the bytes of a token."""

_Writer = Callable[..., Metric]


def bytes_per_token(profile: Profile) -> float:
    """KV of one token, from the rate at which the link restores it."""
    return _LINK_BYTES_PER_S / profile.restore_tokens_per_s


def offloading_gib(profile: Profile) -> float | None:
    """What vLLM's `--kv-offloading-size` would be; None: there is no tier."""
    if not profile.host_tier_tokens:
        return None
    return profile.host_tier_tokens * bytes_per_token(profile) / 2**30


def vllm_tier(
    at: EngineCounters, profile: Profile, time_scale: float, gauge: _Writer, counter: _Writer
) -> Iterator[Metric]:
    """Series that vLLM has only with `--kv-offloading-size`."""
    size, rate = bytes_per_token(profile), profile.restore_tokens_per_s * time_scale
    loaded, stored = at.restored_tokens_total, at.stored_tokens_total
    yield counter("kv_offload_load_bytes", "Bytes loaded from the tier.", loaded * size)
    yield counter("kv_offload_load_time", "Time of loads [s].", loaded / rate)
    yield counter("kv_offload_store_bytes", "Bytes stored in the tier.", stored * size)
    yield counter("kv_offload_store_time", "Time of stores [s].", stored / rate)
    directions = {"CPU_to_GPU": loaded * size, "GPU_to_CPU": stored * size}
    yield counter("kv_offload_total_bytes", "Bytes by direction.", directions, "transfer_type")
    times_s = {"CPU_to_GPU": loaded / rate, "GPU_to_CPU": stored / rate}
    yield counter("kv_offload_total_time", "Time by direction [s].", times_s, "transfer_type")
    yield gauge("kv_offload_cpu_cache_usage_perc", "Share that transfers pin.", 0)


def sglang_tier(at: EngineCounters, gauge: _Writer, counter: _Writer) -> Iterator[Metric]:
    """Series that SGLang has only with `--enable-hierarchical-cache`."""
    yield gauge("hicache_host_used_tokens", "Tokens in the host pool.", at.host_used_tokens)
    yield gauge("hicache_host_total_tokens", "Size of the host pool.", at.host_capacity_tokens)
    loaded, stored = {"kv": at.restored_tokens_total}, {"kv": at.stored_tokens_total}
    yield counter("load_back_tokens", "Tokens loaded back to the device.", loaded, "pool")
    yield counter("hicache_backup_tokens", "Tokens backed up to the host.", stored, "pool")
