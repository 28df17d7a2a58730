"""Bounded waiting: the overdue go first, by rotation, and the limit holds all the while."""

from concur_agents.core import Reading, Regulator, Usage, make_law

STEP = Usage(900, 100, 0)


def start(regulator, agents, now=0.0):
    for agent in agents:
        regulator.arrive(agent, now, prompt_tokens=744)


def step(regulator, agent, now, usage=STEP):
    assert agent in regulator.begin_step(agent, now)
    return regulator.end_step(agent, now, usage)


def test_an_overdue_agent_takes_the_place_of_one_that_pauses_at_its_next_boundary(regulate):
    r = regulate(agents=2, max_wait_s=60.0)
    start(r, "abc")
    for agent in "ab":
        step(r, agent, 0.0)
    assert r.begin_step("a", 59.0) == ["a"]
    assert r.advance(60.0) == [], "nobody is thrown out"
    assert r.begin_step("b", 61.0) == ["c"]
    assert r.agent_state("b") == "paused"
    assert r.view(61.0).active == 2
    assert r.view(61.0).overdue_total == 1


def test_an_overdue_agent_is_served_under_a_limit_of_one(regulate):
    """Found here: the only active agent never paused, so nobody ever took turns with it."""
    r = regulate(agents=1, max_wait_s=60.0)
    start(r, "ab")
    step(r, "a", 0.0)
    assert r.begin_step("a", 60.0) == ["b"]
    assert r.view(60.0).active == 1
    step(r, "b", 61.0)
    assert r.begin_step("b", 119.0) == ["b"], "a has waited 59 s"
    r.end_step("b", 119.5, STEP)
    assert r.begin_step("b", 120.0) == ["a"]
    assert r.agent_state("a") == "reasoning"


def test_whoever_was_let_in_late_runs_a_step_before_it_makes_room_again(regulate):
    """Found here: with several overdue, each was paused at its first boundary for the next."""
    r = regulate(agents=1, max_wait_s=60.0)
    start(r, "abcd")
    step(r, "a", 0.0)
    assert r.begin_step("a", 100.0) == ["b"]
    assert r.begin_step("b", 100.0) == ["b"], "c and d are overdue too, and it is b's turn"
    r.end_step("b", 101.0, STEP)
    assert r.begin_step("b", 102.0) == ["c"]


def test_the_overdue_go_before_everybody_else_longest_wait_first(regulate, resize):
    r = regulate(agents=1, max_wait_s=60.0)
    start(r, "a")
    r.begin_step("a", 0.0)
    start(r, "b", now=0.0)
    start(r, "c", now=10.0)
    r.arrive("vip", 50.0, priority=9)
    assert resize(r, 71.0, agents=4) == ["b", "c", "vip"]
    assert r.view(71.0).overdue_total == 2


def test_the_limit_is_never_exceeded_for_an_overdue_agent(regulate):
    r = regulate(agents=3, max_wait_s=10.0)
    start(r, "abcdef")
    for agent in "abc":
        step(r, agent, 0.0)
    for second in range(1, 100):
        for agent in "abcdef":
            if r.agent_state(agent) == "acting":
                r.begin_step(agent, float(second))
        for agent in "abcdef":
            if r.agent_state(agent) == "reasoning":
                r.end_step(agent, second + 0.5, STEP)
        assert r.view(second + 0.5).active == 3
        assert r.view(second + 0.5).longest_wait_s <= 12.0
    assert r.view(100.0).overdue_total > 20


def test_everybody_pauses_in_turn_until_a_large_overdue_agent_fits(regulate):
    r = regulate(tokens=3_000, max_wait_s=60.0)
    start(r, "abc")
    for agent in "abc":
        step(r, agent, 0.0, Usage(900, 0))
    r.arrive("big", 0.0, prompt_tokens=2_900)
    for agent in "abc":
        step(r, agent, 30.0, Usage(900, 0))
    assert r.begin_step("a", 60.0) == []
    assert r.begin_step("b", 60.0) == []
    assert r.begin_step("c", 60.0) == ["big"]
    assert r.view(60.0).active == 1


def test_next_wake_is_when_the_first_agent_becomes_overdue(regulate):
    r = regulate(agents=1, max_wait_s=60.0)
    start(r, "a")
    assert r.next_wake(0.0) is None
    r.begin_step("a", 0.0)
    start(r, "b", now=5.0)
    start(r, "c", now=7.0)
    assert r.next_wake(10.0) == 65.0


def test_at_the_instant_of_next_wake_the_agent_is_overdue(regulate):
    """Found here: rounding could place the wake just before the bound, and no other followed."""
    for arrived_s in [0.1 * n for n in range(1, 200)]:
        r = regulate(agents=2, max_wait_s=0.7)
        start(r, "ab")
        for agent in "ab":
            step(r, agent, 0.0)
        start(r, "c", now=arrived_s)
        assert r.begin_step("a", r.next_wake(arrived_s)) == ["c"], arrived_s


def test_newcomers_are_not_rotated_in_when_that_would_cost_too_much_prefill(regulate, resize):
    """Each open agent that does not fit comes back cold once per `max_wait_s`.

    100,000 tokens at 0.01 s each are 1,000 s of prefill: more than a tenth of 60 s.
    """
    r = regulate(agents=1, max_wait_s=60.0)
    r.tick(Reading(at_s=0.0, capacity_tokens=100_000), 0.0)
    r.arrive("a", 0.0)
    for now in range(20):
        r.begin_step("a", float(now))
        r.end_step("a", now + 0.999, Usage(100_000, 0, 99_900))
    r.arrive("new", 20.0)
    assert r.begin_step("a", 200.0) == ["a"]
    r.end_step("a", 201.0, Usage(100_000, 0, 99_900))
    assert r.view(201.0).overdue_total == 0
    assert resize(r, 202.0, agents=2) == ["new"], "where there is room it goes in, of course"


def test_a_started_agent_is_rotated_in_while_a_newcomer_may_not_be(regulate, resize):
    r = regulate(agents=2, max_wait_s=60.0)
    r.tick(Reading(at_s=0.0, capacity_tokens=100_000), 0.0)
    for agent in "ab":
        r.arrive(agent, 0.0)
        for now in range(20):
            r.begin_step(agent, float(now))
            r.end_step(agent, now + 0.999, Usage(100_000, 0, 99_900))
    r.arrive("new", 20.0)
    r.begin_step("b", 21.0)
    resize(r, 21.0, agents=1)
    assert r.begin_step("a", 30.0) == []
    assert r.next_wake(30.0) == 80.0
    assert r.advance(80.0) == []
    assert r.next_wake(80.0) == 90.0, "the newcomer's time is over, a's is not"
    r.end_step("b", 94.0, Usage(100_000, 0, 99_900))
    assert r.begin_step("b", 95.0) == ["a"]


def test_without_a_bound_nobody_is_ever_overdue(regulate):
    r = regulate(agents=1)
    start(r, "ab")
    step(r, "a", 0.0)
    assert r.begin_step("a", 0.0) == ["a"]
    assert r.next_wake(0.0) is None
    r.end_step("a", 1e9, STEP)
    assert r.view(1e9).overdue_total == 0
    assert r.view(1e9).longest_wait_s == 1e9


def test_under_a_bound_on_waiting_only_as_many_are_opened_as_fit_when_grown(regulate):
    """Once open, all would have to take turns: 10 times the first prompt each, in 25,000 tokens.

    Without a bound on waiting everyone fits while small, and is let in.
    """
    for max_wait_s, let_in in ((60.0, ["a", "b"]), (None, ["a", "b", "c", "d"])):
        r = regulate(tokens=24_000, max_wait_s=max_wait_s)
        r.tick(Reading(at_s=0.0, capacity_tokens=25_000), 0.0)
        inside = [who for who in "abcd" if r.arrive(who, 1.0, prompt_tokens=1_000) == [who]]
        assert inside == let_in


def test_an_overdue_agent_takes_the_place_of_one_whatever_the_bound_on_entering_says(regulate):
    """Found here: below the entry bound it pushed out two or three, which became overdue, too."""
    r = regulate(tokens=3_000, enter=2_000, max_wait_s=60.0)
    start(r, "abc")
    for agent in "ab":
        step(r, agent, 0.0, Usage(1_150, 100, 0))
    assert r.view(0.0).pressure_tokens == 2_500
    assert r.begin_step("a", 61.0) == ["c"], "1,250 of b and about 1,000 of c: more than 2,000"
    assert r.agent_state("b") == "acting"


def test_one_more_is_opened_than_fits_if_what_is_beyond_the_pool_is_cheap_to_prefill(regulate):
    """Three of 10,000 when grown in 25,000: 5,000 take turns, for at most 6 s of prefill in 60."""
    for step_s, let_in in ((1.0, ["c"]), (2.0, [])):  # 1 ms per token, or 2
        r = regulate(tokens=24_000, max_wait_s=60.0)
        r.tick(Reading(at_s=0.0, capacity_tokens=25_000), 0.0)
        for agent in "abc":
            r.arrive(agent, 1.0, prompt_tokens=1_000)
        assert r.agent_state("c") == "queued"
        r.begin_step("a", 1.0)
        assert r.end_step("a", 1.0 + step_s, Usage(1_000, 0, 0)) == let_in


def test_with_a_fixed_cap_and_no_endpoint_an_agent_waits_no_longer_than_its_bound():
    """Two agents of 100 steps of 5 s, one place: without a known pool the second waited 500 s."""
    r = Regulator(make_law("fixed", agents=1), max_wait_s=10.0)
    now, left, longest_s = 0.0, {"a": 100, "b": 100}, 0.0
    for agent in "ab":
        r.arrive(agent, now)
    while left:
        for agent in left:
            if r.agent_state(agent) == "acting":
                r.begin_step(agent, now)
        if not any(r.agent_state(who) == "reasoning" for who in left):
            continue  # the other has just been let in, and has a call to make
        (agent,) = [who for who in left if r.agent_state(who) == "reasoning"]
        now += 5.0
        assert r.view(now).active == 1
        longest_s = max(longest_s, r.view(now).longest_wait_s)
        r.end_step(agent, now, None)
        left[agent] -= 1
        if not left[agent]:
            del left[agent]
            r.leave(agent, now)
    assert 10.0 <= longest_s <= 15.0, "the bound, and the step that was in flight"
    assert r.view(now).overdue_total > 50
