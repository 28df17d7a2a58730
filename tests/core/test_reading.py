"""What comes in is checked where it is made."""

import math

import pytest

from concur_agents.core import Reading, Usage


def test_everything_but_the_time_may_be_unknown():
    assert Reading(at_s=1.0).kv_usage is None


@pytest.mark.parametrize("usage", [-0.01, 1.01, 41.0, math.nan])
def test_kv_usage_is_a_share_and_never_a_percentage(usage):
    with pytest.raises(ValueError, match="kv_usage must be a share between 0 and 1"):
        Reading(at_s=0.0, kv_usage=usage)


@pytest.mark.parametrize("capacity", [0, -1, math.nan])
def test_a_pool_holds_something(capacity):
    with pytest.raises(ValueError, match="capacity_tokens must be above 0"):
        Reading(at_s=0.0, capacity_tokens=capacity)


@pytest.mark.parametrize("counts", [(-1, 0), (0, -1), (1, 0, -1)])
def test_token_counts_are_not_negative(counts):
    with pytest.raises(ValueError, match="token counts must be at least 0"):
        Usage(*counts)
