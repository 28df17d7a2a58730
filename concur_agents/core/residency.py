"""Whose prefix is probably still in the cache: the engine's LRU list, mirrored from usage.

An engine that evicts least recently used blocks keeps an idle agent's prefix until the tokens
touched since then fill the pool.  Those are the footprints of the agents that have been in a call
since.  Their sum is the *reuse distance* (R. L. Mattson et al., "Evaluation techniques for storage
hierarchies", 1970); a prefix is resident while

    distance + footprint <= pool

Read the other way, each return measures the pool: a hit says that it is at least distance +
footprint, a miss that it is less, a partial hit says where in between.  So the pool is learned
where the engine does not report it, and another tenant's share is noticed where it does.

Positions in the list are numbered, and a Fenwick tree over them sums the tokens up to one in
O(log n).  Renumbering is amortised over as many moves.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

_MOST_LEFT = 4096  # contexts of agents that are gone, remembered while they age out
_LEAST_POSITIONS = 1024
_GAIN = 0.25  # how far one return moves the learned pool: an odd one is outvoted by the next few
_WITNESSES = 16
# A miss that puts the pool below this share of what one of the last returns proved says nothing:
# that context was rewritten, not evicted.  Larger shares took longer to notice another tenant.
_DOUBT = 0.4
# A partial hit that puts the pool above this many times what is believed says nothing: what was
# left is a prefix shared with agents at work.  A pool that has grown so much shows in whole hits.
_BEYOND = 1.5
# So many misses at once, so many of them of contexts that were surely not evicted, are a cache that
# was emptied; single ones are contexts that were rewritten.
_MISSES, _NEAR = 3, 2


@dataclass(slots=True)
class LruEntry:
    """Where one agent's context stands in the list.  Owned by `Residency`."""

    position: int = 0  # 0: not in the list (in a call, or nothing sent yet)
    tokens: float = 0.0
    left: bool = False  # its agent is done; the context ages out of the list like the rest
    was: tuple[int, int] = (0, 0)  # numbering and position before it was removed


@dataclass(slots=True)
class Residency:
    """The idle contexts in order of last use, and what their survival says of the pool."""

    capacity_tokens: float | None = None  # pool as the engine reports it, or as was proven
    learned_tokens: float | None = None  # pool as returns tell it; None: nothing was evicted yet
    proven_tokens: float = 0.0  # the largest distance that hit: the pool is at least this
    held_tokens: float = 0.0  # the same without what agents may share, moved by many hits
    # Least that the pool holds of ours, where the engine's usage agrees with what it reports and
    # leaves room, and all prompts are ours; half of it once contexts were evicted.
    sure_tokens: float = 0.0
    generation: int = 0  # times the cache was emptied

    # How much the pool held for each of the last returns to survive; 0: it did not.
    _survived: deque[float] = field(default_factory=lambda: deque(maxlen=_WITNESSES))
    _tree: list[float] = field(default_factory=lambda: [0.0])  # Fenwick sums by position
    _entries: dict[int, LruEntry] = field(default_factory=dict)  # by position
    _most_positions: int = _LEAST_POSITIONS  # so many are used until they are numbered anew
    _numbering: int = 0  # times positions have lost their meaning
    _total: float = 0.0

    # misses that one emptying may explain: all had been used before the first of them came back
    _misses_s: float = math.inf  # when that was [s]; infinity: there are none
    _missed_s: float = -math.inf  # when the most recently used of them had been used [s]
    _misses: int = 0
    _near: int = 0
    _before: tuple[float | None, float] = (None, 0.0)  # what was learned and proven before them

    @property
    def pool_tokens(self) -> float | None:
        """Believed size of the pool [tokens]: reported or learned, the smaller; None: unknown."""
        reported, learned = self.capacity_tokens, self.learned_tokens
        if reported is None or (learned is not None and learned < reported):
            return learned
        return reported

    def touch(self, lru_entry: LruEntry, tokens: float) -> None:
        """The agent's call ended: its `tokens` are now the most recently used."""
        if lru_entry.position:
            self.remove(lru_entry)
        if len(self._tree) > self._most_positions:
            self._renumber()
        lru_entry.tokens = tokens
        self._append(lru_entry)

    def remove(self, lru_entry: LruEntry) -> None:
        """The agent is in a call (its blocks are pinned) or its context is gone."""
        if lru_entry.position:
            self._add(lru_entry.position, -lru_entry.tokens)
            del self._entries[lru_entry.position]
            lru_entry.was = self._numbering, lru_entry.position
            lru_entry.position = 0

    def restore(self, lru_entry: LruEntry) -> None:
        """Take `remove` back: the call was never sent.  After a renumbering the entry stays out."""
        numbering, position = lru_entry.was
        if position and not lru_entry.position and numbering == self._numbering:
            lru_entry.position = position
            self._entries[position] = lru_entry
            self._add(position, lru_entry.tokens)

    def distance(self, lru_entry: LruEntry) -> float:
        """Tokens of other idle contexts touched since this one was [tokens]."""
        position, tree = lru_entry.position, self._tree
        if not position:
            return 0.0
        tokens = self._total
        while position:
            tokens -= tree[position]
            position &= position - 1
        return tokens

    def observe(
        self,
        distance: float,  # others' tokens touched in between, those in calls included
        reusable: float,  # what the agent had sent before and sent again
        reused: float,  # how much of it was still cached
        *,
        own_share: float = 0.0,  # least share of what agents hold that they do not share
        used_s: float = math.inf,  # when it was last in a call; infinity: unknown
        back_s: float = 0.0,  # when it came back
    ) -> bool:
        """An agent came back.  True: the cache was emptied, so all is forgotten."""
        share = reused / reusable
        if reused >= reusable:  # else what was left may be a shared prefix
            own = max(reusable, own_share * (distance + reusable))
            self.held_tokens += _GAIN * max(0.0, own - self.held_tokens)
        older_hit = share >= 0.9 and used_s < self._missed_s and back_s >= self._misses_s
        if older_hit or used_s > self._misses_s:  # no one moment explains it and the misses so far
            self._misses_s = math.inf
        if share >= 0.9:
            at_least = distance + reusable
            self._survived.append(at_least)
            self.proven_tokens = max(self.proven_tokens, at_least)
            if self.learned_tokens is not None and at_least > self.learned_tokens:
                self.learned_tokens += _GAIN * (at_least - self.learned_tokens)
            return False
        seen = distance + reused
        sure = self.sure_tokens * (0.5 if 0.0 in self._survived else 1.0)
        within = share <= 0.1 and distance + reusable < sure
        contradicted = within or seen < _DOUBT * max(self._survived, default=0.0)
        if not within:
            self._survived.append(0.0)
        if self._note_miss(contradicted, used_s, back_s):
            self.clear(self._misses_s)
            return True
        if contradicted:
            return False  # it was rewritten, not evicted: older contexts survive, or there is room
        if self.learned_tokens is None:
            self.learned_tokens = max(seen, reusable)
        elif seen < self.learned_tokens or (share > 0.1 and seen < _BEYOND * self.learned_tokens):
            self.learned_tokens += _GAIN * (seen - self.learned_tokens)
            self.learned_tokens = max(self.learned_tokens, reusable)
        self.proven_tokens = min(self.proven_tokens, max(self.learned_tokens, reusable))
        return False

    def clear(self, since_s: float = math.inf) -> None:
        """Nothing is cached any more, and what has missed since then [s] says nothing."""
        self.generation += 1
        if since_s <= self._misses_s < math.inf:
            self.learned_tokens, self.proven_tokens = self._before
        self._misses_s = math.inf
        self._survived.clear()
        self._empty()

    def _note_miss(self, contradicted: bool, used_s: float, back_s: float) -> bool:
        """Whether the misses so far, this one included, are those of a cache that was emptied."""
        if self._misses_s == math.inf:
            self._misses_s, self._missed_s = back_s, -math.inf
            self._misses = self._near = 0
            self._before = self.learned_tokens, self.proven_tokens
        self._missed_s = max(self._missed_s, used_s)
        self._misses += 1
        self._near += contradicted
        return self._misses >= _MISSES and self._near >= _NEAR

    def _renumber(self) -> None:
        entries = sorted(self._entries.items(), reverse=True)  # newest first
        pool = max(self.capacity_tokens or 0.0, self.learned_tokens or 0.0, self.proven_tokens)
        horizon = 4.0 * pool if pool else math.inf  # what is further behind is surely evicted
        behind, left, kept = 0.0, 0, []
        for _, lru_entry in entries:
            left += lru_entry.left
            if not lru_entry.left or (behind <= horizon and left <= _MOST_LEFT):
                kept.append(lru_entry)
            behind += lru_entry.tokens
        self._empty()
        self._most_positions = max(_LEAST_POSITIONS, 4 * len(kept))
        for lru_entry in reversed(kept):
            self._append(lru_entry)

    def _empty(self) -> None:
        for lru_entry in self._entries.values():
            lru_entry.position = 0
        self._entries.clear()
        self._numbering += 1
        self._tree, self._total = [0.0], 0.0

    def _append(self, lru_entry: LruEntry) -> None:
        tree, tokens = self._tree, lru_entry.tokens
        self._total += tokens
        position = lru_entry.position = len(tree)
        self._entries[position] = lru_entry
        below = 1
        while not position & below:
            tokens += tree[position - below]
            below += below
        tree.append(tokens)

    def _add(self, position: int, tokens: float) -> None:
        self._total += tokens
        tree, size = self._tree, len(self._tree)
        while position < size:
            tree[position] += tokens
            position += position & -position
