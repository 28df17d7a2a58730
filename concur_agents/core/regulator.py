"""The Regulator: one KV pool's admission control, pure.

It hears what happens (`arrive`, `begin_step`, `end_step`, `leave`), what the engine reports
(`tick`) and what time it is (`now`, always an argument, any monotonic origin), and answers with
the agents that it has just let in.  The host wakes them; nothing else happens.  It cannot block,
reads no clock, draws no random numbers, and the same calls give the same answers: the simulator,
threads, event loops and an actor on another machine run the same one.  Questions change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from concur_agents.core.admission import Admission
from concur_agents.core.family import Account
from concur_agents.core.laws.law import Law, LawState
from concur_agents.core.meter import Meter
from concur_agents.core.order import ORDERS, Order
from concur_agents.core.prefixes import Chain
from concur_agents.core.sizes import Sizes
from concur_agents.core.types import (
    AgentId,
    AgentView,
    Decision,
    Limit,
    Reading,
    Snapshot,
    State,
    Usage,
    View,
    is_plausible,
)
from concur_agents.core.why import Reason

FIRST_READING_S = 1.0
"""What to give as `first_reading_s` where there is an engine to read [s]: one that answers does so
within milliseconds, and one that is not there refuses as fast."""
STALL_MEMORY_S = 600.0
"""So long after a stall the agents that ended it may stay active beyond the limit [s]."""
STALL_S, NEW_STALL_S = 5.0, 60.0
"""Least time without a call until a stall is assumed [s]: if one that has begun waits, and else."""


class _Accounts(dict[AgentId, Account]):
    """All agents that are here."""

    def __missing__(self, agent: AgentId) -> Account:
        raise KeyError(f"agent {agent!r} is not here: it must arrive first")


class Regulator:
    """Admits, pauses and resumes whole agents so that one KV pool does not thrash.

    A stall ends by itself: if agents wait, no call is in flight, and no active agent has begun one
    for `STALL_S` and twice the longest recent gap, one more is let in, and so many may stay
    for ten minutes.  The active agents wait for something that a waiting one holds: a semaphore
    around the gate, a thread of a small pool.

    Args:
        law: decides the limit; see `make_law`.
        start_s: the host's clock at the start [s].
        max_wait_s: an agent that has waited this long goes first and takes the place of one that
            pauses at its next boundary [s]; None: waiting is not bounded.
        max_open: most agents admitted and not done (each may hold a sandbox); None: not bounded.
        blind_after_s: this long without a reading, a law that needs readings yields to
            `blind_agents` [s].
        blind_agents: the safe limit then [agents]; it never raises the limit.
        order: which agent is let in first, a name in `ORDERS` or a function of your own.
        first_reading_s: until the first tick, but for at most this long after the first arrival
            [s], one agent runs alone: before the engine has reported its pool, a law can only guess
            how many fit, and an agent let in on a guess stays.  0: no agent waits for it.
        max_started: what `max_open` was called before 0.2; goes with the next release.

    Raises:
        ValueError: an argument out of its range, or an unknown order.
    """

    def __init__(
        self,
        law: Law,
        start_s: float = 0.0,
        *,
        max_wait_s: float | None = None,
        max_open: int | None = None,
        blind_after_s: float = 30.0,
        blind_agents: int = 8,
        order: str | Order = "warm_new_least",
        first_reading_s: float = 0.0,
        max_started: int | None = None,
    ) -> None:
        max_open = max_started if max_open is None else max_open
        for name, value, least in (("max_open", max_open, 1), ("blind_agents", blind_agents, 1)):
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        for name, above in (("max_wait_s", max_wait_s), ("blind_after_s", blind_after_s)):
            if above is not None and not above > 0:
                raise ValueError(f"{name} must be above 0, got {above}")
        if not 0 <= first_reading_s < math.inf:
            raise ValueError(
                f"first_reading_s must be at least 0 and not infinite: {first_reading_s}"
            )
        if isinstance(order, str):
            if order not in ORDERS:
                raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
            order = ORDERS[order]
        self.law = law
        self.state: LawState = law.initial()
        self.last_snapshot: Snapshot | None = None
        self._accounts = _Accounts()
        self._sizes = Sizes()
        self._admission = Admission(self._sizes, order, max_wait_s=max_wait_s, max_open=max_open)
        self._meter = Meter(start_s, self._sizes.price)
        self._blind_after_s, self._blind_agents = blind_after_s, blind_agents
        self._is_blind = False
        self._first_reading_s = first_reading_s
        # One agent runs alone until then; infinity: until the first tick, for none has come yet.
        self._admission.alone_until_s = math.inf if first_reading_s else None
        self._enforce(start_s)
        self._arrivals = self._done_total = self._pauses_total = 0
        self._heard_s = start_s
        self._wake_s: float | None = None
        self._wake_stands = False

    # -- the door ----------------------------------------------------------------------------

    def arrive(
        self,
        agent: AgentId,
        now: float,
        *,
        prompt_tokens: int | None = None,
        parent: AgentId | None = None,
        priority: int = 0,
    ) -> Decision:
        """`agent` asks to start.  In the list: it has its place; absent: it is queued.

        Args:
            prompt_tokens: size of its first prompt, when known [tokens].
            parent: an agent whose place it shares; it is then in the list at once.
            priority: larger goes first.

        Raises:
            ValueError: `agent` is already here, or `parent` is not.
        """
        if agent in self._accounts:
            raise ValueError(f"agent {agent!r} is already here: ids must be unique until it leaves")
        if parent is not None and parent not in self._accounts:
            raise ValueError(f"parent {parent!r} of agent {agent!r} is not here")
        if self._admission.alone_until_s == math.inf:
            self._admission.alone_until_s = now + self._first_reading_s
        self._pass_time(now)
        account = Account(agent, now, self._arrivals, priority, idle_since_s=now)
        if prompt_tokens is not None and is_plausible(prompt_tokens):
            account.expected_prompt = prompt_tokens
        self._arrivals += 1
        self._accounts[agent] = account
        if parent is not None:
            account.parent = self._accounts[parent].root
            account.parent.children += 1
            return self._fill(now, agent)
        account.waiters[agent] = 0  # it waits to start, with no call yet
        self._admission.wait(account, now)
        return self._fill(now)

    def begin_step(
        self,
        agent: AgentId,
        now: float,
        *,
        prompt_tokens: int | None = None,
        prefix: Chain | None = None,
    ) -> Decision:
        """`agent` stands at a boundary.  In the list: go on; absent: wait for a later list.

        Several calls of one agent (and of its children) may be in flight at once; each begins and
        ends a step of its own.  Only an agent with no call in flight can be paused.

        Args:
            prompt_tokens: size of the prompt about to be sent, when known [tokens].
            prefix: names of its leading parts, shortest first, each with the tokens up to its
                end; parts that other agents hold too are charged once.

        Raises:
            KeyError: `agent` is not here.
        """
        who = self._accounts[agent]
        root, admission, sizes = who.root, self._admission, self._sizes
        self._pass_time(now)
        if who is root:
            root.is_suspended = False
            if prompt_tokens is not None and is_plausible(prompt_tokens):
                root.expected_prompt = prompt_tokens
            if (
                prefix is not None
                and tuple(prefix) != root.chain
                and all(is_plausible(tokens) for _, tokens in prefix)
            ):
                sizes.share(root, prefix)
        if not root.state.is_active:
            self._ask_back(root, now)
            root.waiters[agent] = root.waiters.get(agent, 0) + 1
            return self._fill(now)
        need = sizes.need(root)
        if root.in_flight:
            admission.begin(root, max(root.need, need))
        else:
            if root.has_context:
                self._meter.came_back(now - root.idle_since_s, now)
            in_calls = admission.claims.reasoning_tokens
            if not admission.begin_or_pause(root, need, now):
                root.waiters[agent] = 1
                self._pauses_total += root.has_context
                admission.wait(root, now)
                return self._fill(now)
            root.has_sent = False
            sizes.begin(root, in_calls)
        who.begin_calls(1, now)
        self._meter.called(now)
        return self._fill(now, agent)

    def end_step(
        self,
        agent: AgentId,
        now: float,
        usage: Usage | None,
        *,
        overloaded: bool = False,
        retry_after_s: float = 0.0,
    ) -> Decision:
        """A step of `agent` is over.  Of one that never began, see `withdraw_step`.

        Args:
            usage: what it took; None: unknown, or it failed, which says nothing about capacity.
            overloaded: the endpoint refused it for lack of capacity (429, 503).
            retry_after_s: how long the endpoint asked to wait [s].

        Raises:
            KeyError: `agent` is not here.
            ValueError: it has no step to end.
        """
        who = self._accounts[agent]
        if self._gives_up(who, now):
            return self._fill(now)
        who.root.has_sent = True
        if overloaded:
            self._meter.refused(retry_after_s)
        elif usage is not None and usage.is_plausible:
            self._meter.ended(usage, now - who.begun_s)
            self._sizes.end(who, usage)
        self._end(who, 1, now)
        return self._fill(now)

    def retry_step(
        self,
        agent: AgentId,
        now: float,
        *,
        overloaded: bool = False,
        retry_after_s: float = 0.0,
    ) -> Decision:
        """A try of `agent`'s step was refused, or another try begins; the step goes on.

        It is no boundary.  The step's time is counted from here: failed tries and the time between
        them say nothing about the cost of the one that works.

        Args:
            overloaded: the endpoint refused the try for lack of capacity (429, 503).  Reported
                here and not at the end, which may be a long `Retry-After` away.
            retry_after_s: how long the endpoint asked to wait [s].

        Raises:
            KeyError: `agent` is not here.
        """
        who = self._accounts[agent]
        self._pass_time(now)
        self._meter.called(now)
        if overloaded:
            self._meter.refused(retry_after_s)
        if who.calls:
            who.begun_s = now
        return self._fill(now)

    def withdraw_step(self, agent: AgentId, now: float) -> Decision:
        """A step of `agent` is called off: it waits no longer, or was let in and never sent.

        Nothing has happened then: neither a step nor a failure, and its context was not used.

        Raises:
            KeyError: `agent` is not here.
            ValueError: it has no step to withdraw.
        """
        who = self._accounts[agent]
        if self._gives_up(who, now):
            return self._fill(now)
        root = who.root
        if root.in_flight > 1 or root.has_sent:
            self._end(who, 1, now)
            return self._fill(now)
        who.calls = root.in_flight = 0
        root.expected_prompt = root.distance = None
        held = self._sizes.held(root) if root.has_context else root.need
        self._admission.end(root, held, now, undo=True)
        self._sizes.residency.restore(root.lru_entry)
        self._settle_suspension(root)
        return self._fill(now)

    def suspend(self, agent: AgentId, now: float) -> Decision:
        """`agent` gives its place back for a while: a long tool, a question to a human.

        It stays the same agent, with its history, and its context ages in the engine's cache like
        that of any other.  The place goes when no call of its family is in flight or waits, and no
        child is here; a child's call takes one again, until the child leaves.  `resume` or its own
        `begin_step` ends this.  Idempotent.

        Raises:
            KeyError: `agent` is not here.
            ValueError: it has never been let in, or has no place of its own.
        """
        root = self._own_account(agent)
        if not root.admitted_ever:
            raise ValueError(f"agent {agent!r} has not been let in and has no place to give back")
        self._pass_time(now)
        root.is_suspended = True
        if not root.waiters.get(agent, 1):
            del root.waiters[agent]  # it was on its way back, with no call yet
        self._settle_suspension(root)
        return self._fill(now)

    def resume(self, agent: AgentId, now: float) -> Decision:
        """`agent` asks for its place again.  In the list: it has it; absent: it waits.

        It goes before new agents while its prefix is probably still cached.  Idempotent.

        Raises:
            KeyError: `agent` is not here.
            ValueError: it has no place of its own.
        """
        root = self._own_account(agent)
        self._pass_time(now)
        root.is_suspended = False
        self._ask_back(root, now)
        if root.state.is_active:
            return self._fill(now, agent)
        root.waiters.setdefault(agent, 0)
        return self._fill(now)

    def leave(self, agent: AgentId, now: float) -> Decision:
        """`agent` finished, failed or was cancelled, wherever it stood.  Idempotent.

        An agent whose children are still here keeps its place until the last of them leaves.
        """
        who = self._accounts.pop(agent, None)
        if who is None:
            return Decision()
        self._pass_time(now)
        root = who.root
        if root.in_flight:
            self._meter.call_ended(now)
        if who is root:
            self._done_total += 1
            root.departed = True
        else:
            root.children -= 1
            self._sizes.close(who)
        root.waiters.pop(agent, None)
        if root.departed and not root.children:
            self._admission.drop(root)
            self._sizes.close(root)
        elif who.calls:
            root.has_sent = True
            self._end(who, who.calls, now)
        else:
            self._settle_suspension(root)
        return self._fill(now)

    def tick(self, reading: Reading | None, now: float) -> Decision:
        """A poll came back (None: it failed).  The law decides here, and only here."""
        self._pass_time(now)
        if reading is not None:
            in_calls = self._admission.claims.reasoning_tokens
            capacity = self._meter.pool_tokens(reading, in_calls)
            if capacity is not None:
                self._sizes.residency.capacity_tokens = capacity
            if self._meter.hear(reading, now):
                self._sizes.residency.clear()
        blind = now - self._meter.heard_s >= self._blind_after_s
        self._is_blind = self.law.needs_readings and blind
        if reading is not None or not self.law.needs_readings:
            alone = self._admission.alone_until_s is not None
            bound = self._admission.take_bound() and not alone
            snapshot = self._meter.snapshot(reading, self._admission, now, bound=bound)
            self.last_snapshot = snapshot
            self.state = self.law.decide(self.state, snapshot)
        self._end_alone()
        self._enforce(now)
        self._admission.look_ahead()
        return self._fill(now)

    def flushed(self, now: float) -> Decision:
        """The engine's cache was emptied, as by a weight update: what then misses says nothing."""
        self._pass_time(now)
        self._sizes.residency.clear()
        return self._fill(now)

    def advance(self, now: float) -> Decision:
        """Only time has passed: let in the agents that this allows."""
        self._pass_time(now)
        return self._fill(now)

    def next_wake(self, now: float) -> float | None:
        """When to call `advance` if nothing else happens before [s]; None: no need.

        Cheap to ask again: the answer stands until the next call of another method.
        """
        if not self._wake_stands:
            # From the last event on, not from `now`: when it was asked must not matter.
            wakes = [self._admission.next_wake(self._heard_s), self._stall_s()]
            self._wake_s = min((wake for wake in wakes if wake is not None), default=None)
            self._wake_stands = True
        return self._wake_s

    # -- questions ---------------------------------------------------------------------------

    @property
    def limit(self) -> Limit:
        """What is enforced now: the law's limit, or a tighter one while blind or at first."""
        return self._admission.limit

    @property
    def reason(self) -> str:
        """Code of the decision in force."""
        if self._admission.alone_until_s is not None:
            return "first_reading"
        return "blind" if self._is_blind else self.state.reason

    def agent_state(self, agent: AgentId) -> str | None:
        """A value of `State`: where its family stands; None: not here."""
        who = self._accounts.get(agent)
        return None if who is None else who.root.state.value

    def view(self, now: float) -> View:
        """How things stand."""
        admission, sizes = self._admission, self._sizes
        oldest = admission.queue.oldest()
        deficit = None
        if sizes.recent_reusable > 0:
            deficit = 1.0 - sizes.recent_reused / sizes.recent_reusable
        return View(
            at_s=now,
            active=admission.active,
            reasoning=admission.reasoning,
            acting=admission.active - admission.reasoning,
            paused=admission.paused,
            queued=len(admission.queue) - admission.paused,
            suspended=admission.suspended,
            done_total=self._done_total,
            pressure_tokens=admission.pressure(now),
            capacity_tokens=sizes.residency.capacity_tokens,
            footprint_tokens=sizes.footprint_tokens,
            limit=admission.limit,
            reason=self.reason,
            hit_rate=self._meter.hit_rate,
            hit_deficit=deficit,
            pauses_total=self._pauses_total,
            overdue_total=admission.overdue_total,
            stalls_total=admission.stalls_total,
            longest_wait_s=now - oldest.waiting_since_s if oldest is not None else 0.0,
        )

    def ids(self) -> list[AgentId]:
        """All agents that are here, in order of arrival."""
        return list(self._accounts)

    def waiting(self, first: int | None = None) -> list[AgentId]:
        """The agents that wait, longest first; with `first` no more than that many."""
        return [account.agent for account in self._admission.queue.waiting(first)]

    def agents(self, only: Iterable[AgentId] | None = None) -> list[AgentView]:
        """The agents that are here, in order of arrival, or those of `only` that are.

        O(n): a host with a lock asks for `ids` and then for some of them at a time.
        """
        found = (self._accounts.get(agent) for agent in only) if only is not None else None
        return [
            AgentView(
                who.agent,
                None if who.parent is None else who.parent.agent,
                state.value,
                who.since_s(state),
                who.footprint,
                who.claim.tokens if who.claim.held else 0.0,
                who.steps,
            )
            for who in (self._accounts.values() if found is None else found)
            if who is not None
            for state in (who.standing,)
        ]

    def explain(self, agent: AgentId, now: float) -> Reason:
        """Why `agent` stands where it stands; `str()` gives one line.  O(n): for people."""
        who = self._accounts.get(agent)
        if who is None:
            return Reason(agent=agent, cause="absent")
        root, admission = who.root, self._admission
        state = root.state
        if state.is_active:
            held = root.claim.tokens
            return Reason(agent=agent, state=state.value, cause="active", count=held)
        if state is State.SUSPENDED:
            return Reason(agent=agent, state=state.value, cause="suspended")
        ahead = sum(admission.goes_before(other, root) for other in admission.queue.waiting())
        wake_s = self.next_wake(now)
        wake_in_s = None if wake_s is None else max(0.0, wake_s - now)
        why = admission.why(root, now)
        return replace(why, agent=agent, ahead=ahead, wake_in_s=wake_in_s)

    def why(self, agent: AgentId, now: float) -> Reason | None:
        """What keeps `agent` waiting at this instant; None: it does not wait.  O(1)."""
        who = self._accounts.get(agent)
        if who is None or who.root.state.is_active or who.root.state is State.SUSPENDED:
            return None
        return replace(self._admission.why(who.root, now), agent=agent)

    def __repr__(self) -> str:
        admission = self._admission
        return (
            f"<Regulator {self.law.name} [{self.reason}]: {admission.reasoning} reasoning, "
            f"{admission.active - admission.reasoning} acting, {len(admission.queue)} waiting>"
        )

    # -- inside ------------------------------------------------------------------------------

    def _own_account(self, agent: AgentId) -> Account:
        who = self._accounts[agent]
        if who.parent is not None:
            raise ValueError(f"agent {agent!r} shares the place of {who.parent.agent!r}")
        return who

    def _ask_back(self, root: Account, now: float) -> None:
        """A suspended `root` waits for its place again."""
        if root.state is State.SUSPENDED:
            self._admission.suspended -= 1
            self._admission.wait(root, now)

    def _settle_suspension(self, root: Account) -> None:
        """The place of a suspended agent is free unless a member of its family needs it."""
        if root.is_suspended and not root.needs_place and root.state is not State.SUSPENDED:
            self._admission.suspend(root)

    def _gives_up(self, who: Account, now: float) -> bool:
        """Whether a call of `who` that ends was still waiting; it then waits no longer.

        Raises:
            ValueError: it has no call.
        """
        self._pass_time(now)
        self._meter.called(now)
        if who.root.state.is_active:
            if not who.calls:
                raise ValueError(f"agent {who.agent!r} has no step to end")
            return False
        who.stop_waiting()
        self._settle_suspension(who.root)
        return True

    def _end(self, who: Account, calls: int, now: float) -> None:
        """`calls` of `who`, which is active, are over."""
        root, sizes = who.root, self._sizes
        self._meter.call_ended(now)
        who.end_calls(calls)
        if root.in_flight:
            self._admission.begin(root, max(root.need, sizes.need(root)))
            return
        root.expected_prompt = None
        held = sizes.held(root)
        self._admission.end(root, held, now)
        if root.has_context:
            sizes.residency.touch(root.lru_entry, held)
        self._settle_suspension(root)

    def _fill(self, now: float, *first: AgentId) -> Decision:
        """Lets in the agents that may be now; the answer of every call, after `first`."""
        admission = self._admission
        stall_s = self._stall_s()
        stalled = stall_s is not None and stall_s <= now
        if stalled:
            self._meter.stalled_s = now
        admitted = admission.fill(now, stalled=stalled)
        woken = list(first)
        for root in admitted:
            members, waiters = root.take_waiters()
            woken += members
            if any(waiters.values()):
                in_calls = admission.claims.reasoning_tokens
                admission.begin(root, root.need)
                root.has_sent = False
                self._sizes.begin(root, in_calls)
                for agent, calls in waiters.items():
                    self._accounts[agent].begin_calls(calls, now)
        if admitted:
            self._meter.last_call_s = now
            if stalled:
                self._meter.stalls += 1
                self._meter.stall_until_s = now + STALL_MEMORY_S
        admission.queue.settle()
        moves, admission.moves = tuple(admission.moves), []
        return Decision(woken, moves)

    def _stall_s(self) -> float | None:
        """When a stall will have to be assumed if nothing moves before [s]; None: never."""
        admission = self._admission
        if admission.reasoning or not len(admission.queue) or not admission.active:
            return None
        head = admission.stall_head()
        if head is None:  # all who wait are new, and `max_open` are open
            return None
        meter = self._meter
        if not (head.admitted_ever or meter.has_called):
            return None  # as far as is known, the agents make their calls without us
        least_s = STALL_S if head.admitted_ever else NEW_STALL_S
        rest_s = max(least_s, 2.0 * meter.longest_gap_s)
        since_s = max(meter.last_call_s, head.waiting_since_s)  # before, no agent was kept
        # A paused agent may well hold what the others need; a new one seldom does.
        return since_s + rest_s * (1.0 if head.admitted_ever else 2.0 ** min(meter.stalls, 16))

    def _enforce(self, now: float) -> None:
        """The law's limit holds, or what is tighter."""
        limit, most = self.state.limit, math.inf
        if self._admission.alone_until_s is not None:
            most = 1
        elif self._is_blind:
            most = self._blind_agents
        self._admission.resize(replace(limit, agents=most) if limit.agents > most else limit, now)

    def _end_alone(self) -> None:
        """The first reading is no longer waited for, and no agent has waited for the limit yet."""
        if self._admission.alone_until_s is not None:
            self._admission.alone_until_s = None
            self._admission.bound = False

    def _pass_time(self, now: float) -> None:
        self._wake_stands = False
        self._heard_s = now
        if self._admission.least > 1 and now >= self._meter.stall_until_s:
            self._admission.least = 1
        alone_until_s = self._admission.alone_until_s
        if alone_until_s is not None and now >= alone_until_s:
            self._end_alone()
            self._enforce(now)
        admission = self._admission
        self._meter.pass_time(now, admission.reasoning, admission.claims.reasoning_tokens)
