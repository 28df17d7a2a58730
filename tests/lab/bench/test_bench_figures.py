import math
from typing import Any

import pytest

from concur_agents.lab.bench.arms import ArmOutcome
from concur_agents.lab.bench.figures import Figure, Report, geomean
from concur_agents.lab.bench.page import finish_cell
from concur_agents.lab.bench.scenario import Scenario


def scenario(name: str, **changes: object) -> Scenario:
    return Scenario(name=name, family="f", expect="", profile="h100-qwen3-8b", **changes)  # type: ignore[arg-type]


def outcome(name: str, arm: str, makespan_s: float, seed: int = 1, **metrics: Any) -> ArmOutcome:
    values = {
        "hit_deficit": 0.0,
        "pause_worst_s": 0.0,
        "step_p50_s": 0.0,
        "step_p99_s": 0.0,
        "useful_tokens_per_s": 1.0,
        "output_tokens_per_s": 1.0,
        "hit_rate": 1.0,
        "pauses": 0,
        "gini_pauses": 0.0,
        "mean_active": 1.0,
        "wait_p50_s": 0.0,
        "wait_p99_s": 0.0,
        "wait_worst_s": 0.0,
        "preemptions": 0,
        "oversubscription": 1.0,
        "agents": 1,
        "finished": 1,
        "agents_per_min": 1.0,
        "finish_mean_s": makespan_s,
        "finish_p90_s": makespan_s,
        "most_open": 1,
    }
    return ArmOutcome(
        scenario=name,
        seed=seed,
        arm=arm,
        metrics={**values, "makespan_s": makespan_s, **metrics},
        cap=2 if arm == "best_fixed" else None,
    )


def figure(report: Report, key: str) -> Figure:
    (found,) = (figure for figure in report.figures("law") if figure.key == key)
    return found


def test_the_geometric_mean_of_two_and_eight_is_four_and_of_nothing_is_unknown():
    assert geomean([2.0, 8.0]) == pytest.approx(4.0)
    assert math.isnan(geomean([]))


def test_a_law_is_as_many_times_as_fast_as_its_makespan_is_shorter():
    report = Report(
        [scenario("a"), scenario("b")],
        [
            outcome("a", "best_fixed", 200.0),
            outcome("a", "law", 100.0),
            outcome("b", "best_fixed", 90.0),
            outcome("b", "law", 100.0),
        ],
    )

    mean = figure(report, "vs_best_fixed_geomean")
    worst = figure(report, "vs_best_fixed_worst")

    assert mean.value == pytest.approx(math.sqrt(2.0 * 0.9))
    assert mean.met is True
    assert (worst.value, worst.worst, worst.met) == (pytest.approx(0.9), "b", False)


def test_seeds_are_averaged_before_scenarios_so_that_one_scenario_counts_once():
    report = Report(
        [scenario("a"), scenario("b")],
        [
            *(outcome("a", "best_fixed", 100.0, seed) for seed in (1, 2)),
            outcome("a", "law", 50.0, 1),
            outcome("a", "law", 200.0, 2),
            outcome("b", "best_fixed", 400.0),
            outcome("b", "law", 100.0),
        ],
    )

    assert figure(report, "vs_best_fixed_geomean").value == pytest.approx(2.0)


def test_ungoverned_is_judged_by_what_it_recomputes_and_what_that_costs():
    fits, slow, thrashes = scenario("fits"), scenario("slow"), scenario("thrashes")
    report = Report(
        [fits, slow, thrashes],
        [
            outcome("fits", "ungoverned", 100.0, hit_deficit=0.01),
            outcome("fits", "best_fixed", 100.0),
            outcome("fits", "free_tier", 99.0),
            outcome("slow", "ungoverned", 120.0, hit_deficit=0.9),  # with prefill to spare
            outcome("slow", "best_fixed", 120.0),
            outcome("slow", "free_tier", 100.0),
            outcome("thrashes", "ungoverned", 300.0, hit_deficit=0.9),
            outcome("thrashes", "best_fixed", 140.0),
            outcome("thrashes", "free_tier", 100.0),
            outcome("fits", "law", 102.0),
            outcome("slow", "law", 100.0),
            outcome("thrashes", "law", 75.0),
        ],
    )

    assert [report.regime(s) for s in (fits, slow, thrashes)] == ["fits", "between", "thrashes"]
    assert figure(report, "vs_ungoverned_thrashing_geomean").value == pytest.approx(4.0)
    harm = figure(report, "vs_ungoverned_fitting_worst")
    assert harm.value == pytest.approx(100.0 / 102.0)
    assert harm.met is False
    assert figure(report, "vs_ungoverned_worst").met is True
    distance = figure(report, "free_tier_distance_geomean")
    assert distance.value == pytest.approx((102.0 / 99.0 * 1.0 * 0.75) ** (1 / 3))
    assert distance.met is True


def test_a_variant_costs_what_it_takes_over_its_original():
    original = scenario("a")
    variant = scenario("deaf@a", of="a", measure="capacity_unknown")
    report = Report(
        [original, variant], [outcome("a", "law", 100.0), outcome("deaf@a", "law", 112.0)]
    )

    cost = figure(report, "capacity_unknown_cost_worst")

    assert (cost.value, cost.met, cost.worst) == (pytest.approx(1.12), False, "deaf@a")


def test_a_variant_that_alters_the_law_does_not_count_for_the_law():
    variant = scenario("odd@a", of="a", measure="tau_half", laws={"law": {"x": 1}})
    report = Report(
        [scenario("a"), variant],
        [
            outcome("a", "best_fixed", 100.0),
            outcome("a", "law", 80.0),
            outcome("odd@a", "law", 160.0),
        ],
    )

    assert figure(report, "vs_best_fixed_worst").value == pytest.approx(1.25)
    assert figure(report, "tau_half_cost_worst").value == pytest.approx(2.0)
    assert report.speedup(variant, "law", "best_fixed") == pytest.approx(100.0 / 160.0)


def test_a_wait_may_last_as_long_as_promised_and_one_step():
    variant = scenario("w@a", of="a", measure="max_wait", regulator={"max_wait_s": 60})

    def excess(pause_worst_s: float) -> Figure:
        run = outcome("w@a", "law", 100.0, pause_worst_s=pause_worst_s, step_p50_s=5.0)
        return figure(Report([scenario("a"), variant], [run]), "max_wait_excess_s")

    assert excess(64.0).met is True
    assert excess(66.0).value == pytest.approx(1.0)
    assert excess(66.0).met is False


def test_an_endless_source_is_judged_by_agents_finished_and_by_figures_of_its_own():
    endless = scenario("endless", horizon_s=100.0)
    cut = {"agents": 90, "finish_mean_s": None, "finish_p90_s": None}
    report = Report(
        [scenario("a"), endless],
        [
            outcome("a", "best_fixed", 100.0),
            outcome("a", "law", 100.0),
            outcome("endless", "best_fixed", 100.0, finished=40, **cut),
            outcome("endless", "law", 100.0, finished=10, **cut),
        ],
    )

    assert figure(report, "endless_vs_best_fixed_worst").value == pytest.approx(0.25)
    assert figure(report, "vs_best_fixed_worst").value == pytest.approx(1.0)
    assert finish_cell(report, endless, "law") == "- / - / 1"
    assert report.to_dict()["scenarios"]["endless"]["arms"]["law"]["finish_mean_s"] is None


def test_breadth_is_most_agents_open_over_the_best_cap():
    report = Report(
        [scenario("a")],
        [
            outcome("a", "best_fixed", 100.0, finish_mean_s=40.0),
            outcome("a", "law", 100.0, most_open=9, finish_mean_s=60.0),
        ],
    )

    assert figure(report, "most_open_vs_best_cap_worst").value == pytest.approx(4.5)
    assert figure(report, "finish_mean_vs_best_fixed_geomean").value == pytest.approx(1.5)


def test_a_figure_that_nothing_was_run_for_is_neither_met_nor_missed():
    report = Report([scenario("a")], [outcome("a", "law", 1.0)])

    missing = figure(report, "vs_best_fixed_geomean")

    assert (missing.value, missing.met, missing.scenarios) == (None, None, 0)


def test_the_record_holds_every_figure_and_every_run():
    report = Report(
        [scenario("a")],
        [
            outcome("a", "best_fixed", 100.0),
            outcome("a", "law", 80.0, 1),
            outcome("a", "law", 20.0, 2),
        ],
    )

    record = report.to_dict()

    assert set(record["figures"]) == {"law"}
    assert record["figures"]["law"]["vs_best_fixed_worst"]["met"] is True
    arm = record["scenarios"]["a"]["arms"]["law"]
    assert arm["makespan_s"] == pytest.approx(40.0)
    assert set(arm["runs"]) == {"1", "2"}
