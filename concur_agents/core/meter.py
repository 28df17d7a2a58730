"""What is measured between two ticks: the engine's counters, steps, time averages -> Snapshot."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from concur_agents.core.admission import Admission
from concur_agents.core.price import PriceEstimator
from concur_agents.core.types import Reading, Snapshot, Usage

_MEMORY_S = 30.0
"""Memory of time averages [s]: several steps of an agent, few of its lives."""
_MOMENT_S = 1.0
"""Changes within a moment are summed up, and fade together: no exponential at each call [s]."""
_GAPS, _QUANTILES = 256, 32
_READINGS, _LEAST_USAGE, _WRONG = 8, 0.01, 4.0
"""Readings in a row that have to imply a pool this many times as large as reported, each at this
share of usage at least."""
_BEYOND = 1.25
"""Hits prove a reported pool wrong if it held this many times as much: sizes are estimates."""
_FULL, _AGREES, _AGREED = 0.85, 0.8, 3
"""A pool has room below this usage, and is ours if usage implies this share of what is reported,
readings in a row."""
_SURE = 0.95
"""This share of such a pool holds whatever agents have sent last."""
_FORGET = 0.95
"""What is left of the difference to the engine's count of prompts, from reading to reading."""
_MOST_RETRY_S = 3600.0
"""The longest Retry-After that is believed [s]: one absurd header must not end all growth."""


@dataclass(slots=True)
class Meter:
    """Sums since the last snapshot, and totals."""

    start_s: float
    price: PriceEstimator
    hit_rate: float | None = None
    """Cached share between the last two ticks."""
    heard_s: float = 0.0
    """When the engine was last read [s]."""
    last_call_s: float = 0.0
    """When a call last began or ended, or an agent was let in [s]."""
    has_called: bool = False
    """Whether a call has ever begun."""
    stalls: int = 0
    """Agents let in because nothing moved, since the last call."""
    ended_s: float = -math.inf
    """When a call last ended [s]."""
    stalled_s: float = -math.inf
    """When an agent was last let in because nothing moved [s]."""
    _gaps_s: deque[float] = field(default_factory=lambda: deque(maxlen=_GAPS))
    _longest_gap_s: float = 0.0
    _reading: Reading | None = None
    told_tokens: float | None = None
    """The pool as the engine reported it last [tokens]; what is used may be larger."""
    _implied: deque[float] = field(default_factory=lambda: deque(maxlen=_READINGS))
    """Pool sizes that usage and the tokens in calls imply, one for each reading [tokens]."""
    _agreed: int = 0
    """Readings in a row in which the pool had room and usage agreed with it."""
    _foreign: float = 0.0
    """Prompts that the engine has looked up and our agents have not sent [tokens], fading."""
    _engine_counts: bool = False
    _cached_known: bool = False
    _hit_total: float = 0.0
    _query_total: float = 0.0
    _before: tuple[float, float] = (0.0, 0.0)
    # since the last snapshot
    _ticked_s: float = 0.0
    _steps: int = 0
    _overloads: int = 0
    _retry_after_s: float = 0.0
    _step_s: float = 0.0
    _output: float = 0.0
    # the time average up to `_averaged_s`, and what has been since, times how long
    _passed_s: float = 0.0
    _averaged_s: float = 0.0
    _tokens_mean: float = 0.0
    _tokens_times_s: float = 0.0

    def __post_init__(self) -> None:
        self.heard_s = self._ticked_s = self._passed_s = self._averaged_s = self.start_s
        self.last_call_s = self.start_s

    def pass_time(self, now: float, reasoning: int, reasoning_tokens: float) -> None:
        """Until now, so many agents were in calls, with so many tokens."""
        passed = now - self._passed_s
        if passed <= 0.0:
            return
        if now - self._averaged_s >= _MOMENT_S:
            self._average()
        self._passed_s = now
        if reasoning:
            self.price.unseen_s += passed
            self._tokens_times_s += reasoning_tokens * passed

    def called(self, now: float) -> None:
        """A call begins or ends: something moves."""
        self.last_call_s = now
        self.has_called = True
        self.stalls = 0

    def call_ended(self, now: float) -> None:
        """A call is over."""
        self.called(now)
        self.ended_s = now

    def came_back(self, gap_s: float, now: float) -> None:
        """An agent with a context is at a boundary, so long after its last call [s]."""
        self._gaps_s.append(gap_s)
        # An agent that sat out a stall and calls as soon as another's call is over has waited for
        # that one.  As a gap it would double the time until the next stall, again and again.
        if gap_s > now - self.stalled_s and now - self.ended_s < _MOMENT_S:
            return
        self._longest_gap_s = max(gap_s, 0.99 * self._longest_gap_s)

    @property
    def longest_gap_s(self) -> float:
        """The longest recent gap [s], older ones fading."""
        return self._longest_gap_s

    def refused(self, retry_after_s: float) -> None:
        """The endpoint refused a call for lack of capacity, and asked to wait so long [s]."""
        self._overloads += 1
        if retry_after_s > 0.0:  # not where it is NaN
            self._retry_after_s = max(self._retry_after_s, min(retry_after_s, _MOST_RETRY_S))

    def ended(self, usage: Usage, step_s: float) -> None:
        """A step ended well."""
        prompt, cached = usage.prompt_tokens, usage.cached_tokens
        self._steps += 1
        self._foreign -= prompt
        self._step_s += step_s
        self._output += usage.completion_tokens
        if cached is not None:
            cached = min(cached, prompt)
            self.price.observe(step_s, prompt - cached, usage.completion_tokens)
            if not self._engine_counts:
                self._hit_total += cached
        # Prompts count as asked for from the first that says what was cached.
        self._cached_known = self._cached_known or cached is not None
        if not self._engine_counts:
            self._query_total += prompt

    def pool_tokens(self, reading: Reading, admission: Admission) -> float | None:
        """The engine's pool: what it reports, unless calls and hits prove that it is far larger.

        A page may count blocks in another unit (hybrid models do), or leave out a host tier.  While
        `usage` of a pool is full with the tokens that are in calls, it holds tokens / usage; the
        least of some readings in a row, as a prompt fills its blocks only while it is prefilled,
        and what agents may share counts once.
        """
        told, usage, calls = reading.capacity_tokens, reading.kv_usage, admission.reasoning
        if told is None:
            return None
        residency = admission.sizes.residency
        if told != self.told_tokens:  # another engine, perhaps
            self.told_tokens, residency.held_tokens = told, 0.0
            self._implied.clear()
        in_calls = admission.claims.reasoning_tokens
        if usage is not None and usage > _FULL:
            self._agreed = 0
        elif usage is not None and usage > _LEAST_USAGE and calls and not reading.waiting:
            self._implied.append(in_calls / usage * max(1.0 / calls, admission.sizes.own_share()))
            self._agreed = self._agreed + 1 if in_calls / usage >= _AGREES * told else 0
        # Our calls in flight may have been looked up, and are not over yet.
        sure = self._agreed >= _AGREED and self._foreign <= 1.1 * in_calls
        residency.sure_tokens = _SURE * told if sure else 0.0
        pool, held = told, residency.held_tokens
        if held > _BEYOND * told:  # then a guess that doubles until something is evicted
            pool = held if residency.learned_tokens is not None else 2.0 * held
        if len(self._implied) == _READINGS and min(self._implied) > _WRONG * told:
            pool = max(pool, min(self._implied))
        return pool

    def hear(self, reading: Reading, now: float) -> bool:
        """The engine was read; returns whether it has restarted since the reading before."""
        self.heard_s = now
        before, self._reading = self._reading, reading
        if reading.hit_tokens_total is None or reading.query_tokens_total is None:
            return False
        if before is None or before.hit_tokens_total is None or before.query_tokens_total is None:
            if not (self._engine_counts or self._cached_known):
                self._query_total = 0.0
            self._engine_counts = True
            return False
        hits = reading.hit_tokens_total - before.hit_tokens_total
        queries = reading.query_tokens_total - before.query_tokens_total
        restarted = hits < 0 or queries < 0
        if restarted:
            hits, queries = reading.hit_tokens_total, reading.query_tokens_total
        self._hit_total += hits
        self._query_total += queries
        self._foreign = _FORGET * self._foreign + queries
        return restarted

    def snapshot(
        self, reading: Reading | None, admission: Admission, now: float, *, bound: bool
    ) -> Snapshot:
        """What has been since the last one; the sums begin anew.

        Args:
            bound: whether an agent had to wait for the limit.
        """
        self._average()
        sizes, residency = admission.sizes, admission.sizes.residency
        queries_total = self._query_total if self._engine_counts or self._cached_known else 0.0
        hits, queries = self._hit_total - self._before[0], queries_total - self._before[1]
        if queries < 0:  # the engine's counters have taken over
            hits, queries = self._hit_total, queries_total
        self.hit_rate = hits / queries if queries > 0 else None
        self._before = self._hit_total, queries_total
        seen = 1.0 - math.exp((self.start_s - now) / _MEMORY_S)  # what the mean weighs so far
        snapshot = Snapshot(
            at_s=now,
            interval_s=now - self._ticked_s,
            reading=reading,
            capacity_tokens=residency.capacity_tokens,
            learned_tokens=residency.learned_tokens,
            proven_tokens=residency.proven_tokens,
            hit_tokens_total=self._hit_total,
            query_tokens_total=queries_total,
            cached_known=self._cached_known or self._engine_counts,
            active=admission.active,
            reasoning=admission.reasoning,
            waiting=len(admission.queue),
            paused=admission.paused,
            open_agents=admission.open_agents,
            was_bound=bound,
            pressure_tokens=admission.pressure(now),
            reasoning_tokens_mean=self._tokens_mean / (seen or 1.0),
            footprint_mean=sizes.footprint_mean,
            final_tokens=sizes.final_mean,
            gaps_s=self._gap_quantiles(),
            prefill_s_per_token=self.price.prefill_s_per_token,
            step_s=self._step_s,
            output_tokens=self._output,
            steps=self._steps,
            overloads=self._overloads,
            retry_after_s=self._retry_after_s,
        )
        self._ticked_s = now
        self._steps = self._overloads = 0
        self._retry_after_s = self._step_s = self._output = 0.0
        return snapshot

    def _gap_quantiles(self) -> tuple[float, ...]:
        gaps, n = sorted(self._gaps_s), len(self._gaps_s)
        if n <= _QUANTILES:
            return tuple(gaps)
        return tuple(gaps[int((i + 0.5) * n / _QUANTILES)] for i in range(_QUANTILES))

    def _average(self) -> None:
        passed = self._passed_s - self._averaged_s
        if passed > 0.0:
            gain = 1.0 - math.exp(-passed / _MEMORY_S)
            self._tokens_mean += gain * (self._tokens_times_s / passed - self._tokens_mean)
            self._tokens_times_s = 0.0
            self._averaged_s = self._passed_s
