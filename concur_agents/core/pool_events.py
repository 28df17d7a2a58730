"""What happens to the pool and not to one agent: readings, time, flushes and holds.

Also agents whose place was decided elsewhere: by a daemon, or by a router that serves them.
"""

from __future__ import annotations

import math

from concur_agents.core.reads import Reads
from concur_agents.core.types import AgentId, Decision, Reading, State


class PoolEvents(Reads):
    """The part of a `Regulator` that hears of its pool."""

    def tick(self, reading: Reading | None, now: float, pool: str | None = None) -> Decision:
        """A poll came back (None: it failed).  The law decides here, and only here."""
        self._pass_time(now)
        admission, meter, sizes = self._admission, self._meter, self._sizes
        if reading is not None:
            meter.hear(reading, admission, now)
        needs_readings = self.law.needs_readings
        self._is_blind = needs_readings and now - meter.heard_s >= self._blind_after_s
        if reading is not None or not needs_readings:
            bound = admission.take_bound() and admission.alone_until_s is None and not self._stops
            self.last_snapshot = meter.snapshot(reading, admission, now, bound=bound)
            self.state = self.law.decide(self.state, self.last_snapshot)
        self._end_alone()
        self._enforce(now)
        # now and then, because it takes a moment
        if admission.max_wait_s is not None or meter.near_tokens is not None:
            sizes.peak_forecast.look(admission.open_agents, sizes.first_prompt.value)
        return self._fill(now)

    def flushed(self, now: float, pool: str | None = None) -> Decision:
        """The engine's cache was emptied, as by a weight update: what then misses says nothing."""
        self._pass_time(now)
        self._sizes.residency.clear()
        return self._fill(now)

    def hold(self, name: str, now: float, timeout_s: float) -> Decision:
        """No agent passes a boundary, and none is let in, until `end_hold(name)`: a weight update.

        Calls in flight go on, and so do families that have one.  An agent that comes to a boundary
        keeps its place, and stands there again when the last hold is over.

        Args:
            name: tells it from others that overlap; a second one of the same name replaces it.
            timeout_s: it is over by itself after so long [s].

        Raises:
            ValueError: `timeout_s` is not above 0, or infinite.
        """
        if not 0 < timeout_s < math.inf:
            raise ValueError(f"timeout_s must be above 0 s and not infinite, got {timeout_s}")
        self._pass_time(now)
        self._holds[name] = now + timeout_s
        self._hold_on(now)
        return self._fill(now)

    def end_hold(self, name: str, now: float) -> Decision:
        """The hold of this name is over.  Idempotent."""
        self._pass_time(now)
        if self._holds.pop(name, None) is not None:
            self._hold_on(now)
        return self._fill(now)

    def advance(self, now: float) -> Decision:
        """Only time has passed: let in the agents that this allows."""
        self._pass_time(now)
        return self._fill(now)

    # -- places that were decided elsewhere --------------------------------------------------------

    def take_in(
        self,
        agent: AgentId,
        now: float,
        *,
        calls: int,
        prompt_tokens: int | None = None,
        parent: AgentId | None = None,
        priority: int = 0,
        group: str | None = None,
    ) -> Decision:
        """`agent` runs here already, with so many calls in flight: it has its place.

        For a `Fleet`, whose agents may be served elsewhere than where they were sent.  A limit that
        this exceeds takes effect at boundaries, as any surplus.

        Raises:
            ValueError: as from `arrive`.
        """
        self._check_new(agent, parent)
        self._pass_time(now)
        root = account = self._open(agent, now, prompt_tokens, parent, priority, group)
        admission, moves = self._admission, len(self._admission.moves)
        if account.parent is not None:
            root = account.parent
        else:
            admission.wait(account, now)
            admission.admit(account, now)
        if calls:
            in_calls = admission.claims.reasoning_tokens
            admission.begin(root, max(root.need, self._sizes.need(root)))
            root.has_sent = True
            self._sizes.begin(root, in_calls)
            account.begin_calls(calls, now)
            self._meter.called(now)
        del admission.moves[moves:]  # it has moved nowhere
        return self._fill(now)

    def admit(self, agent: AgentId, now: float, pool: str | None = None) -> Decision:
        """`agent` has a place already, whatever the limit says, as its host has let it in.

        For hosts that lost touch with this Regulator for a while.  Its calls that wait begin.
        """
        root = self._accounts[agent].root
        self._pass_time(now)
        if root.state.is_active:
            return self._fill(now, *self._begin_stopped(root, now))
        root.is_suspended = False
        if root.state is State.SUSPENDED:
            self._admission.wait(root, now)
        return self._fill(now, forced=root)
