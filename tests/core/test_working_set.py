"""The default law, numbers in, numbers out: size of the pool, time to hold, share to fill.

Round numbers throughout: a pool of 100,000 tokens, of which 95 % are to be filled, and a prefill of
0.1 ms per token with 100,000 tokens in calls: break-even is 10 s, and the law takes 7 s of it.
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
    reusable_tokens=0.0,
    reused_tokens=0.0,
    cached_known=True,
    active=10,
    reasoning=5,
    waiting=0,
    peak_active=10,
    was_bound=False,
    pressure_tokens=50_000.0,
    reasoning_mean=5.0,
    reasoning_tokens_mean=100_000.0,
    footprint_mean=10_000.0,
    gaps_s=(),
    prefill_s_per_token=1e-4,
    step_s=0.0,
    output_tokens=0.0,
    steps=0,
    failures=0,
    overloads=0,
    retry_after_s=0.0,
    restarts_total=0,
)


def decide(*changes, state=None):
    """The state after a snapshot per `changes`, 10 s apart: so far apart are looks at rho."""
    state = LAW.initial() if state is None else state
    at_s = state.decided_s or 0.0
    for number, change in enumerate(changes):
        state = LAW.decide(state, replace(BASE, at_s=at_s + 10.0 * number, **change))
    return state


def told(reused, *, bound=True, **more):
    """A look at which so many of 1,000 tokens were still cached."""
    return {"reusable_tokens": 1_000.0, "reused_tokens": reused, "was_bound": bound, **more}


# -- how large the pool is -----------------------------------------------------------------------


def test_the_limit_is_95_percent_of_what_the_engine_tells():
    limit = decide({}).limit
    assert limit.tokens == 95_000
    assert limit.agents == math.inf, "agents are not counted"


@pytest.mark.parametrize(
    ("learned", "tokens"),
    [
        (None, 95_000),
        (60_000.0, 57_000),  # somebody else has the rest
        (140_000.0, 95_000),  # a surprise never raises it beyond the engine's word
        (1_000.0, 19_000),  # nor does one odd return shut it
    ],
)
def test_what_survived_lowers_what_the_engine_tells_down_to_a_fifth(learned, tokens):
    assert decide({"learned_tokens": learned}).limit.tokens == tokens


def test_an_engine_that_tells_nothing_is_guessed_and_the_guess_doubles_what_has_survived():
    untold = {"capacity_tokens": None}
    assert decide(untold).limit.tokens == pytest.approx(0.95 * 32_768)
    state = decide(untold, {**untold, "proven_tokens": 50_000.0})
    assert state.limit.tokens == 95_000
    state = decide({**untold, "proven_tokens": 20_000.0}, state=state)
    assert state.limit.tokens == 95_000, "a guess never shrinks by itself"


def test_once_something_was_evicted_what_was_learned_stands_for_the_pool():
    state = decide({"capacity_tokens": None, "proven_tokens": 80_000.0, "learned_tokens": 40_000.0})
    assert state.limit.tokens == 38_000


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
    assert 0.5 < tau_s < 7.0


def test_until_gaps_are_known_idle_contexts_hold_for_seven_tenths_of_break_even():
    tau_s = decide({"gaps_s": (60.0,) * 2}).limit.hold_s_per_token * BASE.footprint_mean
    assert tau_s == pytest.approx(7.0)
    assert decide({"gaps_s": (60.0,) * 3}).limit.hold_s_per_token == 0.0


def test_until_a_price_is_known_nothing_fades():
    assert decide({"prefill_s_per_token": None}).limit.hold_s_per_token == math.inf
    assert decide({"footprint_mean": 0.0}).limit.hold_s_per_token == math.inf


@given(gap_s=st.floats(0.01, 1_000.0))
def test_when_all_gaps_are_alike_they_are_waited_out_or_not_at_all(gap_s):
    """Held through: a prefill saved. Beyond break-even it costs more than that."""
    hold = decide({"gaps_s": (gap_s,) * 32}).limit.hold_s_per_token
    tau_s = hold * BASE.footprint_mean
    if gap_s < 6.9:
        assert tau_s > gap_s
    if gap_s > 7.1:
        assert tau_s == 0.0


# -- room to grow --------------------------------------------------------------------------------
# Ten agents whose steps take 2 s, with quick tools: in the 20 s of two break-evens, ten steps each.

STEPS = {"steps": 50, "step_s": 100.0, "gaps_s": (0.0,) * 32, "grown_steps": 50}


def test_cold_agents_leave_room_for_what_those_inside_grow_by_in_two_break_evens():
    assert decide({**STEPS, "grown_tokens": 50 * 300.0}).limit.enter_tokens == 95_000 - 30_000
    assert decide({**STEPS, "grown_tokens": 50 * 400.0}).limit.enter_tokens == 95_000 - 40_000


def test_they_fill_nine_tenths_at_most_and_half_at_least():
    assert decide({**STEPS, "grown_tokens": 0.0}).limit.enter_tokens == 85_500
    assert decide({**STEPS, "grown_tokens": 50 * 900.0}).limit.enter_tokens == 47_500


def test_agents_about_to_leave_make_room():
    """Five of ten come to the end of their lives after five of the ten steps, and give back 10,000
    tokens each. Until then all grow: most is needed after a quarter of the time, 10,000."""
    grows = {**STEPS, "grown_tokens": 50 * 400.0, "final_tokens": 10_000.0}
    halves = {**grows, "ages": ((3, 5), (15, 5)), "lives": (20, 20, 20, 20)}
    assert decide(halves).limit.enter_tokens == 95_000 - 10_000
    young = {**grows, "ages": ((3, 10),), "lives": (20, 20, 20, 20)}
    assert decide(young).limit.enter_tokens == 95_000 - 40_000


def test_slower_tools_mean_less_growth_in_the_same_time():
    slow = {**STEPS, "gaps_s": (2.0,) * 32, "grown_tokens": 50 * 400.0}
    assert decide(slow).limit.enter_tokens == 95_000 - 20_000


def test_what_is_let_go_does_not_add_up():
    """With tools of a minute no claim is there when its agent comes back."""
    slow = {**STEPS, "gaps_s": (60.0,) * 32, "grown_tokens": 50 * 9_000.0}
    assert decide(slow).limit.enter_tokens == 85_500


def test_a_pool_that_is_only_guessed_is_filled_so_that_the_guess_is_tried():
    untold = {"capacity_tokens": None, "active": 20, "prefill_s_per_token": None}
    limit = decide(untold).limit
    assert limit.enter_tokens == pytest.approx(0.9 * limit.tokens)
    limit = decide({**untold, "learned_tokens": 100_000.0}).limit
    assert limit.enter_tokens == pytest.approx(0.5 * limit.tokens)


def test_until_half_of_those_inside_have_shown_how_they_grow_cold_agents_fill_half_the_pool():
    crowd = {"active": 20, "pressure_tokens": 40_000.0}
    assert decide({**crowd, "prefill_s_per_token": None}).limit.enter_tokens == 47_500
    few = {**crowd, **STEPS, "grown_steps": 9, "grown_tokens": 0.0}
    assert decide(few).limit.enter_tokens == 47_500
    assert decide({**few, "grown_steps": 10}).limit.enter_tokens == 85_500


def test_but_four_agents_may_always_come_in():
    large = {"active": 2, "pressure_tokens": 40_000.0, "prefill_s_per_token": None}
    assert decide(large).limit.enter_tokens == 80_000
    assert decide({**large, "active": 1}).limit.enter_tokens == 85_500, "within the nine tenths"


def test_growth_nobody_has_shown_is_waited_for_as_long_as_it_is_worth_and_no_longer():
    """Two break-evens are 20 s: room that stays free for longer is worth filling."""
    crowd = {"active": 20, "pressure_tokens": 40_000.0, "interval_s": 10.0}
    assert decide(crowd).limit.enter_tokens == 47_500
    assert decide(crowd, crowd).limit.enter_tokens == 85_500


def test_a_price_that_falls_for_a_moment_does_not_end_the_wait_for_growth():
    """Seen on a real engine: 4 s after a burst it fell to a tenth for 2 s, and all came in."""
    crowd = {"active": 20, "pressure_tokens": 40_000.0, "interval_s": 3.0}
    cheap = {**crowd, "prefill_s_per_token": 1e-5, "interval_s": 1.0}
    assert decide(crowd, cheap).limit.enter_tokens == 47_500, "3 of 20 s, 1 of 2 s"
    assert decide(crowd, cheap, cheap).limit.enter_tokens == 85_500


# -- how far to fill -----------------------------------------------------------------------------


def test_rho_grows_on_evidence_only_if_somebody_waited_and_little_was_missed():
    learned = {"learned_tokens": 50_000.0}
    first = {**learned}
    grown = decide(first, {**learned, **told(990.0)})
    assert (grown.reason, grown.rho) == ("grow", pytest.approx(0.97))
    assert decide(first, {**learned, **told(990.0, bound=False)}).rho == 0.95
    assert decide(first, {**learned, **told(900.0)}).reason == "hold"
    assert decide(first, learned).reason == "no_evidence"


def test_rho_stops_a_little_beyond_what_was_learned():
    looks = [{"learned_tokens": 50_000.0, **told(1_000.0)}] * 30
    state = decide(*looks)
    assert state.rho == LAW.rho_high
    assert state.limit.tokens == pytest.approx(51_000)


def test_a_large_deficit_falls_back_once_and_forgets_what_was_before():
    looks = [{"learned_tokens": 50_000.0, **told(1_000.0)}] * 5
    state = decide(*looks, {"learned_tokens": 50_000.0, **told(500.0)})
    assert (state.reason, state.rho) == ("cut", 0.95)
    assert state.epoch_s == 50.0, "steps that began before say nothing any more"
    assert decide(told(500.0), told(500.0)).reason == "at_floor"


def test_evidence_is_gathered_for_ten_seconds():
    state = LAW.initial()
    for second in range(10):
        state = LAW.decide(state, replace(BASE, at_s=float(second), **told(1_000.0)))
        assert state.rho == 0.95
    state = LAW.decide(state, replace(BASE, at_s=10.0, **told(1_000.0)))
    assert state.reason == "grow"


@given(
    st.lists(
        st.builds(
            dict,
            learned_tokens=st.none() | st.floats(1.0, 1e6),
            proven_tokens=st.floats(0.0, 1e6),
            reusable_tokens=st.just(1_000.0),
            reused_tokens=st.floats(0.0, 1_000.0),
            was_bound=st.booleans(),
            gaps_s=st.lists(st.floats(0.0, 1e4), max_size=32).map(sorted).map(tuple),
            prefill_s_per_token=st.none() | st.floats(1e-7, 1e-2),
            steps=st.just(10),
            step_s=st.floats(0.001, 100.0),
            grown_steps=st.integers(0, 10),
            grown_tokens=st.floats(0.0, 1e5),
            ages=st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), max_size=5).map(tuple),
            lives=st.lists(st.integers(1, 50), max_size=64).map(sorted).map(tuple),
            final_tokens=st.floats(0.0, 1e5),
            reasoning_tokens_mean=st.floats(0.0, 1e6),
        ),
        max_size=20,
    )
)
def test_whatever_happens_the_limit_stays_within_what_the_engine_tells(snapshots):
    for n in range(len(snapshots)):
        limit = decide(*snapshots[: n + 1]).limit
        assert 0.2 * 95_000 <= limit.tokens <= 95_000
        assert 0.5 * limit.tokens <= limit.enter_tokens <= 0.9 * limit.tokens
        assert limit.hold_s_per_token >= 0.0


def test_a_decision_changes_neither_state_nor_snapshot():
    state = LAW.initial()
    snapshot = replace(BASE, **told(500.0))
    assert LAW.decide(state, snapshot) == LAW.decide(state, snapshot)
    assert state == LAW.initial()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("rho_low", 0.0, "rho_low must lie between 0 and rho_high, got 0"),
        ("rho_high", 0.5, "rho_low must lie between 0 and rho_high"),
        ("entry", 1.5, "entry_low and entry must be shares above 0, .* got 0.5 and 1.5"),
        ("entry_low", 0.95, "entry_low and entry must be shares above 0, .* got 0.95 and 0.9"),
        ("growth_scale", -1.0, "growth_scale must be at least 0, got -1"),
        ("hold_scale", -1.0, "hold_scale must be above 0, got -1"),
    ],
)
def test_an_option_out_of_range_says_the_value_and_the_wish(option, value, message):
    with pytest.raises(ValueError, match=message):
        make_law("working_set", **{option: value})
