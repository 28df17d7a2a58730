"""How much the open agents will hold together, before anybody knows."""

import pytest

from concur_agents.core import Reading, Usage
from concur_agents.core.peak_forecast import PeakForecast, coarse


def peak_forecast(*, held=(), finals=(), opened=None, first=1_000.0):
    """`held` tokens of agents that are here, `finals` of those that left."""
    seen = PeakForecast()
    for tokens in held:
        seen.change(0.0, tokens)
    seen.finals.extend(finals)
    seen.look(len(held) if opened is None else opened, first)
    return seen


def test_while_nobody_has_left_nobody_can_tell():
    assert peak_forecast(held=[1_000.0] * 4).peak_tokens(1_000.0) is None


def test_agents_that_started_together_will_all_be_large_at_once():
    """Nine and a newcomer, all of 1,000 tokens, where everybody left with 8,000."""
    seen = peak_forecast(held=[1_000.0] * 9, finals=[8_000.0] * 8)
    assert seen.peak_tokens(1_000.0) == pytest.approx(10 * 8_000, rel=0.15)


def test_agents_of_all_ages_will_not():
    """Eight of 1,000 to 8,000 tokens: as the small ones grow, the large ones leave."""
    seen = peak_forecast(held=[1_000.0 * size for size in range(1, 9)], finals=[8_500.0] * 8)
    assert 36_000 < seen.peak_tokens(1_000.0) < 0.6 * 9 * 8_500


def test_those_that_are_still_here_tell_that_not_all_are_as_short_as_the_first_to_leave():
    """One of ten left with 2,000; the others hold more, and nobody knows how far they will come."""
    alone = peak_forecast(held=[1_000.0] * 9, finals=[2_000.0])
    among = peak_forecast(held=[3_000.0] * 9, finals=[2_000.0])
    assert alone.peak_tokens(1_000.0) < 25_000, "all that is known says 2,000"
    assert among.peak_tokens(1_000.0) > 60_000, "one in ten leaves by 2,000"


def test_agents_that_have_not_sent_anything_yet_count_as_newcomers():
    assert peak_forecast(finals=[8_000.0], opened=4).peak_tokens(1_000.0) == pytest.approx(
        peak_forecast(finals=[8_000.0], held=[1_000.0] * 4).peak_tokens(1_000.0), rel=0.2
    )


def test_what_is_opened_between_two_looks_counts_at_once():
    seen = peak_forecast(held=[1_000.0] * 9, finals=[8_000.0] * 8)
    before = seen.peak_tokens(1_000.0)
    seen.opens()
    assert seen.peak_tokens(1_000.0) == pytest.approx(before * 11 / 10, rel=0.03)


def test_a_newcomer_that_is_larger_than_usual_counts_with_what_it_has_more():
    seen = peak_forecast(held=[1_000.0] * 9, finals=[8_000.0] * 8)
    assert seen.peak_tokens(5_000.0) - seen.peak_tokens(1_000.0) == pytest.approx(4_000)


def test_agents_that_grow_and_leave_are_forgotten_at_their_old_size():
    seen = PeakForecast()
    for tokens in range(0, 100_000, 1_000):
        seen.change(float(tokens), tokens + 1_000.0)
    assert sum(seen.held.values()) == 1
    seen.change(100_000.0, 0.0)
    assert seen.held == {}


def test_sizes_far_beyond_all_that_left_are_no_division_by_zero():
    seen = peak_forecast(held=[1e9, 1_000.0], finals=[10.0])
    assert seen.peak_tokens(1_000.0) >= 1e9


def test_under_a_bound_on_waiting_the_sizes_of_those_that_left_decide_how_many_are_opened(regulate):
    """A pool of 25,000 tokens, first prompts of 1,000: ten times that would be room for two.

    Once agents have left with 3,000, there is room for six, with care.
    """
    r = regulate(tokens=24_000, max_wait_s=60.0)
    r.tick(Reading(at_s=0.0, capacity_tokens=25_000), 0.0)
    for agent in "abcdefgh":
        r.arrive(agent, 1.0, prompt_tokens=1_000)
    assert r.view(1.0).active == 2
    for agent in "ab":
        for prompt, cached in ((1_000, 0), (2_900, 1_100)):
            r.begin_step(agent, 2.0)
            r.end_step(agent, 2.0, Usage(prompt, 100, cached))
        r.leave(agent, 2.0)
    assert r.view(2.0).active == 2, "nobody has looked since"
    r.tick(Reading(at_s=3.0, capacity_tokens=25_000), 3.0)
    assert r.view(3.0).active == 6


# -- counting by size, with few different sizes ---------------------------------------------------


def test_sizes_that_no_agent_has_are_forgotten():
    seen = PeakForecast()
    seen.change(0.0, 50.0)
    seen.change(0.0, 50.0)
    seen.change(50.0, 0.0)
    assert seen.held == {50: 1}
    seen.change(50.0, 0.0)
    assert seen.held == {}


def test_sizes_are_exact_up_to_64_and_then_less_by_3_percent_at_most():
    sizes = (0, 1, 63, 64, 65, 130, 1_000)
    assert [coarse(size) for size in sizes] == [0, 1, 63, 64, 64, 128, 992]
    assert all(0.968 * n < coarse(n) <= n for n in range(1, 100_000))


def test_there_are_few_different_sizes_however_many_agents_there_are():
    seen = PeakForecast()
    for size in range(1, 10_001):
        seen.change(0.0, float(size))
    assert seen.held.total() == 10_000
    assert len(seen.held) < 64 + 8 * 32
    for size in range(1, 10_001):
        seen.change(float(size), 0.0)
    assert seen.held == {}
