"""Who waits, best first.

Two heaps, one of agents that are open (let in before) and one of new ones.  Removal is lazy: an
entry that is no longer its agent's is dropped when it surfaces, and a heap that is mostly void is
rebuilt, so each operation is O(log n) amortised.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from concur_agents.core.family import Account
from concur_agents.core.order import Key, Order


class _Entry(NamedTuple):
    key: Key
    tie: int  # the earlier one goes first
    warm: bool
    account: Account


class Queue:
    """The waiting agents."""

    def __init__(self, order: Order, is_warm: Callable[[Account], bool]) -> None:
        self._order, self._is_warm = order, is_warm
        self._open: list[_Entry] = []
        self._new: list[_Entry] = []
        self._by_wait: OrderedDict[Account, _Entry] = OrderedDict()  # its entry that counts
        self._open_by_wait: OrderedDict[Account, None] = OrderedDict()
        self._ties = itertools.count()
        self._priorities: Counter[int] = Counter()  # of the agents that wait
        self._ranks: list[int] = []  # those priorities, in order

    def __len__(self) -> int:
        return len(self._by_wait)

    def push(self, account: Account) -> None:
        """`account` waits, since `account.waiting_since_s`."""
        if account.admitted_ever:
            self._open_by_wait[account] = None
        if account.priority not in self._priorities:
            bisect.insort(self._ranks, account.priority)
        self._priorities[account.priority] += 1
        self._insert(account, next(self._ties))
        since_s = account.waiting_since_s
        others = itertools.islice(reversed(self._by_wait), 1, None)
        younger = list(itertools.takewhile(lambda who: who.waiting_since_s > since_s, others))
        for who in reversed(younger):  # there are some only if it has waited elsewhere
            self._by_wait.move_to_end(who)

    def remove(self, account: Account) -> None:
        """`account` no longer waits."""
        del self._by_wait[account]
        self._open_by_wait.pop(account, None)
        self._priorities[account.priority] -= 1
        if not self._priorities[account.priority]:
            del self._priorities[account.priority]
            del self._ranks[bisect.bisect_left(self._ranks, account.priority)]
        for heap in (self._open, self._new):
            if not self._by_wait or len(heap) > 2 * len(self._by_wait) + 64:
                heap[:] = [entry for entry in heap if self._by_wait.get(entry.account) is entry]
                heapq.heapify(heap)

    def head(self, *, new_allowed: bool = True) -> Account | None:
        """The agent that goes first; None: none.  With `new_allowed=False` only among the open."""
        first = self._top(self._open)
        new = self._top(self._new) if new_allowed else None
        if first is None or (new is not None and new < first):
            first = new
        return None if first is None else first.account

    def outranks(self, account: Account) -> bool:
        """Whether an agent of a higher priority waits."""
        return bool(self._ranks) and self._ranks[-1] > account.priority

    def settle(self) -> None:
        """Find out now whether the first has gone cold, so that no later question does."""
        self._top(self._open)

    def oldest(self, *, admitted_ever: bool = False) -> Account | None:
        """Who has waited longest; with `admitted_ever` among those that have been let in before."""
        return next(iter(self._open_by_wait if admitted_ever else self._by_wait), None)

    def youngest(self) -> Account | None:
        """Who has begun to wait last."""
        return next(reversed(self._by_wait), None)

    def waiting(self, first: int | None = None) -> list[Account]:
        """The agents that wait, longest first; with `first` no more than that many."""
        return list(itertools.islice(self._by_wait, first))

    def ahead(self, account: Account) -> int:
        """How many of those that wait go before `account`.  O(n)."""
        keys = {who: self._key(who)[0] for who in self._by_wait}
        return sum(key < keys[account] for key in keys.values())

    def _key(self, account: Account) -> tuple[Key, bool]:
        warm = account.has_context and self._is_warm(account)
        return self._order(account, warm), warm

    def _insert(self, account: Account, tie: int) -> None:
        key, warm = self._key(account)
        entry = self._by_wait[account] = _Entry(key, tie, warm, account)
        heapq.heappush(self._open if account.admitted_ever else self._new, entry)

    def _top(self, heap: list[_Entry]) -> _Entry | None:
        while heap:
            top = heap[0]
            if self._by_wait.get(top.account) is not top:
                heapq.heappop(heap)
            elif top.warm and not self._is_warm(top.account):  # it has gone cold while it waited
                heapq.heappop(heap)
                self._insert(top.account, top.tie)
            else:
                return top
        return None
