import json
import sys
from pathlib import Path
from typing import Any

import pytest

from concur_agents.cli.app import main
from concur_agents.core import ORDERS, Regulator, make_law
from concur_agents.errors import ConfigError
from concur_agents.lab.bench import suite as suite_module
from concur_agents.lab.bench.arms import REFERENCES, LawArm, run_law, run_reference
from concur_agents.lab.bench.figures import Report
from concur_agents.lab.bench.scenario import Scenario, parse_suite
from concur_agents.lab.bench.suite import Job, evaluate, law_arm
from concur_agents.lab.replay.arms import parse_arm
from concur_agents.sim.runner import AgentCap, RegulatorGate, simulate

TINY = """\
# Eight agents, contexts four times the pool.
family = "tiny"
quick = true
profile = "h100-qwen3-8b"
kv_tokens = 12_000

[[batch]]
source = "synthetic"
agents = 8
steps = 4
first = [2000, 4000]
shared = 500
tools = "constant:0.5"
"""

DEAF = """\
# The engine does not tell how large its pool is.
of = ["tiny"]
measure = "capacity_unknown"

[[faults]]
kind = "capacity_hidden"
"""

PATIENT = """\
# Nobody who has started waits longer than five seconds.
of = ["tiny"]
measure = "max_wait"

[regulator]
max_wait_s = 5
"""


@pytest.fixture(scope="module")
def suite() -> list[Scenario]:
    return parse_suite({"tiny": TINY, "deaf": DEAF, "patient": PATIENT})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in {"tiny": TINY, "deaf": DEAF, "patient": PATIENT}.items():
        (tmp_path / f"{name}.toml").write_text(text)
    return tmp_path


def concur(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["bench", *words])
    return int(caught.value.code or 0)


@pytest.mark.parametrize("agents", [1, 3, 8])
def test_a_cap_on_agents_is_what_the_fixed_law_does(suite: list[Scenario], agents: int):
    """The oracle must not be weaker than the law that it stands for."""
    case = suite[0].case(1)
    fixed = RegulatorGate(Regulator(make_law("fixed", agents=agents)))

    ours = simulate(case.plans, case.profile, AgentCap(agents))
    theirs = simulate(case.plans, case.profile, fixed)

    assert ours.rows == theirs.rows


def test_no_fixed_cap_beats_the_best_one(suite: list[Scenario]):
    case = suite[0].case(2)

    best = run_reference(suite[0], case, 2, "best_fixed")

    caps = range(1, 9)
    runs = [simulate(case.plans, case.profile, AgentCap(cap), seed=2) for cap in caps]
    assert best.time_s == min(run.makespan_s for run in runs)
    assert best.cap is not None
    assert runs[best.cap - 1].makespan_s == best.time_s


def test_of_a_run_that_is_cut_the_best_cap_finishes_most_agents():
    text = TINY.replace("kv_tokens", "horizon_s = 8\nkv_tokens")
    (endless,) = parse_suite({"endless": text})
    case = endless.case(1)

    best = run_reference(endless, case, 1, "best_fixed")

    runs = [
        simulate(case.plans, case.profile, AgentCap(cap), seed=1, horizon_s=8)
        for cap in range(1, 9)
    ]
    most = max(run.finished for run in runs)
    assert 0 < most < 8
    assert best.metrics["finished"] == most
    assert best.time_s == pytest.approx(8 * 8 / most)
    assert best.agents_per_hour == pytest.approx(most * 450)


def test_a_run_that_is_cut_has_no_free_tier_bound():
    """The bound serves all agents alike, so of a source without end it finishes hardly any."""
    (endless,) = parse_suite({"endless": TINY.replace("kv_tokens", "horizon_s = 8\nkv_tokens")})

    outcomes = evaluate(scenarios=[endless], seeds=(1,), workers=1)

    arms = ["ungoverned", "best_fixed", "best_request", "program_gate", "lease_gate"]
    assert [outcome.arm for outcome in outcomes] == arms


def test_processes_make_no_difference(suite: list[Scenario]):
    laws = [law_arm("working_set"), law_arm("cache_aimd")]

    here = evaluate(laws, scenarios=suite[:1], seeds=(1,), workers=1)
    there = evaluate(laws, scenarios=suite[:1], seeds=(1,), workers=2)

    assert here == there
    assert [outcome.arm for outcome in here] == [
        "ungoverned",
        "best_fixed",
        "best_request",
        "program_gate",
        "lease_gate",
        "free_tier",
        "working_set",
        "cache_aimd",
    ]


def test_a_second_call_runs_only_what_is_new(suite: list[Scenario], tmp_path: Path):
    told: list[tuple[int, int]] = []

    def run(*laws: LawArm) -> list[Any]:
        told.clear()
        return evaluate(
            laws,
            references=("ungoverned", "free_tier"),
            scenarios=suite[:1],
            seeds=(1, 2),
            workers=1,
            cache_dir=tmp_path,
            progress=lambda done, total: told.append((done, total)),
        )

    first = run(law_arm("cache_aimd"))
    assert told[0] == (0, 6)
    again = run(law_arm("cache_aimd"))
    assert told == [(6, 6)]
    assert again == first
    run(law_arm("cache_aimd", {"cache_aimd": {"start": 2}}))
    assert told[0] == (4, 6)


def test_what_is_the_same_run_is_run_once(suite: list[Scenario]):
    """`ungoverned` cannot notice that the capacity is hidden; cache_aimd does not wait by time."""
    totals: list[int] = []

    outcomes = evaluate(
        references=("ungoverned",),
        scenarios=suite[:2],
        seeds=(1,),
        workers=1,
        progress=lambda done, total: totals.append(total),
    )

    assert set(totals) == {1}
    assert [outcome.scenario for outcome in outcomes] == ["tiny", "deaf@tiny"]
    assert outcomes[0].metrics == outcomes[1].metrics


def test_a_variant_that_alters_the_law_has_no_references_of_its_own(suite: list[Scenario]):
    patient = suite[2]

    outcomes = evaluate([law_arm("working_set")], scenarios=[patient], seeds=(1,), workers=1)

    assert [(outcome.scenario, outcome.arm) for outcome in outcomes] == [
        ("patient@tiny", "working_set")
    ]


def test_a_law_that_is_told_a_wrong_price_holds_idle_claims_for_another_time(
    suite: list[Scenario],
):
    """Otherwise the sensitivity figures would compare a law with itself."""
    case = suite[0].case(1)
    right = LawArm(name="right", law="working_set")
    cheap = LawArm(name="cheap", law="working_set", wrong_price=0.01)

    one, other = (run_law(suite[0], case, 1, arm) for arm in (right, cheap))

    assert one.metrics["pauses"] != other.metrics["pauses"]


def test_a_factor_multiplies_what_the_option_is(suite: list[Scenario]):
    twice = """# Twice as quick.
of = ["tiny"]
measure = "tau_double"

[scale.cache_aimd]
increase = 2.0
"""
    *_, variant = parse_suite({"tiny": TINY, "twice": twice})

    assert variant.alters_law
    assert law_arm("cache_aimd").within(variant).options == {"increase": 4.0}
    arm = law_arm("cache_aimd", {"cache_aimd": {"increase": 3}}).within(variant)
    assert arm.options == {"increase": 6.0}
    assert law_arm("fixed").within(variant).options == {}
    typo = twice.replace("increase =", "increse =")
    *_, wrong = parse_suite({"tiny": TINY, "twice": typo})
    with pytest.raises(ConfigError, match="has no number 'increse'"):
        law_arm("cache_aimd").within(wrong)


def test_options_that_a_law_does_not_take_are_refused_before_anything_runs(
    suite: list[Scenario],
):
    with pytest.raises(ConfigError, match="arm 'working_set': law 'working_set' has no option"):
        evaluate([law_arm("working_set", {"working_set": {"roh": 1}})], scenarios=suite)
    with pytest.raises(ConfigError, match="order must be one of"):
        evaluate([law_arm("working_set", {"regulator": {"order": "x"}})], scenarios=suite)
    with pytest.raises(ConfigError, match="no reference 'oracle'"):
        evaluate(references=("oracle",), scenarios=suite)
    with pytest.raises(ConfigError, match="given twice"):
        evaluate([law_arm("fixed"), law_arm("fixed")], scenarios=suite)
    with pytest.raises(ConfigError, match="seeds must be different"):
        evaluate(scenarios=suite, seeds=(1, 1))


def test_an_agent_that_outgrows_the_pool_is_reported_with_its_scenario():
    suite = parse_suite({"tiny": TINY.replace("12_000", "2_000")})

    with pytest.raises(ConfigError, match="scenario tiny, seed 1, ungoverned: agent"):
        evaluate(references=("ungoverned",), scenarios=suite, seeds=(1,), workers=1)


# --- the command ---------------------------------------------------------------------------------


def test_the_command_prints_one_json_object_with_every_goal(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"

    code = concur(
        "--scenarios", str(folder), "--seeds", "1", "--workers", "1", "--json", "--out", str(out)
    )

    assert code == 0
    record = json.loads(capsys.readouterr().out)
    assert record["seeds"] == [1]
    figures = record["figures"]["working_set"]
    for key in (
        "vs_best_fixed_geomean",
        "vs_best_fixed_worst",
        "vs_cache_aimd_geomean",
        "vs_cache_aimd_worst",
        "vs_ungoverned_worst",
        "vs_program_gate_geomean",
        "vs_lease_gate_p90_geomean",
        "free_tier_distance_geomean",
        "capacity_unknown_cost_worst",
        "max_wait_excess_s",
        "max_wait_cost_worst",
    ):
        assert figures[key]["value"] is not None, key
        assert figures[key]["met"] in (True, False), key
    arms = record["scenarios"]["tiny"]["arms"]
    assert arms["working_set"]["makespan_s"] >= 0.99 * arms["free_tier"]["makespan_s"]
    assert arms["best_fixed"]["runs"]["1"]["cap"] in range(1, 9)
    assert json.loads((out / "results.json").read_text("utf-8")) == record
    assert (out / "tiny.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "results.md").read_text("utf-8")
    assert "Written by `concur bench --seeds 1`" in page
    assert "| times as fast as the best fixed cap, worst scenario |" in page
    assert "![tiny.png](tiny.png)" in page


def test_the_tables_name_scenarios_goals_and_what_is_missed(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert concur("--scenarios", str(folder), "--quick", "--workers", "1") == 0

    shown = capsys.readouterr().out
    assert "deaf@tiny" in shown  # a variant of a quick one is quick
    assert "times as fast as the best fixed cap, worst scenario" in shown
    assert "at least 1.25" in shown
    assert "max_wait_s + one step [s]" in shown  # no markup to the table


def test_orders_are_compared_side_by_side(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    code = concur(
        "--scenarios", str(folder), "--only", "tiny", "--seeds", "2", "--workers", "1",
        "--compare", "order=all", "--out", str(tmp_path / "out"),
    )  # fmt: skip

    assert code == 0
    lines = capsys.readouterr().out.splitlines()
    heading = next(line for line in lines if "warm_new_least" in line and "scenario" in line)
    assert "first_come" in heading
    row = next(line for line in lines if line.strip().startswith("tiny")).split()
    assert row[1] == "1.000"
    assert len(row) == len(heading.split())
    assert len(row) == 1 + len(ORDERS)
    page = (tmp_path / "out" / "compare-order.md").read_text("utf-8")
    assert "`concur bench --only tiny --compare order=all --seeds 2`" in page
    assert "| tiny | 1.000 |" in page


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--set", "step=1"], "write LAW.OPTION=VALUE"),
        (["--compare", "order"], "write OPTION=VALUE,VALUE"),
        (["--arms", "working_sat"], "no arm 'working_sat'"),
        (["--arms", "best_fixed_tier_hidden"], "no arm 'best_fixed_tier_hidden'"),
        (["--only", "nothing"], "no scenario or family matches 'nothing'"),
        (["--compare", "rho=1,2"], "has no option 'rho'"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(
    folder: Path, words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
):
    assert concur("--scenarios", str(folder), *words) == 2

    error = capsys.readouterr().err
    assert complaint in error
    assert len(error.strip().splitlines()) == 1


def test_the_list_says_what_ought_to_happen(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert concur("--scenarios", str(folder), "--list") == 0

    expect = "Eight agents, contexts four times the pool."
    assert expect in capsys.readouterr().out
    assert concur("--scenarios", str(folder), "--list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert expect in [row["expect"] for row in listed]
    assert all(set(row) == {"name", "family", "expect"} for row in listed)


TIGHT = """
from dataclasses import dataclass
from typing import ClassVar

from concur_agents.core import LawState, Limit


@dataclass(frozen=True)
class Tight:
    name: ClassVar[str] = "tight"
    formula: ClassVar[str] = "limit = agents"
    needs_readings: ClassVar[bool] = False
    agents: int = 1

    def initial(self):
        return LawState(limit=Limit(agents=self.agents))

    def decide(self, state, snapshot):
        return state


class NoLaw:
    pass
"""


def test_a_law_of_ones_own_runs_by_module_and_class(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch, capsys
):
    here = tmp_path_factory.mktemp("here")
    (here / "outside_law.py").write_text(TIGHT)
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [*sys.path])
    name = "outside_law:Tight"
    words = ("--scenarios", str(folder), "--only", "tiny", "--seeds", "1", "--json")

    code = concur(*words, "--arms", f"{name},fixed", "--set", f"{name}.agents=2",
                  "--set", "fixed.agents=2")  # fmt: skip

    assert code == 0
    arms = json.loads(capsys.readouterr().out)["scenarios"]["tiny"]["arms"]
    assert arms[name]["most_open"] == 2
    assert arms[name]["makespan_s"] == arms["fixed"]["makespan_s"]
    assert concur(*words, "--arms", "outside_law:NoLaw") != 0
    assert "lacks name, formula" in capsys.readouterr().err
    assert concur(*words, "--arms", "outside_law:Nothing") != 0
    assert "cannot load law 'outside_law:Nothing'" in capsys.readouterr().err
    gate = parse_arm(f"{name}:agents=3").build(None)
    try:
        assert gate.view()["limit_agents"] == 3
    finally:
        gate.close()


# --- fleets --------------------------------------------------------------------------------------

FLEET = """\
# Two replicas with four times what they hold.
family = "fleet"
profile = "h100-qwen3-8b"
kv_tokens = 12_000
replicas = 2

[[batch]]
source = "synthetic"
group = "hot"
agents = 16
steps = 4
first = [2000, 4000]
shared = 500
tools = "constant:0.5"
"""

UNEQUAL = """\
# One pool is twice as large as the other.
of = ["two"]
measure = "unequal"
family = "fleet"
shares = [2, 1]
"""


def test_a_fleet_has_references_of_its_own_and_laws_in_each_pool():
    suite = parse_suite({"tiny": TINY, "two": FLEET, "unequal": UNEQUAL})

    outcomes = evaluate([law_arm("working_set")], scenarios=suite, seeds=(1,), workers=1)

    arms: dict[str, list[str]] = {}
    for outcome in outcomes:
        arms.setdefault(outcome.scenario, []).append(outcome.arm)
        assert outcome.metrics["finished"] == outcome.metrics["agents"]
    in_fleet = ["round_robin", "sticky", "sum", "cap_per_replica", "working_set"]
    assert arms == {
        "tiny": [*REFERENCES, "working_set"],
        "two": in_fleet,
        "unequal@two": in_fleet,
    }
    report = Report(suite, outcomes)
    assert [len(scenarios) for scenarios, _ in report.tables()] == [1, 2]
    figures = {figure.key: figure for figure in report.figures("working_set")}
    assert figures["vs_best_fixed_geomean"].scenarios == 1
    assert figures["fleet_vs_best_cap_geomean"].scenarios == 2
    assert figures["unequal_cost_geomean"].scenarios == 1
    assert figures["unequal_cost_geomean"].goal == 1.05


def test_unequal_pools_have_the_same_sum_and_groups_are_only_those_that_are_named():
    two, unequal = parse_suite({"two": FLEET, "unequal": UNEQUAL})

    equal_case, case = two.case(1), unequal.case(1)

    assert [engine.kv_blocks for engine in equal_case.replicas] == [750, 750]
    assert [engine.kv_blocks for engine in case.replicas] == [1000, 500]
    assert case.oversubscription == pytest.approx(equal_case.oversubscription)
    assert {plan.group for plan in case.plans} == {"hot"}
    (tiny,) = parse_suite({"tiny": TINY})
    assert {plan.group for plan in tiny.case(1).plans} == {None}


def test_what_fleets_add_leaves_the_outcomes_of_single_engines_where_they_are(monkeypatch):
    """Or each change of the fleet's simulator would cost an hour of searches."""
    (tiny,) = parse_suite({"tiny": TINY})
    (two,) = parse_suite({"two": FLEET})
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(suite_module, "_sources", lambda *parts: asked.append(parts) or "")

    assert Job(tiny, 1, "ungoverned").digest
    assert not any("fleet" in part or "replicas" in part for parts in asked for part in parts)
    assert Job(two, 1, "sticky").digest
    assert asked[-1] == ("sim/replicas.py", "lab/bench/fleet_arms.py")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("replicas = 2", "replicas = 0", "replicas must be above 0"),
        ("replicas = 2", "replicas = 2\nshares = [1, 2, 3]", "3 numbers for 2 replicas"),
        ("replicas = 2", "replicas = 2\nshares = [1, 0]", "above 0"),
        ("replicas = 2", 'replicas = 2\nshares = ["a", 1]', "must be numbers"),
        ("replicas = 2", "shares = [1, 2]", "for no replicas"),
        (
            "[[batch]]",
            '[[faults]]\nkind = "replica_dies"\nreplica = 2\nat_s = 5\n[[batch]]',
            "no replica 2",
        ),
    ],
)
def test_a_fleet_that_makes_no_sense_is_refused(old: str, new: str, says: str):
    with pytest.raises(ConfigError, match=says):
        parse_suite({"two": FLEET.replace(old, new)})
