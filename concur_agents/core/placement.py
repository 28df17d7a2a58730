"""Which pool an agent goes to, and which agent is placed next."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

from concur_agents.core.regulator import Regulator
from concur_agents.core.types import AgentId, State

_SIZE_POWER = 2.0 / 3.0
_HALF = 0.5


@dataclass(slots=True, eq=False)
class Member:
    """One agent of a fleet.  A child has its root's pool."""

    agent: AgentId
    seq: int
    """Rank of arrival: 0 came first."""
    priority: int = 0
    group: str | None = None
    prompt_tokens: int | None = None
    parent: Member | None = None
    """Whose place it shares."""
    pool: Pool | None = None
    """Where it is; None: it has not been placed yet, or its pool is gone."""
    state: State | None = None
    """Where it stands, as the fleet has last reported it."""
    since_s: float = 0.0
    """When it last began to wait [s]."""
    has_entered: bool = False
    """It has been let in once, in whichever pool."""
    is_suspended: bool = False
    """It has no pool and asks for none."""
    asked: int = 0
    """Its calls that wait, in its pool or for one."""
    asks_place: bool = False
    """It waits to start or to resume, with no call yet."""
    family: dict[AgentId, Member] = field(default_factory=dict)
    """Of a root: itself and its children that are here."""
    ticket: int = 0
    """Valid entry in the line; older ones are void."""

    @property
    def root(self) -> Member:
        """The agent whose place it uses."""
        return self.parent or self

    @property
    def home(self) -> Pool | None:
        """The pool that has let it in; until then the fleet keeps its calls."""
        return None if self.pool is None or self.pool.candidate is self else self.pool


@dataclass(slots=True, eq=False)
class Pool:
    """One KV pool of a fleet."""

    name: str
    regulator: Regulator
    candidate: Member | None = None
    """The one agent that waits here to be let in for the first time."""
    chosen: int = 0
    """Rank of the last placement: the least recently chosen of equals is next."""
    failing_since_s: float = math.inf
    """Since when every reading has failed [s]."""
    answered_s: float = -math.inf
    """When a call was last answered [s]."""
    is_down: bool = False
    """Neither its page nor its engine answers: its agents move at their next boundary."""
    is_leaving: bool = False
    """It is being removed: likewise."""
    groups: dict[str, int] = field(default_factory=dict)
    """Agents here of each group."""

    @property
    def takes_agents(self) -> bool:
        """Whether agents may be placed here."""
        return not (self.is_down or self.is_leaving)

    @property
    def reason(self) -> str:
        """Code of the decision in force here."""
        if self.is_down:
            return "down"
        return "leaving" if self.is_leaving else self.regulator.reason

    def take_over(self, former: Pool, now: float) -> None:
        """Goes on in place of `former`, which had the same engine."""
        self.regulator.take_over(former.regulator, now)
        self.is_down, self.is_leaving = former.is_down, former.is_leaving
        self.failing_since_s, self.answered_s = former.failing_since_s, former.answered_s

    def load(self, final_tokens: float) -> float:
        """What it holds once its agents have grown [tokens], over its size to the power of 2/3.

        Over the size alone, a pool twice as large would get twice the agents, but its engine is
        seldom twice as fast: nine in ten agents finish 11 % later than with equal pools, with 2/3
        4 %.  A pool of unknown size counts as one token.

        Args:
            final_tokens: what an agent of the fleet comes to hold; 0: not known.
        """
        regulator = self.regulator
        tokens = max(regulator.footprint_tokens, regulator.open_agents * (final_tokens or 1.0))
        return tokens / float((regulator.pool_tokens or 1.0) ** _SIZE_POWER)


_Order = tuple[bool, int, int, int, Member]  # new, priority, arrival, ticket
_Age = tuple[float, int, int, Member]  # since when it waits, arrival, ticket


class Line:
    """The agents without a pool, best first and oldest first.  Removal is lazy."""

    def __init__(self) -> None:
        self._by_order: list[_Order] = []
        self._by_age: list[_Age] = []
        self._tickets = 0
        self._size = 0
        self.begun = 0
        """Of them, those that have been let in before."""

    def __len__(self) -> int:
        return self._size

    def push(self, member: Member) -> None:
        """`member` waits for a pool: those that have begun, then larger priorities, then by age."""
        self._tickets += 1
        self._size += 1
        self.begun += member.has_entered
        member.ticket = self._tickets
        heapq.heappush(self._by_order, self._order_of(member))
        heapq.heappush(self._by_age, self._age_of(member))

    @staticmethod
    def _order_of(member: Member) -> _Order:
        return not member.has_entered, -member.priority, member.seq, member.ticket, member

    @staticmethod
    def _age_of(member: Member) -> _Age:
        return member.since_s, member.seq, member.ticket, member

    def remove(self, member: Member) -> None:
        """`member` no longer waits here."""
        if member.ticket:
            member.ticket = 0
            self._size -= 1
            self.begun -= member.has_entered
        if len(self._by_order) > 2 * self._size + 64:  # nothing of an agent that is gone stays
            valid = [entry[-1] for entry in self._by_order if entry[-1].ticket == entry[-2]]
            self._by_order = [self._order_of(one) for one in valid]
            self._by_age = [self._age_of(one) for one in valid]
            heapq.heapify(self._by_order)
            heapq.heapify(self._by_age)

    def head(self) -> Member | None:
        """Who goes first."""
        return self._top(self._by_order)

    def oldest(self) -> Member | None:
        """Who has waited longest."""
        return self._top(self._by_age)

    def waiting(self, first: int | None = None) -> list[Member]:
        """Those who wait, longest first; with `first` no more than that many."""
        if first is None or first >= self._size:
            return [entry[-1] for entry in sorted(self._by_age) if entry[-1].ticket == entry[-2]]
        taken: list[_Age] = []
        while len(taken) < first and self.oldest() is not None:
            taken.append(heapq.heappop(self._by_age))
        for entry in taken:
            heapq.heappush(self._by_age, entry)
        return [entry[-1] for entry in taken]

    def _top(self, heap: list) -> Member | None:  # type: ignore[type-arg]
        while heap and heap[0][-1].ticket != heap[0][-2]:
            heapq.heappop(heap)
        return heap[0][-1] if heap else None


def pool_for(member: Member, pools: list[Pool], now: float) -> Pool | None:
    """The pool that `member`, a root without one, goes to; None: it waits for one.

    1. While a pool waits for its first reading, the others wait with it, or the first to be read
       would take the whole batch.
    2. Of the pools that would let it in, the one with its group, else the one with least load.
    3. If there is none, a pool in which no agent waits to be let in for the first time: one agent
       for each pool is enough for its law to see that it binds, and a pool that is slow or dead
       strands no more than one.
    """
    unread = [pool for pool in pools if pool.regulator.reason == "first_reading"]
    free = [pool for pool in unread or pools if pool.candidate is None]
    tokens = member.prompt_tokens
    letting_in = [pool for pool in free if pool.regulator.would_admit(now, tokens)]

    final_tokens = max(pool.regulator.final_tokens for pool in pools)

    def rank(pool: Pool) -> tuple[bool, float, int]:
        return member.group not in pool.groups, pool.load(final_tokens), pool.chosen

    return min(letting_in or free, key=rank, default=None)


def half_empty(pools: list[Pool], prompt_tokens: int | None, now: float) -> Pool | None:
    """The emptiest pool that is at most half full and lets in an agent of this size; None: none.

    Half full, because what is there still grows, and who moves leaves a prefix behind.
    """
    found = [
        pool
        for pool in pools
        if pool.regulator.footprint_tokens <= _HALF * (pool.regulator.pool_tokens or 0.0)
        and pool.regulator.would_admit(now, prompt_tokens)
    ]
    return min(found, key=lambda pool: (pool.load(0.0), pool.chosen), default=None)
