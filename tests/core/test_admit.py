"""Agents that their host has let in already: they have a place, whatever the limit says."""

import pytest

from concur_agents.core import Fleet, Regulator, Usage, make_law


def full(kind):
    """Two agents are in, and three wait."""
    if kind == "fleet":
        regulator = Fleet(make_law("fixed", agents=1), ["p", "q"])
    else:
        regulator = Regulator(make_law("fixed", agents=2))
    for n in range(5):
        regulator.arrive(f"a{n}", 0.0)
    assert regulator.view(0.0).active == 2
    return regulator


kinds = pytest.mark.parametrize("kind", ["regulator", "fleet"])


@kinds
def test_an_agent_that_waits_gets_a_place_beyond_the_limit(kind):
    regulator = full(kind)
    assert regulator.admit("a4", 1.0) == ["a4"]
    view = regulator.view(1.0)
    assert (view.active, view.queued) == (3, 2)
    assert regulator.admit("a4", 1.0) == [], "it has one already"


@kinds
def test_its_calls_that_wait_begin(kind):
    regulator = full(kind)
    regulator.begin_step("a3", 1.0)
    assert regulator.admit("a3", 1.0) == ["a3"]
    assert regulator.agent_state("a3") == "reasoning"
    regulator.end_step("a3", 2.0, Usage(100, 10))
    assert regulator.agent_state("a3") == "acting"


@kinds
def test_one_that_was_suspended_has_its_place_again(kind):
    regulator = full(kind)
    regulator.suspend("a0", 1.0)
    assert regulator.admit("a0", 2.0) == ["a0"]
    assert regulator.agent_state("a0") == "acting"
    assert regulator.view(2.0).active == 3


@kinds
def test_the_surplus_leaves_at_its_boundaries(kind):
    regulator = full(kind)
    regulator.admit("a4", 1.0)
    paused = [agent for agent in ("a0", "a1", "a4") if agent not in regulator.begin_step(agent, 2)]
    assert len(paused) == 1
    for n in range(5):
        regulator.leave(f"a{n}", 3.0)
    assert regulator.view(3.0).active == 0


@kinds
def test_a_call_that_has_left_during_a_hold_is_in_flight(kind):
    regulator = full(kind)
    regulator.hold("update", 1.0, 60.0)
    assert regulator.begin_step("a0", 2.0) == []
    assert regulator.admit("a0", 2.0) == ["a0"]
    assert regulator.agent_state("a0") == "reasoning"
    assert regulator.end_hold("update", 3.0) == []


def test_in_a_fleet_it_is_in_the_pool_that_it_names():
    regulator = full("fleet")
    regulator.admit("a4", 1.0, pool="q")
    assert regulator.pool_of("a4") == "q"
    regulator.admit("a2", 1.0, pool="gone")
    assert regulator.pool_of("a2") in ("p", "q")
