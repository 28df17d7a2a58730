"""When a silent agent gives its place back, and when it has ended."""

from hypothesis import given
from hypothesis import strategies as st

from concur_agents.gateway.idle import IdleTimes


def learned(*gaps_s):
    idle = IdleTimes()
    for gap_s in gaps_s:
        idle.note(gap_s)
    return idle.away_s, idle.ended_s


def test_before_gaps_are_known_agents_are_kept_for_ten_minutes():
    assert learned() == learned(*[1.0] * 31) == (10, 600)


def test_the_bounds_are_multiples_of_the_usual_longest_gap():
    assert learned(*[20.0] * 100) == (40, 160)


def test_one_long_gap_of_a_hundred_changes_nothing():
    assert learned(*[20.0] * 99, 5000.0) == (40, 160)


def test_gaps_of_the_past_are_forgotten():
    assert learned(*[200.0] * 600, *[20.0] * 512) == (40, 160)


@given(st.lists(st.floats(0, 1e6), max_size=80))
def test_the_bounds_stay_within_reason(gaps_s):
    away_s, ended_s = learned(*gaps_s)
    assert 10 <= away_s <= 300
    assert 60 <= ended_s <= 3600
    assert away_s < ended_s
