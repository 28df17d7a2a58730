"""Any sequence of events, to a fleet of pools that come, go, fail and heal (hypothesis)."""

import math
from itertools import count
from types import SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from concur_agents.core import Fleet, LawState, Limit, Reading, State, Usage

pytestmark = pytest.mark.timeout(400)

limits = st.builds(
    Limit,
    agents=st.sampled_from([math.inf, 0, 1, 2, 4]),
    tokens=st.sampled_from([math.inf, 0, 4_000, 12_000]),
    hold_s_per_token=st.sampled_from([math.inf, 0.0, 0.1]),
    open_agents=st.sampled_from([math.inf, math.inf, 2]),
)
prompts = st.one_of(st.none(), st.integers(0, 5_000))
usages = st.one_of(st.none(), st.builds(Usage, st.integers(0, 5_000), st.integers(0, 500)))


class FleetMachine(RuleBasedStateMachine):
    """The book: who waits, with how many calls, and how many are in flight."""

    @initialize(
        limit=limits,
        pools=st.integers(1, 3),
        max_wait_s=st.sampled_from([None, 20.0]),
        max_open=st.sampled_from([None, 1, 3]),
        first_reading_s=st.sampled_from([0.0, 1.0]),
    )
    def start(self, limit, pools, max_wait_s, max_open, first_reading_s):
        self.limit = limit
        law = SimpleNamespace(
            name="scripted",
            formula="",
            needs_readings=False,
            initial=lambda: LawState(limit),
            decide=lambda state, snapshot: LawState(self.limit),
        )
        self.max_open = max_open
        self.names = count()
        self.pools = [f"p{i}" for i in range(pools)]
        options = {
            "max_wait_s": max_wait_s,
            "max_open": max_open,
            "first_reading_s": first_reading_s,
        }
        self.fleet, self.twin = (Fleet(law, self.pools, **options) for _ in range(2))
        self.now = 0.0
        self.root_of = {}
        self.waits = {}  # agent -> calls it waits with; 0: to start, or for its place
        self.calls = {}  # agent -> calls in flight
        self.entered = set()
        self.states = {}  # root -> State, from transitions alone

    def tell(self, name, *args, **options):
        """One call to the fleet and to its twin, and what the answer says in the book."""
        homes = self.homes()
        answer = getattr(self.fleet, name)(*args, **options)
        again = getattr(self.twin, name)(*args, **options)
        assert (answer, answer.transitions) == (again, again.transitions), "same calls, same answer"
        for agent, before, after, reason in answer.transitions:
            assert before is not after
            assert self.states.pop(agent, None) is before, "a move from where it is not"
            assert (reason is not None) is (after in (State.QUEUED, State.PAUSED))
            if after is not State.DONE:
                self.states[agent] = after
        assert len(set(answer)) == len(answer), "named twice"
        if any(self.fleet.is_held(name, self.now) for name in "xy"):
            for agent in answer:
                family = [a for a, root in self.root_of.items() if root == self.root_of[agent]]
                goes_on = any(self.calls.get(member) for member in family)
                has_no_call = agent in args[:1] and not self.waits.get(agent)
                assert goes_on or has_no_call, "let in during a hold"
        waiting = set(self.waits)
        for agent in answer:
            # A paused family whose calls were all withdrawn gets its place back by its root's name.
            asks = any(self.root_of[other] == self.root_of[agent] for other in waiting)
            assert agent in waiting or agent in args[:1] or not asks, "it does not wait"
            self.calls[agent] = self.calls.get(agent, 0) + self.waits.pop(agent, 0)
            self.entered.add(agent)
        if name == "found":  # it is where it was served, wherever that is
            homes.pop(self.root_of[args[0]], None)
        self.check_moves(homes, answer)
        return answer

    def homes(self):
        """The pool of each root that has a place there, or has had it."""
        newcomers = {pool.candidate.agent for pool in self.fleet.pools if pool.candidate}
        roots = {root for agent, root in self.root_of.items() if agent == root} - newcomers
        return {root: pool for root in roots if (pool := self.fleet.pool_of(root)) is not None}

    def check_moves(self, homes, answer):
        """An agent stays where it is, unless its pool is gone, or it is paused beside room."""
        well = {pool.name for pool in self.fleet.pools if pool.takes_agents}
        moved = [
            root
            for root, home in homes.items()
            if home in well and root in self.root_of and self.fleet.pool_of(root) != home
        ]
        assert len(moved) <= 1
        for root in moved:
            assert root in answer or not self.waits.get(root, 1), "moved, and still waits"
            assert State.QUEUED not in self.states.values(), "before one that waits to start"

    def some(self, data, agents):
        return data.draw(st.sampled_from(sorted(agents)))

    @rule(
        prompt=prompts,
        priority=st.integers(0, 2),
        group=st.sampled_from([None, "g", "h"]),
        agents=st.integers(1, 4),
    )
    def arrive(self, prompt, priority, group, agents):
        for _ in range(agents):
            agent = f"a{next(self.names)}"
            self.root_of[agent], self.waits[agent] = agent, 0
            self.tell(
                *("arrive", agent, self.now),
                prompt_tokens=prompt,
                priority=priority,
                group=group,
            )

    @precondition(lambda self: self.root_of)
    @rule(data=st.data())
    def child_arrives(self, data):
        parent = self.some(data, self.root_of)
        agent = f"a{next(self.names)}"
        self.root_of[agent] = self.root_of[parent]
        assert agent in self.tell("arrive", agent, self.now, parent=parent)

    @precondition(lambda self: self.root_of)
    @rule(data=st.data(), prompt=prompts)
    def begin(self, data, prompt):
        agent = self.some(data, self.root_of)
        self.waits[agent] = self.waits.get(agent, 0) + 1
        self.tell("begin_step", agent, self.now, prompt_tokens=prompt)

    @precondition(lambda self: any(self.calls.values()))
    @rule(
        data=st.data(),
        usage=usages,
        how=st.sampled_from([{}, {"overloaded": True}, {"aborted": True}]),
        dt=st.floats(0, 5),
    )
    def end(self, data, usage, how, dt):
        self.now += dt
        agent = self.some(data, [agent for agent, calls in self.calls.items() if calls])
        self.calls[agent] -= 1
        self.tell("end_step", agent, self.now, usage, **how)

    @precondition(lambda self: any(self.calls.values()))
    @rule(data=st.data())
    def a_call_is_served_by_some_pool(self, data):
        agent = self.some(data, [agent for agent, calls in self.calls.items() if calls])
        pool = data.draw(st.sampled_from([pool.name for pool in self.fleet.pools]))
        before = self.fleet.agent_state(agent)
        self.tell("found", agent, self.now, pool=pool)
        assert self.fleet.agent_state(agent) == before, "it keeps its place"
        if self.root_of[agent] in self.root_of:
            assert self.fleet.pool_of(agent) == pool

    @precondition(lambda self: any(self.calls.values()))
    @rule(data=st.data())
    def retry(self, data):
        agent = self.some(data, [agent for agent, calls in self.calls.items() if calls])
        self.tell("retry_step", agent, self.now)

    @precondition(lambda self: any(self.calls.values()) or any(self.waits.values()))
    @rule(data=st.data())
    def withdraw(self, data):
        books = (self.waits, self.calls)
        agent = self.some(data, {a for book in books for a, calls in book.items() if calls})
        if self.waits.get(agent):
            self.waits[agent] -= 1
            if not self.waits[agent] and agent in self.entered:
                del self.waits[agent]
        else:
            self.calls[agent] -= 1
        self.tell("withdraw_step", agent, self.now)

    @precondition(lambda self: any(self.root_of[agent] == agent for agent in self.entered))
    @rule(data=st.data())
    def suspend(self, data):
        agent = self.some(data, [a for a in self.entered if self.root_of[a] == a])
        if not self.waits.get(agent, 1):
            del self.waits[agent]
        self.tell("suspend", agent, self.now)

    @precondition(lambda self: any(self.root_of[agent] == agent for agent in self.entered))
    @rule(data=st.data())
    def resume(self, data):
        agent = self.some(data, [a for a in self.entered if self.root_of[a] == a])
        self.waits.setdefault(agent, 0)
        self.tell("resume", agent, self.now)

    @precondition(lambda self: self.root_of)
    @rule(data=st.data())
    def leave(self, data):
        self.leaves(self.some(data, self.root_of))

    def leaves(self, agent):
        del self.root_of[agent]
        for book in (self.waits, self.calls):
            book.pop(agent, None)
        self.entered.discard(agent)
        self.tell("leave", agent, self.now)

    @rule(data=st.data(), dt=st.floats(0, 10), limit=limits, failed=st.booleans())
    def tick(self, data, dt, limit, failed):
        self.now += dt
        self.limit = limit
        pool = data.draw(st.sampled_from([pool.name for pool in self.fleet.pools]))
        reading = None if failed else Reading(at_s=self.now, capacity_tokens=20_000)
        self.tell("tick", reading, self.now, pool)

    @rule(data=st.data())
    def one_pool_goes_down(self, data):
        pool = data.draw(st.sampled_from([pool.name for pool in self.fleet.pools]))
        for _ in range(7):
            self.now += 1.0
            self.tell("tick", None, self.now, pool)

    @rule(dt=st.floats(0, 60))
    def time_passes(self, dt):
        self.now += dt
        self.tell("advance", self.now)

    @rule()
    def a_pool_is_added(self):
        if len(self.fleet.pools) < 4:
            self.tell("add_pool", f"new{next(self.names)}", self.now)

    @rule(data=st.data())
    def a_pool_is_removed(self, data):
        staying = [pool.name for pool in self.fleet.pools if not pool.is_leaving]
        if len(staying) > 1:
            self.tell("remove_pool", data.draw(st.sampled_from(staying)), self.now)

    @rule(data=st.data())
    def a_cache_is_flushed(self, data):
        self.tell("flushed", self.now, data.draw(st.sampled_from([None, self.fleet.pools[0].name])))

    @rule(name=st.sampled_from("xy"), timeout_s=st.sampled_from([5.0, 100.0]))
    def a_hold_begins(self, name, timeout_s):
        self.tell("hold", name, self.now, timeout_s)

    @rule(name=st.sampled_from("xy"))
    def a_hold_ends(self, name):
        self.tell("end_hold", name, self.now)

    # -- what always holds -----------------------------------------------------------------------

    @invariant()
    def an_agent_is_in_one_pool_with_its_family(self):
        seen = {}
        for pool in self.fleet.pools:
            for agent in pool.regulator.ids():
                assert agent not in seen, "in two pools"
                seen[agent] = pool.name
        for agent, root in self.root_of.items():
            assert self.fleet.pool_of(agent) == seen.get(agent)
            if root in self.root_of:
                assert seen.get(agent) == seen.get(root), "away from its parent"

    @invariant()
    def one_new_agent_waits_in_each_pool_at_most(self):
        for pool in self.fleet.pools:
            waiting = [
                agent
                for agent in pool.regulator.waiting()
                if agent not in self.entered and agent in self.root_of
            ]
            assert len(waiting) <= 1
            if pool.candidate is not None:
                assert pool.regulator.agent_state(pool.candidate.agent) == "queued"

    @invariant()
    def the_states_told_are_those_that_are(self):
        for agent, root in self.root_of.items():
            if agent == root:
                assert self.states[agent].value == self.fleet.agent_state(agent)

    @invariant()
    def questions_change_nothing(self):
        view = self.fleet.view(self.now)
        assert view.active == sum(state.is_active for state in self.states.values())
        waiting = [a for a, s in self.states.items() if s in (State.QUEUED, State.PAUSED)]
        assert view.queued + view.paused == len(waiting)
        assert sorted(self.fleet.waiting()) == sorted(waiting)
        assert len(self.fleet.waiting(2)) == min(2, len(waiting))
        for agent in self.root_of:
            assert str(self.fleet.explain(agent, self.now))
        assert [found.agent for found in self.fleet.agents()] == list(self.root_of)
        self.fleet.next_wake(self.now)

    @invariant()
    def no_more_are_open_than_asked_for(self):
        if self.max_open is not None:
            roots = [agent for agent in self.entered if self.root_of[agent] == agent]
            assert len(roots) <= self.max_open

    def teardown(self):
        """Once all pools answer and have room, each agent that waits is let in; then all leave."""
        if not hasattr(self, "fleet"):
            return
        self.limit = Limit()
        for name in "xy":
            self.tell("end_hold", name, self.now)
        while self.root_of:
            for pool in [pool.name for pool in self.fleet.pools]:
                self.now += 1.0
                if pool in [other.name for other in self.fleet.pools]:
                    reading = Reading(at_s=self.now, capacity_tokens=1_000_000)
                    self.tell("tick", reading, self.now, pool)
            active = [a for a, root in self.root_of.items() if a not in self.waits]
            if self.max_open is None:
                assert not self.waits, "it was left behind"
            assert active, "nothing moves"
            for agent in active[: len(active) // 2 + 1]:
                self.leaves(agent)
        assert len(self.fleet._line) == 0
        assert not self.fleet._members
        assert not self.fleet._departed
        for pool in self.fleet.pools:
            assert pool.candidate is None
            assert not pool.regulator.ids()
            assert not pool.groups
            assert not pool.regulator._groups._known
        assert not self.fleet._groups._known


TestFleet = FleetMachine.TestCase
TestFleet.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
