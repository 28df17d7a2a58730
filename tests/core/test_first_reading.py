"""Before the first reading: one agent runs alone, and the others wait for it, but not for long.

Found on a real engine with a pool of 9,600 tokens: ten agents that came within the milliseconds
before its first reading were all let in on the guess of 32,768, and each that was one too many had
to be paused later and prefilled again.
"""

import math

import pytest

from concur_agents.core import Reading, Regulator, Usage, make_law

SMALL = Reading(at_s=0.1, capacity_tokens=9_600)


@pytest.fixture
def waiting(regulate):
    """`a` runs alone, `b` and `c` wait; the limit would have room for all of them."""
    r = regulate(agents=3, first_reading_s=1.0)
    assert r.arrive("a", 10.0) == ["a"]
    assert r.arrive("b", 10.1) == []
    assert r.arrive("c", 10.2) == []
    return r


def test_all_wait_but_one_until_the_first_reading(waiting):
    assert waiting.begin_step("a", 10.2) == ["a"]
    assert waiting.end_step("a", 10.3, Usage(900, 100, 0)) == []
    assert waiting.begin_step("a", 10.3) == ["a"], "the one that is in goes on"
    assert waiting.tick(SMALL, 10.4) == ["b", "c"]
    assert waiting.arrive("d", 10.5) == [], "from here on the limit of 3 holds"
    assert waiting.leave("a", 10.6) == ["d"]


def test_a_failed_poll_is_an_answer_too(waiting):
    assert waiting.tick(None, 10.4) == ["b", "c"]


def test_a_failed_poll_lets_in_also_under_a_law_that_cannot_decide_without_readings(regulate):
    r = regulate(agents=3, needs_readings=True, first_reading_s=1.0)
    for agent in "ab":
        r.arrive(agent, 0.0)
    assert r.tick(None, 0.1) == ["b"]


def test_nobody_waits_for_longer_than_asked_after_the_first_has_come(waiting):
    """The host wakes them: `next_wake` names the instant. The clock starts with the first agent."""
    assert waiting.next_wake(10.2) == 11.0
    assert waiting.advance(10.999) == []
    assert waiting.advance(11.0) == ["b", "c"]
    assert waiting.next_wake(11.0) is None


def test_whatever_happens_after_that_time_lets_them_in(waiting):
    assert waiting.arrive("d", 11.5) == ["b", "c"]
    assert waiting.tick(SMALL, 12.0) == []


def test_there_is_nothing_to_wake_for_while_nobody_waits(regulate):
    r = regulate(agents=3, first_reading_s=1.0)
    assert r.next_wake(0.0) is None
    r.arrive("a", 0.0)
    assert r.next_wake(0.0) is None


def test_a_reading_before_the_first_agent_is_the_first_reading(regulate):
    r = regulate(agents=3, first_reading_s=1.0)
    assert r.tick(SMALL, 0.0) == []
    assert [r.arrive(agent, 5.0) for agent in "abcd"] == [["a"], ["b"], ["c"], []]


def test_it_happens_once(waiting):
    """Also when everybody has left and the engine has fallen silent meanwhile."""
    waiting.tick(None, 10.4)
    for agent in "abc":
        waiting.leave(agent, 20.0)
    waiting.tick(None, 30.0)
    assert [waiting.arrive(agent, 40.0) for agent in "xy"] == [["x"], ["y"]]


def test_without_the_option_a_regulator_that_is_never_ticked_lets_in_as_its_law_says(regulate):
    r = regulate(agents=3)
    assert [r.arrive(agent, 0.0) for agent in "abcd"] == [["a"], ["b"], ["c"], []]
    assert r.next_wake(0.0) is None
    assert r.reason == "scripted"


def test_a_small_pool_is_known_before_the_second_agent_is_let_in():
    """Seven of 3,000 tokens fit into the guess of 32,768, and two into this pool."""
    r = Regulator(make_law("working_set"), first_reading_s=1.0)
    agents = [f"a{n}" for n in range(10)]
    guess = Regulator(make_law("working_set"))
    for regulator in (r, guess):
        for agent in agents:
            if regulator.arrive(agent, 0.0, prompt_tokens=3_000):
                regulator.begin_step(agent, 0.0, prompt_tokens=3_000)
    assert guess.view(0.0).active > 6
    assert r.view(0.0).active == 1
    for regulator in (r, guess):
        regulator.tick(SMALL, 0.1)
    assert r.view(0.1).active == 2
    assert guess.view(0.1).active > 6, "a surplus leaves only at its boundaries"


def test_it_says_in_words_for_what_it_waits(waiting):
    assert waiting.reason == "first_reading"
    view = waiting.view(10.2)
    assert (view.reason, view.limit.agents, view.active, view.queued) == ("first_reading", 1, 1, 2)
    why = "waiting for the engine's first reading, at most 0.7 s"
    assert waiting.why("c", 10.3).numbers == why
    assert str(waiting.explain("c", 10.3)) == (
        f"c: queued: {why}; 1 ahead; next chance by itself in 1 s"
    )
    waiting.tick(SMALL, 10.4)
    assert (waiting.reason, waiting.limit.agents) == ("scripted", 3)


def test_waiting_for_a_reading_is_not_waiting_for_the_limit(waiting):
    """Laws grow when the limit was felt, and this says nothing about it."""
    waiting.tick(SMALL, 10.4)
    assert not waiting.last_snapshot.was_bound
    waiting.tick(SMALL, 11.4)
    assert not waiting.last_snapshot.was_bound
    waiting.arrive("d", 11.5)
    waiting.tick(SMALL, 12.4)
    assert waiting.last_snapshot.was_bound


def test_nor_if_no_reading_came_in_time(waiting):
    waiting.advance(11.0)
    waiting.tick(SMALL, 12.0)
    assert not waiting.last_snapshot.was_bound


def test_children_share_the_place_of_the_one_that_is_in(waiting):
    assert waiting.arrive("child", 10.3, parent="a") == ["child"]
    assert waiting.begin_step("child", 10.3) == ["child"]
    assert waiting.begin_step("a", 10.3) == ["a"]


def test_whoever_gives_its_place_back_makes_room_for_the_next_one(waiting):
    assert waiting.suspend("a", 10.3) == ["b"]
    assert waiting.resume("a", 10.4) == [], "it waits as the others do"
    assert waiting.why("a", 10.5).cause == "first_reading"
    assert sorted(waiting.tick(SMALL, 10.6)) == ["a", "c"]


def test_who_may_not_be_opened_waits_on_when_the_reading_has_come(regulate):
    r = regulate(first_reading_s=1.0, max_open=2)
    for agent in "abc":
        r.arrive(agent, 0.0)
    assert r.why("b", 0.0).cause == "first_reading"
    assert r.tick(SMALL, 0.1) == ["b"]
    assert r.why("c", 0.1).numbers == "2 of 2 agents open"


def test_a_bound_on_waiting_shorter_than_that_hands_the_one_place_on(regulate):
    r = regulate(first_reading_s=1.0, max_wait_s=0.5)
    for agent in "abc":
        r.arrive(agent, 0.0)
    r.begin_step("a", 0.0)
    assert r.next_wake(0.0) == 0.5
    r.end_step("a", 0.6, None)
    assert r.begin_step("a", 0.6) == ["b"]
    assert r.view(0.6).active == 1
    assert r.next_wake(0.6) == 1.0
    assert sorted(r.advance(1.0)) == ["a", "c"]


def test_a_tighter_limit_is_not_raised(regulate):
    r = regulate(agents=0, first_reading_s=1.0)
    assert r.limit.agents == 0
    assert r.arrive("a", 0.0) == ["a"], "one is always let in"
    assert r.arrive("b", 0.0) == []


@pytest.mark.parametrize("bad", [-1.0, math.inf, math.nan])
def test_it_cannot_be_negative_nor_for_ever(bad):
    with pytest.raises(ValueError, match=f"first_reading_s must be at least 0 .*: {bad}"):
        Regulator(make_law("fixed"), first_reading_s=bad)
