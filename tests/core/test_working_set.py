"""The default law, numbers in, numbers out: size of the pool, time to hold, breadth.

Round numbers throughout: a pool of 100,000 tokens, of which 95 % are to be filled, and a prefill of
0.1 ms per token with 100,000 tokens in calls: break-even is 10 s, and the law takes 6 s of it.
"""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from concur_agents.core import Snapshot, make_law

LAW = make_law("working_set")
BASE = Snapshot(
    at_s=0.0,
    interval_s=1.0,
    reading=None,
    capacity_tokens=100_000.0,
    learned_tokens=None,
    proven_tokens=0.0,
    hit_tokens_total=0.0,
    query_tokens_total=0.0,
    cached_known=True,
    active=10,
    reasoning=5,
    waiting=0,
    paused=0,
    open_agents=10,
    was_bound=False,
    pressure_tokens=50_000.0,
    reasoning_tokens_mean=100_000.0,
    footprint_mean=10_000.0,
    final_tokens=0.0,
    gaps_s=(),
    prefill_s_per_token=1e-4,
    step_s=0.0,
    output_tokens=0.0,
    steps=0,
    overloads=0,
    retry_after_s=0.0,
)


def decide(*changes, state=None):
    """The state after a snapshot per `changes`."""
    state = LAW.initial() if state is None else state
    for change in changes:
        state = LAW.decide(state, replace(BASE, **change))
    return state


# -- a host tier behind it ------------------------------------------------------------------------


def test_with_a_host_tier_both_tiers_are_the_pool_and_the_pool_itself_is_near():
    limit = decide({"capacity_tokens": 400_000.0, "near_tokens": 100_000.0}).limit
    assert (limit.tokens, limit.enter_tokens) == (380_000, 342_000)
    assert limit.near_tokens == 85_500, "where cold agents entered if there were no tier"


def test_without_a_host_tier_nothing_is_near():
    assert decide({}).limit.near_tokens == math.inf


def test_a_tier_that_thrashes_is_governed_like_a_pool_that_thrashes():
    state = decide({"capacity_tokens": 400_000.0, "near_tokens": 1e5, "learned_tokens": 190_000.0})
    assert (state.limit.tokens, state.reason) == (190_000, "learned")


# -- how large the pool is -----------------------------------------------------------------------


def test_the_limit_is_95_percent_of_what_the_engine_reports():
    limit = decide({}).limit
    assert limit.tokens == 95_000
    assert limit.agents == math.inf, "agents are not counted"


@pytest.mark.parametrize(
    ("learned", "tokens"),
    [
        (None, 95_000),
        (60_000.0, 60_000),  # another tenant has the rest
        (140_000.0, 95_000),  # a surprise never raises it beyond the engine's word
        (1_000.0, 19_000),  # nor does one odd return shut it
    ],
)
def test_what_survived_lowers_what_the_engine_reports_down_to_a_fifth(learned, tokens):
    assert decide({"learned_tokens": learned}).limit.tokens == tokens


def test_an_engine_that_reports_nothing_is_guessed_and_the_guess_doubles_what_has_survived():
    untold = {"capacity_tokens": None}
    assert decide(untold).limit.tokens == pytest.approx(0.95 * 32_768)
    state = decide(untold, {**untold, "proven_tokens": 50_000.0})
    assert state.limit.tokens == 95_000
    state = decide({**untold, "proven_tokens": 20_000.0}, state=state)
    assert state.limit.tokens == 95_000, "a guess never shrinks by itself"


def test_once_something_was_evicted_what_was_learned_stands_for_the_pool():
    state = decide({"capacity_tokens": None, "proven_tokens": 80_000.0, "learned_tokens": 40_000.0})
    assert state.limit.tokens == pytest.approx(40_000)


# -- how long idle contexts hold -----------------------------------------------------------------


def test_quick_tools_hold_for_ever():
    limit = decide({"gaps_s": (0.1,) * 32}).limit
    assert limit.hold_s_per_token == math.inf


def test_tools_far_beyond_the_break_even_time_hold_nothing_and_the_reason_says_so():
    state = decide({"gaps_s": (60.0,) * 32})
    assert state.limit.hold_s_per_token == 0.0
    assert state.reason == "let_go"
    assert state.limit.tokens == 95_000, "calls in flight still have to fit"
    state = decide({"gaps_s": (0.1,) * 32}, state=state)
    assert state.reason != "let_go"


def test_some_slow_among_many_quick_ones_hold_for_a_while():
    """Longer than the quick ones take, so that they are back; shorter than break-even."""
    limit = decide({"gaps_s": (0.1,) * 29 + (300.0,) * 3}).limit
    tau_s = limit.hold_s_per_token * BASE.footprint_mean
    assert 0.5 < tau_s < 6.0


def test_until_gaps_are_known_idle_contexts_hold_for_six_tenths_of_break_even():
    tau_s = decide({"gaps_s": (60.0,) * 2}).limit.hold_s_per_token * BASE.footprint_mean
    assert tau_s == pytest.approx(6.0)
    assert decide({"gaps_s": (60.0,) * 3}).limit.hold_s_per_token == 0.0


def test_until_a_price_is_known_nothing_fades():
    assert decide({"prefill_s_per_token": None}).limit.hold_s_per_token == math.inf
    assert decide({"footprint_mean": 0.0}).limit.hold_s_per_token == math.inf


@given(gap_s=st.floats(0.01, 1_000.0))
def test_when_all_gaps_are_alike_they_are_waited_out_or_not_at_all(gap_s):
    """Held through: a prefill saved. Beyond break-even it costs more than that."""
    hold = decide({"gaps_s": (gap_s,) * 32}).limit.hold_s_per_token
    tau_s = hold * BASE.footprint_mean
    if gap_s < 5.9:
        assert tau_s > gap_s
    if gap_s > 6.1:
        assert tau_s == 0.0


# -- room to grow, and breadth -------------------------------------------------------------------


def test_cold_agents_enter_up_to_nine_tenths_of_the_limit():
    assert decide({}).limit.enter_tokens == 85_500


def test_six_times_what_fits_may_be_open_before_those_that_have_begun_go_first():
    """95,000 tokens hold five agents that come to 19,000 each."""
    assert decide({"final_tokens": 19_000.0}).limit.open_agents == 30
    assert decide({"final_tokens": 1e9}).limit.open_agents == 1, "one at least"


def test_beyond_the_breadth_dropping_a_context_costs_two_prefills():
    """A cold agent takes the room and pays one as well: break-even is 20 s, and 12 s are held."""
    narrow = {"final_tokens": 19_000.0, "open_agents": 30, "paused": 1}
    assert decide(narrow).limit.hold_s_per_token * BASE.footprint_mean == pytest.approx(6.0)
    again = decide(narrow, narrow).limit
    assert again.hold_s_per_token * BASE.footprint_mean == pytest.approx(12.0)
    none_waits = decide(narrow, {**narrow, "paused": 0}).limit
    assert none_waits.hold_s_per_token * BASE.footprint_mean == pytest.approx(6.0)


def test_until_an_agent_has_shown_a_size_breadth_has_no_bound():
    assert decide({}).limit.open_agents == math.inf


def test_where_nothing_is_reported_and_nothing_cached_latency_stands_in_after_eight_steps():
    silent = {"capacity_tokens": None, "cached_known": False, "steps": 4}
    state = decide(silent)
    assert (state.reason, state.by_latency) == ("start", None)
    state = decide(silent, state=state)
    assert state.reason.startswith("latency_")
    assert state.limit.agents < math.inf
    state = decide({}, state=state)
    assert (state.reason, state.limit.agents) == ("reported", math.inf), "a page that heals, heals"


@given(
    st.lists(
        st.builds(
            dict,
            learned_tokens=st.none() | st.floats(1.0, 1e6),
            proven_tokens=st.floats(0.0, 1e6),
            gaps_s=st.lists(st.floats(0.0, 1e4), max_size=32).map(sorted).map(tuple),
            prefill_s_per_token=st.none() | st.floats(1e-7, 1e-2),
            steps=st.just(10),
            step_s=st.floats(0.001, 100.0),
            final_tokens=st.floats(0.0, 1e5),
            reasoning_tokens_mean=st.floats(0.0, 1e6),
        ),
        max_size=20,
    )
)
def test_whatever_happens_the_limit_stays_within_what_the_engine_reports(snapshots):
    for n in range(len(snapshots)):
        limit = decide(*snapshots[: n + 1]).limit
        assert 0.2 * 95_000 <= limit.tokens <= 95_000
        assert limit.enter_tokens == 0.9 * limit.tokens
        assert limit.open_agents >= 1
        assert limit.hold_s_per_token >= 0.0


def test_a_decision_changes_neither_state_nor_snapshot():
    state = LAW.initial()
    snapshot = replace(BASE, gaps_s=(5.0,) * 8)
    assert LAW.decide(state, snapshot) == LAW.decide(state, snapshot)
    assert state == LAW.initial()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("fill", 0.0, "fill must be a share above 0, got 0"),
        ("entry", 1.5, "entry must be a share above 0, got 1.5"),
        ("hold_scale", -1.0, "hold_scale must be above 0, got -1"),
        ("breadth", 0.0, "breadth must be above 0, got 0"),
        ("start_tokens", math.nan, "start_tokens must be above 0, got nan"),
    ],
)
def test_an_option_out_of_range_says_the_value_and_the_wish(option, value, message):
    with pytest.raises(ValueError, match=message):
        make_law("working_set", **{option: value})
