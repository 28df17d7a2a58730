import pytest

from concur_agents.errors import ConfigError
from concur_agents.lab.bench.scenario import load_suite, parse_suite, select
from concur_agents.sim.runner import CapacityHidden, SecondTenant

PLAIN = """\
# What ought to happen.
# And why.
family = "some"
quick = true
profile = "h100-qwen3-8b"
kv_tokens = 50_000
arrival = "staggered:2"

[[batch]]
source = "synthetic"
agents = 3
steps = 2
tools = "constant:1"
"""

VARIANT = """\
# Not told.
of = ["plain"]
measure = "capacity_unknown"

[[faults]]
kind = "capacity_hidden"
"""


def changed(old: str, new: str, text: str = PLAIN) -> dict[str, str]:
    assert old in text
    return {"plain": text.replace(old, new)}


def test_a_scenario_is_read_with_its_comment_as_what_to_expect():
    (scenario,) = parse_suite({"plain": PLAIN})

    assert scenario.name == "plain"
    assert scenario.expect == "What ought to happen. And why."
    assert scenario.quick
    case = scenario.case(1)
    assert [plan.arrive_s for plan in case.plans] == [0.0, 2.0, 4.0]
    assert case.profile.capacity_tokens == 50_000
    assert {step.tool_s for plan in case.plans for step in plan.steps[:-1]} == {1.0}


def test_the_same_seed_draws_the_same_agents_and_another_seed_others():
    (scenario,) = parse_suite({"plain": PLAIN})

    assert scenario.case(1) == scenario.case(1)
    assert scenario.case(1).plans != scenario.case(2).plans


def test_a_variant_is_its_original_with_something_changed():
    plain, variant = parse_suite({"plain": PLAIN, "deaf": VARIANT})

    assert variant.name == "deaf@plain"
    assert variant.of == "plain"
    assert variant.case(1).plans == plain.case(1).plans
    assert variant.case(1).faults == (CapacityHidden(),)
    assert not variant.alters_law
    assert variant.quick


def test_a_variant_with_options_of_a_law_says_nothing_about_how_good_the_law_is():
    text = VARIANT.replace('[[faults]]\nkind = "capacity_hidden"', "[working_set]\nstep = 0.1")

    *_, variant = parse_suite({"plain": PLAIN, "bold": text})

    assert variant.alters_law
    assert variant.laws == {"working_set": {"step": 0.1}}


def test_what_only_a_listening_gate_can_notice_is_no_other_world_for_the_deaf():
    plain, variant = parse_suite({"plain": PLAIN, "deaf": VARIANT})

    assert plain.world(listening=False) == variant.world(listening=False)
    assert plain.world(listening=True) != variant.world(listening=True)


def test_a_second_tenant_is_another_world_for_everybody():
    with_tenant = PLAIN + '\n[[faults]]\nkind = "second_tenant"\nagents = 2\ncontext_tokens = 900\n'
    (alone,) = parse_suite({"plain": PLAIN})
    (crowded,) = parse_suite({"plain": with_tenant})

    assert alone.world(listening=False) != crowded.world(listening=False)
    assert crowded.has_tenant
    (fault,) = crowded.case(1).faults
    assert isinstance(fault, SecondTenant)
    assert len(fault.plans) == 2


@pytest.mark.parametrize(
    ("texts", "complaint"),
    [
        (changed("# What ought to happen.\n# And why.\n", ""), "no comment on top"),
        (changed("family = ", "familie = "), "plain.toml: lacks family"),
        (changed("quick = true", "slow = true"), "unknown key 'slow'; known are family, quick"),
        (changed("kv_tokens = 50_000", 'kv_tokens = "big"'), "kv_tokens must be of type int"),
        (changed("kv_tokens = 50_000", "kv_tokens = true"), "kv_tokens must be of type int"),
        (changed("kv_tokens = 50_000", "kv_tokens = 0"), "kv_tokens must be above 0, got 0"),
        (changed("quick = true", "horizon_s = 0"), "horizon_s must be above 0, got 0"),
        (changed("agents = 3", "agents = 0"), "batch 0: agents must be above 0"),
        (changed("agents = 3", ""), "batch 0: lacks agents"),
        (changed("steps = 2", "step = 2"), "lacks steps"),
        (changed("h100-qwen3-8b", "h1"), "plain.toml: no engine profile named 'h1'"),
        (changed("constant:1", "often"), "tool times 'often' not understood"),
        (changed("staggered:2", "later"), "arrival 'later' not understood"),
        (changed("[[batch]]", "[batch]"), "batch must be of type list"),
        (changed("[[batch]]", "batch = 3 ="), "not valid TOML"),
        ({"plain": PLAIN + '[[faults]]\nkind = "fire"\n'}, "fault kind must be one of"),
        ({"plain": PLAIN + '[[faults]]\nkind = "engine_restart"\n'}, "fault engine_restart:"),
        ({"plain": PLAIN, "v": VARIANT.replace("plain", "plane")}, "v.toml: of names 'plane'"),
        ({"plain": PLAIN, "v": VARIANT.replace("capacity_unknown", "x")}, "measure must be one of"),
    ],
)
def test_trouble_names_the_file_and_the_key(texts: dict[str, str], complaint: str):
    with pytest.raises(ConfigError, match=r"scenario .*toml: ") as caught:
        parse_suite(texts)

    assert complaint in str(caught.value)


def test_scenarios_are_selected_by_name_or_family_and_a_pattern_that_fits_none_is_an_error():
    suite = parse_suite({"plain": PLAIN, "deaf": VARIANT, "other": PLAIN.replace("some", "rest")})

    assert [s.name for s in select(suite, ["pl*"])] == ["plain"]
    assert [s.name for s in select(suite, ["variants", "rest"])] == ["other", "deaf@plain"]
    with pytest.raises(ConfigError, match="no scenario or family matches 'plane'; there are other"):
        select(suite, ["plane"])


def test_a_folder_without_scenarios_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no \.toml file"):
        load_suite(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        load_suite(tmp_path / "none")


def test_every_bundled_scenario_says_what_ought_to_happen_and_can_be_drawn():
    suite = load_suite()

    assert len({scenario.name for scenario in suite}) == len(suite)
    for scenario in suite:
        assert len(scenario.expect) > 20, scenario.name
        if scenario.of is None:
            case = scenario.case(1)
            most = min(case.profile.capacity_tokens, case.profile.max_model_len)
            assert all(plan.peak_tokens <= most for plan in case.plans), scenario.name


def test_the_bundled_suite_covers_what_it_must():
    suite = load_suite()
    families = {scenario.family for scenario in suite}
    kinds = {fault["kind"] for scenario in suite for fault in scenario.faults}

    thousand = next(s for s in suite if s.name == "thousand")
    assert len(thousand.case(1).plans) == 1000
    for family in ("miniswe", "weka", "tau", "openhands"):
        pools = {s.kv_tokens for s in suite if s.family == family}
        assert len(pools) == 3, family
    assert {"tools", "fits", "arrivals", "mixed", "machines", "whole", "breadth", "rl"} <= families
    assert {s.horizon_s for s in suite if s.family == "endless"} == {1800}
    of_one = {"second_tenant", "metrics_lost", "capacity_hidden", "engine_restart"}
    assert kinds == {*of_one, "replica_dies", "weight_update"}
    assert {s.replicas for s in suite if s.family == "fleet"} == {4, 8}
    assert {s.measure for s in suite} == {
        None,
        "capacity_unknown",
        "sizes_unknown",
        "max_wait",
        "unequal",
        "stale_bound",
        "sessions_closed",
        "tau_half",
        "tau_double",
        "price_half",
        "price_double",
    }
    assert len({s.profile for s in suite}) >= 3
    assert sum(s.quick for s in suite) >= 5
