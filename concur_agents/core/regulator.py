"""The Regulator: one KV pool's admission control, pure.

It hears what happens, what the engine reports and what time it is (`now` [s], always an argument,
any monotonic origin), and answers with the agents that it has just let in, which the host wakes.
It cannot block, and the same calls give the same answers: the simulator, threads, event loops and
an actor on another machine run the same one.
"""

from __future__ import annotations

import math

from concur_agents.core.pool_events import PoolEvents
from concur_agents.core.prefixes import Chain
from concur_agents.core.types import AgentId, Decision, State, Usage, is_plausible

FIRST_READING_S = 1.0
"""What to give as `first_reading_s` where there is an engine to read [s]: one that answers does so
within milliseconds, and one that is not there refuses as fast."""


class Regulator(PoolEvents):
    """Admits, pauses and resumes whole agents so that one KV pool does not thrash.

    A stall ends by itself: if agents wait, no call is in flight, and no active agent has begun one
    for `STALL_S` and twice the longest recent gap, one more is let in, because they wait for what
    it holds (a semaphore, a thread of a small pool).  So many may stay for ten minutes.

    Args:
        law: decides the limit; see `make_law`.
        start_s: the host's clock at the start [s].
        max_wait_s: an agent that has waited so long [s] goes first and takes the place of the next
            one that stands at a boundary; None: waiting is not bounded.
        max_open: most agents admitted and not done (each may hold a sandbox); None: not bounded.
        blind_after_s: so long without a reading, a law that needs them yields to a safe limit [s].
        blind_agents: that limit [agents]; it never raises the law's.
        order: which agent is let in first, a name in `ORDERS` or a function of your own.
        first_reading_s: one agent runs alone until the first tick, but at most so long after the
            first arrival [s]: an agent let in on a guess stays.  0: no agent waits.
        max_started: what `max_open` was called before 0.2; goes with the next release.

    Raises:
        ValueError: an argument out of its range, or an unknown order.
        KeyError: from any method but `leave`: the agent is not here.
    """

    def arrive(
        self,
        agent: AgentId,
        now: float,
        *,
        prompt_tokens: int | None = None,
        parent: AgentId | None = None,
        priority: int = 0,
        group: str | None = None,
        pool: str | None = None,
        waiting_since_s: float | None = None,
    ) -> Decision:
        """`agent` asks to start.  In the list: it has its place; absent: it is queued.

        Args:
            prompt_tokens: size of its first prompt, when known [tokens].
            parent: an agent whose place it shares; it is then in the list at once.
            priority: larger goes first.
            group: agents with the same first prompt, as samples of it: it is charged once, and
                they are let in one after the other, by the arrival of the first.
            pool: for a `Fleet`, as in all methods: there is one pool here.
            waiting_since_s: when its wait began, if it came from elsewhere [s]; None: now.

        Raises:
            ValueError: `agent` is already here, or `parent` is not.
        """
        self._check_new(agent, parent)
        if self._admission.alone_until_s == math.inf:
            self._admission.alone_until_s = now + self._first_reading_s
        self._pass_time(now)
        account = self._open(agent, now, prompt_tokens, parent, priority, group)
        if account.parent is not None:
            return self._fill(now, agent)
        account.waiters[agent] = 0  # it waits to start, with no call yet
        self._admission.wait(account, now, waiting_since_s)
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
        """
        who = self._accounts[agent]
        root, admission, sizes = who.root, self._admission, self._sizes
        self._pass_time(now)
        if who is root:
            root.is_suspended = False
            root.expect(prompt_tokens)
            if prefix is not None and all(is_plausible(tokens) for _, tokens in prefix):
                sizes.share(root, tuple(prefix))
            else:
                sizes.join_group(root)
        if not root.state.is_active:
            if root.state is State.SUSPENDED:
                admission.wait(root, now)
            root.waiters[agent] = root.waiters.get(agent, 0) + 1
            return self._fill(now)
        if root.in_flight:
            admission.begin(root, max(root.need, sizes.need(root)))
        else:
            if root.has_context and not (root.is_cut_short or root.waiters):
                self._meter.came_back(now - root.idle_since_s, now)
            if self._stops:
                root.waiters[agent] = root.waiters.get(agent, 0) + 1
                return self._fill(now)
            if not self._pass_boundary(root, now):
                root.waiters[agent] = 1
                admission.wait(root, now)
                return self._fill(now)
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
        aborted: bool = False,
    ) -> Decision:
        """A step of `agent` is over.  Of one that never began, see `withdraw_step`.

        Args:
            usage: what it took; None: unknown, or it failed, which says nothing about capacity.
            overloaded: the endpoint refused it for lack of capacity (429, 503).
            retry_after_s: how long the endpoint asked to wait [s].
            aborted: the engine cut it short, as for a weight update: it says nothing about steps,
                and the agent's next call goes on with it, so that it is no boundary.

        Raises:
            ValueError: it has no step to end.
        """
        who = self._accounts[agent]
        if not self._gives_up(who, now):
            who.root.has_sent = True
            if overloaded:
                self._meter.refused(retry_after_s)
            elif usage is not None and usage.is_plausible:
                if aborted:
                    self._sizes.cut_short(who, usage)
                else:
                    self._meter.ended(usage, now - who.begun_s)
                    self._sizes.end(who, usage)
            who.root.is_cut_short = aborted
            self._end(who, 1, now)
        return self._fill(now)

    def retry_step(
        self, agent: AgentId, now: float, *, overloaded: bool = False, retry_after_s: float = 0.0
    ) -> Decision:
        """A try of `agent`'s step was refused, or another try begins; the step goes on.

        It is no boundary.  The step's time is counted from here, because failed tries say nothing
        about the cost of the one that works.  A refusal, as in `end_step`, is reported here and not
        at the end, which may be a long `Retry-After` away.
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
            ValueError: it has no step to withdraw.
        """
        who = self._accounts[agent]
        if not self._gives_up(who, now):
            if who.root.in_flight > 1 or who.root.has_sent:
                self._end(who, 1, now)
            else:
                self._undo(who, now)
        return self._fill(now)

    def suspend(self, agent: AgentId, now: float) -> Decision:
        """`agent` gives its place back for a while: a long tool, a question to a human.

        Its context ages in the engine's cache meanwhile.  The place goes when no call of its family
        is in flight or waits and no child is here; a child's call takes one again, until the child
        leaves.  `resume` or its own `begin_step` ends this.  Idempotent.

        Raises:
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
            ValueError: it has no place of its own.
        """
        root = self._own_account(agent)
        self._pass_time(now)
        root.is_suspended = False
        if root.state is State.SUSPENDED:
            self._admission.wait(root, now)
        if root.state.is_active and not root.waiters:
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
            if root.group is not None and self._groups.part(root.group):
                self._sizes.forget_group(root.group)
        elif who.calls:
            root.has_sent = True
            self._end(who, who.calls, now)
        else:
            self._settle_suspension(root)
        return self._fill(now)
