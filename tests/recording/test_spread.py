"""Quantiles of durations."""

from concur_agents.recording.spread import spread


def test_quantiles_of_few_and_none():
    assert spread([])[:2] == (0, 0.0)
    assert spread([3.0, 1.0, 2.0]) == (3, 6.0, 2.0, 3.0, 3.0)
