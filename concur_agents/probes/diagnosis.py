"""The diagnosis of an endpoint: signals, findings, and the proof of its cache.

`doctor.py` makes one; `concur doctor` prints it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias

from concur_agents.probes.pinning import PinProof

Verdict: TypeAlias = Literal["good", "usable", "unusable"]
Level: TypeAlias = Literal["info", "warning", "error"]

MEANINGS: Final[Mapping[str, str]] = {
    "kv_usage": "share of the KV pool held by requests in flight",
    "capacity_tokens": "size of the KV pool [tokens]",
    "hit_tokens_total": "prompt tokens served from the prefix cache",
    "query_tokens_total": "prompt tokens looked up in the prefix cache",
    "running": "requests being computed",
    "waiting": "requests queued in the engine",
    "preemptions_total": "requests removed from the batch",
    "computed_tokens_total": "prompt tokens that were prefilled",
    "prefill_s_total": "time in prefill, summed over requests [s]",
    "generated_tokens_total": "output tokens",
    "decode_s_total": "time in decode, summed over requests [s]",
    "host_capacity_tokens": "size of the tier behind the KV pool [tokens]",
    "host_used_tokens": "what that tier holds [tokens]",
    "host_hit_tokens_total": "cached prompt tokens that came from that tier",
}
"""Signal -> its meaning in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One number that a governor can use."""

    name: str
    """Field of a `Reading`."""
    meaning: str
    value: float | None
    """The value read; None: the endpoint does not report it."""
    sources: tuple[str, ...]
    """Names of the metrics that it was read from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fact about the endpoint. A warning makes it `usable`, an error `unusable`."""

    level: Level
    text: str
    flag: str | None = None
    """The option of the engine that would fix it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheProof:
    """What two requests with the same prompt showed."""

    prompt_tokens: int
    """Length of the prompt [tokens]."""
    first_cached_tokens: int | None
    """Cached tokens of the first request; None: not reported."""
    second_cached_tokens: int | None
    """Cached tokens of the second request: near `prompt_tokens` where caching works."""
    first_s: float
    """Time to the first answer [s]."""
    second_s: float
    """Time to the second answer [s]."""
    hit_counter_rose_tokens: float | None
    """Rise of the engine's own hit counter meanwhile; None: it has no such counter."""

    @property
    def works(self) -> bool:
        """Whether the answer reports cached tokens for the second request."""
        return bool(self.second_cached_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The result of an examination; `--json` prints `as_dict()`."""

    url: str
    engine: str | None
    """vllm, sglang or dynamo; None: not recognised."""
    backend: str | None = None
    """The engine behind a Dynamo worker."""
    version: str | None = None
    model: str | None = None
    """The model that the two requests went to, or would go to."""
    models: tuple[str, ...] = ()
    max_model_len: int | None = None
    """Longest context [tokens]."""
    capacity_tokens: float | None = None
    """KV pool of the endpoint [tokens]."""
    smallest_capacity_tokens: float | None = None
    """KV pool of its smallest rank: the most that one agent can use [tokens]."""
    pools: int = 0
    """KV pools on the page: data-parallel ranks or replicas."""
    block_size: int | None = None
    """Tokens per KV block."""
    prefix_caching: bool | None = None
    """None: the endpoint does not report it."""
    signals: tuple[Signal, ...] = ()
    proof: CacheProof | None = None
    """None: the two requests were not sent, or failed."""
    pinning: PinProof | None = None
    """Whether calls can be pinned to one of several pools; None: not tested."""
    findings: tuple[Finding, ...] = ()
    code: tuple[str, ...] = ()
    """Lines of Python to begin with."""

    @property
    def verdict(self) -> Verdict:
        """The level of the worst finding."""
        levels = {finding.level for finding in self.findings}
        return "unusable" if "error" in levels else "usable" if "warning" in levels else "good"

    @property
    def exit_code(self) -> int:
        """0 good, 1 usable with warnings, 2 not usable."""
        return {"good": 0, "usable": 1, "unusable": 2}[self.verdict]

    @property
    def flags(self) -> tuple[str, ...]:
        """Options to add to the engine's command line, each once."""
        return tuple(dict.fromkeys(f.flag for f in self.findings if f.flag))

    def as_dict(self) -> dict[str, Any]:
        """The diagnosis as JSON-able values, with stable keys."""
        return asdict(self) | {
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "flags": list(self.flags),
        }
