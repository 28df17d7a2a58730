import math
import random
import statistics

import pytest

from concur_agents.errors import ConfigError
from concur_agents.sim.cache import Run
from concur_agents.sim.traces import TraceAgent, TraceStep, load_traces
from concur_agents.sim.workload import (
    AgentPlan,
    AsRecorded,
    Burst,
    Constant,
    HeavyTailed,
    LogNormal,
    Poisson,
    Staggered,
    Uniform,
    arrange,
    common_tokens,
    mix,
    parse_arrival,
    parse_tools,
    plans_from_traces,
    steady,
    synthetic,
)


def recorded(*steps: TraceStep, name: str = "a", shared: int = 0, group: str = "g") -> TraceAgent:
    return TraceAgent(name, "mine", group, shared, steps)


def planned(*steps: TraceStep, shared: int = 0) -> AgentPlan:
    return plans_from_traces([recorded(*steps, shared=shared)], 1)[0]


def kept(plan: AgentPlan, k: int) -> int:
    """What prompt k finds in the cache of call k-1: prompt and output."""
    before = plan.steps[k - 1]
    return common_tokens((*before.prompt, before.output), plan.steps[k].prompt)


def test_an_output_becomes_part_of_the_next_prompt_where_there_is_room() -> None:
    plan = planned(TraceStep(1000, 100, 0, 2.0), TraceStep(1500, 50, 1000, 3.0))
    first, second = plan.steps
    assert first.prompt == (Run(("a", 0), 1000),)
    assert second.prompt == (*first.prompt, first.output, Run(("a", 1), 400))
    assert (first.tool_s, second.tool_s) == (2.0, 0.0)  # nothing comes after the last call


def test_an_output_that_was_not_kept_whole_is_not_reused() -> None:
    """Reasoning is dropped from the context: the prompt grows by less than the output."""
    plan = planned(TraceStep(1000, 500, 0, 0.0), TraceStep(1200, 50, 1000, 0.0))
    assert kept(plan, 1) == 1000
    assert plan.steps[1].prompt_tokens == 1200


def test_an_edited_context_shares_exactly_what_survived_and_all_before_it_still_agree() -> None:
    plan = planned(
        TraceStep(1000, 100, 0, 0.0),
        TraceStep(1500, 100, 1000, 0.0),
        TraceStep(1400, 100, 700, 0.0),  # cut inside the first prompt
        TraceStep(1600, 100, 300, 0.0),  # and again, further up
        TraceStep(1800, 100, 1600, 0.0),
    )
    assert [kept(plan, k) for k in range(1, 5)] == [1100, 700, 300, 1700]
    assert [s.prompt_tokens for s in plan.steps] == [1000, 1500, 1400, 1600, 1800]


def test_a_prompt_that_is_the_beginning_of_the_last_one_is_wholly_shared() -> None:
    plan = planned(TraceStep(1000, 100, 0, 0.0), TraceStep(900, 100, 1000, 0.0))
    assert kept(plan, 1) == plan.steps[1].prompt_tokens == 900


def test_a_cut_inside_an_output_gives_up_the_output_and_keeps_the_length() -> None:
    plan = planned(
        TraceStep(1000, 100, 0, 0.0),
        TraceStep(1500, 100, 1000, 0.0),
        TraceStep(1600, 100, 1050, 0.0),
    )
    assert kept(plan, 2) == 1000
    assert plan.steps[2].prompt_tokens == 1600


def test_a_call_cut_off_before_its_first_token_still_generates_one() -> None:
    plan = planned(TraceStep(1000, 0, 0, 0.0), TraceStep(1500, 5, 1000, 0.0))
    assert plan.steps[0].output.tokens == 1
    assert kept(plan, 1) == 1000


def test_agents_of_a_source_share_their_system_prompt_and_siblings_share_more() -> None:
    one = recorded(TraceStep(1000, 10, 0, None), name="one", shared=300, group="x")
    two = recorded(TraceStep(1000, 10, 0, None), name="two", shared=300, group="y")
    sib = recorded(TraceStep(1000, 10, 500, None), name="sib", shared=300, group="y")
    bro = recorded(TraceStep(1000, 10, 600, None), name="bro", shared=300, group="y")
    plans = {p.id: p.steps[0].prompt for p in plans_from_traces([one, two, sib, bro], 4)}
    assert common_tokens(plans["one"], plans["two"]) == 300
    assert common_tokens(plans["sib"], plans["bro"]) == 500
    assert common_tokens(plans["one"], plans["sib"]) == 300


def test_a_system_prompt_that_one_agent_cuts_is_still_shared_by_the_others() -> None:
    cuts = recorded(
        TraceStep(1000, 10, 0, None), TraceStep(900, 10, 200, None), name="cuts", shared=300
    )
    keeps = recorded(TraceStep(1000, 10, 0, None), name="keeps", shared=300)
    plans = {p.id: p for p in plans_from_traces([cuts, keeps], 2)}
    assert common_tokens(plans["cuts"].steps[0].prompt, plans["keeps"].steps[0].prompt) == 300
    assert common_tokens(plans["cuts"].steps[1].prompt, plans["keeps"].steps[0].prompt) == 200


@pytest.mark.parametrize(
    "source", ["miniswe-gemini3pro", "tau-airline-gpt4o", "openhands-multiswe", "weka-claude-code"]
)
def test_every_planned_prompt_is_as_long_as_the_recorded_one(source: str) -> None:
    traces = load_traces(source)[:60]
    plans = {p.id: p for p in plans_from_traces(traces, len(traces))}
    for trace in traces:
        steps = plans[trace.id].steps
        assert [s.prompt_tokens for s in steps] == [s.prompt_tokens for s in trace.steps]
        assert [s.output.tokens for s in steps] == [max(1, s.output_tokens) for s in trace.steps]
        assert plans[trace.id].peak_tokens == trace.peak_tokens


def test_an_undisturbed_recording_could_reuse_what_its_provider_saw_reused() -> None:
    """Mean reusable share of the prompt tokens, against the share computed from the recording."""
    traces = load_traces("miniswe-gemini3pro")
    reused = total = 0
    for plan in plans_from_traces(traces, len(traces)):
        total += sum(s.prompt_tokens for s in plan.steps)
        reused += sum(kept(plan, k) for k in range(1, len(plan.steps)))
    assert 0.97 < reused / total < 0.99  # 0.962 is the prompts alone; outputs add the rest


def test_nobody_is_drawn_twice_before_everybody_was_drawn_once() -> None:
    traces = [recorded(TraceStep(100, 10, 0, None), name=f"a{i}", shared=50) for i in range(3)]
    plans = plans_from_traces(traces, 7, seed=3)
    ids = [p.id for p in plans]
    assert sorted(ids[:3]) == ["a0", "a1", "a2"]
    assert sorted(ids[3:6]) == ["a0~2", "a1~2", "a2~2"]
    assert ids[6].endswith("~3")
    twins = [p for p in plans if p.id.startswith("a0")][:2]
    assert common_tokens(twins[0].steps[0].prompt, twins[1].steps[0].prompt) == 50


def test_the_same_seed_draws_the_same_batch_and_another_seed_another() -> None:
    traces = load_traces("tau-airline-gpt4o")
    draw = [
        plans_from_traces(traces, 20, s, tools=LogNormal(1, 1), arrival=Poisson(1))
        for s in (1, 1, 2)
    ]
    assert draw[0] == draw[1]
    assert [p.id for p in draw[0]] != [p.id for p in draw[2]]
    assert draw[0][3].arrive_s != draw[2][3].arrive_s


def test_nothing_to_draw_from_is_said_and_max_steps_ends_agents_early() -> None:
    with pytest.raises(ConfigError, match="raise max_context"):
        plans_from_traces([], 1)
    plan = plans_from_traces(load_traces("openhands-multiswe"), 1, max_steps=4)[0]
    assert len(plan.steps) == 4
    assert plan.steps[-1].tool_s == 0.0


def test_the_synthetic_agents_are_those_of_the_published_measurements() -> None:
    """Sums over all prompts as the real server counted them, in three runs of different shape."""
    main = synthetic(96, 8)
    assert sum(s.prompt_tokens for p in main for s in p.steps) == 6_344_697
    assert statistics.mean(p.peak_tokens for p in main) == pytest.approx(11149.864583)
    slow = synthetic(
        60,
        8,
        first=(3000, 9000),
        gen=(30, 80),
        obs=(300, 1300),
        tools=LogNormal(4.0, 1.0, 20.0),
        steps_range=(3, 8),
    )
    assert sum(s.prompt_tokens for p in slow for s in p.steps) == 2_861_185
    assert sum(len(p.steps) for p in slow) == 319
    third = synthetic(48, 8, first=(2000, 4000), gen=(80, 200), obs=(700, 2000))
    assert sum(s.prompt_tokens for p in third for s in p.steps) == 3_532_388


def test_synthetic_agents_share_their_system_prompt_and_repeat_their_own_context() -> None:
    one, two = synthetic(2, 3, first=(100, 100), gen=(10, 10), obs=(20, 20), shared=64)
    assert common_tokens(one.steps[0].prompt, two.steps[0].prompt) == 64
    assert [s.prompt_tokens for s in one.steps] == [164, 194, 224]
    assert kept(one, 2) == 204
    assert len(synthetic(1, 1, shared=0)[0].steps[0].prompt) == 1


def test_a_steady_agent_holds_its_context_for_ever() -> None:
    plans = steady(3, 10_000, steps=5)
    assert len(plans) == 3
    assert {s.prompt_tokens + s.output.tokens for p in plans for s in p.steps} == {10_000}
    assert kept(plans[0], 1) == 10_000 - 256 - 64
    with pytest.raises(ConfigError, match="must exceed"):
        steady(1, 320)


def test_a_mix_holds_everybody_once_in_order_of_arrival() -> None:
    short, long = steady(4, 1000, name="short"), steady(4, 9000, name="long")
    mixed = mix(arrange(short, Staggered(2.0)), long, seed=1)
    assert sorted(p.id for p in mixed) == sorted(p.id for p in short + long)
    assert [p.arrive_s for p in mixed] == sorted(p.arrive_s for p in mixed)
    assert [p.id for p in mix(short, long, seed=1)] != [p.id for p in mix(short, long, seed=2)]
    with pytest.raises(ConfigError, match="'short-000' is in the mix twice"):
        mix(short, short)


def test_arrival_patterns_put_agents_where_they_say() -> None:
    rng = random.Random(0)
    assert Burst().times(3, rng) == [0, 0, 0]
    assert Staggered(2.5).times(3, rng) == [0, 2.5, 5.0]
    times = Poisson(4.0).times(4000, rng)
    assert times == sorted(times)
    assert times[-1] == pytest.approx(1000, rel=0.1)


def test_tool_time_models_have_the_shape_they_name() -> None:
    rng = random.Random(0)
    draws = lambda model: sorted(model.draw(rng, 7.0) for _ in range(4001))  # noqa: E731
    assert set(draws(AsRecorded())) == {7.0}
    assert AsRecorded().draw(rng, None) == 0.0
    assert set(draws(Constant(0.3))) == {0.3}
    assert draws(Uniform(0.5, 2.5))[0] >= 0.5
    log = draws(LogNormal(4.0, 1.0, 20.0))
    assert log[2000] == pytest.approx(4.0, rel=0.1)
    assert log[-1] == 20.0
    heavy = draws(HeavyTailed(1.0, 1.1, 600.0))
    assert heavy[2000] == pytest.approx(1.0, rel=0.1)
    assert sum(heavy[-200:]) > sum(heavy[:-200])  # the longest twentieth takes most of the time


def test_models_are_read_from_text() -> None:
    assert parse_tools("recorded") == AsRecorded()
    assert parse_tools("constant:0.1") == Constant(0.1)
    assert parse_tools("uniform:0.5,2.5") == Uniform(0.5, 2.5)
    assert parse_tools("lognormal:4,1,20") == LogNormal(4, 1, 20)
    assert parse_tools("lognormal:4,1") == LogNormal(4, 1, math.inf)
    assert parse_tools("heavy:1") == HeavyTailed(1)
    assert parse_arrival("burst") == Burst()
    assert parse_arrival("staggered:2") == Staggered(2)
    assert parse_arrival("poisson:0.5") == Poisson(0.5)


@pytest.mark.parametrize("text", ["", "gauss:1", "constant", "constant:x", "uniform:1", "heavy:-1"])
def test_a_tool_model_that_is_none_is_refused_with_the_list(text: str) -> None:
    with pytest.raises(ConfigError, match=r"tool times .* not understood .* recorded, constant"):
        parse_tools(text)


def test_an_arrival_pattern_that_is_none_is_refused_with_the_list() -> None:
    with pytest.raises(ConfigError, match=r"arrival 'rush' not understood .* burst, staggered"):
        parse_arrival("rush")


def test_lives_with_a_heavy_tail_are_mostly_short_and_some_very_long() -> None:
    """A Pareto distribution, cut at the upper bound; without it draws are what they were."""
    plans = synthetic(400, 1, steps_range=(3, 120), steps_tail=1.1, seed=1)
    steps = sorted(len(plan.steps) for plan in plans)
    assert (steps[0], steps[-1]) == (3, 120)
    assert steps[200] < 8
    assert sum(k > 40 for k in steps) / 400 == pytest.approx(0.05, abs=0.03)
