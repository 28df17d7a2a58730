"""Counting agents by age or size, with few different ages or sizes to look at."""

import pytest

from concur_agents.core.histogram import Histogram, coarse


def test_numbers_that_nobody_has_are_forgotten():
    tally = Histogram()
    tally.add(0)
    tally.add(0)
    tally.remove(0)
    assert tally == {0: 1}
    tally.remove(0)
    assert tally == {}
    with pytest.raises(KeyError):
        tally.remove(0)


def test_numbers_are_exact_up_to_64_and_then_less_by_3_percent_at_most():
    numbers = (0, 1, 63, 64, 65, 130, 1_000)
    assert [coarse(number) for number in numbers] == [0, 1, 63, 64, 64, 128, 992]
    assert all(0.968 * n < coarse(n) <= n for n in range(1, 100_000))


def test_there_are_few_different_numbers_however_many_there_are():
    tally = Histogram()
    for number in range(10_000):
        tally.add(number)
    assert sum(tally.values()) == 10_000
    assert len(tally) < 64 + 8 * 32
    for number in range(10_000):
        tally.remove(number)
    assert tally == {}
