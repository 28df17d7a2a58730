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


@dataclass(slots=True)
class LruEntry:
    """Where one agent's context stands in the list.  Owned by `Residency`."""

    position: int = 0  # 0: not in the list (in a call, or nothing sent yet)
    tokens: float = 0.0
    left: bool = False  # its agent is done; the context only ages out
    was: tuple[int, int] = (0, 0)  # numbering and position before it was removed


@dataclass(slots=True)
class Residency:
    """The idle contexts in order of last use, and what their survival says of the pool."""

    capacity_tokens: float | None = None  # pool as the engine reports it
    learned_tokens: float | None = None  # pool as returns tell it; None: nothing was evicted yet
    proven_tokens: float = 0.0  # the largest distance that hit: the pool is at least this
    generation: int = 0  # times the cache was emptied

    # How much the pool held for each of the last returns to survive; 0: it did not.
    _survived: deque[float] = field(default_factory=lambda: deque(maxlen=_WITNESSES))
    _tree: list[float] = field(default_factory=lambda: [0.0])  # Fenwick sums by position
    _entries: dict[int, LruEntry] = field(default_factory=dict)  # by position
    _most_positions: int = _LEAST_POSITIONS  # so many are used until they are numbered anew
    _numbering: int = 0  # times positions have lost their meaning
    _total: float = 0.0

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

    def leave_behind(self, lru_entry: LruEntry) -> None:
        """The agent is done.  What it left in the cache ages out of the list like the rest."""
        lru_entry.left = True

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

    def observe(self, distance: float, reusable: float, reused: float) -> None:
        """An agent came back after `distance` tokens of others; `reused` of `reusable` had stayed.

        Args:
            distance: others' tokens touched in between, those in calls included [tokens].
            reusable: what the agent had sent before and sent again [tokens].
            reused: how much of it was still cached [tokens].
        """
        share = reused / reusable
        if share >= 0.9:
            at_least = distance + reusable
            self._survived.append(at_least)
            self.proven_tokens = max(self.proven_tokens, at_least)
            if self.learned_tokens is not None and at_least > self.learned_tokens:
                self.learned_tokens += _GAIN * (at_least - self.learned_tokens)
            return
        seen = distance + reused
        is_contradicted = seen < _DOUBT * max(self._survived, default=0.0)
        self._survived.append(0.0)
        if is_contradicted:
            return
        if self.learned_tokens is None:
            self.learned_tokens = max(seen, reusable)
        elif seen < self.learned_tokens or (share > 0.1 and seen < _BEYOND * self.learned_tokens):
            self.learned_tokens += _GAIN * (seen - self.learned_tokens)
            self.learned_tokens = max(self.learned_tokens, reusable)
        self.proven_tokens = min(self.proven_tokens, max(self.learned_tokens, reusable))

    def clear(self) -> None:
        """The engine restarted: nothing is cached any more."""
        self.generation += 1
        self._survived.clear()
        self._empty()

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
