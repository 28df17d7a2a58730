"""A host tier behind the pool: how many cold agents enter beyond the pool itself."""

import pytest

from concur_agents.core import Reading, Regulator, Usage, make_law

POOL, TIER = 20_000, 100_000
READING = Reading(at_s=0.0, capacity_tokens=POOL, host_capacity_tokens=TIER)


def entered(*, finals, agents=30, reading=READING, gap_s=3.0, returns=8):
    """How many of so many agents of 5,000 tokens enter at once, after others left with `finals`.

    Before, one more of that size came back so often, from gaps of `gap_s` between calls of 6 s.
    """
    r = Regulator(make_law("working_set"), start_s=-1000.0)
    r.tick(reading, -1000.0)
    now = -900.0
    r.arrive("regular", now, prompt_tokens=4_900)
    for _ in range(returns + 1):
        r.begin_step("regular", now, prompt_tokens=4_900)
        r.end_step("regular", now + 6.0, Usage(4_900, 100, 4_900))
        now += 6.0 + gap_s
    r.leave("regular", now)
    r.tick(reading, 0.0)
    for number, final in enumerate(finals):
        agent = f"former-{number}"
        r.arrive(agent, 1.0, prompt_tokens=4_900)
        for usage in (Usage(4_900, 100, 0), Usage(final - 100, 100, 4_900)):
            assert agent in r.begin_step(agent, 2.0, prompt_tokens=usage.prompt_tokens)
            r.end_step(agent, 2.0, usage)
        r.leave(agent, 4.0)
    r.tick(reading, 5.0)
    for number in range(agents):
        agent = f"agent-{number}"
        if agent in r.arrive(agent, 6.0, prompt_tokens=4_900):
            r.begin_step(agent, 6.0, prompt_tokens=4_900)
    return r.view(6.0).active


def test_until_some_have_left_they_enter_while_nearly_twice_as_much_fits():
    """Half of their lives is over, on average: 95,000 tokens over 1.8 are ten of them."""
    assert entered(finals=[]) == 10


def test_agents_that_will_not_grow_fill_both_tiers():
    """Others left with what they began with: nine tenths of 95,000 tokens are 17 of them, and with
    a care of 1.3 for what is open, 14.
    """
    assert entered(finals=[5_100] * 8) == pytest.approx(14, abs=1)


def test_agents_that_will_all_be_large_at_once_enter_as_if_there_were_no_tier():
    """Others left with 40,000: two of these fit, so no more enter than into the pool itself."""
    no_tier = Reading(at_s=0.0, capacity_tokens=POOL)
    alone = entered(finals=[40_000] * 8, reading=no_tier)
    assert 1 <= alone <= 3
    assert entered(finals=[40_000] * 8) == alone


def test_three_that_have_left_say_nothing_yet():
    """The first to leave are the short ones."""
    assert entered(finals=[5_100] * 2) == 10


def test_agents_that_are_always_in_calls_enter_as_if_there_were_no_tier():
    """The pool is full of calls already: what is kept beyond it is restored at every call, and no
    room is won.
    """
    assert entered(finals=[], gap_s=0.0) == entered(finals=[], gap_s=1.0) == 3
    assert entered(finals=[], gap_s=2.0) == 10


@pytest.mark.parametrize(("agents", "enter"), [(10, 10), (30, 3)])
def test_until_it_is_known_how_long_agents_are_away_the_tier_counts_if_it_will_hold_all(
    agents, enter
):
    """Ten agents of 5,000 come to 90,000 tokens if they grow as agents do; 30 do not fit."""
    r = Regulator(make_law("working_set"), first_reading_s=10.0)
    for number in range(agents):
        r.arrive(f"agent-{number}", 0.0, prompt_tokens=4_700)
    r.tick(READING, 1.0)
    assert r.view(1.0).active == enter


def test_usages_that_say_nothing_is_held_leave_the_others_governed():
    """Some endpoints answer zeros, and a mean of them is no size to divide by."""
    r = Regulator(make_law("working_set"))
    now = 0.0
    for number in range(20):
        agent = f"agent-{number}"
        r.arrive(agent, now)
        for _ in range(2):
            assert agent in r.begin_step(agent, now)
            r.end_step(agent, now + 1.0, Usage(0, 0, 0))
            now += 2.0
        r.leave(agent, now)
        r.tick(Reading(at_s=now, capacity_tokens=100, host_capacity_tokens=TIER), now)
    assert [agent for agent in "abc" if agent in r.arrive(agent, now)]
