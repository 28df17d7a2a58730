"""The latency gradient, the outcome of being refused, and the tighter of two laws."""

from dataclasses import replace

import pytest

from concur_agents.core import Reading, Regulator, Usage, make_law
from concur_agents.core.laws import Fixed, Gradient, Minimum
from concur_agents.core.laws.law import LawState


def run(law, seconds_per_token, *, looks=20, agents=40, state=None, start_s=0.0):
    """`agents` run steps of 10 tokens at `seconds_per_token(active)`; returns the regulator."""
    r = Regulator(law, start_s)
    if state is not None:
        r.state = state
    now = start_s
    for i in range(agents):
        r.arrive(f"a{i}", now)
    for _ in range(looks):
        inside = [f"a{i}" for i in range(agents) if r.agent_state(f"a{i}") == "acting"]
        begun = [agent for agent in inside if agent in r.begin_step(agent, now)]
        step_s = 10 * seconds_per_token(len(begun))
        now += max(step_s, 5.0)
        for agent in begun:
            r.end_step(agent, now - max(step_s, 5.0) + step_s, Usage(100, 10))
        r.tick(Reading(at_s=now), now)
    return r


def test_the_limit_grows_while_latency_does_not():
    r = run(Gradient(start=4), lambda active: 0.1)
    assert r.limit.agents > 3 * 4


def test_the_limit_shrinks_when_latency_doubles():
    """At 4 agents a token takes 0.1 s; then something else slows the endpoint four times."""
    calm = run(Gradient(start=8), lambda active: 0.1, looks=10)
    slow = run(Gradient(start=8), lambda active: 0.4, looks=2, state=calm.state, start_s=1_000.0)
    assert slow.limit.agents < calm.limit.agents
    assert slow.reason == "shrink"


def test_the_limit_does_not_grow_while_nobody_waits():
    r = run(Gradient(start=8), lambda active: 0.1, agents=3)
    assert r.limit.agents == 8
    assert r.reason == "hold"


def refuse(r, agent, now, retry_after_s=0.0):
    r.begin_step(agent, now)
    r.end_step(agent, now, None, overloaded=True, retry_after_s=retry_after_s)


def test_a_refusal_cuts_once_per_episode_and_waits_for_retry_after():
    r = Regulator(Gradient(start=10, overload_cut=0.5, hold_s=10.0))
    for agent in "abc":
        r.arrive(agent, 0.0)
        refuse(r, agent, 1.0, retry_after_s=60.0)
    r.tick(Reading(at_s=2.0), 2.0)
    assert (r.limit.agents, r.reason) == (5, "refused")
    refuse(r, "a", 30.0)
    r.tick(Reading(at_s=31.0), 31.0)
    assert r.limit.agents == 5  # the same episode
    refuse(r, "a", 70.0)
    r.tick(Reading(at_s=71.0), 71.0)
    assert r.limit.agents == 2.5


def test_a_failure_that_is_no_refusal_says_nothing():
    r = Regulator(Gradient(start=10))
    r.arrive("a", 0.0)
    r.begin_step("a", 1.0)
    r.end_step("a", 2.0, None)
    r.tick(Reading(at_s=10.0), 10.0)
    assert r.limit.agents == 10


@pytest.mark.parametrize(
    "config", [{"start": 0.5}, {"start": 2000}, {"overload_cut": 1.0}, {"interval_s": 0}]
)
def test_values_out_of_range_are_refused(config):
    with pytest.raises(ValueError, match=r"got"):
        Gradient(**config)


# -- the tighter of two ------------------------------------------------------------------------


def test_the_tighter_of_two_laws_wins():
    r = Regulator(make_law("minimum", first=Fixed(agents=3), second=Fixed(agents=8)))
    assert r.limit.agents == 3
    r.tick(Reading(at_s=1.0), 1.0)
    assert (r.limit.agents, r.reason) == (3, "fixed+fixed")


def test_tokens_bring_their_own_hold():
    law = make_law("minimum", first="working_set", second=Fixed(agents=3))
    limit = law.initial().limit
    assert limit.agents == 3
    assert limit.tokens == make_law("working_set").initial().limit.tokens


def test_refusals_tighten_a_law_that_knows_only_the_cache():
    r = Regulator(make_law("minimum", second=Gradient(start=10, overload_cut=0.5)))
    r.arrive("a", 0.0)
    refuse(r, "a", 1.0)
    r.tick(Reading(at_s=2.0, capacity_tokens=100_000), 2.0)
    assert r.limit.agents == 5
    assert r.limit.tokens < 100_000


def test_a_pair_is_lost_without_metrics_only_if_both_are():
    assert not Minimum().needs_readings
    assert make_law("minimum", first="cache_aimd", second="cache_aimd").needs_readings
    assert not make_law("minimum", first="cache_aimd").needs_readings


def test_a_pair_keeps_both_states_as_json():
    state = Minimum().initial().to_dict()
    assert {"first", "second", "limit", "reason"} <= set(state)


# -- working_set on an endpoint that tells nothing ---------------------------------------------


def test_without_capacity_and_cached_tokens_latency_stands_in():
    r = run(make_law("working_set"), lambda active: 0.1)
    assert r.reason.startswith("latency_")
    assert r.limit.agents < float("inf")


def test_the_first_cached_tokens_bring_the_working_set_back():
    r = run(make_law("working_set"), lambda active: 0.1)
    agent = next(f"a{i}" for i in range(40) if r.agent_state(f"a{i}") == "acting")
    r.begin_step(agent, 900.0)
    r.end_step(agent, 901.0, Usage(1_000, 10, 900))
    r.tick(Reading(at_s=902.0), 902.0)
    assert not r.reason.startswith("latency_")
    assert r.limit.agents == float("inf")


def test_deciding_is_pure():
    law, state = Gradient(), Gradient().initial()
    r = run(law, lambda active: 0.1, looks=3)
    assert law.decide(state, r.last_snapshot) == law.decide(state, r.last_snapshot)
    assert state == replace(law.initial())
    assert isinstance(state, LawState)
