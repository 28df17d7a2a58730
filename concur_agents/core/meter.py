"""What is measured between two ticks: the engine's counters, steps, time averages -> Snapshot."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from concur_agents.core.admission import GROWS, Admission
from concur_agents.core.price import PriceEstimator
from concur_agents.core.types import Reading, Snapshot, Usage

_MEMORY_S = 30.0  # of time averages: several steps of an agent, few of its lives
_MOMENT_S = 1.0  # changes within a moment fade together: no exponential at each call
_GAPS, _QUANTILES = 256, 32
_MOST_RETRY_S = 3600.0  # longest Retry-After believed: one absurd header must not end all growth
# So many readings in a row have to imply a pool so many times as large as reported, each at this
# share of usage at least.
_READINGS, _WRONG, _LEAST_USAGE = 8, 4.0, 0.01
_BEYOND = 1.25  # hits prove a reported pool wrong if it held so many times as much
# A pool has room below this usage, and is ours if usage implies this share of what is reported,
# so many readings in a row.  Then this share of it holds whatever agents have sent last.
_FULL, _AGREES, _AGREED, _SURE = 0.85, 0.8, 3, 0.95
# A host tier counts as pool while idle contexts would take this share of the pool at least, as
# restores over PCIe take about as much of the engine's time.  Not before so many agents came back.
_IDLE_SHARE, _RETURNS = 0.2, 8
_FORGET = 0.95  # left of the difference to the engine's count of prompts, from reading to reading


@dataclass(slots=True)
class Meter:
    """Sums since the last snapshot, and totals."""

    start_s: float
    price: PriceEstimator
    hit_rate: float | None = None  # cached share between the last two ticks
    told_tokens: float | None = None  # the pool, or the tier behind it, as reported last
    near_tokens: float | None = None  # the pool itself, if a tier behind it counts as pool
    heard_s: float = 0.0  # when the engine was last read

    # what a stall is judged by
    last_call_s: float = 0.0  # when a call last began or ended, or an agent was let in
    has_called: bool = False  # a call has begun at least once
    ended_s: float = -math.inf  # when a call last ended
    stalled_s: float = -math.inf  # when an agent was last let in because nothing moved
    stalls: int = 0  # agents let in because nothing moved, since the last call
    longest_gap_s: float = 0.0  # of the recent ones, older ones fading
    _gaps_s: deque[float] = field(default_factory=lambda: deque(maxlen=_GAPS))
    _calls_s: deque[float] = field(default_factory=lambda: deque(maxlen=_GAPS))  # what they took

    # what the engine's counters say
    _reading: Reading | None = None
    _implied: deque[float] = field(default_factory=lambda: deque(maxlen=_READINGS))  # pool sizes
    _agreed: int = 0  # readings in a row in which the pool had room and usage agreed with it
    _foreign: float = 0.0  # prompts looked up that our agents have not sent [tokens], fading
    _engine_counts: bool = False
    _cached_known: bool = False
    _hit_total: float = 0.0
    _query_total: float = 0.0
    _before: tuple[float, float] = (0.0, 0.0)  # both totals at the last snapshot

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
        self.longest_gap_s = max(gap_s, 0.99 * self.longest_gap_s)

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
        self._calls_s.append(step_s)
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

    def hear(self, reading: Reading, admission: Admission, now: float) -> None:
        """The engine was read: its counters, and its pool."""
        heard_s, self.heard_s = self.heard_s, now
        self._measure_pool(reading, admission, now)
        if self._count(reading):
            admission.sizes.residency.clear(heard_s)

    def _measure_pool(self, reading: Reading, admission: Admission, now: float) -> None:
        """The pool is what the engine reports, unless calls and hits prove that it is far larger.

        A page may count blocks in another unit (hybrid models do), or leave out a host tier.  A
        pool that calls fill to `usage` holds tokens / usage: the least of some readings in a row,
        as a prompt fills its blocks while it is prefilled; what may be shared counts once.

        A tier holds copies, also of what the pool holds, so the larger of both counts, or else the
        pool alone: what hits prove may then be the tier, and is left out.
        """
        near, usage, calls = reading.capacity_tokens, reading.kv_usage, admission.reasoning
        residency = admission.sizes.residency
        if near is None:
            return
        behind = reading.host_capacity_tokens or 0.0
        has_tier = bool(behind or reading.host_hit_tokens_total)
        pays = has_tier and self._tier_pays(near, behind, admission, now)
        self.near_tokens = near if pays else None
        told = max(near, behind) if pays else near
        if told != self.told_tokens:  # another engine, perhaps
            self.told_tokens, residency.held_tokens = told, 0.0
            self._implied.clear()
        in_calls = admission.claims.reasoning_tokens
        if usage is not None and usage > _FULL:
            self._agreed = 0
        elif usage is not None and usage > _LEAST_USAGE and calls and not reading.waiting:
            self._implied.append(in_calls / usage * max(1.0 / calls, admission.sizes.own_share()))
            held = in_calls + admission.sizes.prefixes.charged_tokens
            self._agreed = self._agreed + 1 if held / usage >= _AGREES * near else 0
        # Our calls in flight may have been looked up, and are not over yet.
        shared = min(admission.sizes.prefixes.charged_tokens, admission.sizes.first_prompt.value)
        ours = 1.1 * (in_calls + calls * shared)
        sure = self._agreed >= _AGREED and self._foreign <= ours
        residency.sure_tokens = _SURE * near if sure else 0.0
        pool, held = told, residency.held_tokens
        # Then the pool is a guess that doubles until something is evicted.
        if held > _BEYOND * told and (pays or not has_tier):
            pool = held if residency.learned_tokens is not None else 2.0 * held
        if len(self._implied) == _READINGS and min(self._implied) > _WRONG * told:
            pool = max(pool, min(self._implied))
        residency.capacity_tokens = pool

    def _tier_pays(self, near: float, behind: float, admission: Admission, now: float) -> bool:
        """Whether contexts between two calls would take much of a full pool of `near` tokens.

        A context is in a call and then idle for a gap.  The part of the call that is a wait in the
        engine, because calls need more than the pool, is left out.  While none of it is known, the
        tier pays if it will hold all agents that are here.
        """
        gaps, calls = self._gaps_s, self._calls_s
        if len(gaps) < _RETURNS or not calls:
            head = admission.queue.head(new_allowed=True)
            waiting = len(admission.queue) * admission.sizes.need(head) if head else 0.0
            return GROWS * (admission.pressure(now) + waiting) <= behind
        call_s = sum(calls) / len(calls) * near / max(near, self._mean_in_calls(now))
        gap_s = sum(gaps) / len(gaps)
        return gap_s > 0.0 and gap_s >= _IDLE_SHARE * (gap_s + call_s)

    def _mean_in_calls(self, now: float) -> float:
        seen = 1.0 - math.exp((self.start_s - now) / _MEMORY_S)  # what the mean weighs so far
        return self._tokens_mean / (seen or 1.0)

    def _count(self, reading: Reading) -> bool:
        """Add what the engine has counted; returns whether it has restarted since it was read."""
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
        """What has been since the last one; the sums begin anew."""
        self._average()
        sizes, residency = admission.sizes, admission.sizes.residency
        queries_total = self._query_total if self._engine_counts or self._cached_known else 0.0
        hits, queries = self._hit_total - self._before[0], queries_total - self._before[1]
        if queries < 0:  # the engine's counters have taken over
            hits, queries = self._hit_total, queries_total
        self.hit_rate = hits / queries if queries > 0 else None
        self._before = self._hit_total, queries_total
        snapshot = Snapshot(
            at_s=now,
            interval_s=now - self._ticked_s,
            reading=reading,
            capacity_tokens=residency.capacity_tokens,
            near_tokens=self.near_tokens,
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
            reasoning_tokens_mean=self._mean_in_calls(now),
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
        gaps = sorted(self._gaps_s)
        parts = min(len(gaps), _QUANTILES)
        return tuple(gaps[int((part + 0.5) * len(gaps) / parts)] for part in range(parts))

    def _average(self) -> None:
        passed = self._passed_s - self._averaged_s
        if passed > 0.0:
            gain = 1.0 - math.exp(-passed / _MEMORY_S)
            self._tokens_mean += gain * (self._tokens_times_s / passed - self._tokens_mean)
            self._tokens_times_s = 0.0
            self._averaged_s = self._passed_s
