"""How much those inside will need: who stays and grows, who will have left."""

from dataclasses import replace

import pytest

from concur_agents.core import Regulator, Usage, make_law
from concur_agents.core.laws.growth import Growth, kept, leaving


def blank():
    """A snapshot after a second in which nothing happened."""
    regulator = Regulator(make_law("fixed", agents=1))
    regulator.tick(None, 1.0)
    return regulator.last_snapshot


BASE = blank()


def inside(*ages, lives=(), final_tokens=0.0, gaps_s=()):
    """A snapshot of agents that have done so many steps: `inside((3, 10))` is ten after three."""
    return replace(
        BASE,
        active=sum(agents for _, agents in ages),
        ages=ages,
        lives=lives,
        final_tokens=final_tokens,
        gaps_s=gaps_s,
    )


# -- who leaves ----------------------------------------------------------------------------------


def test_nobody_is_expected_to_leave_before_anybody_has():
    assert leaving(inside((3, 10)), 100.0) == 0.0


def test_of_lives_longer_than_an_agents_so_far_the_share_that_ends_in_time_counts():
    assert leaving(inside((5, 8), lives=(4, 6, 8, 10, 12)), 3.0) == 4.0, "2 of 4"
    assert leaving(inside((0, 8), lives=(10, 10, 10, 10)), 9.0) == 0.0, "a batch of one age stays"
    assert leaving(inside((0, 8), lives=(10, 10, 10, 10)), 10.0) == 8.0, "and leaves, as a whole"


def test_one_older_than_all_before_may_go_on_for_as_long_again():
    assert leaving(inside((20, 2), lives=(4, 6)), 20.0) == 1.0


# -- what is needed ------------------------------------------------------------------------------

SEEN = Growth(grown_tokens=5_000.0, grown_steps=10.0, steps=20.0, step_s=40.0)
"""500 tokens and 2 s a step."""


def test_all_who_stay_grow_with_each_step():
    assert SEEN.ahead(inside((3, 10)), 20.0) == 10 * 10 * 500
    assert SEEN.ahead(inside((3, 10), gaps_s=(2.0,)), 20.0) == 10 * 5 * 500, "tools take time too"


def test_the_most_may_be_needed_on_the_way():
    """After ten steps all are gone; after seven and a half they have grown the most."""
    batch = inside((0, 10), lives=(10,) * 8, final_tokens=10_000.0)
    assert SEEN.ahead(batch, 20.0) == 10 * 7.5 * 500
    assert SEEN.ahead(batch, 10.0) == 10 * 5 * 500


def test_room_that_comes_back_is_no_need():
    assert SEEN.ahead(inside((9, 10), lives=(10,) * 8, final_tokens=10_000.0), 20.0) == 0.0


def test_growth_fades_with_a_memory_of_half_a_minute():
    step = replace(BASE, interval_s=0.0, steps=1, step_s=2.0, grown_steps=1, grown_tokens=500.0)
    growth = Growth().after(step)
    assert growth == Growth(grown_tokens=500.0, grown_steps=1.0, steps=1.0, step_s=2.0)
    assert growth.after(replace(BASE, interval_s=30.0)).steps == pytest.approx(0.3679, abs=1e-4)


def test_a_clock_that_stands_still_divides_by_nothing():
    still = Growth(grown_tokens=500.0, grown_steps=4.0, steps=4.0, step_s=0.0)
    assert still.ahead(inside((0, 1)), 1.0) > 0.0


def test_a_claim_is_kept_for_quick_tools_and_not_for_slow_ones():
    assert kept((5.0,), float("inf")) == 1.0
    assert kept((), 0.0) == 1.0, "nobody has been away"
    assert kept((5.0,), 0.0) == 0.0
    assert kept((10.0, 0.0), 10.0) == pytest.approx(0.5 * (1.0 + 0.3679), abs=1e-4)


# -- ages ----------------------------------------------------------------------------------------


def test_the_regulator_tells_the_ages_of_active_agents_and_how_long_lives_were(regulate):
    r = regulate(agents=2)
    for agent in "abc":
        r.arrive(agent, 0.0)
    for agent in "aab":
        r.begin_step(agent, 0.0)
        r.end_step(agent, 1.0, Usage(1_000, 100, 0))
    r.tick(None, 1.0)
    assert r.last_snapshot.ages == ((1, 1), (2, 1))
    assert (r.last_snapshot.lives, r.last_snapshot.final_tokens) == ((), 0.0)
    assert (r.last_snapshot.grown_steps, r.last_snapshot.grown_tokens) == (1, 100.0)
    r.leave("a", 2.0)
    r.tick(None, 2.0)
    assert r.last_snapshot.ages == ((0, 1), (1, 1)), "c has come in"
    assert (r.last_snapshot.lives, r.last_snapshot.final_tokens) == ((2,), 1_100.0)
    r.leave("b", 2.0)
    r.leave("c", 2.0)
    r.tick(None, 3.0)
    assert r.last_snapshot.ages == ()
