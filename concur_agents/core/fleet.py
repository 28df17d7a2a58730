"""The fleet: several KV pools behind the door of one Regulator.

Each pool has a Regulator of its own: what fits, what it costs and what has been evicted are facts
about one cache.  The fleet decides which pool an agent goes to, and when:

  * late: an agent gets its pool when one lets it in.  At most one agent waits in each pool to be
    let in for the first time; all others wait in one line, by order and `max_wait_s` of the fleet;
  * by tokens: to the pool that is least full of contexts, as far as they will have grown;
  * for life: its prefix is there.  It moves only at a boundary, together with its children: if the
    pool is down or is being removed, or if it is paused there while another is half empty and no
    agent waits to start.

Pure, like the Regulator: no clock, no I/O, and the same calls give the same answers.
"""

from __future__ import annotations

import math

from concur_agents.core.fleet_reads import FleetReads
from concur_agents.core.placement import Member
from concur_agents.core.prefixes import Chain
from concur_agents.core.types import AgentId, Decision, Reading, State, Usage


class Fleet(FleetReads):
    """Admits, places, pauses and resumes whole agents so that none of several pools thrashes.

    Args:
        law: decides the limit of each pool from that pool's own readings.
        pools: their names.
        start_s: the host's clock at the start [s].
        max_wait_s: as for `Regulator`, of the whole fleet [s].
        max_open: as for `Regulator`, of the whole fleet.
        down_after_s: see `DOWN_AFTER_S`.
        moves_paused: a paused agent may go to a pool that is half empty; False: a router decides
            where agents are.
        options: for each pool's `Regulator`.

    Raises:
        ValueError: there is no pool, two have the same name, or an argument is out of its range.
    """

    # -- what happens to an agent ----------------------------------------------------------------

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
    ) -> Decision:
        """As `Regulator.arrive`.

        Args:
            group: as for `Regulator`; agents of one group go to one pool while it has room.
            pool: it goes to this one, because its context is there; None: to whichever has room.
        """
        if agent in self._members:
            raise ValueError(f"agent {agent!r} is already here: ids must be unique until it leaves")
        if parent is not None and parent not in self._members:
            raise ValueError(f"parent {parent!r} of agent {agent!r} is not here")
        member = Member(agent, self._arrivals, priority, group, prompt_tokens, since_s=now)
        self._arrivals += 1
        self._members[agent] = member
        if group is not None and parent is None:
            member.seq = self._groups.join(group, member.seq)
        if parent is None:
            member.family[agent], member.asks_place = member, True
            self._wait(member, now)
            if pool is not None:
                self._place(member, self._pool(pool), now)
            return self._settle(now)
        member.parent = root = self._members[parent].root
        root.family[agent] = member
        if root.pool is None:
            self._let_in[agent] = None
        else:
            answer = root.pool.regulator.arrive(
                agent, now, prompt_tokens=prompt_tokens, parent=parent
            )
            self._hear(root.pool, answer, now)
        return self._settle(now)

    def begin_step(
        self,
        agent: AgentId,
        now: float,
        *,
        prompt_tokens: int | None = None,
        prefix: Chain | None = None,
    ) -> Decision:
        """As `Regulator.begin_step`.  An agent whose pool is gone moves here."""
        member = self._here(agent)
        root = member.root
        if prompt_tokens is not None:
            member.prompt_tokens = prompt_tokens
        member.asked += 1
        self._move_if_gone(root, now)
        home = root.home
        if home is not None:
            answer = home.regulator.begin_step(
                agent, now, prompt_tokens=prompt_tokens, prefix=prefix
            )
            self._hear(home, answer, now)
        elif root.is_suspended:
            self._wait(root, now)
        return self._settle(now)

    def found(self, agent: AgentId, now: float, *, pool: str) -> Decision:
        """`pool` has served a call of `agent`, which is in flight: its context is there.

        Whatever was planned, it and its family are in that pool from here on, and keep their
        place.  An agent that has none yet, or is in no call, stays where it is.

        Raises:
            KeyError: there is no such pool, or the agent is not here.
        """
        root, there = self._here(agent).root, self._pool(pool)
        here = root.home
        if here is None or here is there or root.agent not in root.family:
            return self._settle(now)
        if here.regulator.agent_state(root.agent) == "reasoning":
            self._rehome(root, here, there, now)
        return self._settle(now)

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
        """As `Regulator.end_step`."""
        member = self._here(agent)
        pool = member.root.home
        if pool is None:
            return self.withdraw_step(agent, now)
        if usage is not None:
            pool.answered_s = now
        answer = pool.regulator.end_step(
            agent,
            now,
            usage,
            overloaded=overloaded,
            retry_after_s=retry_after_s,
            aborted=aborted,
        )
        member.asked = max(0, member.asked - 1)
        self._hear(pool, answer, now)
        return self._settle(now)

    def retry_step(
        self,
        agent: AgentId,
        now: float,
        *,
        overloaded: bool = False,
        retry_after_s: float = 0.0,
    ) -> Decision:
        """As `Regulator.retry_step`."""
        pool = self._here(agent).root.home
        if pool is not None:
            answer = pool.regulator.retry_step(
                agent, now, overloaded=overloaded, retry_after_s=retry_after_s
            )
            self._hear(pool, answer, now)
        return self._settle(now)

    def withdraw_step(self, agent: AgentId, now: float) -> Decision:
        """As `Regulator.withdraw_step`."""
        member = self._here(agent)
        pool = member.root.home
        if pool is None:
            if not member.asked:
                raise ValueError(f"agent {agent!r} has no step to end")
            member.asked -= 1
            return self._settle(now)
        answer = pool.regulator.withdraw_step(agent, now)
        member.asked = max(0, member.asked - 1)
        self._hear(pool, answer, now)
        return self._settle(now)

    def suspend(self, agent: AgentId, now: float) -> Decision:
        """As `Regulator.suspend`."""
        root = self._own(agent)
        if not root.has_entered:
            raise ValueError(f"agent {agent!r} has not been let in and has no place to give back")
        root.asks_place = False
        if root.home is not None:
            self._hear(root.home, root.home.regulator.suspend(agent, now), now)
        elif not any(member.asked for member in root.family.values()):
            if root.pool is not None:
                self._take_back(root, now)
            self._line.remove(root)
            root.is_suspended = True
            self._note(root, State.SUSPENDED, now)
        return self._settle(now)

    def resume(self, agent: AgentId, now: float) -> Decision:
        """As `Regulator.resume`.  An agent whose pool is gone moves here."""
        root = self._own(agent)
        root.asks_place = True
        self._move_if_gone(root, now)
        if root.home is not None:
            self._hear(root.home, root.home.regulator.resume(agent, now), now)
        elif root.is_suspended:
            self._wait(root, now)
        return self._settle(now)

    def admit(self, agent: AgentId, now: float, pool: str | None = None) -> Decision:
        """As `Regulator.admit`.

        Args:
            pool: it is in this one, if it is in none here; None: in one that takes agents.
        """
        root = self._here(agent).root
        if root.pool is None:
            self._place(root, self._pool_to_force(root, pool, now), now)
        assert root.pool is not None
        if root.home is None:  # its calls wait in the pool, or that would let it in without them
            self._enter(root, root.pool)
            self._begin_asked(root, root.pool, now)
        self._hear(root.pool, root.pool.regulator.admit(agent, now), now)
        return self._settle(now)

    def leave(self, agent: AgentId, now: float) -> Decision:
        """As `Regulator.leave`."""
        member = self._members.pop(agent, None)
        if member is None:
            return Decision()
        root, home = member.root, member.root.home
        del root.family[agent]
        self._done_total += member is root
        self._entered -= root.has_entered and not root.family
        if member is root and member.group is not None:
            self._groups.part(member.group)
        if home is not None:
            if member is root and root.family:
                self._departed[agent] = root
            self._hear(home, home.regulator.leave(agent, now), now, of=root)
            if not root.family:
                self._departed.pop(root.agent, None)
                self._vacate(root)
        elif member is root:
            if root.pool is not None:
                root.family[agent] = root
                self._take_back(root, now)
                del root.family[agent]
            self._line.remove(root)
            self._note(root, State.DONE, now)
            self._orphan(root, now)
        elif root.pool is not None:
            self._hear(root.pool, root.pool.regulator.leave(agent, now), now)
        return self._settle(now)

    def _orphan(self, root: Member, now: float) -> None:
        """`root` has left without a pool: each of its children waits for a place of its own."""
        self._entered -= root.has_entered and bool(root.family)
        for child in root.family.values():
            child.parent, child.family, child.has_entered = None, {child.agent: child}, True
            child.group = root.group
            if child.group is not None:
                self._groups.join(child.group, child.seq)
            self._entered += 1
            if child.asked:
                self._wait(child, now)
            else:
                child.is_suspended = True
                self._note(child, State.SUSPENDED, now)

    # -- what happens to a pool ------------------------------------------------------------------

    def tick(self, reading: Reading | None, now: float, pool: str | None = None) -> Decision:
        """A poll of `pool` came back (None: it failed).

        Args:
            pool: its name; None where there is only one.

        Raises:
            KeyError: there is no such pool.
        """
        read = self._ticked = self._pool(pool)
        if reading is not None or read.regulator.holds:  # an engine may be silent during an update
            read.failing_since_s, read.is_down = math.inf, False
        else:
            read.failing_since_s = min(read.failing_since_s, now)
            failed_s = now - read.failing_since_s
            if failed_s >= self._down_after_s and read.answered_s < read.failing_since_s:
                read.is_down = True
        self._hear(read, read.regulator.tick(reading, now), now)
        self._evacuate(read, now)
        return self._settle(now)

    def add_pool(self, name: str, now: float) -> Decision:
        """`name` takes agents from now on.

        Raises:
            ValueError: there is a pool of this name.
        """
        emptying = next((p for p in self.pools if p.name == name and p.is_leaving), None)
        if emptying is not None:
            emptying.is_leaving = False  # it was being removed, and stays
        else:
            self._open_pool(name, now)
            for hold, until_s in self.pools[0].regulator.holds.items():
                self.pools[-1].regulator.hold(hold, now, max(until_s - now, 1e-9))
        return self._settle(now)

    def remove_pool(self, name: str, now: float) -> Decision:
        """`name` takes no more agents; those that are there move at their next boundary.

        Raises:
            KeyError: there is no such pool.
            ValueError: there is no other.
        """
        pool = self._pool(name)
        if all(other.is_leaving for other in self.pools if other is not pool):
            raise ValueError(f"pool {name!r} is the last one: add another first")
        pool.is_leaving = True
        self._evacuate(pool, now)
        return self._settle(now)

    def flushed(self, now: float, pool: str | None = None) -> Decision:
        """The cache of `pool`, or of all, was emptied: what then misses says nothing."""
        for emptied in self.pools if pool is None else [self._pool(pool)]:
            self._hear(emptied, emptied.regulator.flushed(now), now)
        return self._settle(now)

    def hold(self, name: str, now: float, timeout_s: float) -> Decision:
        """As `Regulator.hold`, in all pools."""
        for pool in self.pools:
            self._hear(pool, pool.regulator.hold(name, now, timeout_s), now)
        return self._settle(now)

    def end_hold(self, name: str, now: float) -> Decision:
        """As `Regulator.end_hold`, in all pools."""
        for pool in self.pools:
            self._hear(pool, pool.regulator.end_hold(name, now), now)
        return self._settle(now)

    def advance(self, now: float) -> Decision:
        """Only time has passed: let in the agents that this allows."""
        for pool in self.pools:
            self._hear(pool, pool.regulator.advance(now), now)
        return self._settle(now)
