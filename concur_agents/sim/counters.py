"""What a simulated engine counts, and what its metrics page shows of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Totals:
    """What an engine counts from its start, or from its last restart, on; see `EngineCounters`."""

    query_tokens_total: int = 0
    hit_tokens_total: int = 0
    host_hit_tokens_total: int = 0
    prompt_tokens_total: int = 0
    cached_tokens_total: int = 0
    cached_host_tokens_total: int = 0
    restored_tokens_total: int = 0
    computed_tokens_total: int = 0
    generated_tokens_total: int = 0
    preemptions_total: int = 0
    finished_total: int = 0
    queue_s_total: float = 0.0
    prefill_s_total: float = 0.0
    decode_s_total: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineCounters:
    """What an engine's metrics page would say. Totals only rise, until a restart."""

    at_s: float
    capacity_tokens: int
    block_size: int
    kv_blocks: int
    kv_usage: float
    """Share of blocks held by scheduled requests; cached blocks without a holder count as free."""
    running: int
    waiting: int
    query_tokens_total: int
    """Prompt tokens looked up in the cache, at first admission."""
    hit_tokens_total: int
    """Those of them that the KV pool had."""
    host_hit_tokens_total: int
    """Those behind them that the host tier had."""
    prompt_tokens_total: int
    """Prompt tokens of requests whose prefill is done, cached or not."""
    cached_tokens_total: int
    """Those of them that came from the cache, the host tier included."""
    cached_host_tokens_total: int
    """Those that came from the host tier."""
    restored_tokens_total: int
    """Tokens copied from the host tier into the pool, also again after a preemption."""
    stored_tokens_total: int
    """Tokens copied from the pool to the host tier."""
    host_capacity_tokens: int
    """What the host tier holds at most; 0: there is none."""
    host_used_tokens: int
    computed_tokens_total: int
    """Tokens really prefilled, also those computed again after a preemption."""
    generated_tokens_total: int
    preemptions_total: int
    finished_total: int
    evicted_tokens_total: int
    steps_total: int
    queue_s_total: float
    """Sum over finished requests: from submission until first let in."""
    prefill_s_total: float
    """Sum over finished requests: from first let in until the first token."""
    decode_s_total: float
    """Sum over finished requests: from the first to the last token."""
