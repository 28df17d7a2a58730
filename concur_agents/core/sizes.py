"""Footprints from usage: who holds what, what came back from the cache, what a step needs.

The ledger knows agents and tokens.  It does not know limits: who may run is the window's affair.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from concur_agents.core.family import Account
from concur_agents.core.peak_forecast import PeakForecast
from concur_agents.core.prefixes import Chain, Prefixes
from concur_agents.core.price import PriceEstimator
from concur_agents.core.reading import Usage
from concur_agents.core.residency import Residency

_SLACK_TOKENS = 64
"""A prefix counts as fully reused if at most this much is missing: engines cache whole blocks."""
_FIRST_PROMPT_TOKENS = 2048.0
"""Least that a first prompt is assumed to be while no agent has shown one."""
_UNSEEN = 32
"""So many agents of unknown size may come in at once: each is assumed to fill that part of the
pool.  The first answer tells how large they are, so a larger batch waits for one call; a burst of
all of them could have filled the pool several times over by then."""
_OUTPUT_TOKENS = 256.0
"""Assumed output of a step while none has ended."""
_GROWTH = 10.0
"""How many times its first prompt an agent is assumed to grow to while none has left."""
_OWN_GAIN = 0.25
"""How far one step moves what an agent's own steps are like."""
_GAPS, _QUANTILES = 256, 32
_NEWCOMERS, _LEAST_NEWCOMERS = 16, 4


@dataclass(slots=True)
class Evidence:
    """Sums since the last snapshot."""

    steps: int = 0
    failures: int = 0
    overloads: int = 0
    retry_after_s: float = 0.0
    step_s: float = 0.0
    output: float = 0.0


@dataclass(slots=True)
class Mean:
    """A running mean with a memory of about `most` values."""

    value: float = 0.0
    """The mean; what is assumed while there is no value."""
    count: int = 0
    """Values so far, at most `most`."""
    most: int = 20

    def add(self, x: float) -> None:
        """One more value."""
        if self.count < self.most:
            self.count += 1
        self.value += (x - self.value) / self.count


@dataclass(slots=True)
class Sizes:
    """All agents' sizes, what they came back to, and what a step costs."""

    residency: Residency = field(default_factory=Residency)
    prefixes: Prefixes = field(default_factory=Prefixes)
    peak_forecast: PeakForecast | None = None
    """Kept only where waiting is bounded."""
    cost: PriceEstimator = field(default_factory=PriceEstimator)
    evidence: Evidence = field(default_factory=Evidence)
    first_prompt: Mean = field(default_factory=Mean)
    output: Mean = field(default_factory=lambda: Mean(_OUTPUT_TOKENS))
    growth: Mean = field(default_factory=Mean)
    prompt_tokens_total: float = 0.0
    cached_tokens_total: float = 0.0
    cached_known: bool = False
    footprint_tokens: float = 0.0
    """Sum of the footprints of all agents that have started and not left."""
    recent_reusable: float = 0.0
    recent_reused: float = 0.0
    gaps_s: deque[float] = field(default_factory=lambda: deque(maxlen=_GAPS))
    """Recent times from the end of an agent's call to its next boundary [s]."""
    _finals: deque[float] = field(default_factory=lambda: deque(maxlen=_NEWCOMERS))
    """Footprints of the last agents as they left."""
    contexts: int = 0
    """Agents that have sent something and not left."""
    _newcomers: deque[int] = field(default_factory=lambda: deque(maxlen=_NEWCOMERS))
    """Cached tokens that recent first prompts found."""
    _found: int = 0
    """Their median; 0 while they are too few."""

    def need(self, account: Account) -> float:
        """Tokens `account` will hold at the end of its next step, shared ones left out."""
        prompt = account.expected_prompt
        if prompt is None:
            if account.has_context:
                growth = account.growth_mean
                if growth is None:
                    growth = self.growth.value
                prompt = account.footprint + growth
            else:
                prompt = self.first_prompt.value or self._unseen_prompt
        output = account.output_mean
        if output is None:
            output = self.output.value
        tokens = prompt + output + account.family_tokens
        if account.chain:
            tokens -= self.prefixes.shared(account.chain)
        if tokens < 1.0:  # not max(): a call costs, and this is asked at every boundary
            return 1.0
        return tokens

    def held(self, account: Account) -> float:
        """Tokens `account` holds while idle, shared ones left out."""
        tokens = account.footprint + account.family_tokens
        if account.chain:
            tokens -= self.prefixes.shared(account.chain)
        if tokens < 1.0:
            return 1.0
        return tokens

    def grown(self, newcomer: Account) -> float:
        """What `newcomer` may come to hold in the end, told by its first prompt alone [tokens]."""
        prompt = newcomer.expected_prompt or self.first_prompt.value or self._unseen_prompt
        return _GROWTH * prompt

    @property
    def _unseen_prompt(self) -> float:
        pool = self.residency.capacity_tokens or 0.0
        return max(_FIRST_PROMPT_TOKENS, pool / _UNSEEN)

    def begin(self, account: Account, in_calls: float) -> None:
        """A step begins: its blocks will be pinned.  `in_calls`: tokens pinned by other agents."""
        if account.lru_entry.position:
            account.distance = in_calls + self.residency.distance(account.lru_entry)
            self.residency.remove(account.lru_entry)
        else:
            account.distance = None

    def refused(self, retry_after_s: float) -> None:
        """The endpoint refused a call for lack of capacity, and asked to wait so long [s]."""
        self.evidence.overloads += 1
        self.evidence.retry_after_s = max(self.evidence.retry_after_s, retry_after_s)

    def end(self, who: Account, usage: Usage, step_s: float) -> None:
        """A step of `who` (an agent or a child) ended well.

        Args:
            who: whose call it was.
            usage: what the response said.
            step_s: from begin to end [s].
        """
        prompt, output, cached = usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens
        evidence = self.evidence
        evidence.steps += 1
        evidence.step_s += step_s
        evidence.output += output
        self.prompt_tokens_total += prompt
        if cached is not None:
            self.cached_known = True
            if cached > prompt:
                cached = prompt
            self.cached_tokens_total += cached
            self.cost.observe(step_s, prompt - cached, output)
            if who.has_context:
                self._compare(who, prompt, cached)
            elif who.parent is None:
                self._newcomers.append(cached)
                if len(self._newcomers) >= _LEAST_NEWCOMERS:
                    self._found = sorted(self._newcomers)[(len(self._newcomers) - 1) // 2]
        if who.has_context:
            grown = prompt - who.footprint
            if grown < 0.0:
                grown = 0.0
            self.growth.add(grown)
            mean = who.growth_mean
            who.growth_mean = grown if mean is None else mean + _OWN_GAIN * (grown - mean)
            who.work_tokens += grown + output
        else:
            self.first_prompt.add(prompt)
            who.first_prompt = prompt
            who.work_tokens += prompt + output
        self.output.add(output)
        mean = who.output_mean
        who.output_mean = output if mean is None else mean + _OWN_GAIN * (output - mean)
        who.steps += 1
        who.has_context = True
        who.last_prompt = prompt
        if self._found:
            self._credit(who)
        who.generation = self.residency.generation
        who.distance = None
        self._set_footprint(who, float(prompt + output))

    def share(self, account: Account, chain: Chain, *, seen_cached: bool = False) -> None:
        """`account` holds the prefix named by `chain` from now on."""
        self.unshare(account)
        account.chain = tuple(chain)
        account.is_credited = seen_cached
        self.prefixes.join(account.chain, seen_cached=seen_cached)

    def _credit(self, who: Account) -> None:
        """Count `who` towards the prefix that newcomers find cached, if its prompt holds as much.

        The median of the last few decides: the first of a burst come too early to find anything,
        and one that takes up an old conversation finds all of it.
        """
        if who.parent is not None or (who.chain and not who.is_credited):
            return
        found = self._found
        if _SLACK_TOKENS < found <= who.first_prompt:
            chain = ((("found cached", found), float(found)),)
            if who.chain != chain:  # all follow the median, or several lengths would be charged
                self.share(who, chain, seen_cached=True)

    def unshare(self, account: Account) -> None:
        """`account` no longer counts towards any shared prefix."""
        if account.chain:
            self.prefixes.part(account.chain)
            account.chain = ()

    def close(self, account: Account) -> None:
        """`account` is gone for good."""
        if account.has_context and account.parent is None:
            self._finals.append(account.footprint)
            if self.peak_forecast is not None:
                self.peak_forecast.finals.append(account.footprint)
        self.unshare(account)
        self.residency.leave_behind(account.lru_entry)
        self._set_footprint(account, 0.0)

    def restart(self) -> None:
        """The engine lost its cache: every prefix has to be computed again."""
        self.residency.clear()

    def _compare(self, who: Account, prompt: int, cached: int) -> None:
        """What `who` had sent before against what was still cached of it."""
        if who.generation != self.residency.generation:
            return  # the engine has restarted since: the miss is not for want of room
        reusable = float(min(who.last_prompt, prompt))
        if prompt < 0.5 * who.last_prompt or reusable <= _SLACK_TOKENS:
            return  # the context was cut or rewritten: nobody knows what could have been reused
        reused = reusable if cached >= reusable - _SLACK_TOKENS else float(cached)
        self.recent_reusable = 0.98 * self.recent_reusable + reusable
        self.recent_reused = 0.98 * self.recent_reused + reused
        own, kept = reusable, reused
        if who.chain:
            shared = self.prefixes.shared(who.chain)
            own, kept = reusable - shared, max(0.0, reused - shared)
        if who.distance is not None and own > _SLACK_TOKENS:
            self.residency.observe(who.distance, own, kept)

    @property
    def final_mean(self) -> float:
        """What an agent comes to hold: the mean of the last that left [tokens]; 0: not known.

        While few have left, `_GROWTH` times the first prompt: the short ones leave first.
        """
        if len(self._finals) >= _LEAST_NEWCOMERS:
            return sum(self._finals) / len(self._finals)
        return max(_GROWTH * self.first_prompt.value, self.footprint_mean)

    @property
    def footprint_mean(self) -> float:
        """Mean footprint of the agents that have started [tokens]."""
        return self.footprint_tokens / self.contexts if self.contexts else 0.0

    def gap_quantiles(self) -> tuple[float, ...]:
        """Evenly spaced quantiles of `gaps_s`, at most 32."""
        gaps, n = sorted(self.gaps_s), len(self.gaps_s)
        if n <= _QUANTILES:
            return tuple(gaps)
        return tuple(gaps[int((i + 0.5) * n / _QUANTILES)] for i in range(_QUANTILES))

    def _set_footprint(self, who: Account, tokens: float) -> None:
        self.contexts += (tokens > 0) - (who.footprint > 0)
        self.footprint_tokens += tokens - who.footprint
        if who.parent is not None:
            who.parent.family_tokens += tokens - who.footprint
        elif self.peak_forecast is not None:
            self.peak_forecast.change(who.footprint, tokens)
        who.footprint = tokens
