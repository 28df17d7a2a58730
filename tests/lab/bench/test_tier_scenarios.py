"""What the bench's scenarios with a host tier say of the default law, in one draw each."""

import functools
from pathlib import Path

import pytest

from concur_agents.lab.bench.arms import LawArm, run_law, run_reference
from concur_agents.lab.bench.scenario import load_suite
from concur_agents.lab.bench.suite import law_arm

SUITE = {scenario.name: scenario for scenario in load_suite()}


@functools.cache
def makespan_s(name: str, arm: str) -> float:
    scenario = SUITE[name]
    case = scenario.case(1)
    if arm == "ungoverned":
        return run_reference(scenario, case, 1, arm).time_s
    return run_law(scenario, case, 1, law_arm(arm)).time_s


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


DIALOGUES = """
# Dialogues without tools, four pools behind a slow link: the tier gives nothing.
family = "tier"
profile = "demo"
kv_tokens = 64_000
host_tier_tokens = 256_000
restore_tokens_per_s = 4e4

[[batch]]
source = "tau-airline-gpt4o"
agents = 120
"""


def test_agents_that_are_always_in_calls_are_no_slower_with_a_tier_than_without(
    tmp_path: Path,
) -> None:
    """Calls fill the pool, so what is kept behind it is restored for nothing: 0.84 when it was."""
    (tmp_path / "dialogues.toml").write_text(DIALOGUES, "utf-8")
    (scenario,) = load_suite(tmp_path)
    case = scenario.case(1)
    told, hidden = (
        run_law(scenario, case, 1, law_arm(arm)).time_s
        for arm in ("working_set", "working_set_tier_hidden")
    )
    assert told <= 1.01 * hidden


def test_a_fast_link_makes_the_law_that_knows_of_it_faster() -> None:
    ratio = makespan_s("tier-5-fast", "working_set_tier_hidden") / makespan_s(
        "tier-5-fast", "working_set"
    )
    assert ratio >= 1.04


def test_hiding_a_tier_that_is_not_there_changes_nothing() -> None:
    assert makespan_s("tau-small", "working_set_tier_hidden") == makespan_s(
        "tau-small", "working_set"
    )
