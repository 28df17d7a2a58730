"""The family `rl`: rollouts, the stacks' own limiters, and what counts beside the time."""

import pytest

from concur_agents.lab.bench.arms import LawArm, run_law, run_reference
from concur_agents.lab.bench.figures import Report
from concur_agents.lab.bench.scenario import parse_suite
from concur_agents.lab.bench.suite import evaluate, law_arm
from concur_agents.lab.bench.trainer_arms import TRAINER_REFERENCES, run_trainer_reference

TINY = """\
# Eight prompts with four samples each, and an update every twenty seconds.
family = "rl"
profile = "h100-qwen3-8b"
kv_tokens = 60_000
staleness = 2

[[batch]]
source = "samples"
prompts = 8
per_prompt = 4
prompt = [1000, 2000]
turns = [4, 0.5, 10]

[[faults]]
kind = "weight_update"
every_s = 20
lasts_s = 4
"""

BOUNDED = """\
# With a bound on waiting.
of = ["tiny"]
measure = "stale_bound"

[regulator]
max_wait_s = 10
"""

OTHER = """\
# No trainer.
family = "x"
profile = "h100-qwen3-8b"

[[batch]]
source = "synthetic"
agents = 4
steps = 2
"""


def test_each_stack_has_an_arm_and_figures_of_its_own():
    suite = parse_suite({"tiny": TINY, "bounded": BOUNDED})
    references = ("ungoverned", "best_fixed", *TRAINER_REFERENCES)

    outcomes = evaluate(
        [law_arm("working_set")], references=references, scenarios=suite, seeds=(1,), workers=1
    )

    arms = [outcome.arm for outcome in outcomes if outcome.scenario == "tiny"]
    assert arms == [*references, "working_set"]
    assert [o.arm for o in outcomes if o.scenario == "bounded@tiny"] == ["working_set"]
    assert all(outcome.metrics["finished"] == 32 for outcome in outcomes)
    report = Report(suite, outcomes)
    figures = {figure.key: figure for figure in report.figures("working_set")}
    assert figures["vs_best_fixed_geomean"].value is None, "they count for figures of their own"
    for key in ("vs_verl_geomean", "vs_slime_geomean", "vs_prime_rl_geomean"):
        assert figures[f"training_{key}"].goal == 1.15
    assert figures["training_first_prefills_worst"].value <= 1.1
    assert figures["training_stale_worst"].scenarios == 1
    assert [len(scenarios) for scenarios, _ in report.tables()] == [2]


def test_other_scenarios_have_no_arms_of_trainers():
    suite = parse_suite({"other": OTHER})
    outcomes = evaluate(references=("ungoverned", "verl"), scenarios=suite, seeds=(1,), workers=1)
    assert [outcome.arm for outcome in outcomes] == ["ungoverned"]


@pytest.mark.parametrize("arm", TRAINER_REFERENCES)
def test_a_stacks_limiter_is_deterministic(arm):
    (tiny,) = parse_suite({"tiny": TINY})
    one, other = (run_trainer_reference(tiny, tiny.case(1), 1, arm) for _ in range(2))
    assert one.metrics == other.metrics


def test_an_update_that_was_announced_costs_nothing_where_all_fit():
    (tiny,) = parse_suite({"tiny": TINY.replace("60_000", "600_000")})
    outcome = run_law(tiny, tiny.case(1), 1, LawArm(name="w", law="working_set"))
    free = run_reference(tiny, tiny.case(1), 1, "ungoverned")
    assert outcome.time_s <= 1.01 * free.time_s
    assert outcome.metrics["staleness_max"] <= free.metrics["staleness_max"]
