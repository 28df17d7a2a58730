"""Footprints from usage: what each agent holds, what came back from the cache, what a step needs.

Sizes know agents and tokens.  They know no limits: who may run is `admission`'s affair.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from concur_agents.core.family import Account
from concur_agents.core.peak_forecast import PeakForecast
from concur_agents.core.prefixes import Chain, Prefixes
from concur_agents.core.price import PriceEstimator
from concur_agents.core.residency import Residency
from concur_agents.core.types import Usage

_SLACK_TOKENS = 64  # of a prefix may miss and it is fully reused: engines cache whole blocks
_FIRST_PROMPT_TOKENS = 2048.0  # least that a first prompt is assumed to be while none was seen
_OUTPUT_TOKENS = 256.0  # assumed output of a step while none has ended
# This many agents of unknown size may come in at once, each assumed to fill that part of the pool:
# the first answer tells how large they are, and a burst of all could fill the pool several times.
_UNSEEN = 32
_GROWTH = 10.0  # an agent is assumed to grow so many times while few have left
_OWN_GAIN = 0.25  # how far one step moves what an agent's own steps are like
_RECENT, _LEAST_RECENT = 16, 4


@dataclass(slots=True)
class Mean:
    """A running mean with a memory of about 20 values."""

    value: float = 0.0  # what is assumed while there is none
    count: int = 0

    def add(self, x: float) -> None:
        """One more value."""
        if self.count < 20:
            self.count += 1
        self.value += (x - self.value) / self.count


def _moved(mean: float | None, x: float) -> float:
    return x if mean is None else mean + _OWN_GAIN * (x - mean)


@dataclass(slots=True)
class Sizes:
    """All agents' sizes, and what they came back to."""

    residency: Residency = field(default_factory=Residency)
    prefixes: Prefixes = field(default_factory=Prefixes)
    peak_forecast: PeakForecast = field(default_factory=PeakForecast)
    price: PriceEstimator = field(default_factory=PriceEstimator)
    first_prompt: Mean = field(default_factory=Mean)
    output: Mean = field(default_factory=lambda: Mean(_OUTPUT_TOKENS))
    growth: Mean = field(default_factory=Mean)
    footprint_tokens: float = 0.0  # of all agents that have a context and have not left
    contexts: int = 0  # those agents
    recent_reusable: float = 0.0
    recent_reused: float = 0.0
    # Cached tokens that recent first prompts found, and their median; 0 while they are too few.
    _newcomers: deque[int] = field(default_factory=lambda: deque(maxlen=_RECENT))
    _found: int = 0
    # What the members of a group share [tokens], and whether that was found in the cache.
    _groups: dict[str | None, tuple[float, bool]] = field(default_factory=dict)

    def need(self, account: Account) -> float:
        """Tokens `account` will hold at the end of its next step, shared ones left out."""
        prompt, output, growth = account.expected_prompt, account.output_mean, account.growth_mean
        if prompt is None and account.has_context:
            prompt = account.footprint + (self.growth.value if growth is None else growth)
        elif prompt is None:
            prompt = self._first_prompt
        return self._own(account, prompt + (self.output.value if output is None else output))

    def held(self, account: Account) -> float:
        """Tokens `account` holds while idle, shared ones left out."""
        return self._own(account, account.footprint)

    def grown(self, newcomer: Account) -> float:
        """What `newcomer` may come to hold, by its first prompt alone [tokens]."""
        return _GROWTH * (newcomer.expected_prompt or self._first_prompt)

    @property
    def final_mean(self) -> float:
        """What an agent comes to hold: the mean of the last that left [tokens]; 0: not known."""
        # A guess by the first prompt meanwhile, because the short ones leave first.
        return self._finals_mean() or max(_GROWTH * self.first_prompt.value, self.footprint_mean)

    def own_peak(self, need: float) -> float | None:
        """Most that the open agents and one more hold at once, shared tokens left out [tokens].

        None: too few have left to tell, or none of them held anything.

        Args:
            need: what the new one holds at the end of its first step [tokens].
        """
        if len(self.peak_forecast.finals) < _LEAST_RECENT:
            return None
        peak, final = self.peak_forecast.peak_tokens(need), self.final_mean
        if peak is None or not final:  # usages may all say that nothing is held
            return None
        return peak * max(0.0, 1.0 - self._found / final)

    def _finals_mean(self) -> float:
        finals = list(self.peak_forecast.finals)[-_RECENT:]
        return sum(finals) / len(finals) if len(finals) >= _LEAST_RECENT else 0.0

    @property
    def footprint_mean(self) -> float:
        """Mean footprint of the agents that have a context [tokens]."""
        return self.footprint_tokens / self.contexts if self.contexts else 0.0

    def own_share(self, charged: float = 0.0) -> float:
        """Least share of a context that its agent has alone, 0..1.

        So much of it is `charged` once for all already [tokens].  Of first prompts, what newcomers
        find cached may be shared, and all of it while they are few: those of one burst find
        nothing.
        """
        first = self.first_prompt.value
        if len(self._newcomers) >= _RECENT // 2:
            first = min(first, float(max(self._newcomers)))
        mean, shared = self.footprint_mean - charged, max(0.0, first - charged)
        return max(0.0, 1.0 - shared / mean) if mean > 0.0 else 0.0

    def begin(self, account: Account, in_calls: float) -> None:
        """A step begins: its blocks will be pinned.  `in_calls`: tokens pinned by other agents."""
        account.distance = None
        if account.lru_entry.position:
            account.distance = in_calls + self.residency.distance(account.lru_entry)
            self.residency.remove(account.lru_entry)

    def end(self, who: Account, usage: Usage) -> None:
        """A step of `who` (an agent or a child) ended well."""
        prompt, output, cached = usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens
        if cached is not None:
            cached = min(cached, prompt)
            if who.has_context:
                self._compare(who, prompt, cached)
            elif who.parent is None:
                self._learn_group(who, prompt, cached)
                self._newcomers.append(cached)
                if len(self._newcomers) >= _LEAST_RECENT:
                    self._found = sorted(self._newcomers)[(len(self._newcomers) - 1) // 2]
        if who.has_context:
            grown = max(0.0, prompt - who.footprint)
            self.growth.add(grown)
            who.growth_mean = _moved(who.growth_mean, grown)
            who.work_tokens += grown + output
        else:
            self.first_prompt.add(prompt)
            who.first_prompt = prompt
            who.work_tokens += prompt + output
        self.output.add(output)
        who.output_mean = _moved(who.output_mean, output)
        who.steps += 1
        who.has_context = True
        who.last_prompt = prompt
        self.join_group(who)
        self._credit(who)
        who.generation = self.residency.generation
        who.distance = None
        self._set_footprint(who, float(prompt + output))

    def cut_short(self, who: Account, usage: Usage) -> None:
        """A step of `who` was aborted: what it holds is known, what a step takes is not."""
        if not who.has_context:
            who.first_prompt = usage.prompt_tokens
            who.has_context = True
        who.last_prompt = usage.prompt_tokens
        self.join_group(who)
        who.generation = self.residency.generation
        who.distance = None
        self._set_footprint(who, float(usage.prompt_tokens + usage.completion_tokens))

    def join_group(self, account: Account) -> None:
        """`account`, if it is active, shares its first prompt with its group, if its size is known.

        One member is enough for the prompt to be charged as shared, because the others follow.
        """
        if account.group is None or not account.state.is_active:
            return
        if account.chain and not account.is_credited:  # it is named
            return
        tokens = account.first_prompt or account.expected_prompt
        if tokens:
            shared = self._groups.setdefault(account.group, (float(tokens), False))[0]
            chain = ((("group", account.group, shared), shared),)
            self.share(account, chain, seen_cached=True)

    def part_group(self, account: Account) -> None:
        """`account` is no longer active: what its group shares is no longer charged for it."""
        if account.group is not None and account.is_credited:
            self.share(account, ())

    def group_part(self, account: Account) -> float:
        """`account`'s part of what its group shares [tokens]: all of them touch it together.

        Reuse distances without the prompts of many groups would make the pool look small.
        """
        if account.group is None or not account.is_credited or not account.chain:
            return 0.0
        name, tokens = account.chain[0]
        return tokens / max(1, self.prefixes.holders(name))

    def forget_group(self, group: str) -> None:
        """None of its members is here."""
        self._groups.pop(group, None)

    def _learn_group(self, account: Account, prompt: int, cached: int) -> None:
        """A member's first prompt found so much: the most that one has found is what they share.

        Little may be a race with the member before it, and nothing an empty cache.
        """
        if account.group in self._groups and cached > _SLACK_TOKENS:
            shared, is_found = self._groups[account.group]
            found = float(prompt if cached >= prompt - _SLACK_TOKENS else cached)
            self._groups[account.group] = max(shared, found) if is_found else found, True

    def share(self, account: Account, chain: Chain, *, seen_cached: bool = False) -> None:
        """`account` holds the prefix named by `chain` from now on; an empty one: none."""
        if account.chain == chain:
            return
        self.prefixes.part(account.chain)
        self.prefixes.join(chain, seen_cached=seen_cached)
        account.chain, account.is_credited = chain, seen_cached

    def close(self, account: Account) -> None:
        """`account` is gone for good."""
        self.share(account, ())
        account.lru_entry.left = True
        if account.has_context:
            if account.parent is None:
                self.peak_forecast.finals.append(account.footprint)
            self._set_footprint(account, 0.0)

    def _credit(self, who: Account) -> None:
        """Count `who` towards the prefix that newcomers find cached, if its prompt holds as much.

        The median of the last few decides: the first of a burst come too early to find anything,
        and one that takes up an old conversation finds all of it.
        """
        found = self._found
        is_named = who.group is not None or (bool(who.chain) and not who.is_credited)
        if who.parent is None and not is_named and _SLACK_TOKENS < found <= who.first_prompt:
            # All follow the median, or several lengths would be charged.
            self.share(who, ((("found cached", found), float(found)),), seen_cached=True)

    def _compare(self, who: Account, prompt: int, cached: int) -> None:
        """What `who` had sent before against what was still cached of it."""
        if who.generation != self.residency.generation:
            return  # the engine has restarted since: the miss is not for want of room
        reusable = float(min(who.last_prompt, prompt))
        if prompt < 0.5 * who.last_prompt or reusable <= _SLACK_TOKENS:
            return  # the context was cut or rewritten: what could have been reused is unknown
        reused = reusable if cached >= reusable - _SLACK_TOKENS else float(cached)
        self.recent_reusable = 0.98 * self.recent_reusable + reusable
        self.recent_reused = 0.98 * self.recent_reused + reused
        shared = self.prefixes.shared(who.chain)
        if who.chain:
            reusable, reused = reusable - shared, max(0.0, reused - shared)
        elif reused <= self._found:  # the shared prefix alone, for which it is not credited yet
            reusable, reused = reusable - self._found, 0.0
        if who.distance is not None and reusable > _SLACK_TOKENS:
            flushed = self.residency.observe(
                who.distance,
                reusable,
                reused,
                own_share=self.own_share(shared),
                used_s=who.idle_since_s,
                back_s=who.begun_s,
            )
            if flushed:
                self.recent_reusable = self.recent_reused = 0.0

    @property
    def _first_prompt(self) -> float:
        """What a first prompt is assumed to be [tokens]."""
        unseen = max(_FIRST_PROMPT_TOKENS, (self.residency.capacity_tokens or 0.0) / _UNSEEN)
        return self.first_prompt.value or unseen

    def _own(self, account: Account, tokens: float) -> float:
        """`tokens` of `account` and its children's, without those that are shared."""
        tokens += account.family_tokens
        if account.chain:
            tokens -= self.prefixes.shared(account.chain)
        elif account.group in self._groups:  # its first prompt is there once one of them has it
            group, shared = account.group, self._groups[account.group][0]
            tokens -= self.prefixes.held(("group", group, shared))
        return max(1.0, tokens)

    def _set_footprint(self, who: Account, tokens: float) -> None:
        self.contexts += (tokens > 0) - (who.footprint > 0)
        self.footprint_tokens += tokens - who.footprint
        if who.parent is not None:
            who.parent.family_tokens += tokens - who.footprint
        else:
            self.peak_forecast.change(who.footprint, tokens)
        who.footprint = tokens
