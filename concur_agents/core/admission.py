"""Who is in, who waits: the active agents' claims, and the queue of the others, under one `Limit`.

Rules, each with its test:
  * no agent is thrown out: a surplus leaves at its own boundaries;
  * letting in goes by occupancy (`limit - active`), never by the change of a limit;
  * at least one agent is always let in, whatever the limit says, and after a stall some more;
  * an overdue agent goes first, and takes the place of one that pauses; the limit holds meanwhile;
  * so does an agent of a higher priority than the one that stands at a boundary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from concur_agents.core.family import Account
from concur_agents.core.order import Order
from concur_agents.core.pressure import Claims
from concur_agents.core.queue import Queue
from concur_agents.core.sizes import Sizes
from concur_agents.core.types import Limit, State, Transition
from concur_agents.core.why import Reason

_ROTATION_SHARE = 0.1  # most of the engine's time that rotating open agents may cost in prefill
_CARE = 1.3  # times what open agents are expected to hold: what is open cannot be closed again
# Until it is known how large agents become, those at work are expected to come to so many times
# what they hold: half of their lives is over.  With 2 some began late where all would have fit.
GROWS = 1.8


@dataclass(slots=True)
class Admission:
    """The active agents, and the queue of the others, under one `Limit`."""

    sizes: Sizes
    order: Order
    max_wait_s: float | None = None
    max_open: int | None = None
    limit: Limit = field(default_factory=Limit)
    places: float = math.inf  # most active at once: the limit in whole agents, at least one
    active: int = 0
    paused: int = 0  # agents that wait and have a context
    suspended: int = 0
    open_agents: int = 0  # let in at least once and not left
    bound: bool = False  # an agent had to wait for the limit since the last `take_bound`
    alone_until_s: float | None = None  # one agent runs alone until then; None: no longer
    held_until_s: float | None = None  # no boundary is passed until then; None: no longer
    overdue_total: int = 0
    stalls_total: int = 0
    # So many are always let in, whatever the limit says: one, and more for a while after a stall,
    # or the agent that ended it would be put back at its next boundary, and nothing moves again.
    least: int = 1
    moves: list[Transition] = field(default_factory=list)  # since they were last taken
    claims: Claims = field(default_factory=Claims)
    queue: Queue = field(init=False)

    def __post_init__(self) -> None:
        self.queue = Queue(self.order, self.is_warm)

    @property
    def reasoning(self) -> int:
        """Active agents with a call in flight."""
        return self.claims.held

    # -- moves, one for each arrow between states ----------------------------------------------

    def wait(self, account: Account, now: float, since_s: float | None = None) -> None:
        """`account`, so far outside or just taken out, waits for its turn, since `since_s`."""
        arrives = account.state is State.QUEUED and not account.admitted_ever
        before = None if arrives else account.state
        account.state = State.PAUSED if account.has_context else State.QUEUED
        account.waiting_since_s = now if since_s is None else since_s
        self.suspended -= before is State.SUSPENDED
        self.paused += account.has_context
        self.queue.push(account)
        self.moves.append(Transition(account.agent, before, account.state, self.why(account, now)))

    def begin_or_pause(self, account: Account, need: float, now: float) -> bool:
        """`account`, active and at a boundary, reasons; False: it has given up its place instead.

        It begins first, and is taken out again if that is too much: its claim counts as `need`.
        """
        had_begun, before = account.has_begun, account.state
        self._reason(account, need)
        room = self.limit.tokens - self.sizes.prefixes.charged_tokens
        is_surplus = self.active > self.least and (
            self.active > self.places or not self.claims.fits(room, now)
        )
        # An agent that has just been let in runs a step before it makes room for another.
        rotates = had_begun and self.least == 1
        if is_surplus or (
            rotates and (self._overdue(now) is not None or self._is_outranked(account))
        ):
            self._take_out(account)
            account.state = before
            return False
        self.moves.append(Transition(account.agent, before, State.REASONING))
        return True

    def begin(self, account: Account, need: float) -> None:
        """`account`, active, reasons and claims `need`."""
        self._move(account, State.REASONING)
        self._reason(account, need)

    def end(self, account: Account, held: float, now: float, *, undo: bool = False) -> None:
        """`account` has no call in flight any more, and claims the tokens it holds.

        With `undo` as if its last `begin` had not been.
        """
        if not undo:
            account.idle_since_s = now
        self.claims.fade(account.claim, held, now, again=undo)
        self._move(account, State.ACTING)

    def suspend(self, account: Account) -> None:
        """`account` has no place and asks for none."""
        self._take_out(account)
        self.suspended += 1
        self._move(account, State.SUSPENDED)

    def drop(self, account: Account) -> None:
        """`account` and its family are done, wherever they stood."""
        self._take_out(account)
        self.open_agents -= account.admitted_ever
        self._move(account, State.DONE)

    def fill(
        self, now: float, *, stalled: bool = False, forced: Account | None = None
    ) -> list[Account]:
        """Let in the agents that the limit allows now, best first; returns them, already active.

        Args:
            stalled: nothing has moved for so long that one goes in whatever the limit says.
            forced: waits, and goes in whatever the limit says.
        """
        admitted: list[Account] = []
        if forced is not None:
            self.admit(forced, now)
            admitted.append(forced)
        if self.held_until_s is not None:
            return admitted
        while (
            stalled or self.active < self.least or not (self.bound and self.active >= self.places)
        ):
            # 1. Where nothing moves, a paused one: it may hold what the active ones wait for.
            head = self.stall_head() if stalled else None
            # 2. Else an agent that has waited past `max_wait_s`.
            overdue = self._overdue(now) if head is None else None
            head = head or overdue
            # 3. Else the first of the queue, new ones left out while enough agents are open.
            if head is None:
                head = self._next()
            if head is None:
                break
            is_bound = self.active >= self.least and not stalled
            if is_bound and not self._has_room(head, overdue is not None, now):
                self.bound = True
                break
            self.overdue_total += overdue is not None
            self.stalls_total += stalled
            self.admit(head, now)
            admitted.append(head)
            if stalled:
                self.least, stalled = max(self.least, self.active), False
        return admitted

    def admit(self, account: Account, now: float) -> None:
        """`account`, which waits, has a place."""
        self._take_out(account)
        self.active += 1
        if not account.admitted_ever:
            account.admitted_ever = True
            self.open_agents += 1
            self.sizes.peak_forecast.opens()
        account.has_begun = False
        self._move(account, State.ACTING)
        self.sizes.join_group(account)
        account.need = self.sizes.need(account)
        self.claims.fade(account.claim, account.need, now)

    # -- the limit -----------------------------------------------------------------------------

    def resize(self, limit: Limit, now: float) -> None:
        """Enforce `limit` from now on.  Call `fill` afterwards."""
        if limit.hold_s_per_token != self.limit.hold_s_per_token:
            self.claims.set_hold(limit.hold_s_per_token, now)
        self.limit = limit
        agents = limit.agents
        self.places = agents if agents == math.inf else max(1, math.floor(agents))

    def take_bound(self) -> bool:
        """Whether an agent had to wait for the limit since the last call."""
        taken = self.bound
        self.bound = self.queue.head(new_allowed=self.may_open) is not None
        return taken

    # -- questions: they change nothing --------------------------------------------------------

    def pressure(self, now: float) -> float:
        """Sum of all claims, shared prefixes counted once [tokens]."""
        return self.claims.pressure(now) + self.sizes.prefixes.charged_tokens

    def is_warm(self, account: Account) -> bool:
        """Whether most of what `account` sent is probably still cached."""
        entry, residency = account.lru_entry, self.sizes.residency
        if not entry.position:
            return False
        pool = residency.pool_tokens
        if pool is None:
            return True
        distance = self.claims.reasoning_tokens + residency.distance(entry)
        return distance + 0.5 * entry.tokens <= pool

    def would_admit(self, newcomer: Account, now: float) -> bool:
        """Whether `newcomer` would be let in now, if no agent waits."""
        if not self.may_open or self.held_until_s is not None:
            return False
        if self.active < self.least:
            return True
        no_end = self.max_wait_s is None or not self.active or self.limit.tokens == math.inf
        return (no_end or self._may_rotate(newcomer)) and self._has_room(newcomer, False, now)

    def next_wake(self, now: float) -> float | None:
        """Earliest instant at which passing time alone could let an agent in [s]."""
        if self.held_until_s is not None:
            return self.held_until_s
        if not len(self.queue):
            return None
        wakes: list[float] = []
        wakes.extend(due_s for _, due_s in self._dues() if due_s > now)
        if self.active < self.places:
            overdue = self._overdue(now)
            head = overdue or self._next()
            if head is not None:
                room = self._room_to_enter(head, overdue is not None)
                fades = self.claims.seconds_until(room, now)
                if fades is not None:
                    wakes.append(now + fades)
        if self.alone_until_s is not None:
            wakes.append(self.alone_until_s)
        return min(wakes, default=None)

    def why(self, account: Account, now: float) -> Reason:
        """What binds `account`, which waits.  O(1)."""
        agent, state = account.agent, account.state.value
        if self.held_until_s is not None:
            left_s = max(0.0, self.held_until_s - now)
            return Reason(agent=agent, state=state, cause="hold", most=left_s)
        if not account.admitted_ever and self.max_open and self.open_agents >= self.max_open:
            count, most = float(self.open_agents), float(self.max_open)
            return Reason(agent=agent, state=state, cause="max_open", count=count, most=most)
        if self.alone_until_s is not None:
            left_s = max(0.0, self.alone_until_s - now)
            return Reason(agent=agent, state=state, cause="first_reading", most=left_s)
        if self.active >= self.places:
            count, most = float(self.active), self.places
            return Reason(agent=agent, state=state, cause="agents", count=count, most=most)
        limit = self._bound_on(account)
        if limit == math.inf:
            return Reason(agent=agent, state=state, cause="next")
        return Reason(
            agent=agent,
            state=state,
            cause="tokens",
            pressure_tokens=self.pressure(now),
            need_tokens=self.sizes.need(account),
            limit_tokens=limit,
        )

    def stall_head(self) -> Account | None:
        """The agent to let in where nothing moves: a paused one first; None: none may be opened."""
        return self.queue.oldest(admitted_ever=True) or self.queue.head(new_allowed=self.may_open)

    @property
    def may_open(self) -> bool:
        """Whether an agent that has never been let in may be, as far as breadth goes."""
        if self.max_open is not None and self.open_agents >= self.max_open:
            return False
        if self.open_agents < self.limit.open_agents:
            return True
        return self.queue.oldest(admitted_ever=True) is None  # else those that have begun go first

    # -- inside --------------------------------------------------------------------------------

    def _move(self, account: Account, after: State) -> None:
        before, account.state = account.state, after
        if before is not after:
            self.moves.append(Transition(account.agent, before, after))

    def _take_out(self, account: Account) -> None:
        """`account` gives up its place, or the wait for one."""
        if account.state.is_active:
            self.active -= 1
            self.claims.release(account.claim)
            self.sizes.part_group(account)
        elif account.state is State.SUSPENDED:
            self.suspended -= 1
        else:
            self.paused -= account.state is State.PAUSED
            self.queue.remove(account)

    def _reason(self, account: Account, need: float) -> None:
        account.state = State.REASONING
        account.has_begun = True
        account.need = need
        self.claims.hold(account.claim, need)

    def _next(self) -> Account | None:
        """The agent that goes first while none is overdue."""
        head = self.queue.head(new_allowed=self.may_open)
        if head is None or head.admitted_ever or self.max_wait_s is None:
            return head
        if not self.active or self.limit.tokens == math.inf or self._may_rotate(head):
            return head
        return self.queue.head(new_allowed=False)

    def _has_room(self, account: Account, overdue: bool, now: float) -> bool:
        room = self._room_to_enter(account, overdue)
        return self.active < self.places and self.claims.fits(room, now)

    def _room_to_enter(self, account: Account, overdue: bool) -> float:
        """Most that the claims of all others may sum up to for `account` to be let in [tokens].

        An overdue one takes the place of another: it needs no more than that one had.
        """
        most = self.limit.tokens if overdue else self._bound_on(account)
        if most == math.inf:
            return most
        return most - self.sizes.prefixes.charged_tokens - self.sizes.need(account)

    def _bound_on(self, account: Account) -> float:
        """Pressure up to which `account` may be let in [tokens]."""
        limit = self.limit
        if limit.enter_tokens >= limit.tokens or self.is_warm(account):
            return limit.tokens
        if limit.near_tokens >= limit.enter_tokens:
            return limit.enter_tokens
        peak = self.sizes.own_peak(self.sizes.need(account))
        if peak is None:  # too few have left
            grown = limit.tokens / GROWS
            return min(limit.enter_tokens, max(limit.near_tokens, grown))
        return limit.enter_tokens if _CARE * peak <= limit.tokens else limit.near_tokens

    def _overdue(self, now: float) -> Account | None:
        """The agent that has waited past `max_wait_s` and may take the next place; None: none."""
        for who, due_s in self._dues():
            if due_s <= now and (who.admitted_ever or (self.may_open and self._may_rotate(who))):
                return who
        return None

    def _is_outranked(self, account: Account) -> bool:
        """Whether an agent of a higher priority waits for what `account`, at a boundary, holds."""
        if not self.queue.outranks(account):
            return False
        head = self.queue.head(new_allowed=self.may_open)
        return head is not None and head.priority > account.priority

    def _dues(self) -> list[tuple[Account, float]]:
        """Who waits longest, of all and of the open ones, and when each is overdue [s]."""
        most_s = self.max_wait_s
        if most_s is None:
            return []
        both = (self.queue.oldest(), self.queue.oldest(admitted_ever=True))
        return [(who, who.waiting_since_s + most_s) for who in both if who is not None]

    def _may_rotate(self, newcomer: Account) -> bool:
        """Whether opening one more agent keeps the cost of rotating all open ones small.

        With a bound on waiting every open agent that does not fit has to come back within
        `max_wait_s`, cold: one prefill of all that does not fit per `max_wait_s`.  So only as many
        are opened as fit when they have grown, and a few more if that costs little.
        """
        sizes, pool = self.sizes, self.sizes.residency.pool_tokens
        if self.max_wait_s is None or pool is None:
            return True
        need = sizes.need(newcomer)
        tokens = sizes.footprint_tokens + need
        if self.limit.tokens != math.inf:  # what is open now will grow, and cannot be closed again
            peak = sizes.peak_forecast.peak_tokens(need)
            if peak is None:  # none has left yet
                peak = (self.open_agents + 1) * sizes.grown(newcomer)
            else:
                peak *= _CARE
            tokens = max(tokens, peak)
        price = sizes.price.prefill_s_per_token
        if tokens <= pool or price is None:
            return tokens <= pool
        return (tokens - pool) * price <= _ROTATION_SHARE * self.max_wait_s
