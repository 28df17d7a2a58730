"""The state machine behind the Regulator's door: what every call does around its own few lines.

Time passes, stalls end, agents are let in, and the moves become one `Decision`.
"""

from __future__ import annotations

import math
from dataclasses import replace

from concur_agents.core.admission import Admission
from concur_agents.core.family import Account
from concur_agents.core.groups import Groups
from concur_agents.core.laws.law import Law, LawState
from concur_agents.core.meter import Meter
from concur_agents.core.order import ORDERS, Order
from concur_agents.core.sizes import Sizes
from concur_agents.core.types import AgentId, Decision, Snapshot, State, Usage, View

STALL_S = 5.0  # least time without a call until a stall is assumed, if an open agent waits
NEW_STALL_S = 60.0  # the same if all who wait are new
STALL_MEMORY_S = 600.0  # so long the agents that ended a stall may stay beyond the limit


class _Accounts(dict[AgentId, Account]):
    """All agents that are here."""

    def __missing__(self, agent: AgentId) -> Account:
        raise KeyError(f"agent {agent!r} is not here: it must arrive first")


class Machine:
    """One KV pool's agents under one law.  Owned by `Regulator`."""

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
        for name, agents in (("max_open", max_open), ("blind_agents", blind_agents)):
            if agents is not None and agents < 1:
                raise ValueError(f"{name} must be at least 1, got {agents}")
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
        self._groups = Groups()
        self._holds: dict[str, float] = {}  # by name: until when [s] it may last
        self._stops = False  # boundaries are closed, or were until this very call
        self._arrivals = self._done_total = self._pauses_total = 0
        self._heard_s = start_s

    # -- after a call that an exception of a signal handler cut off halfway -------------------

    def memory_of(self, agent: AgentId) -> tuple[Usage | None, int | None]:
        """What `agent` holds, as its last step reported it (None: no context); the prompt that it
        announced [tokens].
        """
        who = self._accounts.get(agent)
        if who is None:
            return None, None
        expected = None if who.expected_prompt is None else int(who.expected_prompt)
        if not who.has_context:
            return None, expected
        prompt = int(who.last_prompt)  # perhaps changed when `footprint` was not yet
        return Usage(prompt, max(0, int(who.footprint) - prompt)), expected

    def calls_of(self, agent: AgentId) -> int:
        """Its own calls in flight."""
        who = self._accounts.get(agent)
        return 0 if who is None else who.calls

    def take_over(self, old: Machine, now: float) -> None:
        """Goes on in place of `old`: with its law's state, its totals, and what it has learned.

        The agents are here already; nothing of `old` that depends on where they stand is used.
        """
        self.law, self.state, self.last_snapshot = old.law, old.state, old.last_snapshot
        self._meter, self._is_blind = old._meter, old._is_blind
        self._done_total, self._pauses_total = old._done_total, old._pauses_total
        self._holds, self._stops = old._holds, old._stops
        for name in ("alone_until_s", "held_until_s", "overdue_total", "stalls_total", "least"):
            setattr(self._admission, name, getattr(old._admission, name))
        for name in ("price", "first_prompt", "output", "growth"):
            setattr(self._sizes, name, getattr(old._sizes, name))
        for name in ("capacity_tokens", "learned_tokens", "proven_tokens", "held_tokens"):
            setattr(self._sizes.residency, name, getattr(old._sizes.residency, name))
        self._enforce(now)

    def follow(self, law: Law, totals: View, now: float) -> None:
        """Goes on in place of others that had other pools: with their law and totals, no more."""
        self.law, self.state, self.last_snapshot = law, law.initial(), None
        self._done_total, self._pauses_total = totals.done_total, totals.pauses_total
        self._admission.overdue_total = totals.overdue_total
        self._admission.stalls_total = totals.stalls_total
        self._enforce(now)

    # -- inside ------------------------------------------------------------------------------

    def _check_new(self, agent: AgentId, parent: AgentId | None) -> None:
        if agent in self._accounts:
            raise ValueError(f"agent {agent!r} is already here: ids must be unique until it leaves")
        if parent is not None and parent not in self._accounts:
            raise ValueError(f"parent {parent!r} of agent {agent!r} is not here")

    def _open(
        self,
        agent: AgentId,
        now: float,
        prompt_tokens: int | None,
        parent: AgentId | None,
        priority: int,
        group: str | None,
    ) -> Account:
        """The account of an agent that is here from now on."""
        account = self._accounts[agent] = Account(agent, self._arrivals, priority, idle_since_s=now)
        account.expect(prompt_tokens)
        self._arrivals += 1
        if group is not None and parent is None:
            account.seq, account.group = self._groups.join(group, account.seq), group
        if parent is not None:
            account.parent = self._accounts[parent].root
            account.parent.children += 1
        return account

    def _own_account(self, agent: AgentId) -> Account:
        who = self._accounts[agent]
        if who.parent is not None:
            raise ValueError(f"agent {agent!r} shares the place of {who.parent.agent!r}")
        return who

    def _settle_suspension(self, root: Account) -> None:
        """The place of a suspended agent is free unless a member of its family needs it."""
        needed = root.in_flight or root.waiters or root.children
        if root.is_suspended and not needed and root.state is not State.SUSPENDED:
            self._admission.suspend(root)

    def _gives_up(self, who: Account, now: float) -> bool:
        """Whether a call of `who` that ends was still waiting; it then waits no longer.

        Raises:
            ValueError: it has no call.
        """
        self._pass_time(now)
        self._meter.called(now)
        if who.root.state.is_active and not who.root.waiters:
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
        who.calls -= calls
        root.in_flight -= calls
        if root.in_flight:
            self._admission.begin(root, max(root.need, sizes.need(root)))
            return
        root.expected_prompt = None
        held = sizes.held(root)
        self._admission.end(root, held, now)
        if root.has_context:
            sizes.residency.touch(root.lru_entry, held + sizes.group_part(root))
        self._settle_suspension(root)

    def _undo(self, who: Account, now: float) -> None:
        """The only call of `who` and its family has never been sent: as if it had not begun."""
        root = who.root
        who.calls = root.in_flight = 0
        root.expected_prompt = root.distance = None
        held = self._sizes.held(root) if root.has_context else root.need
        self._admission.end(root, held, now, undo=True)
        self._sizes.residency.restore(root.lru_entry)
        self._settle_suspension(root)

    def _pass_time(self, now: float) -> None:
        """What every call begins with."""
        admission, meter = self._admission, self._meter
        self._heard_s = now
        if now >= meter.stalled_s + STALL_MEMORY_S:
            admission.least = 1
        if admission.alone_until_s is not None and now >= admission.alone_until_s:
            self._end_alone()
            self._enforce(now)
        if admission.held_until_s is not None and now >= admission.held_until_s:
            self._hold_on(now)
        meter.pass_time(now, admission.reasoning, admission.claims.reasoning_tokens)

    def _fill(self, now: float, *first: AgentId, forced: Account | None = None) -> Decision:
        """What every call ends with: let in the agents that may be now, and answer."""
        admission, woken = self._admission, list(first)
        if self._stops and admission.held_until_s is None:
            woken += self._let_go(now)
        if len(admission.queue):
            woken += self._let_in(now, forced)
            admission.queue.settle()
        moves, admission.moves = tuple(admission.moves), []
        return Decision(woken, moves)

    def _let_in(self, now: float, forced: Account | None = None) -> list[AgentId]:
        admission, meter = self._admission, self._meter
        stall_s = self._stall_s()
        stalled = stall_s is not None and stall_s <= now
        woken: list[AgentId] = []
        for root in admission.fill(now, stalled=stalled, forced=forced):
            meter.last_call_s = now
            waiters, root.waiters = root.waiters, {}
            woken += waiters or ([] if root.departed else [root.agent])
            if any(waiters.values()):
                in_calls = admission.claims.reasoning_tokens
                admission.begin(root, root.need)
                root.has_sent = root.is_cut_short = False
                self._sizes.begin(root, in_calls)
                for agent, calls in waiters.items():
                    self._accounts[agent].begin_calls(calls, now)
        if stalled:
            meter.stalls += 1
            meter.stalled_s = now
        return woken

    def _pass_boundary(self, root: Account, now: float) -> bool:
        """`root`, active with no call in flight, begins one; False: it has to give up its place."""
        admission, need = self._admission, self._sizes.need(root)
        in_calls = admission.claims.reasoning_tokens
        if root.is_cut_short:
            admission.begin(root, need)
        elif not admission.begin_or_pause(root, need, now):
            self._pauses_total += root.has_context
            return False
        root.has_sent = root.is_cut_short = False
        self._sizes.begin(root, in_calls)
        return True

    def _begin_stopped(self, root: Account, now: float) -> list[AgentId]:
        """The calls of `root` that a hold has stopped at a boundary have left all the same."""
        if any(root.waiters.values()):
            root.is_cut_short = True  # so that it is no boundary
            self._pass_boundary(root, now)
        return self._begin_waiters(root, now)

    def _begin_waiters(self, root: Account, now: float) -> list[AgentId]:
        waiters, root.waiters = root.waiters, {}
        for agent, calls in waiters.items():
            if calls:
                self._accounts[agent].begin_calls(calls, now)
        return list(waiters)

    def _hold_on(self, now: float) -> None:
        """Every boundary is closed until the last hold is over."""
        self._holds = {name: until_s for name, until_s in self._holds.items() if until_s > now}
        self._admission.held_until_s = max(self._holds.values(), default=None)
        self._stops |= bool(self._holds)

    def _let_go(self, now: float) -> list[AgentId]:
        """No hold is left: the agents that it stopped at a boundary come to it now.  O(n)."""
        self._stops, self._meter.last_call_s = False, now
        roots = dict.fromkeys(who.root for who in self._accounts.values())
        stopped = [root for root in roots if root.waiters and root.state.is_active]
        woken: list[AgentId] = []
        for root in sorted(stopped, key=lambda root: -root.priority):
            if any(root.waiters.values()) and not self._pass_boundary(root, now):
                self._admission.wait(root, now)
                continue
            woken += self._begin_waiters(root, now)
        return woken

    def _stall_s(self) -> float | None:
        """When a stall will have to be assumed if nothing moves before [s]; None: never."""
        admission, meter = self._admission, self._meter
        if admission.reasoning or not admission.active or self._stops:
            return None
        head = admission.stall_head()
        if head is None:
            return None
        since_s = max(meter.last_call_s, head.waiting_since_s)  # before, no agent was kept
        if head.admitted_ever:
            return since_s + max(STALL_S, 2.0 * meter.longest_gap_s)
        if not meter.has_called:
            return None  # as far as is known, the agents make their calls without us
        # A paused agent may well hold what the others need; a new one seldom does.
        rest_s = max(NEW_STALL_S, 2.0 * meter.longest_gap_s)
        return since_s + rest_s * 2.0 ** min(meter.stalls, 16)

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
