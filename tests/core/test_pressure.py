"""Pressure: many fading claims, one number, in constant time."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from concur_agents.core.pressure import Claim, Claims

RATE_ERROR = 2 ** (1 / 8) - 1  # half of a quarter of an octave: 9 %

tokens = st.floats(1.0, 1e6)
seconds = st.floats(0.0, 1e4)


def value(claims, claim, now):
    """One claim by itself."""
    if claim.fading is None:
        return claim.tokens
    return claim.tokens * math.exp((claim.theta - claims._theta_at(now)) * claim.fading.rate)


def fading(*idle, hold=0.01):
    """Claims of these sizes, all fading from 0 s on."""
    claims = Claims()
    claims.set_hold(hold, 0.0)
    for size in idle:
        claims.fade(Claim(), size, 0.0)
    return claims


def test_a_reasoning_claim_counts_in_full_for_ever():
    claims = Claims(hold_s_per_token=0.01)
    claims.hold(Claim(), 1_000.0)
    assert claims.pressure(1e9) == 1_000


def test_an_idle_claim_falls_to_a_third_in_its_hold():
    """1,000 tokens x 0.01 s/token: a time constant of 10 s."""
    assert fading(1_000.0).pressure(10.0) == pytest.approx(1_000 / math.e, rel=RATE_ERROR)


def test_a_larger_context_is_held_longer_in_proportion():
    for size in (100.0, 1_000.0, 100_000.0):
        left = fading(size).pressure(size * 0.01)
        assert left == pytest.approx(size / math.e, rel=RATE_ERROR)


def test_nothing_fades_while_the_hold_is_infinite():
    assert fading(500.0, 700.0, hold=math.inf).pressure(1e9) == 1_200


def test_with_a_hold_of_nothing_an_idle_claim_is_worth_nothing_at_once():
    claims = fading(500.0, hold=0.0)
    assert claims.pressure(0.0) == 500
    assert claims.pressure(0.001) == pytest.approx(0.0, abs=1e-6)


def test_a_changed_hold_counts_from_now_and_what_has_faded_stays_faded():
    claims = fading(1_000.0)
    before = claims.pressure(10.0)
    claims.set_hold(math.inf, 10.0)
    assert claims.pressure(1e6) == pytest.approx(before)
    claims.set_hold(0.01, 1e6)
    assert claims.pressure(1e6 + 10.0) == pytest.approx(before / math.e, rel=RATE_ERROR)


def test_a_clock_that_steps_back_fades_nothing_twice():
    """Found here: with a hold of nothing, one that stepped back by a second overflowed."""
    for hold in (0.01, 0.0):
        claims = fading(1_000.0, hold=hold)
        claims.fade(Claim(), 1_000.0, 10.0)
        at_ten = claims.pressure(10.0)
        assert claims.pressure(5.0) == at_ten
        claims.fade(Claim(), 1_000.0, 5.0)
        assert claims.pressure(10.0) == at_ten + 1_000.0


def test_a_question_changes_nothing():
    asked, silent = fading(1_000.0, 300.0), fading(1_000.0, 300.0)
    for now in range(100):
        asked.pressure(float(now))
        asked.seconds_until(500.0, float(now))
    for claims in (asked, silent):
        claims.fade(Claim(), 1_000.0, 7.3)
    assert asked.pressure(11.7) == silent.pressure(11.7)


@given(
    st.lists(
        st.tuples(st.sampled_from(["hold", "fade", "release", "rehold"]), tokens, seconds),
        max_size=40,
    )
)
def test_pressure_is_the_sum_of_single_exponentials_within_the_rate_error(moves):
    """Against each claim fading by itself at its exact rate."""
    claims, book, now, hold = Claims(hold_s_per_token=0.01), {}, 0.0, 0.01
    theta = 0.0
    for number, (move, size, passed) in enumerate(moves):
        now += passed
        theta += passed / hold
        if move == "hold":
            book[number] = (Claim(), size, None)
            claims.hold(book[number][0], size)
        elif move == "fade":
            book[number] = (Claim(), size, theta)
            claims.fade(book[number][0], size, now)
        elif move == "release" and book:
            claims.release(book.pop(min(book))[0])
        elif move == "rehold":
            hold = 0.001 + size / 1e6
            claims.set_hold(hold, now)
        low = high = 0.0
        for _, held, since in book.values():
            rate = 0.0 if since is None else (theta - since) / held
            low += held * math.exp(-rate * (1 + RATE_ERROR))
            high += held * math.exp(-rate / (1 + RATE_ERROR))
        total = sum(size for _, size, _ in book.values())
        rounding = 1e-9 * total + 1e-6  # what has come and gone leaves at most this
        assert low - rounding <= claims.pressure(now) <= high + rounding
        for claim, _, since in book.values():
            if since is not None:
                assert value(claims, claim, now) <= claim.tokens


@given(
    st.lists(st.tuples(st.sampled_from(["hold", "fade", "fade", "release"]), tokens, seconds)),
    st.floats(0.5, 1.5),
)
def test_fits_answers_as_the_full_sum_does(moves, share):
    """It answers from two bounds where it can; they must never contradict the sum."""
    claims, book, now = Claims(hold_s_per_token=0.01), [], 0.0
    for move, size, passed in moves:
        now += passed / 100
        if move == "release" and book:
            claims.release(book.pop(0))
        elif move != "release":
            book.append(Claim())
            if move == "hold":
                claims.hold(book[-1], size)
            else:
                claims.fade(book[-1], size, now)
        plain = sum(value(claims, claim, now) for claim in book)
        for room in (share * plain, plain * (1 - 1e-6) - 1e-3, plain * (1 + 1e-6) + 1e-3):
            if abs(room - plain) > 1e-9 * plain + 1e-6:
                assert claims.fits(room, now) is (plain <= room)


@given(
    st.lists(st.tuples(tokens, seconds), min_size=1, max_size=30),
    st.floats(1e-6, 0.999),
    st.floats(0.0, 1e6),
    st.floats(1e-5, 10.0),
    st.booleans(),
)
def test_seconds_until_lands_just_past_the_instant(idle, share, reasoning, hold, after_none):
    """Past it, or a host wakes in vain; just past it, or an agent waits too long.

    Found here: where the time constant was long, or after a time of no hold at all, the answer
    fell short by a hair.
    """
    claims, now = Claims(), 0.0
    claims.set_hold(0.0, now)
    if after_none:
        now = 1_000.0
    claims.set_hold(hold, now)
    for size, passed in idle:
        now += passed
        claims.fade(Claim(), size, now)
    if reasoning >= 1.0:
        claims.hold(Claim(), reasoning)
    fading_tokens = claims.pressure(now) - claims.reasoning_tokens
    target = claims.reasoning_tokens + share * fading_tokens
    wait = claims.seconds_until(target, now)
    if wait is None:
        assert share * fading_tokens <= 1e-6 * target  # lost in rounding
        return
    before = max(0.0, wait - 1e-3 * wait - 1e-2)
    if before > 0:
        assert claims.pressure(now + before) > target * (1 - 1e-9)
    assert claims.pressure(now + wait) <= target


def test_seconds_until_says_never_if_only_reasoning_claims_are_in_the_way():
    claims = fading(500.0)
    claims.hold(Claim(), 1_000.0)
    assert claims.seconds_until(1_000.0, 0.0) is None
    assert claims.seconds_until(900.0, 0.0) is None
    assert claims.seconds_until(1_100.0, 0.0) == pytest.approx(
        5 * math.log(500 / 100), rel=RATE_ERROR
    )


def test_seconds_until_says_never_while_nothing_fades():
    assert fading(500.0, hold=math.inf).seconds_until(100.0, 0.0) is None


def test_there_are_few_sums_however_many_claims():
    claims = Claims(hold_s_per_token=0.01)
    for n in range(10_000):
        claims.fade(Claim(), 1_000.0 + 9 * n, 0.0)
    assert len(claims._sums) <= 8 * math.log2(100) + 1


def test_when_all_claims_are_released_nothing_is_left_of_them():
    """Found here: rounding left crumbs of the claims of reasoning agents."""
    claims = Claims(hold_s_per_token=0.01)
    held = [(Claim(), 0.1 * n) for n in range(1, 1_000)]
    for claim, size in held:
        claims.hold(claim, size)
    for claim, size in held[::2]:
        claims.fade(claim, size, 1.0)
    for claim, _ in held:
        claims.release(claim)
    assert claims.pressure(1.0) == 0.0
    assert claims.reasoning_tokens == 0.0
