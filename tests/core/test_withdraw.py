"""A step that was let in and never sent: nothing has happened, and the books say so."""

import pytest

from concur_agents.core import Usage

STEP = Usage(900, 100, 0)


def step(regulator, agent, now, usage=STEP):
    assert agent in regulator.begin_step(agent, now)
    return regulator.end_step(agent, now, usage)


def evidence(regulator, now):
    regulator.tick(None, now)
    return regulator.last_snapshot


def test_a_withdrawn_step_is_no_step(regulate):
    r = regulate()
    r.arrive("a", 0.0)
    r.begin_step("a", 1.0)
    assert r.withdraw_step("a", 2.0) == []
    r.begin_step("a", 3.0)
    r.end_step("a", 4.0, None)
    snapshot = evidence(r, 5.0)
    assert (snapshot.steps, snapshot.overloads) == (0, 0)
    assert r.agent_state("a") == "acting"


def test_an_idle_claim_fades_on_as_if_the_step_had_never_begun(regulate):
    r = regulate(hold=0.01)  # 1,000 tokens are held for 10 s
    r.arrive("a", 0.0)
    step(r, "a", 0.0)
    r.begin_step("a", 9.0)
    assert r.view(9.0).pressure_tokens > 1_000, "while it could be in a call it counts in full"
    r.withdraw_step("a", 9.0)
    untouched = regulate(hold=0.01)
    untouched.arrive("a", 0.0)
    step(untouched, "a", 0.0)
    for now in (9.0, 12.0):
        expected = untouched.view(now).pressure_tokens
        assert r.view(now).pressure_tokens == pytest.approx(expected)


def test_a_withdrawn_step_is_no_use_of_the_cache(regulate, resize):
    """Found here: a mere look at the gate made a cold context count as the most recently used."""
    r = regulate()
    for agent in "abc":
        r.arrive(agent, 0.0)
    step(r, "a", 1.0, Usage(4_000, 0, 0))
    step(r, "b", 2.0, Usage(3_000, 0, 0))
    r.begin_step("a", 3.0)
    r.withdraw_step("a", 3.0)
    place = r._accounts["a"].lru_entry
    assert r._sizes.residency.distance(place) == 3_000


def test_a_step_withdrawn_beside_one_that_was_sent_leaves_that_one_alone(regulate):
    r = regulate()
    r.arrive("a", 0.0)
    r.begin_step("a", 1.0)
    r.begin_step("a", 1.0)
    r.withdraw_step("a", 2.0)
    assert r.agent_state("a") == "reasoning"
    r.end_step("a", 3.0, STEP)
    r.begin_step("a", 4.0)
    r.begin_step("a", 4.0)
    r.end_step("a", 5.0, STEP)
    r.withdraw_step("a", 6.0)
    assert r.agent_state("a") == "acting"
    assert r.view(6.0).pressure_tokens == 1_000
    assert r._sizes.residency.distance(r._accounts["a"].lru_entry) == 0, "it was used just now"


def test_whoever_gives_up_waiting_withdraws_its_step(regulate):
    r = regulate(agents=1)
    r.arrive("a", 0.0)
    r.arrive("b", 0.0)
    assert r.begin_step("b", 0.0) == []
    assert r.withdraw_step("b", 1.0) == []
    assert r.leave("a", 2.0) == ["b"]
    assert r.agent_state("b") == "acting", "it has its place and no call in flight"


def test_there_has_to_be_a_step_to_withdraw(regulate):
    r = regulate(agents=1)
    for agent in "ab":
        r.arrive(agent, 0.0)
        with pytest.raises(ValueError, match="no step"):
            r.withdraw_step(agent, 0.0)
    with pytest.raises(KeyError):
        r.withdraw_step("c", 0.0)
