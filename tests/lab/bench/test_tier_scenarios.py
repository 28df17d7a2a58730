"""What the bench's scenarios with a host tier say of the default law, in one draw each."""

import functools

import pytest

from concur_agents.lab.bench.arms import LawArm, run_law, run_reference
from concur_agents.lab.bench.scenario import load_suite

SUITE = {scenario.name: scenario for scenario in load_suite()}


@functools.cache
def makespan_s(name: str, arm: str) -> float:
    scenario = SUITE[name]
    case = scenario.case(1)
    if arm == "ungoverned":
        return run_reference(scenario, case, 1, arm).time_s
    return run_law(scenario, case, 1, LawArm(name=arm, law=arm)).time_s


@pytest.mark.parametrize("name", ["tier-5", "tier-5-fast"])
def test_where_both_tiers_hold_everything_the_law_does_no_harm(name: str) -> None:
    """Without a limit nothing is computed twice there; 0.86 and 0.71 when the law saw no tier."""
    ratio = makespan_s(name, "ungoverned") / makespan_s(name, "working_set")
    assert ratio >= 0.98


@pytest.mark.parametrize(
    ("name", "at_least"), [("tier-1", 0.99), ("tier-3", 1.15), ("tier-5-fast", 1.4)]
)
def test_a_tier_makes_the_law_faster_by_what_it_holds(name: str, at_least: float) -> None:
    """A tier as large as the pool holds what the pool holds, so it gives nothing."""
    scenario = SUITE[name]
    case = scenario.case(1)
    bare = case.profile.replace(host_tier_tokens=0)
    without = run_law(
        scenario,
        type(case)(case.plans, bare, case.faults),
        1,
        LawArm(name="working_set", law="working_set"),
    )
    assert without.time_s / makespan_s(name, "working_set") >= at_least


def test_three_pools_thrash_without_a_limit_and_not_with_the_law() -> None:
    """Least recently used first loses a tier just as it loses a pool."""
    assert makespan_s("tier-3", "ungoverned") / makespan_s("tier-3", "working_set") >= 1.8
