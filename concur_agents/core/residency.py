"""Whose prefix is probably still in the cache: the engine's LRU list, mirrored from usage.

An engine that evicts least recently used blocks keeps an idle agent's prefix until the tokens
touched since then fill the pool.  We know those tokens: they are the footprints of the agents that
have been in a call since.  That sum is the *reuse distance* (R. L. Mattson et al., "Evaluation
techniques for storage hierarchies", 1970); a prefix is resident while

    distance + footprint <= pool

Read the other way, each return of an agent measures the pool: a hit says that it is at least
distance + footprint, a miss that it is less than distance plus the whole footprint, a partial hit
says where in between.  So the pool is learned when the engine does not tell it, and another
tenant's share is noticed when it does.

Positions in the list are numbered; a Fenwick tree over them sums "everything up to me" and takes
an agent out in O(log n), and grows by the one that is touched.  Renumbering is amortised over as
many moves.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class LruEntry:
    """Where one agent's context stands in the list.  Owned by `Residency`."""

    position: int = 0  # 0: not in the list (in a call, or nothing sent yet)
    tokens: float = 0.0
    left: bool = False  # its agent is done; the context only ages out
    was: tuple[int, int] = (0, 0)  # numbering and position before it was removed


_MOST_LEFT = 4096
_WITNESSES = 16
_DOUBT = 0.4
"""A miss that says the pool is less than this share of what a recent hit proved says nothing: that
context was rewritten, not evicted.  Larger shares took longer to notice another tenant."""
_BEYOND = 1.5
"""A partial hit that says the pool is more than this times as large as believed says nothing: what
was left is a prefix shared with agents that are at work, a system prompt say.  A pool that has
become so much larger shows in whole hits."""
_LEAST_POSITIONS = 1024


@dataclass(slots=True)
class Residency:
    """The idle contexts in order of last use, and what their survival says of the pool."""

    capacity_tokens: float | None = None
    """Pool size as the engine tells [tokens].  Only bounds how long contexts are remembered."""
    learned_tokens: float | None = None
    """Pool size as hits and misses tell [tokens]; None: nothing has been evicted yet."""
    proven_tokens: float = 0.0
    """The largest reuse distance that hit [tokens]: the pool is at least this."""
    held_tokens: float = 0.0
    """Like it, but without what agents may share, and no single hit decides [tokens]."""
    generation: int = 0
    """Times the cache was emptied."""
    gain: float = 0.25
    """How far one surprising return moves `learned_tokens`: a quarter of the way, so one odd
    return (a retry on another replica, say) is outvoted by the next few."""

    _survived: deque[float] = field(default_factory=lambda: deque(maxlen=_WITNESSES))
    """Of the last returns: how much the pool held for the prefix to survive; 0: it did not."""
    _tree: list[float] = field(default_factory=lambda: [0.0])
    """At i the tokens at as many positions, up to i, as its lowest set bit says."""
    _entries: dict[int, LruEntry] = field(default_factory=dict)
    _most_positions: int = _LEAST_POSITIONS
    """So many are used until they are numbered anew."""
    _numbering: int = 0
    """Times positions have lost their meaning."""
    _total: float = 0.0

    @property
    def pool_tokens(self) -> float | None:
        """Believed size of the pool [tokens], the smaller where two tell it; None: nobody does."""
        told, learned = self.capacity_tokens, self.learned_tokens
        if told is None or (learned is not None and learned < told):
            return learned
        return told

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
        """Takes `remove` back: its call was never sent.

        If positions have changed meanwhile it stays out, as one that is not cached.
        """
        numbering, position = lru_entry.was
        if position and not lru_entry.position and numbering == self._numbering:
            lru_entry.position = position
            self._entries[position] = lru_entry
            self._add(position, lru_entry.tokens)

    def leave_behind(self, lru_entry: LruEntry) -> None:
        """The agent is done.  What it left in the cache ages out of the list like the rest."""
        if lru_entry.position:
            self._entries[lru_entry.position] = LruEntry(
                lru_entry.position, lru_entry.tokens, left=True
            )
            lru_entry.position = 0

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
        self, distance: float, reusable: float, reused: float, own_share: float = 0.0
    ) -> None:
        """An agent came back after `distance` tokens of others; `reused` of `reusable` had stayed.

        Args:
            distance: others' tokens touched in between, those in calls included [tokens].
            reusable: what the agent had sent before and sent again [tokens].
            reused: how much of it was still cached [tokens].
            own_share: least share of what agents hold that they do not share.
        """
        share = reused / reusable
        if reused >= reusable:  # else what was left may be a shared prefix
            own = max(reusable, own_share * (distance + reusable))
            self.held_tokens += self.gain * max(0.0, own - self.held_tokens)
        if share >= 0.9:
            at_least = distance + reusable
            self._survived.append(at_least)
            if at_least > self.proven_tokens:
                self.proven_tokens = at_least
            if self.learned_tokens is not None and at_least > self.learned_tokens:
                self.learned_tokens += self.gain * (at_least - self.learned_tokens)
            return
        seen = distance + reused
        contradicted = seen < _DOUBT * max(self._survived, default=0.0)
        self._survived.append(0.0)
        if contradicted:
            return  # older contexts have survived since: this one was rewritten, not evicted
        if self.learned_tokens is None:
            self.learned_tokens = max(seen, reusable)
        elif seen < self.learned_tokens or (share > 0.1 and seen < _BEYOND * self.learned_tokens):
            self.learned_tokens += self.gain * (seen - self.learned_tokens)
            self.learned_tokens = max(self.learned_tokens, reusable)
        self.proven_tokens = min(self.proven_tokens, max(self.learned_tokens, reusable))

    def clear(self) -> None:
        """The engine restarted: nothing is cached any more."""
        self.generation += 1
        for lru_entry in self._entries.values():
            lru_entry.position = 0
        self._entries.clear()
        self._survived.clear()
        self._tree = [0.0]
        self._total = 0.0
        self._numbering += 1

    def _renumber(self) -> None:
        entries = [self._entries[position] for position in sorted(self._entries)]
        pool = max(self.capacity_tokens or 0.0, self.learned_tokens or 0.0, self.proven_tokens)
        horizon = 4.0 * pool if pool else math.inf
        behind, left, kept = 0.0, 0, []
        for lru_entry in reversed(entries):  # newest first; far behind, all is surely evicted
            left += lru_entry.left
            if not lru_entry.left or (behind <= horizon and left <= _MOST_LEFT):
                kept.append(lru_entry)
            behind += lru_entry.tokens
        kept.reverse()
        self._entries.clear()
        self._numbering += 1
        self._tree = [0.0]
        self._total = 0.0
        self._most_positions = max(_LEAST_POSITIONS, 4 * len(kept))
        for lru_entry in kept:
            self._append(lru_entry)

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
