"""What crosses the core's door: what comes in, what a law sees and decides, what is answered."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import NamedTuple

from concur_agents.core.why import Reason

AgentId = str

_MOST_TOKENS = 1e12  # no prompt and no pool is larger
_MOST_COUNTED = 1e15  # no counter comes so far; beyond it a double no longer counts one by one


def is_plausible(tokens: float) -> bool:
    """Whether a prompt or a pool can be so large; NaN and infinity cannot."""
    return 0 <= tokens <= _MOST_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look at an engine.  Every field but `at_s` may be None: the engine does not report it.

    A number that cannot be meant (NaN, infinity, a negative counter, a pool of more than 1e12
    tokens) becomes None.  Counters (`*_total`) only rise; a fall means that the engine restarted.
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
    """Prompt tokens really prefilled, not cached."""
    prefill_s_total: float | None = None
    """Time spent in prefill [s], summed over requests or busy time: engines differ."""
    generated_tokens_total: float | None = None
    """Output tokens."""
    decode_s_total: float | None = None
    """Time spent in decode, summed over requests [s]."""
    host_capacity_tokens: float | None = None
    """Size of the tier behind the KV pool, in the host's memory or beyond [tokens]."""
    host_used_tokens: float | None = None
    """What that tier holds now [tokens]."""
    host_hit_tokens_total: float | None = None
    """Those of the cached prompt tokens that came from that tier."""

    def __post_init__(self) -> None:
        if self.kv_usage is not None and not 0.0 <= self.kv_usage <= 1.0 + 1e-6:
            raise ValueError(f"kv_usage must be a share between 0 and 1, got {self.kv_usage}")
        if self.capacity_tokens is not None and not self.capacity_tokens > 0:
            raise ValueError(f"capacity_tokens must be above 0, got {self.capacity_tokens}")
        for each in fields(self)[1:]:
            value = getattr(self, each.name)
            most = _MOST_TOKENS if each.name.endswith("capacity_tokens") else _MOST_COUNTED
            if value is not None and not 0 <= value <= most:
                object.__setattr__(self, each.name, None)


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

    @property
    def is_plausible(self) -> bool:
        """Whether a call can have taken this much; if not, the step counts as of unknown usage."""
        return (
            0 <= self.prompt_tokens <= _MOST_TOKENS
            and 0 <= self.completion_tokens <= _MOST_TOKENS
            and 0 <= (self.cached_tokens or 0) <= _MOST_TOKENS
        )


@dataclass(frozen=True, slots=True)
class Limit:
    """What a law decides.  All bounds hold at once; infinity means that one does not bind."""

    agents: float = math.inf
    """At most this many active agents (rounded down, but at least one is always let in)."""
    tokens: float = math.inf
    """At most this much pressure, the sum of all claims [tokens]."""
    hold_s_per_token: float = math.inf
    """How long an idle claim holds: it fades as exp(-idle / (footprint x this)) [s/token]."""
    enter_tokens: float = math.inf
    """The same once a new or cold agent is in [tokens]: below `tokens` it leaves room to grow."""
    open_agents: float = math.inf
    """Beyond this many open agents (admitted once, not done), those come before new ones."""
    near_tokens: float = math.inf
    """Beyond this much pressure a cold agent enters only while the open agents will fit."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if not value >= 0:
                raise ValueError(f"limit on {each.name} must be at least 0, got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything a law may decide from; `at_s` is the time.

    Sums are since the snapshot before, `interval_s` ago.  Totals count from the Regulator's start
    and never fall, also when the engine restarts.
    """

    at_s: float
    interval_s: float
    reading: Reading | None
    """The engine's own report; None: the poll failed."""
    capacity_tokens: float | None
    """KV pool that is reported, or the tier behind it if that is larger, or more if hits prove that
    [tokens]; None: it is not reported.
    """
    near_tokens: float | None = None
    """The KV pool itself, where a host tier behind it makes `capacity_tokens` larger [tokens]."""
    learned_tokens: float | None
    """Pool size inferred from which prefixes survived [tokens]; None: no evidence yet."""
    proven_tokens: float
    """The most that prefixes have survived [tokens]: the pool is at least this."""
    hit_tokens_total: float
    """Prompt tokens served from cache; from the engine's counters, else from `usage`."""
    query_tokens_total: float
    """Prompt tokens asked for; same source as `hit_tokens_total`."""
    cached_known: bool
    """Whether responses or counters have ever reported cached tokens."""
    active: int
    reasoning: int
    waiting: int
    """Agents queued or paused."""
    paused: int
    """Those of them that have begun."""
    open_agents: int
    """Agents admitted once and not done."""
    was_bound: bool
    """An agent had to wait since the last snapshot: the limit was felt."""
    pressure_tokens: float
    """Sum of claims now [tokens]."""
    reasoning_tokens_mean: float
    """Tokens claimed by reasoning agents, averaged over about half a minute."""
    footprint_mean: float
    """Mean footprint of the agents that have a context and have not left [tokens]."""
    final_tokens: float
    """What an agent is expected to hold when it leaves [tokens]; 0: not known."""
    gaps_s: tuple[float, ...]
    """Recent times from the end of an agent's call to its next boundary: quantiles, rising [s]."""
    prefill_s_per_token: float | None
    """Estimated engine time per uncached prompt token [s]."""
    step_s: float
    """Time of the steps that ended well since the last snapshot, summed [s]."""
    output_tokens: float
    """Their output, summed."""
    steps: int
    """Steps that ended well since the last snapshot."""
    overloads: int
    """Steps the endpoint refused (429, 503) since the last snapshot."""
    retry_after_s: float
    """Longest Retry-After among them [s]."""


class State(enum.Enum):
    """Where an agent stands."""

    QUEUED = "queued"  # it waits and has no context yet
    REASONING = "reasoning"  # active, a call is in flight
    ACTING = "acting"  # active, running a tool
    PAUSED = "paused"  # stopped at a boundary, waiting to be let in again
    SUSPENDED = "suspended"  # holds no place and asks for none: in a long tool, say
    DONE = "done"  # it has left

    def __init__(self, word: str) -> None:
        self.is_active = word in ("reasoning", "acting")  # such an agent holds a place


class Transition(NamedTuple):
    """An agent with a place of its own has moved (its children share the place, and its moves)."""

    agent: AgentId
    before: State | None
    """None: it has just arrived."""
    after: State
    reason: Reason | None = None
    """Why it waits, where `after` is QUEUED or PAUSED."""


class Decision(list[AgentId]):
    """The ids of the agents that a call has let in, in order; `transitions` has every move."""

    __slots__ = ("transitions",)

    def __init__(
        self, let_in: Iterable[AgentId] = (), transitions: tuple[Transition, ...] = ()
    ) -> None:
        super().__init__(let_in)
        self.transitions = transitions


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The Regulator at one instant, for eyes, logs and tests."""

    at_s: float
    active: int
    reasoning: int
    acting: int
    paused: int
    queued: int
    suspended: int = 0
    """Agents that have given their place back for a while."""
    done_total: int
    pressure_tokens: float
    capacity_tokens: float | None
    footprint_tokens: float
    limit: Limit
    reason: str
    """Code of the decision in force."""
    hit_rate: float | None
    """Cached share of the prompt tokens between the last two ticks; None: no prompt tokens."""
    hit_deficit: float | None
    """1 - H/H*, over recent steps of agents that had a context; None: no such step."""
    pauses_total: int
    overdue_total: int
    stalls_total: int = 0
    """Agents let in because nothing moved, see `Regulator`."""
    longest_wait_s: float
    reported_tokens: float | None = None
    """KV pool that is reported [tokens]; `capacity_tokens` is larger if hits prove more."""
    pools: Mapping[str, View] = field(default_factory=dict)
    """Of a fleet: each of its pools.  The rest are sums then, or means where a sum says nothing."""


class AgentView(NamedTuple):
    """One agent at one instant, for eyes and tests."""

    agent: AgentId
    parent: AgentId | None
    """Whose place it shares."""
    state: str
    """A value of `State`."""
    since_s: float
    """When that began, on the host's clock [s]."""
    footprint_tokens: float
    held_tokens: float
    """What it claims for the call that it is in; 0: it is in none."""
    steps: int
    """Steps that have ended well."""
    pool: str | None = None
    """Of a fleet: the pool that it is in; None: none, or there is one."""
