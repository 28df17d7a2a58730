"""Who waits, best first.

Two heaps (agents that are open, i.e. have been let in before, and new ones) and lists by waiting
time.  Removal is lazy: an entry whose ticket is no longer its account's is void and dropped when it
surfaces, and a heap that is mostly void is rebuilt, so each operation is O(log n) amortised and
nothing of an agent that is gone stays behind for long.  Who goes first is asked at every event and
seldom changes, so it is kept.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable

from concur_agents.core.family import Account
from concur_agents.core.order import Key, Order

_Entry = tuple[Key, int, int, bool, Account]  # key, tie-break, ticket, warm, who


class Queue:
    """The waiting agents."""

    def __init__(self, order: Order, is_warm: Callable[[Account], bool]) -> None:
        self._order = order
        self._is_warm = is_warm
        self._open: list[_Entry] = []
        self._new: list[_Entry] = []
        self._by_wait: deque[tuple[int, Account]] = deque()
        self._open_by_wait: deque[tuple[int, Account]] = deque()
        self._head: _Entry | None = None  # who goes first; None: to be found
        self._ties = itertools.count()
        self._tickets = itertools.count(1)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, account: Account) -> None:
        """`account` waits, since `account.waiting_since_s`."""
        account.ticket = next(self._tickets)
        waits, place = self._by_wait, len(self._by_wait)
        while place and waits[place - 1][1].waiting_since_s > account.waiting_since_s:
            place -= 1  # only for one that has waited elsewhere
        waits.insert(place, (account.ticket, account))
        if account.admitted_ever:
            self._open_by_wait.append((account.ticket, account))
        self._size += 1
        self._insert(account, next(self._ties))

    def remove(self, account: Account) -> None:
        """`account` no longer waits."""
        account.ticket = 0
        if self._head is not None and self._head[4] is account:
            self._head = None
        self._size -= 1
        if not self._size:  # and nothing of the last ones stays
            for entries in (self._open, self._new, self._by_wait, self._open_by_wait):
                entries.clear()
            return
        for heap in (self._open, self._new):
            if len(heap) > 2 * self._size + 64:
                heap[:] = [e for e in heap if e[4].ticket == e[2]]
                heapq.heapify(heap)
        for waits in (self._by_wait, self._open_by_wait):
            if len(waits) > 2 * self._size + 64:
                valid = [e for e in waits if e[1].ticket == e[0]]
                waits.clear()
                waits.extend(valid)

    def head(self, *, new_allowed: bool = True) -> Account | None:
        """The agent that goes first; None: none.  With `new_allowed=False` only among the open."""
        if new_allowed:
            first = self._head
            if first is None or (first[3] and not self._is_warm(first[4])):
                first = self._head = self._find_head()
        else:
            first = self._top(self._open)
        return None if first is None else first[4]

    def settle(self) -> None:
        """Find out now whether the first has gone cold, so that no later question does."""
        if self._open:
            self._top(self._open)

    def oldest(self, *, admitted_ever: bool = False) -> Account | None:
        """Who has waited longest; with `admitted_ever` among those that have been let in before."""
        waits = self._open_by_wait if admitted_ever else self._by_wait
        while waits and waits[0][1].ticket != waits[0][0]:
            waits.popleft()
        return waits[0][1] if waits else None

    def waiting(self, first: int | None = None) -> list[Account]:
        """The agents that wait, longest first; with `first` no more than that many."""
        valid = (account for ticket, account in self._by_wait if account.ticket == ticket)
        return list(itertools.islice(valid, first))

    def _find_head(self) -> _Entry | None:
        opened, new = self._top(self._open), self._top(self._new)
        if opened is None or new is None:
            return opened or new
        return min(new, opened)

    def _insert(self, account: Account, tie: int) -> None:
        warm = account.has_context and self._is_warm(account)
        entry = (self._order(account, warm), tie, account.ticket, warm, account)
        heapq.heappush(self._open if account.admitted_ever else self._new, entry)
        if self._head is not None and entry < self._head:
            self._head = None

    def _top(self, heap: list[_Entry]) -> _Entry | None:
        while heap:
            top = heap[0]
            account = top[4]
            if account.ticket != top[2]:
                heapq.heappop(heap)
            elif top[3] and not self._is_warm(account):  # it has gone cold while it waited
                heapq.heappop(heap)
                if top is self._head:
                    self._head = None
                self._insert(account, top[1])
            else:
                return top
        return None
