"""What comes in: what an engine said of itself (`Reading`) and of one call (`Usage`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look at an engine.  Every field but `at_s` may be None: the engine did not tell.

    Counters (`*_total`) only rise; a fall means that the engine restarted.  The Regulator takes
    the differences itself, so a reading needs no memory of the one before.
    """

    at_s: float
    """When it was read [s, the host's monotonic clock]."""
    kv_usage: float | None = None
    """Share of the KV pool held by requests in flight, 0..1.  Idle prefixes count as free."""
    capacity_tokens: float | None = None
    """Size of the KV pool [tokens]."""
    hit_tokens_total: float | None = None
    """Prompt tokens served from the prefix cache."""
    query_tokens_total: float | None = None
    """Prompt tokens looked up in the prefix cache: hits and misses."""
    running: float | None = None
    """Requests being computed now."""
    waiting: float | None = None
    """Requests queued inside the engine now."""
    preemptions_total: float | None = None
    """Requests thrown out of the batch to be computed again."""
    computed_tokens_total: float | None = None
    """Prompt tokens really prefilled, i.e. not cached."""
    prefill_s_total: float | None = None
    """Time spent in prefill, summed over requests [s]."""
    generated_tokens_total: float | None = None
    """Output tokens."""
    decode_s_total: float | None = None
    """Time spent in decode, summed over requests [s]."""

    def __post_init__(self) -> None:
        if self.kv_usage is not None and not 0.0 <= self.kv_usage <= 1.0 + 1e-6:
            raise ValueError(f"kv_usage must be a share between 0 and 1, got {self.kv_usage}")
        if self.capacity_tokens is not None and not self.capacity_tokens > 0:
            raise ValueError(f"capacity_tokens must be above 0, got {self.capacity_tokens}")


@dataclass(frozen=True, slots=True)
class Usage:
    """What one LLM call took, as the response's `usage` says."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None
    """Prompt tokens found in the prefix cache.  None: the server did not say."""

    def __post_init__(self) -> None:
        if self.prompt_tokens < 0 or self.completion_tokens < 0 or (self.cached_tokens or 0) < 0:
            raise ValueError(f"token counts must be at least 0, got {self}")
