"""Parallel calls of one agent, and agents inside agents: one place for all of them."""

import pytest

from concur_agents.core import Usage

STEP = Usage(900, 100, 0)


def test_parallel_calls_of_one_agent_share_its_place(regulate):
    r = regulate(agents=1)
    r.arrive("a", 0.0)
    for _ in range(3):
        assert r.begin_step("a", 0.0) == ["a"]
    assert r.view(0.0).reasoning == 1
    for _ in range(2):
        r.end_step("a", 1.0, STEP)
    assert r.agent_state("a") == "reasoning"
    r.end_step("a", 2.0, STEP)
    assert r.agent_state("a") == "acting"
    with pytest.raises(ValueError, match="no step to end"):
        r.end_step("a", 3.0, STEP)


def test_an_agent_with_a_call_in_flight_is_never_paused(regulate, resize):
    r = regulate(agents=2)
    for agent in "ab":
        r.arrive(agent, 0.0)
        r.begin_step(agent, 0.0)
    resize(r, 1.0, agents=1)
    assert r.begin_step("a", 1.0) == ["a"]
    r.end_step("a", 2.0, STEP)
    assert r.begin_step("a", 2.0) == ["a"]
    r.end_step("a", 3.0, STEP)
    r.end_step("a", 3.0, STEP)
    assert r.begin_step("a", 3.0) == []


def test_waiting_branches_are_all_let_in_together_and_named_once(regulate, resize):
    r = regulate(agents=2)
    for agent in "ab":
        r.arrive(agent, 0.0)
        r.begin_step(agent, 0.0)
        r.end_step(agent, 0.0, STEP)
    assert r.arrive("child", 0.0, parent="a") == ["child"]
    resize(r, 1.0, agents=1)
    assert r.begin_step("a", 1.0) == []
    assert r.begin_step("a", 1.0) == []
    assert r.begin_step("child", 1.0) == []
    assert sorted(r.leave("b", 2.0)) == ["a", "child"]
    for agent in ("a", "a", "child"):
        assert r.agent_state("a") == "reasoning"
        r.end_step(agent, 3.0, STEP)
    assert r.agent_state("a") == "acting"


def test_children_never_deadlock_a_parent_under_a_limit_of_one(regulate):
    r = regulate(agents=1)
    r.arrive("root", 0.0)
    r.arrive("other", 0.0)
    r.begin_step("root", 0.0)
    for n in range(5):  # each is the child of the one before, and all call at once
        parent = "root" if n == 0 else f"child-{n - 1}"
        assert r.arrive(f"child-{n}", 0.0, parent=parent) == [f"child-{n}"]
        assert r.begin_step(f"child-{n}", 0.0) == [f"child-{n}"]
    for n in range(5):
        r.end_step(f"child-{n}", 1.0, STEP)
        r.leave(f"child-{n}", 1.0)
    r.end_step("root", 2.0, STEP)
    assert r.leave("root", 2.0) == ["other"]


def test_a_child_of_a_waiting_parent_arrives_at_once_and_waits_with_it(regulate):
    r = regulate(agents=1)
    r.arrive("x", 0.0)
    r.arrive("a", 0.0)
    assert r.arrive("child", 0.0, parent="a") == ["child"]
    assert r.begin_step("child", 0.0) == []
    assert sorted(r.leave("x", 1.0)) == ["a", "child"]


def test_a_childs_usage_adds_to_the_footprint_and_to_what_its_place_claims(regulate):
    r = regulate()
    r.arrive("a", 0.0)
    r.begin_step("a", 0.0)
    r.end_step("a", 0.0, STEP)
    r.arrive("child", 0.0, parent="a")
    r.begin_step("child", 0.0)
    r.end_step("child", 1.0, Usage(1_900, 100))
    assert r.view(1.0).footprint_tokens == 3_000
    assert r.view(1.0).pressure_tokens == 3_000
    r.leave("child", 2.0)
    assert r.view(2.0).footprint_tokens == 1_000


def test_the_claim_of_a_family_that_never_rests_grows_with_it(regulate):
    """With one call always in flight there is no idle moment at which to count anew.

    Found here: the claim stayed what it was when the first of the overlapping calls began.
    """
    r = regulate(tokens=20_000)
    r.arrive("a", 0.0, prompt_tokens=900)
    r.begin_step("a", 0.0)
    r.arrive("child", 0.0, parent="a")
    r.begin_step("child", 0.0)
    r.end_step("child", 1.0, Usage(9_900, 100))
    r.begin_step("child", 1.0)
    assert r.view(1.0).pressure_tokens >= 10_900
    r.end_step("a", 2.0, STEP)
    assert r.view(2.0).pressure_tokens >= 11_000


def test_a_parent_that_leaves_before_its_child_keeps_the_place_for_it(regulate):
    r = regulate(agents=1)
    r.arrive("a", 0.0)
    r.arrive("child", 0.0, parent="a")
    r.arrive("b", 0.0)
    assert r.leave("a", 1.0) == []
    assert r.begin_step("child", 1.0) == ["child"]
    r.end_step("child", 2.0, STEP)
    assert r.arrive("grandchild", 2.0, parent="child") == ["grandchild"]
    assert r.leave("child", 3.0) == []
    assert r.leave("grandchild", 4.0) == ["b"]
    assert r.view(4.0).done_total == 1


def test_a_child_that_crashes_in_its_call_takes_the_call_along(regulate):
    """Found here: the call stayed in flight, so the family was reasoning for ever."""
    r = regulate(agents=1)
    r.arrive("a", 0.0)
    r.arrive("child", 0.0, parent="a")
    r.begin_step("child", 0.0)
    r.begin_step("child", 0.0)
    r.leave("child", 1.0)
    assert r.agent_state("a") == "acting"
    assert r.begin_step("a", 1.0) == ["a"]
    r.end_step("a", 2.0, STEP)
    assert r.agent_state("a") == "acting"


def test_a_parent_that_crashes_in_its_call_leaves_only_its_childrens_calls(regulate, resize):
    r = regulate(agents=2)
    r.arrive("a", 0.0)
    r.arrive("b", 0.0)
    r.arrive("child", 0.0, parent="a")
    r.begin_step("a", 0.0)
    r.leave("a", 1.0)
    assert r.view(1.0).reasoning == 0
    resize(r, 2.0, agents=1)
    assert r.begin_step("child", 2.0) == [], "a boundary of the family, which now can pause"


def test_a_child_cannot_end_a_call_of_its_parent(regulate):
    """Found here: any member's end counted down the calls of the whole family."""
    r = regulate()
    r.arrive("a", 0.0)
    r.arrive("child", 0.0, parent="a")
    r.begin_step("a", 0.0)
    with pytest.raises(ValueError, match="'child' has no step to end"):
        r.end_step("child", 1.0, STEP)
    assert r.agent_state("a") == "reasoning"


def test_the_id_of_a_parent_that_left_is_not_let_in_with_its_children(regulate, resize):
    """The id may belong to somebody new by then.

    Found here: with no call waiting, the place was given in the name of who had left.
    """
    r = regulate(agents=2)
    for agent in "ab":
        r.arrive(agent, 0.0)
        r.begin_step(agent, 0.0)
        r.end_step(agent, 0.0, STEP)
    r.arrive("child", 0.0, parent="a")
    resize(r, 1.0, agents=1)
    assert r.begin_step("child", 1.0) == []
    r.leave("a", 1.0)
    r.end_step("child", 1.0, None)  # gave up waiting
    assert r.arrive("a", 1.0) == []
    assert "a" not in resize(r, 2.0, agents=2)
    assert r.agent_state("a") == "queued"
    assert resize(r, 3.0, agents=3) == ["a"]


def test_a_child_that_gave_up_waiting_is_not_let_in_later(regulate):
    r = regulate(agents=1)
    r.arrive("x", 0.0)
    r.arrive("a", 0.0)
    r.arrive("child", 0.0, parent="a")
    r.begin_step("child", 0.0)
    r.end_step("child", 0.0, None)
    assert r.leave("x", 1.0) == ["a"]


def test_a_childs_first_miss_is_no_evidence_about_the_cache(regulate):
    r = regulate()
    r.arrive("a", 0.0)
    r.begin_step("a", 0.0)
    r.end_step("a", 0.0, STEP)
    r.arrive("child", 0.0, parent="a")
    r.begin_step("child", 0.0)
    r.end_step("child", 1.0, STEP)
    assert r.view(1.0).hit_deficit is None
