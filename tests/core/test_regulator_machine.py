"""Any sequence of events whatever, against a plain book of who is where (hypothesis)."""

import math
import random
from collections import Counter
from itertools import count
from types import SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from concur_agents.core import LawState, Limit, Reading, Regulator, State, Usage
from concur_agents.core.peak_forecast import coarse

pytestmark = pytest.mark.timeout(400)  # a failing example may take minutes to be shrunk

SLACK = 1 + 1e-9
DECIDES = (
    *("arrive", "begin_step", "end_step", "retry_step", "withdraw_step"),
    *("suspend", "resume", "leave", "tick", "advance"),
)

limits = st.builds(
    Limit,
    agents=st.sampled_from([math.inf, 0, 1, 2, 4]),
    tokens=st.sampled_from([math.inf, 0, 4_000, 12_000]),
    enter_tokens=st.sampled_from([math.inf, math.inf, 6_000]),
    hold_s_per_token=st.sampled_from([math.inf, 0.0, 0.001, 0.1]),
    open_agents=st.sampled_from([math.inf, math.inf, 1, 3]),
)
prompts = st.one_of(st.none(), st.integers(0, 5_000))
prefixes = st.sampled_from(
    [None, (), (("s", 300.0),), (("s", 300.0), ("t", 700.0)), (("u", 512.0),)]
)
usages = st.builds(
    Usage, st.integers(0, 5_000), st.integers(0, 500), st.one_of(st.none(), st.integers(0, 5_000))
)


def value(claims, claim, now):
    """One claim by itself."""
    if claim.fading is None:
        return claim.tokens
    faded = min(0.0, claim.theta - claims._theta_at(now)) * claim.fading.rate
    return claim.tokens * math.exp(faded)


def assert_nothing_is_left(regulator, now):
    """After everybody has gone, all books are empty, and what is bounded is bounded."""
    window, ledger = regulator._admission, regulator._sizes
    assert not regulator._accounts
    assert (window.active, window.reasoning, window.paused, window.open_agents) == (0, 0, 0, 0)
    queue = window.queue
    assert len(queue) == 0
    for entries in (queue._open, queue._new, queue._by_wait, queue._open_by_wait):
        assert not entries
    assert window.claims.reasoning_tokens == 0.0
    assert all(fading.count == 0 and fading.total == 0.0 for fading in window.claims._sums.values())
    assert window.pressure(now) == 0.0
    assert not ledger.prefixes._nodes
    assert ledger.footprint_tokens == 0.0
    assert all(place.left for place in ledger.residency._entries.values())
    assert len(ledger.residency._entries) <= 4 * 4096
    view = regulator.view(now)
    assert (view.active, view.paused, view.queued, view.suspended) == (0, 0, 0, 0)
    assert view.longest_wait_s == 0.0
    assert regulator.next_wake(now) is None


class RegulatorMachine(RuleBasedStateMachine):
    """The book: families of a root and its children, each active, waiting or off as a whole."""

    @initialize(
        limit=limits,
        max_wait_s=st.sampled_from([None, 20.0]),
        max_open=st.sampled_from([None, 1, 3]),
        first_reading_s=st.sampled_from([0.0, 1.0, 30.0]),
    )
    def start(self, limit, max_wait_s, max_open, first_reading_s):
        self.law = SimpleNamespace(
            name="scripted",
            formula="",
            needs_readings=False,
            initial=lambda: LawState(limit),
            decide=lambda state, snapshot: LawState(self.limit),
        )
        self.limit = limit
        self.now = 0.0
        self.regulator = Regulator(
            self.law,
            max_wait_s=max_wait_s,
            max_open=max_open,
            first_reading_s=first_reading_s,
        )
        for name in DECIDES:
            setattr(self.regulator, name, self.followed(getattr(self.regulator, name)))
        self.replayed = {}  # root agent -> State, from transitions alone
        self.stalled = False  # the last decision let one in because nothing moved
        self.first_reading_s = first_reading_s
        self.alone_until_s = math.inf if first_reading_s else None  # None: that is over
        self.admission = self.regulator._admission
        self.families = []
        self.home = {}  # agent -> family
        self.names = count()

    # -- transitions -----------------------------------------------------------------------------

    def followed(self, call):
        """`call`, whose answer's transitions are replayed and held against its list."""

        def follow(*args, **options):
            stalls = self.admission.stalls_total
            decision = call(*args, **options)
            self.stalled = self.admission.stalls_total > stalls
            let_in = set()
            for agent, before, after, reason in decision.transitions:
                assert before is not after
                assert self.replayed.pop(agent, None) is before, "a move from where it is not"
                assert (reason is not None) is (after in (State.QUEUED, State.PAUSED))
                assert reason is None or (reason.agent, reason.state) == (agent, after.value)
                if after is not State.DONE:
                    self.replayed[agent] = after
                if after.is_active and not (before is not None and before.is_active):
                    let_in.add(agent)
            for agent in decision:
                continues = agent in args[:1]
                assert continues or self.place_of(agent) in let_in
            return decision

        return follow

    def place_of(self, agent):
        return self.home[agent].name if agent in self.home else agent

    # -- the book ------------------------------------------------------------------------------

    def is_in(self, family):
        member = next(iter(family.members))
        return self.regulator.agent_state(member) in ("reasoning", "acting")

    def book(self, woken):
        """Checks that exactly those were named who have come in, and writes them down."""
        if self.alone_until_s is not None and self.now >= self.alone_until_s:
            self.alone_until_s = None
        assert len(set(woken)) == len(woken), "named twice"
        named = []
        newly = [family for family in self.families if not family.active and self.is_in(family)]
        for family in newly:
            ids = [agent for agent, calls in family.waiting.items() if calls]
            asked_back = not family.opened or family.asks_back
            if family.root in family.members and (asked_back or not ids):
                ids = [*dict.fromkeys([*ids, family.root])]
            named += ids
            family.active = family.opened = True
            family.asks_back = False
            family.calls.update(family.waiting)
            family.waiting.clear()
        assert sorted(named) == sorted(woken)
        if newly:
            assert self.admission.max_open is None or (
                self.admission.open_agents <= self.admission.max_open
            )
            if not self.stalled:
                assert self.admission.active <= max(self.places(), self.admission.least)
                pressure = self.admission.pressure(self.now)
                within = pressure <= self.admission.limit.tokens * SLACK
                assert within or self.admission.active <= self.admission.least

    def settle(self, family):
        """A family whose root is off gives its place back as soon as nobody needs it."""
        busy = sum(family.calls.values()) or sum(family.waiting.values()) or family.asks_back
        if family.is_suspended and not busy and list(family.members) == [family.root]:
            family.active, family.out = False, True

    def places(self):
        return max(1, self.admission.limit.agents)

    def some(self, data, agents):
        return data.draw(st.sampled_from(sorted(agents)))

    def calling(self):
        return [agent for agent, home in self.home.items() if home.calls[agent]]

    def asking(self):
        return [agent for agent, home in self.home.items() if home.waiting[agent]]

    # -- events --------------------------------------------------------------------------------

    @rule(asked=st.lists(st.tuples(prompts, st.integers(0, 2), st.booleans()), max_size=4))
    def arrive(self, asked):
        for prompt, priority, fresh in asked:
            agent = f"a{next(self.names)}" if fresh else "again"
            if any(family.name == agent for family in self.families) and agent not in self.home:
                continue  # it has left, and its children have its place and its name
            if agent in self.home:
                with pytest.raises(ValueError, match="already here"):
                    self.regulator.arrive(agent, self.now)
                continue
            if self.alone_until_s == math.inf:
                self.alone_until_s = self.now + self.first_reading_s
            family = SimpleNamespace(
                root=agent,
                name=agent,
                members={agent: 0},
                calls=Counter(),
                waiting=Counter(),
                active=False,
                opened=False,
                is_suspended=False,  # the root has said so
                out=False,  # nobody of it holds or asks for a place
                asks_back=False,
                left_tokens=0,
            )
            self.families.append(family)
            self.home[agent] = family
            woken = self.regulator.arrive(agent, self.now, prompt_tokens=prompt, priority=priority)
            self.book(woken)

    @precondition(lambda self: self.home)
    @rule(data=st.data())
    def arrive_child(self, data):
        parent = self.some(data, self.home)
        child = f"c{next(self.names)}"
        woken = self.regulator.arrive(child, self.now, parent=parent)
        assert woken[0] == child
        self.home[child] = self.home[parent]
        self.home[child].members[child] = 0
        self.book(woken[1:])

    @precondition(lambda self: self.home)
    @rule(data=st.data(), prompt=prompts, prefix=prefixes)
    def begin(self, data, prompt, prefix):
        self.ask(self.some(data, self.home), prompt, prefix)

    @precondition(lambda self: self.home)
    @rule(usage=usages)
    def all_begin_and_all_end(self, usage):
        for agent in list(self.home):
            self.ask(agent)
        for agent in self.calling():
            self.stop(agent, usage)

    def ask(self, agent, prompt=None, prefix=None):
        family = self.home[agent]
        busy = sum(family.calls.values()) > 0
        was_active = family.active
        family.out = False
        family.is_suspended = family.is_suspended and agent != family.root
        woken = self.regulator.begin_step(agent, self.now, prompt_tokens=prompt, prefix=prefix)
        goes = self.regulator.agent_state(agent) == "reasoning"
        assert (agent in woken) is goes or not was_active
        if not was_active:
            family.waiting[agent] += 1
        elif goes:
            family.calls[agent] += 1
            woken.remove(agent)
            if not busy and self.admission.active > self.admission.least:
                assert self.admission.active <= max(self.places(), self.admission.least)
                assert self.admission.pressure(self.now) <= self.admission.limit.tokens * SLACK
        else:
            assert not busy, "paused with a call in flight"
            family.active = False
            family.waiting[agent] = 1
        self.book(woken)

    @precondition(lambda self: self.calling())
    @rule(data=st.data(), usage=st.one_of(st.none(), usages), overloaded=st.booleans())
    def end(self, data, usage, overloaded):
        self.stop(self.some(data, self.calling()), usage, overloaded)

    def stop(self, agent, usage, overloaded=False):
        family = self.home[agent]
        woken = self.regulator.end_step(agent, self.now, usage, overloaded=overloaded)
        family.calls[agent] -= 1
        if usage is not None and not overloaded:
            family.members[agent] = usage.prompt_tokens + usage.completion_tokens
        self.settle(family)
        self.book(woken)

    @precondition(lambda self: self.home)
    @rule(data=st.data(), overloaded=st.booleans())
    def try_again(self, data, overloaded):
        """Within a step, or, by a host's mistake, outside of one."""
        agent = self.some(data, self.home)
        self.book(self.regulator.retry_step(agent, self.now, overloaded=overloaded))

    @precondition(lambda self: self.asking())
    @rule(data=st.data())
    def give_up_waiting(self, data):
        agent = self.some(data, self.asking())
        woken = self.regulator.end_step(agent, self.now, None)
        self.waits_no_longer(agent)
        self.book(woken)

    def waits_no_longer(self, agent):
        family = self.home[agent]
        family.waiting[agent] -= 1
        if agent == family.root and not family.waiting[agent]:
            family.asks_back = False
        self.settle(family)

    @precondition(lambda self: self.calling() or self.asking())
    @rule(data=st.data())
    def withdraw(self, data):
        """Called off: while it waits, or when it was let in and not yet sent."""
        agent = self.some(data, self.calling() + self.asking())
        woken = self.regulator.withdraw_step(agent, self.now)
        family = self.home[agent]
        if family.active:
            family.calls[agent] -= 1
            self.settle(family)
        else:
            self.waits_no_longer(agent)
        self.book(woken)

    @precondition(lambda self: any(family.opened and family.root for family in self.families))
    @rule(data=st.data())
    def suspend(self, data):
        family = self.home[self.some(data, [f.root for f in self.families if f.opened and f.root])]
        family.is_suspended, family.asks_back = True, False
        woken = self.regulator.suspend(family.root, self.now)
        self.settle(family)
        self.book(woken)

    @precondition(lambda self: any(family.is_suspended and family.root for family in self.families))
    @rule(data=st.data())
    def resume(self, data):
        family = self.home[
            self.some(data, [f.root for f in self.families if f.is_suspended and f.root])
        ]
        family.is_suspended = family.out = False
        family.asks_back = not family.active
        woken = self.regulator.resume(family.root, self.now)
        self.book(woken[1:] if family.active else woken)

    @precondition(lambda self: self.home)
    @rule(data=st.data())
    def leave(self, data):
        """Finished, failed or cancelled, in whatever state, also with calls in flight."""
        self.go(self.some(data, self.home))

    def go(self, agent):
        family = self.home.pop(agent)
        woken = self.regulator.leave(agent, self.now)
        tokens = family.members.pop(agent)
        if agent == family.root:
            family.left_tokens = tokens  # held until the last child has gone
        del family.calls[agent], family.waiting[agent]
        self.settle(family)
        if not family.members:
            self.families.remove(family)
        elif agent == family.root:
            family.root = None
        self.book(woken)
        assert self.regulator.leave(agent, self.now) == [] or agent in self.home

    @rule(limit=limits, failed=st.booleans(), capacity=st.sampled_from([None, 20_000]))
    def tick(self, limit, failed, capacity):
        self.limit, self.alone_until_s = limit, None
        reading = None if failed else Reading(at_s=self.now, capacity_tokens=capacity)
        self.book(self.regulator.tick(reading, self.now))
        assert self.admission.limit == limit

    @rule(hits=st.integers(0, 10_000), misses=st.integers(0, 10_000))
    def hear_counters(self, hits, misses):
        """Often fewer than last time: the engine restarted."""
        self.alone_until_s = None
        reading = Reading(at_s=self.now, hit_tokens_total=hits, query_tokens_total=hits + misses)
        self.book(self.regulator.tick(reading, self.now))

    @rule(passed=st.floats(0.0, 60.0))
    def pass_time(self, passed):
        self.now += passed
        self.book(self.regulator.advance(self.now))

    @rule()
    def sleep_until_woken(self):
        wake = self.regulator.next_wake(self.now)
        if wake is None:
            return
        assert wake > self.now
        self.now = wake
        active = self.admission.active
        # After that wake another limit holds, which may be as tight.
        may_be_in_vain = wake == self.alone_until_s or self.admission.max_wait_s is not None
        woken = self.regulator.advance(self.now)
        if not may_be_in_vain:  # nobody is named if only idle children are left of one
            assert self.admission.active > active, "woken in vain"
        self.book(woken)

    # -- what must hold at every instant -------------------------------------------------------

    @invariant()
    def everybody_is_where_the_book_says(self):
        active = [family for family in self.families if family.active]
        out = [family for family in self.families if family.out]
        waiting = [family for family in self.families if not family.active and not family.out]
        for family in self.families:
            assert self.is_in(family) is family.active
        reasoning = [family for family in active if sum(family.calls.values())]
        for family in active:
            expected = "reasoning" if family in reasoning else "acting"
            for member in family.members:
                assert self.regulator.agent_state(member) == expected
        view = self.regulator.view(self.now)
        assert (view.active, view.reasoning) == (len(active), len(reasoning))
        assert view.paused + view.queued == len(waiting)
        assert view.suspended == len(out)
        assert all(
            self.regulator.agent_state(m) == "suspended" for family in out for m in family.members
        )
        assert self.admission.open_agents == sum(family.opened for family in self.families)
        assert not {id(f) for f in active} & {id(f) for f in waiting}

    @invariant()
    def transitions_alone_say_where_each_root_stands(self):
        for family in self.families:
            member = next(iter(family.members))
            assert self.replayed[family.name].value == self.regulator.agent_state(member)
        assert len(self.replayed) == len(self.families)

    @invariant()
    def no_agent_is_lost(self):
        assert set(self.regulator.ids()) == set(self.home)
        waiting = {family.name for family in self.families if not family.active and not family.out}
        assert sorted(self.regulator.waiting()) == sorted(waiting)
        if waiting and not self.admission.reasoning and self.admission.active:
            wake_s = self.regulator.next_wake(self.now)  # a stall ends by itself
            if wake_s is None:
                assert not self.admission.may_open or not self.regulator._meter.has_called
                assert not self.admission.paused
            else:
                assert wake_s > self.now

    @invariant()
    def one_runs_alone_until_the_first_reading_but_not_for_long(self):
        if self.alone_until_s is None:
            assert self.regulator.reason == "start"
            assert self.admission.limit == self.regulator.state.limit
        else:
            assert self.regulator.reason == "first_reading"
            assert self.admission.active <= 1 + self.admission.stalls_total
            wake_s = self.regulator.next_wake(self.now)
            if len(self.admission.queue):
                assert self.now < wake_s <= self.alone_until_s

    @invariant()
    def sums_are_those_of_the_book(self):
        tokens = sum(sum(family.members.values()) + family.left_tokens for family in self.families)
        assert self.regulator.view(self.now).footprint_tokens == tokens
        accounts = {id(a.parent or a): a.parent or a for a in self.regulator._accounts.values()}
        roots = list(accounts.values())
        claims = self.admission.claims
        held = sum(root.claim.tokens for root in roots if root.claim.held)
        assert claims.reasoning_tokens == pytest.approx(held)
        assert sum(root.claim.held for root in roots) == self.admission.reasoning
        peak_forecast = self.regulator._sizes.peak_forecast
        sizes = Counter(coarse(root.footprint) for root in roots if root.footprint)
        assert peak_forecast.held == sizes
        alone = sum(value(claims, root.claim, self.now) for root in roots)
        charged = self.regulator._sizes.prefixes.charged_tokens
        assert self.admission.pressure(self.now) == pytest.approx(alone + charged, abs=1e-3)
        states = [root.state.value for root in roots]
        assert self.admission.paused == states.count("paused")

    @invariant()
    def nobody_waits_while_there_is_room(self):
        window = self.admission
        if not len(window.queue):
            return
        head = window._overdue(self.now) or window._next()
        if head is None:  # all who wait are new, and none may be opened
            if window.may_open:
                assert window.max_wait_s is not None
                assert not window._may_rotate(window.queue.head())
            else:
                assert window.max_open is not None
                assert window.open_agents >= window.max_open
            return
        assert window.active >= 1
        if window.active < self.places():
            need = self.regulator._sizes.need(head)
            most = window.limit.tokens
            if not window.is_warm(head):
                most = min(most, window.limit.enter_tokens)
            assert window.pressure(self.now) + need > most / SLACK

    def teardown(self):
        if not hasattr(self, "regulator"):
            return
        for agent in list(self.home):
            self.go(agent)
        assert_nothing_is_left(self.regulator, self.now)


TestRegulatorMachine = RegulatorMachine.TestCase
TestRegulatorMachine.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


@pytest.mark.parametrize("tokens", [math.inf, 2_000_000.0])
def test_ten_thousand_agents_that_come_finish_crash_or_give_up_leave_nothing(tokens):
    rng, now = random.Random(5), 0.0
    law = SimpleNamespace(
        name="scripted",
        formula="",
        needs_readings=False,
        initial=lambda: LawState(Limit(agents=500, tokens=tokens, hold_s_per_token=0.01)),
        decide=lambda state, snapshot: state,
    )
    r = Regulator(law, max_wait_s=60.0)
    alive = []
    for n in range(10_000):
        now += 0.01
        parent = rng.choice(alive) if alive and rng.random() < 0.2 else None
        alive.append(f"a{n}")
        r.arrive(f"a{n}", now, parent=parent, priority=rng.randrange(2))
        for _ in range(3):
            agent = rng.choice(alive)
            if rng.random() < 0.5:
                r.begin_step(agent, now, prefix=rng.choice([None, (("system", 900.0),)]))
            else:
                try:
                    prompt = rng.randrange(1_000, 50_000)
                    r.end_step(agent, now, rng.choice([None, Usage(prompt, 99, prompt // 2)]))
                except ValueError:  # it had no call; that changes nothing
                    pass
        if n > 2_000:
            r.leave(alive.pop(rng.randrange(len(alive))), now)
    rng.shuffle(alive)
    for agent in alive:
        now += 0.01
        r.leave(agent, now)
    assert_nothing_is_left(r, now)
