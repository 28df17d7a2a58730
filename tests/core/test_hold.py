"""A weight update: no agent passes a boundary, and afterwards each stands where it stood."""

import pytest

from concur_agents.core import Fleet, Reading, Regulator, Usage, make_law

USAGE = Usage(1_000, 100, 900)


def acting(regulator, *agents, now=0.0):
    """Agents that have made a call each and run a tool."""
    for agent in agents:
        assert agent in regulator.arrive(agent, now)
        assert regulator.begin_step(agent, now) == [agent]
        regulator.end_step(agent, now, USAGE)


@pytest.fixture(params=["one pool", "a fleet of two"])
def held(request):
    """A cap of two agents a pool, in each kind of regulator."""
    law = make_law("fixed", agents=2)
    if request.param == "one pool":
        return Regulator(law)
    return Fleet(law, ["left", "right"])


def test_an_agent_at_a_boundary_waits_until_the_hold_ends(held):
    acting(held, "a")
    held.hold("update", 1.0, 60.0)
    assert held.begin_step("a", 2.0) == []
    assert held.end_hold("update", 5.0) == ["a"]
    assert held.agent_state("a") == "reasoning"


def test_it_keeps_its_place_meanwhile(held):
    """Or a new agent would take it, and every update would open more agents."""
    acting(held, "a", "b", "c", "d") if isinstance(held, Fleet) else acting(held, "a", "b")
    held.hold("update", 1.0, 60.0)
    held.begin_step("a", 2.0)
    held.arrive("new", 2.0)
    assert held.agent_state("a") == "acting"
    assert held.end_hold("update", 5.0) == ["a"]
    assert held.agent_state("new") == "queued"


def test_no_agent_is_let_in_during_a_hold(held):
    held.hold("update", 1.0, 60.0)
    assert held.arrive("a", 2.0) == []
    assert held.tick(Reading(at_s=3.0), 3.0, "left" if isinstance(held, Fleet) else None) == []
    assert held.end_hold("update", 5.0) == ["a"]


def test_a_call_in_flight_goes_on_and_so_does_its_family(held):
    acting(held, "a")
    held.begin_step("a", 1.0)
    held.hold("update", 2.0, 60.0)
    held.arrive("child", 2.0, parent="a")
    assert held.begin_step("child", 3.0) == ["child"]
    held.end_step("a", 4.0, USAGE)
    held.end_step("child", 4.0, USAGE)
    assert held.begin_step("a", 5.0) == []


def test_the_watchdog_ends_a_hold_that_is_forgotten(held):
    acting(held, "a")
    held.hold("update", 1.0, 60.0)
    held.begin_step("a", 2.0)
    assert held.next_wake(2.0) == 61.0
    assert held.advance(60.9) == []
    assert held.advance(61.0) == ["a"]
    assert not held.is_held("update", 61.0)


def test_agents_go_on_when_the_last_of_several_holds_is_over(held):
    acting(held, "a")
    held.hold("one", 1.0, 60.0)
    held.hold("two", 2.0, 60.0)
    held.begin_step("a", 3.0)
    assert held.end_hold("one", 4.0) == []
    assert held.end_hold("one", 4.0) == []
    assert held.end_hold("two", 5.0) == ["a"]


def test_the_reason_says_that_it_is_held_and_for_how_long(held):
    acting(held, "a")
    held.hold("update", 1.0, 60.0)
    held.begin_step("a", 2.0)
    held.arrive("new", 2.0)
    for agent in ("a", "new"):
        reason = held.why(agent, 11.0)
        assert (reason.cause, reason.most) == ("hold", 50.0)
        assert "held, as during a weight update, for at most 50 s more" in str(reason)
        assert held.explain(agent, 11.0).cause == "hold"
    assert held.reason == "hold"
    held.end_hold("update", 12.0)
    assert held.why("a", 12.0) is None


def test_a_call_that_is_given_up_during_a_hold_leaves_nothing(held):
    acting(held, "a")
    held.hold("update", 1.0, 60.0)
    held.begin_step("a", 2.0)
    held.withdraw_step("a", 3.0)
    assert held.end_hold("update", 4.0) == []
    assert held.begin_step("a", 5.0) == ["a"]


def test_an_agent_that_leaves_during_a_hold_frees_its_place(held):
    acting(held, "a")
    held.hold("update", 1.0, 60.0)
    held.begin_step("a", 2.0)
    held.leave("a", 3.0)
    assert held.end_hold("update", 4.0) == []
    assert held.view(5.0).active == 0


def test_what_no_longer_fits_is_paused_when_the_hold_ends():
    """The limit may have fallen meanwhile: a hold postpones the boundary and does not skip it."""
    law = make_law("working_set", start_tokens=10_000)
    regulator = Regulator(law)
    acting(regulator, "a", "b")
    regulator.hold("update", 1.0, 60.0)
    regulator.begin_step("a", 2.0, prompt_tokens=9_000)
    regulator.begin_step("b", 2.0, prompt_tokens=9_000)
    let_in = regulator.end_hold("update", 3.0)
    assert len(let_in) == 1
    assert {regulator.agent_state(agent) for agent in "ab"} == {"reasoning", "paused"}


def test_a_hold_is_neither_a_stall_nor_evidence_that_the_limit_binds(held):
    acting(held, "a")
    held.hold("update", 1.0, 1_000.0)
    held.begin_step("a", 2.0)
    held.arrive("new", 2.0)
    held.advance(900.0)
    assert held.view(900.0).stalls_total == 0
    pool = "left" if isinstance(held, Fleet) else None
    held.tick(Reading(at_s=900.0), 900.0, pool)
    held.tick(Reading(at_s=901.0), 901.0, pool)
    assert not held.last_snapshot.was_bound


def test_the_time_of_a_hold_is_no_gap_of_the_agents_tools():
    regulator = Regulator(make_law("working_set"))
    acting(regulator, "a")
    regulator.hold("update", 1.0, 600.0)
    regulator.begin_step("a", 2.0)
    regulator.end_hold("update", 500.0)
    regulator.tick(Reading(at_s=501.0), 501.0)
    assert max(regulator.last_snapshot.gaps_s) == 2.0


def test_a_pool_is_not_down_because_it_is_silent_during_a_hold():
    fleet = Fleet(make_law("fixed", agents=2), ["left", "right"])
    fleet.hold("update", 0.0, 60.0)
    for second in range(20):
        fleet.tick(None, float(second), "left")
    assert not fleet.is_down("left")


def test_a_pool_that_is_added_during_a_hold_is_held_too():
    fleet = Fleet(make_law("fixed", agents=1), ["left"])
    fleet.hold("update", 0.0, 60.0)
    fleet.add_pool("right", 1.0)
    assert fleet.arrive("a", 2.0) == []
    assert fleet.end_hold("update", 3.0) == ["a"]


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("inf"), float("nan")])
def test_a_hold_must_have_an_end(timeout_s):
    with pytest.raises(ValueError, match="timeout_s must be above 0 s"):
        Regulator(make_law("fixed", agents=2)).hold("update", 0.0, timeout_s)


def test_an_aborted_call_is_no_step_and_what_follows_is_no_boundary():
    """A partial rollout goes on with its call after the weights have changed."""
    regulator = Regulator(make_law("fixed", agents=1))
    acting(regulator, "a")
    regulator.begin_step("a", 1.0)
    regulator.arrive("vip", 1.0, priority=9)
    regulator.end_step("a", 2.0, Usage(1_100, 7, 1_000), aborted=True)
    assert regulator.begin_step("a", 3.0) == ["a"]
    regulator.tick(Reading(at_s=4.0), 4.0)
    assert regulator.last_snapshot.steps == 1
    assert regulator.agents(["a"])[0].footprint_tokens == 1_107
    regulator.end_step("a", 5.0, USAGE)
    assert regulator.begin_step("a", 6.0) == ["vip"], "the next boundary is one"


def test_an_aborted_call_still_waits_for_the_end_of_a_hold():
    regulator = Regulator(make_law("fixed", agents=1))
    acting(regulator, "a")
    regulator.begin_step("a", 1.0)
    regulator.hold("update", 1.5, 60.0)
    regulator.end_step("a", 2.0, Usage(1_100, 7), aborted=True)
    assert regulator.begin_step("a", 3.0) == []
    assert regulator.end_hold("update", 4.0) == ["a"]
