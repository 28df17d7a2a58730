"""What the simulated engine is a simulation *of*: one TOML file per machine and model.

A profile holds the size of the KV pool, the scheduler's limits and six numbers that price a step.
Every bundled profile says in a comment where its numbers come from.
"""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from concur_agents.errors import ConfigError

_AT_LEAST_ONE = (
    "block_size",
    "kv_blocks",
    "max_num_seqs",
    "max_batched_tokens",
    "max_model_len",
)
_AT_LEAST_ZERO = (
    "prefill_s_per_token",
    "prefill_s_per_token2",
    "decode_s_per_seq",
    "decode_s_per_kv_token",
    "request_overhead_s",
    "restore_tokens_per_s",
)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One engine on one machine with one model. Times are seconds, sizes tokens or blocks.

    A step that prefills n tokens from position p on, while b sequences decode over c tokens of KV,
    takes

        step_overhead_s + n * (prefill_s_per_token + prefill_s_per_token2 * (p + n / 2))
                        + b * decode_s_per_seq + c * decode_s_per_kv_token
    """

    name: str
    description: str
    source: str
    """Where the numbers come from, in a sentence."""
    model: str
    block_size: int
    """Tokens per KV block."""
    kv_blocks: int
    """Blocks in the KV pool."""
    max_num_seqs: int
    """Most sequences in one batch."""
    max_batched_tokens: int
    """Token budget of one step, decodes and prefill chunks together."""
    max_model_len: int
    """Most tokens of one sequence, prompt and output."""
    step_overhead_s: float
    """Cost of any step: reading the weights, launching kernels, scheduling."""
    prefill_s_per_token: float
    prefill_s_per_token2: float
    """Attention: per prefilled token and per token before it."""
    decode_s_per_seq: float
    decode_s_per_kv_token: float
    """Reading the KV of a decoding sequence, per token and step."""
    request_overhead_s: float = 0.0
    """HTTP, tokenizing and queueing before the scheduler sees a request."""
    reserve_full_prompt: bool = True
    """Let a request in only if its whole prompt fits, not just its first chunk (vLLM's
    `scheduler_reserve_full_isl`, on by default there)."""
    host_tier_tokens: int = 0
    """Tokens of KV that a tier in the host's memory holds behind the pool; 0: there is none."""
    restore_tokens_per_s: float = 0.0
    """How fast the host's copies come back into the pool."""
    host_tier_writes: str = "through"
    """When copies are made: "through", as sequences finish, or "back", as the pool evicts."""

    def __post_init__(self) -> None:
        for field in _AT_LEAST_ONE:
            self._check(getattr(self, field) >= 1, field, "at least 1")
        self._check(self.host_tier_tokens >= 0, "host_tier_tokens", "at least 0")
        if self.host_tier_tokens:
            at_least = self.host_tier_tokens >= self.block_size
            self._check(at_least, "host_tier_tokens", f"a block of {self.block_size} or more")
            rated = self.restore_tokens_per_s > 0
            self._check(rated, "restore_tokens_per_s", "above 0 where there is a host tier")
        known = self.host_tier_writes in ("through", "back")
        self._check(known, "host_tier_writes", "'through' or 'back'")
        # Without it time would stand still.
        self._check(self.step_overhead_s > 0, "step_overhead_s", "above 0 s")
        for field in _AT_LEAST_ZERO:
            self._check(getattr(self, field) >= 0, field, "at least 0 s")
        # Else a full batch of decodes would leave no room to prefill.
        wish = f"above max_num_seqs {self.max_num_seqs}"
        self._check(self.max_batched_tokens > self.max_num_seqs, "max_batched_tokens", wish)

    def _check(self, ok: bool, field: str, wish: str) -> None:
        if not ok:
            got = getattr(self, field)
            raise ConfigError(f"{field} must be {wish}, got {got} in profile {self.name!r}")

    @property
    def capacity_tokens(self) -> int:
        """Tokens of KV that fit into the pool."""
        return self.kv_blocks * self.block_size

    @property
    def longest_context(self) -> int:
        """Most tokens of a prompt and its answer: the model's, or the pool's if that is smaller."""
        return min(self.max_model_len, self.capacity_tokens)

    def replace(self, **changes: Any) -> Profile:
        """The same profile with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)


def profile_names() -> list[str]:
    """Names of the bundled profiles, sorted."""
    return sorted(
        file.name.removesuffix(".toml")
        for file in _bundled().iterdir()
        if file.name.endswith(".toml")
    )


def load_profile(name_or_path: str | Path) -> Profile:
    """A bundled profile by name, or any profile by the path of its TOML file (ends in `.toml`).

    Raises:
        ConfigError: no such profile, or the file does not hold one.
    """
    if str(name_or_path).endswith(".toml"):
        path = Path(name_or_path)
        name = path.stem
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot read profile {path}: {error.strerror}") from error
    else:
        name = str(name_or_path)
        if name not in profile_names():
            raise ConfigError(
                f"no engine profile named {name!r}; there are {', '.join(profile_names())}, "
                "or give the path of a .toml file"
            )
        text = (_bundled() / f"{name}.toml").read_text(encoding="utf-8")
    try:
        fields = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"profile {name!r} is not valid TOML: {error}") from error
    known = {field.name: field for field in dataclasses.fields(Profile)}
    if unknown := sorted(set(fields) - set(known)):
        raise ConfigError(f"profile {name!r} has unknown fields {', '.join(unknown)}")
    missing = [
        field.name
        for field in known.values()
        if field.default is dataclasses.MISSING and field.name not in {"name", *fields}
    ]
    if missing:
        raise ConfigError(f"profile {name!r} lacks {', '.join(missing)}")
    for key, value in fields.items():
        wanted = known[key].type
        fits = {
            "str": isinstance(value, str),
            "bool": isinstance(value, bool),
            "int": isinstance(value, int) and not isinstance(value, bool),
            "float": isinstance(value, int | float) and not isinstance(value, bool),
        }[str(wanted)]
        if not fits:
            raise ConfigError(f"{key} must be {wanted}, got {value!r} in profile {name!r}")
    return Profile(**{"name": name, **fields})


def _bundled() -> resources.abc.Traversable:
    return resources.files("concur_agents.sim") / "profiles"
