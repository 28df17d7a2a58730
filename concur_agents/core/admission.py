"""Who may run.  Pure: no clock, no locks, no asyncio.

The window holds the active agents' claims and the queue of the others, and enforces one `Limit`.
It is told of arrivals, boundaries and departures, and `fill` says whom that lets in.  It does not
know why the limit is what it is.

Rules, each with its test:
  * nobody is thrown out: a surplus leaves at its own boundaries;
  * letting in goes by occupancy (`limit - active`), never by the change of a limit;
  * at least one agent is always let in, whatever the limit says;
  * an overdue agent goes first, and takes the place of one that pauses; the limit holds meanwhile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from concur_agents.core.family import Account, State
from concur_agents.core.laws.law import Limit
from concur_agents.core.order import Order
from concur_agents.core.peak_forecast import PeakForecast
from concur_agents.core.pressure import Claims
from concur_agents.core.queue import Queue
from concur_agents.core.sizes import Sizes

_ROTATION_SHARE = 0.1
"""Most of the engine's time that letting overdue newcomers in may cost in repeated prefill."""
_CARE = 1.3
"""Times the tokens that open agents are expected to hold: what is open cannot be closed again."""


@dataclass(slots=True)
class Admission:
    """The roster of active agents and the queue of the others, under one `Limit`."""

    sizes: Sizes
    order: Order
    max_wait_s: float | None = None
    max_open: int | None = None
    limit: Limit = field(default_factory=Limit)
    places: float = math.inf
    """Most agents active at once: the limit, rounded down to whole agents, at least one."""
    active: int = 0
    reasoning: int = 0
    paused: int = 0
    """Agents that wait and have started."""
    open_agents: int = 0
    """Agents that have been let in at least once and not left."""
    peak: int = 0
    bound: bool = False
    """Someone had to wait for the limit since the last `take_peak`."""
    overdue_total: int = 0
    claims: Claims = field(default_factory=Claims)
    queue: Queue = field(init=False)

    def __post_init__(self) -> None:
        if self.max_wait_s is not None:
            self.sizes.peak_forecast = PeakForecast()
        self.queue = Queue(self.order, self.is_warm)

    # -- what the regulator tells ------------------------------------------------------------

    def look_ahead(self) -> None:
        """Take stock of what the open agents will hold; now and then, as it takes a moment."""
        if self.sizes.peak_forecast is not None:
            self.sizes.peak_forecast.look(self.open_agents, self.sizes.first_prompt.value)

    def resize(self, limit: Limit, now: float) -> None:
        """Enforce `limit` from now on.  Call `fill` afterwards."""
        if limit.hold_s_per_token != self.limit.hold_s_per_token:
            self.claims.set_hold(limit.hold_s_per_token, now)
        self.limit = limit
        if limit.agents != self.places:
            agents = limit.agents
            self.places = agents if agents == math.inf else max(1, math.floor(agents))

    def wait(self, account: Account, now: float) -> None:
        """`account`, so far outside or just taken out, waits for its turn."""
        account.waiting_since_s = now
        self.paused += account.state is State.PAUSED
        self.queue.push(account)

    def withdraw(self, account: Account) -> None:
        """`account` waits no longer, without having been let in."""
        self.paused -= account.state is State.PAUSED
        self.queue.remove(account)

    def begin_or_pause(self, account: Account, need: float, now: float) -> bool:
        """`account`, active and at a boundary, reasons; False: it has given up its place instead.

        It begins first, and is taken out again if that is too much: its claim counts as `need`.
        """
        had_begun = account.has_begun
        self.begin(account, need)
        if self.active > 1 and (
            self.active > self.places
            or not self.claims.fits(self.limit.tokens - self.sizes.prefixes.charged_tokens, now)
        ):
            self.take_out(account)
            return False
        # One that has just been let in runs a step before it makes room for the next overdue one.
        if had_begun and self.max_wait_s is not None and self._overdue(now) is not None:
            self.take_out(account)
            return False
        return True

    def begin(self, account: Account, need: float) -> None:
        """`account`, active, reasons and claims `need`."""
        if account.state is not State.REASONING:
            account.state = State.REASONING
            self.reasoning += 1
        account.has_begun = True
        account.need = need
        self.claims.hold(account.claim, need)

    def end(self, account: Account, held: float, now: float) -> None:
        """`account` has no call in flight any more, and claims the tokens it holds."""
        account.state = State.ACTING
        account.idle_since_s = now
        self.reasoning -= 1
        self.claims.fade(account.claim, held, now)

    def undo(self, account: Account, now: float) -> None:
        """`account` does not reason after all: as if the last `begin` had not been."""
        account.state = State.ACTING
        self.reasoning -= 1
        held = self.sizes.held(account) if account.has_context else account.need
        self.claims.fade(account.claim, held, now, again=True)

    def take_out(self, account: Account) -> None:
        """`account`, active, gives up its place."""
        if account.state is State.REASONING:
            self.reasoning -= 1
        self.active -= 1
        self.claims.release(account.claim)

    def fill(self, now: float) -> list[Account]:
        """Let in whom the limit allows now, best first; returns them, already active."""
        admitted: list[Account] = []
        while not (self.bound and self.active >= self.places):
            head = None if self.max_wait_s is None else self._overdue(now)
            overdue = head is not None
            if head is None:
                head = self._next()
            if head is None:  # nobody waits, or all are new and no more may be open
                break
            if self.active and (
                self.active >= self.places
                or not self.claims.fits(self._room_to_enter(head, overdue), now)
            ):
                self.bound = True
                break
            self.overdue_total += overdue
            self.withdraw(head)
            self._admit(head, now)
            admitted.append(head)
        return admitted

    # -- what others ask ---------------------------------------------------------------------

    def pressure(self, now: float) -> float:
        """Sum of all claims, shared prefixes counted once [tokens]."""
        return self.claims.pressure(now) + self.sizes.prefixes.charged_tokens

    def is_warm(self, account: Account) -> bool:
        """Whether most of what `account` sent is probably still cached."""
        lru_entry, residency = account.lru_entry, self.sizes.residency
        if not lru_entry.position:
            return False
        pool = residency.pool_tokens
        if pool is None:
            return True
        distance = self.claims.reasoning_tokens + residency.distance(lru_entry)
        return distance + 0.5 * lru_entry.tokens <= pool

    def next_wake(self, now: float) -> float | None:
        """Earliest instant at which passing time alone could let someone in [s]."""
        if not len(self.queue):
            return None
        wakes: list[float] = []
        if self.max_wait_s is not None:
            # Both, for an overdue newcomer may have to wait on while a paused agent may not.
            oldest = (self.queue.oldest(), self.queue.oldest(admitted_ever=True))
            dues = [who.waiting_since_s + self.max_wait_s for who in oldest if who is not None]
            wakes.extend(due for due in dues if due > now)
        overdue = self._overdue(now)
        head = overdue or self._next()
        if head is not None and self.active < self.places:
            room = self._room_to_enter(head, overdue is not None)
            fades = self.claims.seconds_until(room, now)
            if fades is not None:
                wakes.append(now + fades)
        return min(wakes, default=None)

    def take_peak(self) -> tuple[int, bool]:
        """Most agents active at once since the last call, and whether anyone had to wait."""
        taken = self.peak, self.bound
        self.peak = self.active
        self.bound = self.queue.head(new_allowed=self.may_open) is not None
        return taken

    def bound_on(self, account: Account) -> float:
        """Pressure up to which `account` may be let in [tokens]."""
        limit = self.limit
        if limit.enter_tokens < limit.tokens and not self.is_warm(account):
            return limit.enter_tokens
        return limit.tokens

    @property
    def may_open(self) -> bool:
        """Whether an agent that has never been let in may be, as far as breadth goes."""
        if self.max_open is not None and self.open_agents >= self.max_open:
            return False
        if self.open_agents < self.limit.open_agents:
            return True
        return self.queue.oldest(admitted_ever=True) is None  # else those that have begun go first

    # -- inside ------------------------------------------------------------------------------

    def _next(self) -> Account | None:
        """Who goes first while nobody is overdue."""
        head = self.queue.head(new_allowed=self.may_open)
        if head is None or head.admitted_ever or self.max_wait_s is None:
            return head
        if not self.active or self.limit.tokens == math.inf:
            return head
        if self._may_rotate(head):
            return head
        return self.queue.head(new_allowed=False)

    def _room_to_enter(self, account: Account, overdue: bool) -> float:
        """Most that the claims of all others may sum up to for `account` to be let in [tokens].

        One that is overdue takes the place of another: it needs no more than that one had.
        """
        most = self.limit.tokens if overdue else self.bound_on(account)
        if most == math.inf:
            return most
        sizes = self.sizes
        return most - sizes.prefixes.charged_tokens - sizes.need(account)

    def _admit(self, account: Account, now: float) -> None:
        self.active += 1
        if self.active > self.peak:
            self.peak = self.active
        if not account.admitted_ever:
            account.admitted_ever = True
            self.open_agents += 1
            if self.sizes.peak_forecast is not None:
                self.sizes.peak_forecast.opens()
        account.has_begun = False
        account.state = State.ACTING
        account.need = self.sizes.need(account)
        self.claims.fade(account.claim, account.need, now)

    def _overdue(self, now: float) -> Account | None:
        """Who has waited past `max_wait_s` and may take the next place; None: nobody."""
        if self.max_wait_s is None:
            return None
        oldest = self.queue.oldest()
        if oldest is None or not self._is_due(oldest, now):
            return None
        if oldest.admitted_ever or (self.may_open and self._may_rotate(oldest)):
            return oldest
        oldest = self.queue.oldest(admitted_ever=True)
        return oldest if oldest is not None and self._is_due(oldest, now) else None

    def _is_due(self, account: Account, now: float) -> bool:
        # The very sum that `next_wake` answers: `now - waiting_since_s` may round to just less.
        return self.max_wait_s is not None and account.waiting_since_s + self.max_wait_s <= now

    def _may_rotate(self, newcomer: Account) -> bool:
        """Whether opening one more agent keeps the cost of rotating all open ones small.

        With a bound on waiting every open agent that does not fit has to come back within
        `max_wait_s`, cold: one prefill of all that does not fit per `max_wait_s`.  So only as many
        are opened as fit when they have grown, and a few more if that costs little.
        """
        if self.max_wait_s is None:
            return True
        sizes, pool = self.sizes, self.sizes.residency.pool_tokens
        tokens = sizes.footprint_tokens + sizes.need(newcomer)
        if self.limit.tokens != math.inf:  # what is open now will grow, and cannot be closed again
            tokens = max(tokens, self._peak_tokens(newcomer))
        beyond = tokens - (pool or 0.0)
        price = sizes.cost.prefill_s_per_token
        if beyond <= 0.0 or price is None:
            return pool is None or beyond <= 0.0
        return beyond * price <= _ROTATION_SHARE * self.max_wait_s

    def _peak_tokens(self, newcomer: Account) -> float:
        """Most that `newcomer` and all open agents will hold together, carefully [tokens]."""
        sizes = self.sizes
        assert sizes.peak_forecast is not None
        peak = sizes.peak_forecast.peak_tokens(sizes.need(newcomer))
        if peak is None:  # nobody has left yet
            return (self.open_agents + 1) * sizes.grown(newcomer)
        return _CARE * peak
