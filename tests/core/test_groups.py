"""Samples of one prompt: it is charged once, and they are let in one after the other."""

import pytest

from concur_agents.core import Fleet, Reading, Regulator, Usage, make_law


def test_a_group_is_let_in_before_agents_that_came_between_its_members():
    regulator = Regulator(make_law("fixed", agents=1))
    regulator.arrive("first", 0.0)
    for number in range(3):
        regulator.arrive(f"x{number}", 0.0, group="x")
        regulator.arrive(f"y{number}", 0.0, group="y")
    order = ["first"]
    while order[-1] is not None:
        order += regulator.leave(order[-1], 1.0) or [None]
    assert order == ["first", "x0", "x1", "x2", "y0", "y1", "y2", None]


def test_a_group_waits_in_a_fleets_line_one_after_the_other():
    fleet = Fleet(make_law("fixed", agents=1), ["only"])
    fleet.arrive("first", 0.0)
    for number in range(3):
        fleet.arrive(f"x{number}", 0.0, group="x")
        fleet.arrive(f"y{number}", 0.0, group="y")
    order = ["first"]
    while order[-1] is not None:
        order += fleet.leave(order[-1], 1.0) or [None]
    assert order == ["first", "x0", "x1", "x2", "y0", "y1", "y2", None]


def test_the_shared_prompt_is_charged_once():
    regulator = Regulator(make_law("fixed", agents=8))
    for number in range(8):
        regulator.arrive(f"a{number}", 0.0, prompt_tokens=10_000, group="g")
        regulator.begin_step(f"a{number}", 0.0)
        regulator.end_step(f"a{number}", 1.0, Usage(10_000, 100, 0))
    assert regulator.view(1.0).pressure_tokens == pytest.approx(10_000 + 8 * 100)
    for number in range(8):
        regulator.leave(f"a{number}", 2.0)
    assert regulator.view(2.0).pressure_tokens == 0


def test_the_prompt_is_charged_once_also_where_its_size_was_not_announced():
    regulator = Regulator(make_law("fixed", agents=2))
    for agent in ("a", "b"):
        regulator.arrive(agent, 0.0, group="g")
        regulator.begin_step(agent, 0.0)
    for agent in ("a", "b"):
        regulator.end_step(agent, 1.0, Usage(10_000, 100, 0))
    regulator.begin_step("a", 2.0, prompt_tokens=10_100)
    regulator.end_step("a", 2.0, Usage(10_100, 100, 10_000))
    assert regulator.view(2.0).pressure_tokens == pytest.approx(10_000 + 200 + 100)


@pytest.mark.parametrize(("group", "let_in"), [("g", 8), (None, 2)])
def test_a_group_comes_in_together_where_its_members_fit_beside_one_prompt(group, let_in):
    """Each alone was charged 10,000 tokens, so that two of eight filled a pool of 25,000."""
    regulator = Regulator(make_law("working_set"))
    regulator.tick(Reading(at_s=0.0, capacity_tokens=25_000), 0.0)
    regulator.arrive("a0", 0.0, prompt_tokens=10_000, group=group)
    regulator.begin_step("a0", 0.0)
    for number in range(1, 8):
        for agent in regulator.arrive(f"a{number}", 0.0, prompt_tokens=10_000, group=group):
            regulator.begin_step(agent, 0.0)
    assert regulator.view(0.0).active == let_in


def test_waiting_members_charge_nothing_before_one_is_in():
    """Sixty-four groups in the queue would fill a pool with prompts that are not there."""
    regulator = Regulator(make_law("fixed", agents=1))
    regulator.arrive("first", 0.0, prompt_tokens=100)
    before = regulator.view(0.0).pressure_tokens
    for number in range(4):
        regulator.arrive(f"a{number}", 0.0, prompt_tokens=10_000, group="g")
    assert regulator.view(0.0).pressure_tokens == before


def test_parts_that_the_caller_names_go_before_the_group():
    regulator = Regulator(make_law("fixed", agents=2))
    for agent in ("a", "b"):
        regulator.arrive(agent, 0.0, group="g")
        regulator.begin_step(agent, 0.0, prefix=(("system", 4_000.0),))
    for agent in ("a", "b"):
        regulator.end_step(agent, 1.0, Usage(10_000, 0, 0))
    regulator.begin_step("a", 2.0, prefix=(("system", 4_000.0),))
    regulator.end_step("a", 2.0, Usage(10_000, 0, 10_000))
    assert regulator.view(2.0).pressure_tokens == pytest.approx(4_000 + 6_000 + 6_000)


def test_what_members_find_in_the_cache_says_how_much_they_share():
    """Samples with a part of their own: 8,000 of 12,000 tokens are found by the second one."""
    regulator = Regulator(make_law("fixed", agents=3))
    for number, cached in enumerate((0, 8_000, 8_000)):
        regulator.arrive(f"a{number}", 0.0, prompt_tokens=12_000, group="g")
        regulator.begin_step(f"a{number}", 0.0)
        regulator.end_step(f"a{number}", 1.0, Usage(12_000, 0, cached))
    for number in range(3):
        regulator.begin_step(f"a{number}", 2.0, prompt_tokens=12_000)
        regulator.end_step(f"a{number}", 2.0, Usage(12_000, 0, 12_000))
    assert regulator.view(2.0).pressure_tokens == pytest.approx(8_000 + 3 * 4_000)


def test_prompts_of_many_groups_count_in_reuse_distances():
    """Left out, a pool of 380,000 tokens was taken for one of 134,000, and a batch took a third
    longer: between two calls of an agent the prompts of all other groups are touched as well.
    """
    regulator = Regulator(make_law("fixed", agents=99))
    for group in range(4):
        for number in range(2):
            agent = f"{group}/{number}"
            regulator.arrive(agent, 0.0, prompt_tokens=10_000, group=str(group))
            regulator.begin_step(agent, 0.0)
    for group in range(4):
        for number in range(2):
            regulator.end_step(f"{group}/{number}", 1.0, Usage(10_000, 100, 0))
    residency = regulator._sizes.residency
    first = regulator._accounts["0/0"].lru_entry
    assert residency.distance(first) == pytest.approx(7 * 100 + 7 * 5_000)
