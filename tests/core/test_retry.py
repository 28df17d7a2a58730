"""A step is one call with all its retries: what a failed try says, and what it must not say."""

import pytest

from concur_agents.core import Usage

STEP = Usage(900, 100, 0)


def evidence(regulator, now):
    regulator.tick(None, now)
    return regulator.last_snapshot


def test_a_refused_try_is_told_at_once_and_the_step_goes_on(regulate):
    """A Retry-After may last a minute; the law should know before the others run into it, too."""
    r = regulate()
    r.arrive("a", 0.0)
    r.begin_step("a", 0.0)
    assert r.retry_step("a", 1.0, overloaded=True, retry_after_s=30.0) == []
    told = evidence(r, 2.0)
    assert (told.overloads, told.retry_after_s, told.steps) == (1, 30.0, 0)
    assert r.agent_state("a") == "reasoning"
    r.end_step("a", 32.0, STEP)
    told = evidence(r, 33.0)
    assert (told.overloads, told.steps) == (0, 1)


def test_the_time_of_a_step_is_that_of_the_try_that_worked(regulate):
    """Counted from the first, a backoff of 30 s would look like a prefill of 30 s."""
    r = regulate()
    r.arrive("a", 0.0)
    r.begin_step("a", 0.0)
    r.retry_step("a", 30.0)
    r.end_step("a", 32.0, STEP)
    assert evidence(r, 33.0).step_s == pytest.approx(2.0)


def test_a_retry_is_no_boundary(regulate, resize):
    """An agent in the middle of a call keeps its place, however small the limit has become."""
    r = regulate(agents=2)
    for agent in "ab":
        r.arrive(agent, 0.0)
        r.begin_step(agent, 0.0)
    resize(r, 1.0, agents=1)
    r.retry_step("b", 2.0)
    assert r.agent_state("b") == "reasoning"
    assert r.view(2.0).active == 2


def test_a_retry_of_an_agent_that_makes_no_call_changes_nothing(regulate):
    r = regulate(agents=1)
    r.arrive("a", 0.0)
    r.arrive("b", 0.0)
    for agent in "ab":
        assert r.retry_step(agent, 1.0) == []
    assert [r.agent_state(agent) for agent in "ab"] == ["acting", "queued"]
    with pytest.raises(KeyError, match="not here"):
        r.retry_step("nobody", 2.0)
