"""The Regulator: one KV pool's admission control, pure.

It is told what happens (`arrive`, `begin_step`, `end_step`, `leave`), what the engine says (`tick`)
and what time it is (`now`, always an argument, any monotonic origin), and answers with the agents
that it has just let in.  The host wakes them; nothing else happens.  It cannot block, reads no
clock, draws no random numbers, and the same calls give the same answers: the simulator, threads,
event loops and an actor on another machine run the same one.
"""

from __future__ import annotations

import math
from dataclasses import replace

from concur_agents.core.admission import Admission
from concur_agents.core.family import Account, AgentId, State
from concur_agents.core.laws.law import Law, LawState, Limit
from concur_agents.core.order import ORDERS, Order
from concur_agents.core.prefixes import Chain
from concur_agents.core.reading import Reading, Usage
from concur_agents.core.sizes import Evidence, Sizes
from concur_agents.core.snapshot import Snapshot
from concur_agents.core.view import AgentView, View

FIRST_READING_S = 1.0
"""What to give as `first_reading_s` where there is an engine to read [s].  One that answers does so
within some milliseconds, and one that is not there refuses as fast."""
_MEMORY_S = 30.0
"""Memory of time averages [s]: several steps of an agent, few of its lives."""
_MOMENT_S = 1.0
"""Changes within a moment are summed up, and fade together: no exponential at each call [s]."""


class _Accounts(dict[AgentId, Account]):
    """Everybody who is here."""

    def __missing__(self, agent: AgentId) -> Account:
        raise KeyError(f"agent {agent!r} is not here: it must arrive first")


class Regulator:
    """Admits, pauses and resumes whole agents so that one KV pool does not thrash.

    Args:
        law: decides the limit; see `make_law`.
        start_s: the host's clock at the start [s].
        max_wait_s: an agent that has waited this long goes first and takes the place of one that
            pauses at its next boundary [s]; None: waiting is not bounded.
        max_open: most agents open at once (each may hold a sandbox); None: not bounded.
        blind_after_s: so long without a reading, a law that needs readings yields to
            `blind_agents` [s].
        blind_agents: the safe limit then [agents]; it never raises the limit.
        order: who is let in first, a name in `ORDERS` or a function of your own.
        first_reading_s: until the first tick, but for at most this long after the first arrival
            [s], one agent runs alone: before the engine has told its pool, a law can only guess how
            many it has room for, and whoever was let in on a guess stays. 0: nobody waits for it.
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
        if max_wait_s is not None and not max_wait_s > 0:
            raise ValueError(f"max_wait_s must be above 0, got {max_wait_s}")
        if max_open is not None and max_open < 1:
            raise ValueError(f"max_open must be at least 1, got {max_open}")
        if not blind_after_s > 0:
            raise ValueError(f"blind_after_s must be above 0, got {blind_after_s}")
        if blind_agents < 1:
            raise ValueError(f"blind_agents must be at least 1, got {blind_agents}")
        if not 0 <= first_reading_s < math.inf:
            raise ValueError(
                f"first_reading_s must be at least 0, and not for ever, got {first_reading_s}"
            )
        if isinstance(order, str):
            if order not in ORDERS:
                raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
            order = ORDERS[order]
        self.law = law
        self.state: LawState = law.initial()
        self.last_snapshot: Snapshot | None = None
        self._blind_after_s = blind_after_s
        self._blind_agents = blind_agents
        self._accounts = _Accounts()
        self._sizes = Sizes()
        self._admission = Admission(
            self._sizes,
            order,
            max_wait_s=max_wait_s,
            max_open=max_open,
            limit=Limit(),
        )
        self._is_blind = False
        self._first_reading_s = first_reading_s
        # One agent runs alone until then; infinity: until the first tick, for nobody has come yet.
        self._alone_until_s: float | None = math.inf if first_reading_s else None
        self._enforce(start_s)
        self._arrivals = 0
        self._suspended = 0
        self._done_total = 0
        self._pauses_total = 0
        # what the engine told
        self._last_reading: Reading | None = None
        self._heard_s = start_s
        self._ticked_s = start_s
        self._hit_total = 0.0
        self._query_total = 0.0
        self._engine_counts = False
        self._restarts_total = 0
        self._hit_rate: float | None = None
        # what `next_wake` answered
        self._wake_s: float | None = None
        self._wake_stands = False
        # time averages up to `_averaged_s`, and what has been since, times how long
        self._passed_s = start_s
        self._start_s = self._averaged_s = start_s
        self._reasoning_mean = 0.0
        self._reasoning_tokens_mean = 0.0
        self._reasoning_times_s = 0.0
        self._reasoning_tokens_times_s = 0.0

    # -- the door ----------------------------------------------------------------------------

    def arrive(
        self,
        agent: AgentId,
        now: float,
        *,
        prompt_tokens: int | None = None,
        parent: AgentId | None = None,
        priority: int = 0,
    ) -> list[AgentId]:
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
        if self._alone_until_s == math.inf:
            self._alone_until_s = now + self._first_reading_s
        self._pass_time(now)
        account = Account(agent, now, self._arrivals, priority, idle_since_s=now)
        account.expected_prompt = prompt_tokens
        self._arrivals += 1
        if parent is not None:
            if parent not in self._accounts:
                raise ValueError(f"parent {parent!r} of agent {agent!r} is not here")
            root = self._accounts[parent]
            root = root.parent or root
            root.children += 1
            account.parent = root
            self._accounts[agent] = account
            return [agent, *self._fill(now)]
        self._accounts[agent] = account
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
    ) -> list[AgentId]:
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
        root = who.parent or who
        self._pass_time(now)
        if who is root:
            root.is_suspended = False
            if prompt_tokens is not None:
                root.expected_prompt = prompt_tokens
            if prefix is not None and tuple(prefix) != root.chain:
                self._sizes.share(root, prefix)
        if not root.state.is_active:
            if root.state is State.SUSPENDED:
                self._suspended -= 1
                self._wait(root, now)
            root.waiters[agent] = root.waiters.get(agent, 0) + 1
            return self._fill(now)
        need = self._sizes.need(root)
        if root.in_flight:
            self._admission.begin(root, max(root.need, need))
        else:
            if root.has_context:
                self._sizes.gaps_s.append(now - root.idle_since_s)
            in_calls = self._admission.claims.reasoning_tokens
            if not self._admission.begin_or_pause(root, need, now):
                root.waiters[agent] = 1
                if root.has_context:
                    root.paused_since_step = True
                    root.pauses += 1
                    self._pauses_total += 1
                self._wait(root, now)
                return self._fill(now)
            self._begin(root, in_calls, now)
        self._call(who, 1, now)
        return [agent, *self._fill(now)]

    def end_step(
        self,
        agent: AgentId,
        now: float,
        usage: Usage | None,
        *,
        overloaded: bool = False,
        retry_after_s: float = 0.0,
    ) -> list[AgentId]:
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
        root = who.parent or who
        self._pass_time(now)
        if not root.state.is_active:
            self._give_up(who)
            return self._fill(now)
        if not who.calls:
            raise ValueError(f"agent {agent!r} has no step to end")
        root.has_sent = True
        if overloaded:
            self._sizes.refused(retry_after_s)
        elif usage is None:
            self._sizes.evidence.failures += 1
        else:
            self._sizes.end(who, usage, now - who.begun_s)
        self._end(who, 1, now)
        return self._fill(now)

    def retry_step(
        self,
        agent: AgentId,
        now: float,
        *,
        overloaded: bool = False,
        retry_after_s: float = 0.0,
    ) -> list[AgentId]:
        """A try of `agent`'s step was refused, or another try begins; the step goes on.

        It is no boundary, and how long the step takes is counted from here: tries that failed and
        the time between them say nothing about the cost of the one that works.

        Args:
            overloaded: the endpoint refused the try for lack of capacity (429, 503). Told here, and
                not at the end, which may be a long `Retry-After` away.
            retry_after_s: how long the endpoint asked to wait [s].

        Raises:
            KeyError: `agent` is not here.
        """
        who = self._accounts[agent]
        self._pass_time(now)
        if overloaded:
            self._sizes.refused(retry_after_s)
        if who.calls:
            who.begun_s = now
        return self._fill(now)

    def withdraw_step(self, agent: AgentId, now: float) -> list[AgentId]:
        """A step of `agent` is called off: it waits no longer, or was let in and never sent.

        Nothing has happened then: neither a step nor a failure, and its context was not used.

        Raises:
            KeyError: `agent` is not here.
            ValueError: it has no step to withdraw.
        """
        who = self._accounts[agent]
        root = who.parent or who
        self._pass_time(now)
        if not root.state.is_active:
            self._give_up(who)
            return self._fill(now)
        if not who.calls:
            raise ValueError(f"agent {agent!r} has no step to withdraw")
        if root.in_flight > 1 or root.has_sent:
            self._end(who, 1, now)
            return self._fill(now)
        who.calls = root.in_flight = 0
        root.expected_prompt = root.distance = None
        self._admission.undo(root, now)
        self._sizes.residency.restore(root.lru_entry)
        self._settle_suspension(root)
        return self._fill(now)

    def suspend(self, agent: AgentId, now: float) -> list[AgentId]:
        """`agent` gives its place back for a while: a long tool, a question to a human.

        It stays the same agent, with its history, and its context ages in the engine's cache like
        that of any other.  The place goes when no call of its family is in flight or waits, and no
        child is here; a child's call takes one again, until the child leaves.  `resume` or its own
        `begin_step` ends this.  Idempotent.

        Raises:
            KeyError: `agent` is not here.
            ValueError: it has never been let in, or has no place of its own.
        """
        root = self._root(agent)
        if not root.admitted_ever:
            raise ValueError(f"agent {agent!r} has not been let in and has no place to give back")
        self._pass_time(now)
        root.is_suspended = True
        if not root.waiters.get(agent, 1):
            del root.waiters[agent]  # it was on its way back, with no call yet
        self._settle_suspension(root)
        return self._fill(now)

    def resume(self, agent: AgentId, now: float) -> list[AgentId]:
        """`agent` asks for its place again.  In the list: it has it; absent: it waits.

        It goes before new agents while its prefix is probably still cached.  Idempotent.

        Raises:
            KeyError: `agent` is not here.
            ValueError: it has no place of its own.
        """
        root = self._root(agent)
        self._pass_time(now)
        root.is_suspended = False
        if root.state is State.SUSPENDED:
            self._suspended -= 1
            self._wait(root, now)
        if root.state.is_active:
            return [agent, *self._fill(now)]
        root.waiters.setdefault(agent, 0)
        return self._fill(now)

    def leave(self, agent: AgentId, now: float) -> list[AgentId]:
        """`agent` finished, failed or was cancelled, wherever it stood.  Idempotent.

        An agent whose children are still here keeps its place until the last of them leaves.
        """
        who = self._accounts.pop(agent, None)
        if who is None:
            return []
        self._pass_time(now)
        root = who.parent or who
        if who is root:
            self._done_total += 1
            root.departed = True
        else:
            root.children -= 1
            self._sizes.close(who)
        root.waiters.pop(agent, None)
        if root.departed and not root.children:
            self._drop(root)
        elif who.calls:
            root.has_sent = True
            self._end(who, who.calls, now)
        else:
            self._settle_suspension(root)
        return self._fill(now)

    def tick(self, reading: Reading | None, now: float) -> list[AgentId]:
        """A poll came back (None: it failed).  The law decides here, and only here."""
        self._pass_time(now)
        if reading is not None:
            self._hear(reading, now)
        blind = self.law.needs_readings and now - self._heard_s >= self._blind_after_s
        self._is_blind = blind
        if reading is not None or not self.law.needs_readings:
            self.last_snapshot = snapshot = self._snapshot(reading, now)
            self.state = self.law.decide(self.state, snapshot)
        self._end_alone()
        self._enforce(now)
        self._admission.look_ahead()
        return self._fill(now)

    def advance(self, now: float) -> list[AgentId]:
        """Only time has passed: let in whom a faded claim or a bound on waiting now allows."""
        self._pass_time(now)
        return self._fill(now)

    def next_wake(self, now: float) -> float | None:
        """When to call `advance` if nothing else happens before [s]; None: no need.

        Cheap to ask again: the answer stands until the next call of another method.
        """
        if not self._wake_stands:
            self._wake_s = self._admission.next_wake(now)
            if self._alone_until_s is not None and len(self._admission.queue):
                wake_s = math.inf if self._wake_s is None else self._wake_s
                self._wake_s = min(wake_s, self._alone_until_s)
            self._wake_stands = True
        return self._wake_s

    # -- for eyes ----------------------------------------------------------------------------

    @property
    def limit(self) -> Limit:
        """What is enforced now: the law's limit, or a tighter one while blind or at first."""
        return self._admission.limit

    @property
    def reason(self) -> str:
        """Code of the decision in force."""
        if self._alone_until_s is not None:
            return "first_reading"
        return "blind" if self._is_blind else self.state.reason

    def agent_state(self, agent: AgentId) -> str | None:
        """'queued', 'reasoning', 'acting', 'paused' or 'suspended'; None: not here."""
        who = self._accounts.get(agent)
        if who is None:
            return None
        return (who.parent or who).state.value

    def view(self, now: float) -> View:
        """How things stand.  Changes nothing."""
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
            suspended=self._suspended,
            done_total=self._done_total,
            pressure_tokens=admission.pressure(now),
            capacity_tokens=sizes.residency.capacity_tokens,
            footprint_tokens=sizes.footprint_tokens,
            limit=admission.limit,
            reason=self.reason,
            hit_rate=self._hit_rate,
            hit_deficit=deficit,
            pauses_total=self._pauses_total,
            overdue_total=admission.overdue_total,
            longest_wait_s=now - oldest.waiting_since_s if oldest is not None else 0.0,
        )

    def agents(self) -> list[AgentView]:
        """Everybody who is here, in order of arrival.  O(n), and changes nothing."""
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
            for who in self._accounts.values()
            for state in (who.standing,)
        ]

    def explain(self, agent: AgentId, now: float) -> str:
        """Why `agent` stands where it stands, in one line.  O(n): for people, not for loops."""
        who = self._accounts.get(agent)
        if who is None:
            return f"{agent}: not here"
        root = who.parent or who
        if root.state.is_active:
            return f"{agent}: {root.state.value}, holding {_k(root.claim.tokens)} tokens"
        if root.state is State.SUSPENDED:
            return f"{agent}: off, its place is free meanwhile"
        admission = self._admission
        ahead = sum(1 for other in admission.queue.waiting() if self._goes_before(other, root))
        parts = [self._why_waiting(root, now), f"{ahead} ahead"]
        wake = admission.next_wake(now)
        if wake is not None:
            parts.append(f"next chance by itself in {max(0.0, wake - now):.0f} s")
        return f"{agent}: {root.state.value}: " + "; ".join(parts)

    def why(self, agent: AgentId, now: float) -> str:
        """The numbers that keep `agent` waiting, of this instant; '' if it does not wait.  O(1)."""
        who = self._accounts.get(agent)
        root = None if who is None else who.parent or who
        if root is None or root.state.is_active or root.state is State.SUSPENDED:
            return ""
        return self._why_waiting(root, now)

    def __repr__(self) -> str:
        admission = self._admission
        return (
            f"<Regulator {self.law.name} [{self.reason}]: {admission.reasoning} reasoning, "
            f"{admission.active - admission.reasoning} acting, {len(admission.queue)} waiting>"
        )

    # -- inside ------------------------------------------------------------------------------

    def _root(self, agent: AgentId) -> Account:
        who = self._accounts[agent]
        if who.parent is not None:
            raise ValueError(f"agent {agent!r} shares the place of {who.parent.agent!r}")
        return who

    def _wait(self, root: Account, now: float) -> None:
        """`root`, which has been let in before, waits for its turn."""
        root.state = State.PAUSED if root.has_context else State.QUEUED
        self._admission.wait(root, now)

    def _settle_suspension(self, root: Account) -> None:
        """The place of one that is off is free unless somebody of its family needs it."""
        if not root.is_suspended or root.in_flight or root.waiters or root.children:
            return
        if root.state is State.SUSPENDED:
            return
        if root.state.is_active:
            self._admission.take_out(root)
        else:
            self._admission.withdraw(root)
        root.state = State.SUSPENDED
        root.paused_since_step = True
        self._suspended += 1

    def _begin(self, root: Account, in_calls: float, now: float) -> None:
        """The family of `root` is in a call again, while others claimed `in_calls` for theirs."""
        root.has_sent = False
        root.idle_s = now - root.idle_since_s
        self._sizes.begin(root, in_calls)

    def _call(self, who: Account, calls: int, now: float) -> None:
        """`calls` of `who` go out."""
        root = who.parent or who
        if not root.in_flight and who is not root:
            root.distance = None  # by its own next call more will have been touched
        if not who.calls:
            who.begun_s = now
            who.in_calls = self._admission.claims.reasoning_tokens
        who.calls += calls
        root.in_flight += calls

    def _give_up(self, who: Account) -> None:
        """One call of `who`, whose family is not active, waits no longer."""
        root = who.parent or who
        calls = root.waiters.get(who.agent, 0)
        if not calls:
            raise ValueError(f"agent {who.agent!r} has no step to end")
        root.waiters[who.agent] = calls - 1
        if calls == 1 and (root.admitted_ever or who is not root):
            del root.waiters[who.agent]  # a root that was never let in still waits to start
        self._settle_suspension(root)

    def _end(self, who: Account, calls: int, now: float) -> None:
        """`calls` of `who`, which is active, are over."""
        root = who.parent or who
        who.calls -= calls
        root.in_flight -= calls
        if root.in_flight:
            self._admission.begin(root, max(root.need, self._sizes.need(root)))
            return
        root.expected_prompt = None
        root.paused_since_step = False
        held = self._sizes.held(root)
        self._admission.end(root, held, now)
        if root.has_context:
            self._sizes.residency.touch(root.lru_entry, held)
        if root.is_suspended:
            self._settle_suspension(root)

    def _fill(self, now: float) -> list[AgentId]:
        admitted = self._admission.fill(now)
        if not admitted:
            return []
        woken: list[AgentId] = []
        for root in admitted:
            waiters, root.waiters = root.waiters, {}
            woken.extend(waiters or ([] if root.departed else [root.agent]))
            if any(waiters.values()):
                in_calls = self._admission.claims.reasoning_tokens
                self._admission.begin(root, root.need)
                self._begin(root, in_calls, now)
                for agent, calls in waiters.items():
                    self._call(self._accounts[agent], calls, now)
        return woken

    def _drop(self, root: Account) -> None:
        if root.state.is_active:
            self._admission.take_out(root)
        elif root.state is State.SUSPENDED:
            self._suspended -= 1
        else:
            self._admission.withdraw(root)
        self._admission.open_agents -= root.admitted_ever
        self._sizes.close(root)

    def _enforce(self, now: float) -> None:
        """The law's limit holds, or what is tighter."""
        limit = self.state.limit
        most = math.inf
        if self._alone_until_s is not None:
            most = 1
        elif self._is_blind:
            most = self._blind_agents
        if limit.agents > most:
            limit = replace(limit, agents=most)
        self._admission.resize(limit, now)

    def _end_alone(self) -> None:
        """Nobody waits for the first reading any more, nor has anybody waited for the limit yet."""
        if self._alone_until_s is not None:
            self._alone_until_s = None
            self._admission.bound = False

    def _pass_time(self, now: float) -> None:
        self._wake_stands = False
        if self._alone_until_s is not None and now >= self._alone_until_s:
            self._end_alone()
            self._enforce(now)
        passed = now - self._passed_s
        if passed > 0.0:
            if now - self._averaged_s >= _MOMENT_S:
                self._average()
            self._passed_s = now
            admission = self._admission
            if admission.reasoning:
                self._sizes.cost.unseen_s += passed
                self._reasoning_times_s += admission.reasoning * passed
                self._reasoning_tokens_times_s += admission.claims.reasoning_tokens * passed

    def _average(self) -> None:
        passed = self._passed_s - self._averaged_s
        if passed > 0.0:
            gain = 1.0 - math.exp(-passed / _MEMORY_S)
            self._reasoning_mean += gain * (self._reasoning_times_s / passed - self._reasoning_mean)
            tokens = self._reasoning_tokens_times_s / passed
            self._reasoning_tokens_mean += gain * (tokens - self._reasoning_tokens_mean)
            self._reasoning_times_s = self._reasoning_tokens_times_s = 0.0
            self._averaged_s = self._passed_s

    def _hear(self, reading: Reading, now: float) -> None:
        self._heard_s = now
        if reading.capacity_tokens is not None:
            self._sizes.residency.capacity_tokens = reading.capacity_tokens
        before, self._last_reading = self._last_reading, reading
        if reading.hit_tokens_total is None or reading.query_tokens_total is None:
            return
        if before is None or before.hit_tokens_total is None or before.query_tokens_total is None:
            self._engine_counts = True
            return
        hits = reading.hit_tokens_total - before.hit_tokens_total
        queries = reading.query_tokens_total - before.query_tokens_total
        if hits < 0 or queries < 0:
            self._restarts_total += 1
            self._sizes.restart()
            hits, queries = reading.hit_tokens_total, reading.query_tokens_total
        self._hit_total += hits
        self._query_total += queries

    def _snapshot(self, reading: Reading | None, now: float) -> Snapshot:
        sizes, admission = self._sizes, self._admission
        evidence, sizes.evidence = sizes.evidence, Evidence()
        if not self._engine_counts:
            self._hit_total = sizes.cached_tokens_total
            self._query_total = sizes.prompt_tokens_total if sizes.cached_known else 0.0
        before = self.last_snapshot
        hits, queries = self._hit_total, self._query_total
        if before is not None and before.query_tokens_total <= queries:
            hits -= before.hit_tokens_total
            queries -= before.query_tokens_total
        self._hit_rate = hits / queries if queries > 0 else None
        self._average()
        peak, bound = admission.take_peak()
        interval_s, self._ticked_s = now - self._ticked_s, now
        seen = 1.0 - math.exp((self._start_s - now) / _MEMORY_S)  # what the means weigh so far
        return Snapshot(
            at_s=now,
            interval_s=interval_s,
            reading=reading,
            capacity_tokens=sizes.residency.capacity_tokens,
            learned_tokens=sizes.residency.learned_tokens,
            proven_tokens=sizes.residency.proven_tokens,
            hit_tokens_total=self._hit_total,
            query_tokens_total=self._query_total,
            cached_known=sizes.cached_known or self._engine_counts,
            active=admission.active,
            reasoning=admission.reasoning,
            waiting=len(admission.queue),
            peak_active=peak,
            was_bound=bound and self._alone_until_s is None,
            pressure_tokens=admission.pressure(now),
            reasoning_mean=self._reasoning_mean / (seen or 1.0),
            reasoning_tokens_mean=self._reasoning_tokens_mean / (seen or 1.0),
            footprint_mean=sizes.footprint_mean,
            gaps_s=sizes.gap_quantiles(),
            prefill_s_per_token=sizes.cost.prefill_s_per_token,
            step_s=evidence.step_s,
            output_tokens=evidence.output,
            steps=evidence.steps,
            failures=evidence.failures,
            overloads=evidence.overloads,
            retry_after_s=evidence.retry_after_s,
            restarts_total=self._restarts_total,
            final_tokens=sizes.final_mean,
        )

    def _goes_before(self, other: Account, account: Account) -> bool:
        if other is account:
            return False
        admission = self._admission
        return admission.order(
            other, other.has_context and admission.is_warm(other)
        ) < admission.order(account, account.has_context and admission.is_warm(account))

    def _why_waiting(self, account: Account, now: float) -> str:
        admission = self._admission
        if not account.admitted_ever and not admission.may_open:
            return f"{admission.open_agents} of {admission.max_open} agents open"
        if self._alone_until_s is not None:
            most_s = max(0.0, self._alone_until_s - now)
            return f"waiting for the engine's first reading, at most {most_s:.1f} s"
        if admission.active >= admission.places:
            return f"{admission.active} of {admission.places:.0f} agents active"
        most = admission.bound_on(account)
        if most != math.inf:
            pressure, need = admission.pressure(now), self._sizes.need(account)
            return f"pressure {_k(pressure)} + {_k(need)} for its step, limit {_k(most)} tokens"
        return "about to be let in"


def _k(tokens: float) -> str:
    return f"{tokens / 1000:.0f}k" if tokens >= 10_000 else f"{tokens:.0f}"
