"""A stall ends by itself: active agents that wait for what a waiting one holds are not waited for.

A semaphore around the gate, a small pool of threads, a rate limiter: what a program had before.
Here the agents call nothing while another one waits; time is an argument.
"""

import pytest

from concur_agents.core import Reading, Regulator, Usage, law_names, make_law
from concur_agents.core.machine import NEW_STALL_S, STALL_S

STEP = Usage(900, 100, 0)
TIGHT = {
    "fixed": {"agents": 2},
    "cache_aimd": {"start": 2.0},
    "gradient": {"start": 2.0},
    "working_set": {"start_tokens": 2_500.0},
    "minimum": {"first": "working_set", "second": "gradient"},
}


def run_until(regulator, until_s, now):
    """As a host that sleeps until `next_wake`: returns who was let in, and when."""
    let_in = []
    while True:
        wake_s = regulator.next_wake(now)
        if wake_s is None or wake_s > until_s:
            return let_in
        assert wake_s >= now
        assert len(let_in) < 50
        now = wake_s
        woken = regulator.advance(now)
        assert woken, "woken in vain, and for ever"
        let_in += [(agent, now) for agent in woken]


def step(regulator, agent, now, usage=STEP):
    assert agent in regulator.begin_step(agent, now)
    return regulator.end_step(agent, now + 1.0, usage)


@pytest.fixture
def dead_lock(regulate, resize):
    """`a` is active and will never call, for `b` is paused and holds a lock; `new` waits too."""
    r = regulate(agents=2)
    for agent in "ab":
        r.arrive(agent, 0.0)
        step(r, agent, 0.0)
    resize(r, 1.0, agents=1)
    r.arrive("new", 1.5)
    assert r.begin_step("b", 2.0) == []
    return r


def test_a_paused_agent_is_let_in_when_it_has_waited_five_seconds_without_a_call(dead_lock):
    assert dead_lock.next_wake(2.0) == 2.0 + STALL_S
    assert dead_lock.advance(6.9) == []
    assert dead_lock.advance(7.0) == ["b"], "and not `new`, which holds nothing yet"
    assert dead_lock.agent_state("b") == "reasoning"
    view = dead_lock.view(7.0)
    assert (view.active, view.stalls_total, view.overdue_total) == (2, 1, 0)


def test_the_agents_that_a_stall_let_in_stay_for_ten_minutes(dead_lock):
    """Put back at its next boundary, such an agent would stall the rest once more, at each step."""
    dead_lock.advance(7.0)
    dead_lock.end_step("b", 8.0, STEP)
    assert dead_lock.begin_step("a", 8.0) == ["a"]
    dead_lock.end_step("a", 9.0, STEP)
    assert dead_lock.view(9.0).active == 2
    assert dead_lock.begin_step("a", 700.0) == []
    assert dead_lock.view(700.0).active == 1


def test_where_only_new_agents_wait_it_takes_a_minute_and_then_twice_as_long(regulate):
    r = regulate(agents=1)
    r.arrive("a", 0.0)
    r.arrive("b", 0.0)
    r.arrive("c", 0.0)
    assert r.next_wake(0.0) is None, "as far as is known, they call without a gate"
    r.begin_step("a", 0.0)
    r.end_step("a", 1.0, STEP)
    assert r.next_wake(1.0) == 1.0 + NEW_STALL_S
    assert run_until(r, 300.0, 1.0) == [("b", 61.0), ("c", 181.0)], "one at a time"
    assert r.view(300.0).stalls_total == 2


def test_an_agent_whose_calls_report_no_usage_counts_as_one_that_has_begun(regulate, resize):
    """Found here: it was taken for a new one, and each stall took thirty seconds."""
    r = regulate(agents=2)
    for agent in "ab":
        r.arrive(agent, 0.0)
        step(r, agent, 0.0, None)
    resize(r, 1.0, agents=1)
    assert r.begin_step("b", 2.0) == []
    assert r.agent_state("b") == "queued", "it has no context yet"
    assert r.advance(2.0 + STALL_S) == ["b"]


@pytest.mark.parametrize("usage", [None, STEP])
def test_behind_a_semaphore_of_two_eight_agents_finish_and_no_stall_takes_longer_than_the_first(
    usage,
):
    """Each takes the semaphore, then waits at the gate, calls for 0.05 s and hands it on.

    Found here: an active agent's wait for the semaphore counted as the gap of its tool, so that
    each stall took twice as long as the one before, and the batch never finished.
    """
    r, now = Regulator(make_law("fixed", agents=2)), 0.0
    left = {f"a{n}": 20 for n in range(8)}
    for agent in left:
        r.arrive(agent, now)
    line, holders = list(left), {}  # who waits for the semaphore; who has it, and until when
    while left:
        while line and len(holders) < 2:
            holders[line[0]] = None
            r.begin_step(line.pop(0), now)
        for agent, until_s in holders.items():
            if until_s is None and r.agent_state(agent) == "reasoning":
                holders[agent] = now + 0.05
        calling = [(until_s, agent) for agent, until_s in holders.items() if until_s]
        if not calling:
            wake_s = r.next_wake(now)
            assert wake_s is not None, "stopped for good"
            assert now < wake_s <= now + NEW_STALL_S
            now = wake_s
            r.advance(now)
            continue
        now, agent = min(calling)
        r.end_step(agent, now, usage)
        del holders[agent]
        left[agent] -= 1
        if left[agent]:
            line.append(agent)
        else:
            del left[agent]
            r.leave(agent, now)
    stalls = r.view(now).stalls_total
    assert now < 6 * NEW_STALL_S + stalls * (STALL_S + 0.1)


def test_while_a_call_is_in_flight_nothing_is_stalled(dead_lock):
    assert dead_lock.begin_step("a", 3.0) == ["a"]
    assert dead_lock.next_wake(3.0) is None
    assert dead_lock.advance(1_000.0) == []
    assert dead_lock.end_step("a", 1_000.0, STEP) == [], "it counts from the end of the call"
    assert dead_lock.next_wake(1_000.0) >= 1_000.0 + STALL_S


def test_an_agent_that_dies_in_a_long_call_makes_no_stall(regulate):
    """Found here: the time of the call itself counted as time in which nothing moved."""
    r = regulate(agents=2)
    for agent in "abc":
        r.arrive(agent, 0.0)
    r.begin_step("a", 0.0)
    r.arrive("d", 0.0)
    assert r.leave("a", 500.0) == ["c"], "its place is free, and no more than that"
    assert r.view(500.0).stalls_total == 0


def test_slow_tools_are_no_stall_twice_the_longest_recent_gap_is_waited(regulate, resize):
    r = regulate(agents=2)
    for agent in "ab":
        r.arrive(agent, 0.0)
        step(r, agent, 0.0)
    step(r, "a", 41.0)  # 40 s after its last call
    resize(r, 42.0, agents=1)
    assert r.begin_step("b", 42.0) == []
    longest_s = 41.0  # of b, at its boundary
    assert r.next_wake(42.0) == pytest.approx(42.0 + 2 * longest_s)
    assert r.advance(42.0 + 79.0) == []
    assert r.advance(42.0 + 2 * longest_s) == ["b"]


def test_max_open_holds_and_nothing_is_woken_in_vain(regulate):
    """Found here: where no new agent may be opened, the wake-up stood in the past for ever."""
    r = regulate(agents=1, max_open=2)
    for agent in "abc":
        r.arrive(agent, 0.0)
    step(r, "a", 0.0)
    assert run_until(r, 1_000.0, 1.0) == [("b", 61.0)]
    assert r.next_wake(1_000.0) is None
    assert r.advance(1_000.0) == []
    assert r.view(1_000.0).stalls_total == 1


def test_an_agent_alone_is_no_stall(regulate):
    r = regulate(agents=1)
    r.arrive("a", 0.0)
    assert r.next_wake(0.0) is None
    assert r.advance(1e6) == []
    assert r.view(1e6).stalls_total == 0


def test_an_agent_let_in_by_a_stall_is_not_counted_as_overdue(regulate, resize):
    r = regulate(agents=2, max_wait_s=1_000.0)
    for agent in "ab":
        r.arrive(agent, 0.0)
        step(r, agent, 0.0)
    resize(r, 1.0, agents=1)
    assert r.begin_step("b", 2.0) == []
    assert r.advance(7.0) == ["b"]
    assert (r.view(7.0).stalls_total, r.view(7.0).overdue_total) == (1, 0)


@pytest.mark.parametrize("name", law_names())
def test_under_every_law_a_lock_around_the_gate_does_not_stop_the_batch(name):
    """Eight agents that need one of two permits for a call and hold it while they wait."""
    r = Regulator(make_law(name, **TIGHT[name]))
    agents, now = [f"a{n}" for n in range(8)], 0.0
    capacity = 2_500.0 if name == "minimum" else None
    r.tick(Reading(at_s=0.0, capacity_tokens=capacity), 0.0)
    for agent in agents:
        r.arrive(agent, now)
    permits, left = [], dict.fromkeys(agents, 5)
    while any(left.values()):
        for agent in agents:  # a permit goes to whoever asks first, active or not
            if len(permits) < 2 and agent not in permits and left[agent]:
                permits.append(agent)
                r.begin_step(agent, now)
        for agent in list(permits):
            if r.agent_state(agent) == "reasoning":
                r.end_step(agent, now + 0.05, STEP)
                now += 0.05
                permits.remove(agent)
                left[agent] -= 1
                agents.remove(agent)
                agents.append(agent)
                if not left[agent]:
                    r.leave(agent, now)
        if len(permits) == 2 and not any(r.agent_state(a) == "reasoning" for a in permits):
            wake_s = r.next_wake(now)
            assert wake_s is not None, "stopped for good"
            now = max(now, wake_s)
            r.advance(now)
        assert now < 2_000.0
    assert r.view(now).done_total == 8
    assert r.view(now).stalls_total <= 8, "one for each agent at most: they stay"
    assert now < 600.0


def test_an_agent_that_has_just_been_paused_is_not_let_in_by_a_stall_at_once(regulate, resize):
    """Found here: after a quiet time, a surplus agent at its boundary came straight back in."""
    r = regulate(agents=2)
    for agent in "ab":
        r.arrive(agent, 0.0)
        step(r, agent, 0.0)
    resize(r, 1.0, agents=1)
    assert r.begin_step("b", 500.0) == []
    assert r.agent_state("b") == "paused"
