"""Off: the place is given back for a while, the book is kept."""

import pytest

from concur_agents.core import Usage

STEP = Usage(900, 100, 0)


def step(regulator, agent, now, usage=STEP):
    assert agent in regulator.begin_step(agent, now)
    return regulator.end_step(agent, now, usage)


def test_the_place_goes_to_the_next_and_the_agent_is_still_the_same(regulate):
    r = regulate(agents=1)
    r.arrive("a", 0.0)
    step(r, "a", 0.0)
    r.arrive("b", 1.0)
    assert r.suspend("a", 2.0) == ["b"]
    view = r.view(2.0)
    assert (r.agent_state("a"), view.suspended, view.active, view.done_total) == (
        "suspended",
        1,
        1,
        0,
    )
    assert view.footprint_tokens == 1_000, "its context is still somewhere in the engine"
    assert view.paused + view.queued == 0, "it asks for nothing"
    assert r.resume("a", 3.0) == []
    assert r.agent_state("a") == "paused"
    assert r.leave("b", 4.0) == ["a"]
    assert r.agent_state("a") == "acting"
    assert r.view(4.0).suspended == 0
    step(r, "a", 5.0)
    assert r._accounts["a"].steps == 2


def test_whoever_is_off_claims_nothing(regulate):
    r = regulate(tokens=2_000)
    r.arrive("a", 0.0)
    step(r, "a", 0.0)
    assert r.arrive("b", 1.0, prompt_tokens=1_500) == []
    assert r.suspend("a", 2.0) == ["b"]


def test_a_boundary_brings_it_back_without_being_told(regulate):
    r = regulate(agents=1)
    r.arrive("a", 0.0)
    step(r, "a", 0.0)
    r.suspend("a", 1.0)
    r.arrive("b", 1.0)
    assert r.begin_step("a", 2.0) == []
    assert r.agent_state("a") == "paused"
    assert r.leave("b", 3.0) == ["a"]
    assert r.agent_state("a") == "reasoning"
    r.end_step("a", 4.0, STEP)
    assert r.agent_state("a") == "acting", "it is back for good"
    assert r.resume("a", 5.0) == ["a"]


def test_it_comes_back_before_new_agents_while_its_prefix_is_warm(regulate, resize):
    r = regulate(agents=1)
    r.arrive("a", 0.0)
    step(r, "a", 0.0)
    r.arrive("b", 1.0)
    r.suspend("a", 1.0)
    r.arrive("new", 2.0)
    r.resume("a", 3.0)
    assert r.leave("b", 4.0) == ["a"]


def test_first_prompts_stay_those_of_new_agents(regulate):
    """Found by reading: an agent that came back from a long tool was taken for a new one."""
    r = regulate()
    r.arrive("a", 0.0)
    step(r, "a", 0.0, Usage(1_000, 0, 0))
    r.suspend("a", 1.0)
    r.resume("a", 2.0)
    step(r, "a", 2.0, Usage(50_000, 0, 1_000))
    assert r._sizes.first_prompt.value == 1_000
    assert r._sizes.prefixes.charged_tokens == 0, "what it had sent itself is shared with nobody"


def test_with_a_call_in_flight_the_place_is_given_back_when_that_ends(regulate):
    r = regulate(agents=1)
    r.arrive("a", 0.0)
    r.arrive("b", 0.0)
    r.begin_step("a", 1.0)
    assert r.suspend("a", 2.0) == []
    assert r.agent_state("a") == "reasoning"
    assert r.end_step("a", 3.0, STEP) == ["b"]
    assert r.agent_state("a") == "suspended"


def test_children_keep_the_place_until_the_last_of_them_leaves(regulate):
    r = regulate(agents=1)
    r.arrive("a", 0.0)
    r.arrive("child", 0.0, parent="a")
    r.arrive("b", 0.0)
    assert r.suspend("a", 1.0) == []
    assert r.agent_state("a") == "acting"
    step(r, "child", 2.0)
    assert r.leave("child", 3.0) == ["b"]
    assert r.agent_state("a") == "suspended"


def test_a_child_of_an_agent_that_is_off_comes_back_for_both_and_never_waits_for_its_parent(
    regulate,
):
    """A place of its own could be out of reach: its parent counts as open and waits for it."""
    r = regulate(agents=1, max_open=1)
    r.arrive("a", 0.0)
    r.suspend("a", 1.0)
    r.arrive("b", 1.0)
    assert r.arrive("child", 2.0, parent="a") == ["child"]
    assert r.begin_step("child", 2.0) == ["child"]
    r.end_step("child", 3.0, STEP)
    assert r.agent_state("a") == "acting"
    r.leave("child", 4.0)
    assert r.agent_state("a") == "suspended"
    assert r.resume("a", 5.0) == ["a"]


def test_a_child_that_gives_up_leaves_its_parent_off(regulate):
    r = regulate(agents=1)
    r.arrive("a", 0.0)
    r.suspend("a", 1.0)
    r.arrive("b", 1.0)
    r.arrive("child", 2.0, parent="a")
    assert r.begin_step("child", 2.0) == []
    r.withdraw_step("child", 3.0)
    r.leave("child", 3.0)
    assert r.agent_state("a") == "suspended"
    assert r.leave("b", 4.0) == []
    assert r.view(4.0).active == 0


def test_a_paused_agent_that_asks_for_nothing_any_more_can_go_off(regulate, resize):
    r = regulate(agents=2)
    for agent in "ab":
        r.arrive(agent, 0.0)
        step(r, agent, 0.0)
    resize(r, 1.0, agents=1)
    assert r.begin_step("a", 1.0) == []
    r.withdraw_step("a", 2.0)
    r.suspend("a", 2.0)
    assert (r.agent_state("a"), r.view(2.0).paused) == ("suspended", 0)
    assert r.leave("b", 3.0) == []


def test_off_while_a_branch_waits_it_goes_when_that_branch_gives_up(regulate, resize):
    r = regulate(agents=2)
    for agent in "ab":
        r.arrive(agent, 0.0)
        step(r, agent, 0.0)
    resize(r, 1.0, agents=1)
    assert r.begin_step("a", 1.0) == []
    r.suspend("a", 2.0)
    assert r.agent_state("a") == "paused"
    r.withdraw_step("a", 3.0)
    assert r.agent_state("a") == "suspended"


def test_who_asks_to_come_back_is_named_beside_a_child_that_asks_too(regulate):
    r = regulate(agents=1)
    r.arrive("a", 0.0)
    r.suspend("a", 1.0)
    r.arrive("b", 1.0)
    r.arrive("child", 2.0, parent="a")
    assert r.begin_step("child", 2.0) == []
    assert r.resume("a", 3.0) == []
    assert sorted(r.leave("b", 4.0)) == ["a", "child"]


def test_an_agent_off_counts_as_open(regulate):
    """It may hold a sandbox all the while."""
    r = regulate(max_open=1)
    r.arrive("a", 0.0)
    r.arrive("b", 0.0)
    assert r.suspend("a", 1.0) == []
    assert r.resume("a", 2.0) == ["a"]


def test_leaving_while_off_leaves_nothing(regulate):
    r = regulate(agents=1)
    r.arrive("a", 0.0)
    step(r, "a", 0.0)
    r.suspend("a", 1.0)
    assert r.leave("a", 2.0) == []
    view = r.view(2.0)
    assert (view.suspended, view.active, view.done_total, view.footprint_tokens) == (0, 0, 1, 0)


def test_suspend_and_resume_are_idempotent_and_say_what_cannot_be(regulate):
    r = regulate(agents=1)
    r.arrive("a", 0.0)
    r.arrive("b", 0.0)
    assert r.resume("a", 0.0) == ["a"], "it has its place already"
    assert r.agent_state("a") == "acting"
    r.suspend("a", 1.0)
    assert r.suspend("a", 1.0) == []
    assert r.view(1.0).suspended == 1
    r.resume("a", 2.0)
    assert r.resume("a", 2.0) == []
    assert r.view(2.0).queued == 1
    r.suspend("a", 3.0)
    assert r.agent_state("a") == "suspended", "also while it waits to come back"
    r.arrive("new", 4.0)
    r.arrive("child", 4.0, parent="a")
    with pytest.raises(ValueError, match="not been let in"):
        r.suspend("new", 4.0)
    for call in (r.suspend, r.resume):
        with pytest.raises(ValueError, match="shares the place of 'a'"):
            call("child", 4.0)
        with pytest.raises(KeyError):
            call("nobody", 4.0)


def test_it_says_so_when_asked(regulate):
    r = regulate()
    r.arrive("a", 0.0)
    r.suspend("a", 0.0)
    assert str(r.explain("a", 1.0)) == "a: suspended: its place is free meanwhile"
