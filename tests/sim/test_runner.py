import dataclasses
import json
import math
from collections.abc import Callable
from itertools import pairwise

import pytest

from concur_agents.core import Reading, Regulator, Usage, make_law
from concur_agents.errors import ConcurError, ConfigError
from concur_agents.sim.profile import load_profile
from concur_agents.sim.runner import (
    CachedHidden,
    CapacityHidden,
    EngineRestart,
    Gate,
    Gauges,
    MetricsLost,
    RegulatorGate,
    RequestCap,
    SecondTenant,
    Ungoverned,
    simulate,
)
from concur_agents.sim.traces import load_traces
from concur_agents.sim.workload import (
    AgentPlan,
    Constant,
    Staggered,
    arrange,
    plans_from_traces,
    steady,
    synthetic,
)

H100 = load_profile("h100-qwen3-8b")


def fixed(agents: int) -> RegulatorGate:
    return RegulatorGate(Regulator(make_law("fixed", agents=agents)))


def small(agents: int = 6, steps: int = 4, tool_s: float = 1.0) -> list[AgentPlan]:
    """Agents of 1,000 tokens that grow by 150 a step and share nothing."""
    return synthetic(
        agents,
        steps,
        first=(1000, 1000),
        gen=(50, 50),
        obs=(100, 100),
        tools=Constant(tool_s),
        shared=0,
    )


class Watching(Ungoverned):
    """Lets everybody run and writes down what a gate is told."""

    def __init__(self) -> None:
        self.readings: list[tuple[float, Reading | None]] = []
        self.usages: list[Usage] = []

    def tick(self, reading: Reading | None, now: float) -> list[str]:
        self.readings.append((now, reading))
        return []

    def end_step(self, agent: str, now: float, usage: Usage) -> list[str]:
        self.usages.append(usage)
        return []


class Impatient(Ungoverned):
    """Wants to be woken at once, always."""

    def __init__(self) -> None:
        self.woken_s: list[float] = []

    def next_wake(self, now: float) -> float | None:
        return now + 1e-6

    def advance(self, now: float) -> list[str]:
        self.woken_s.append(now)
        return []


def test_a_burst_of_events_does_not_put_a_due_wake_off() -> None:
    """Found by reading: the millisecond between two wakes began anew with each event."""
    plans = [
        dataclasses.replace(plan, arrive_s=0.0005 * i)
        for i, plan in enumerate(small(agents=20, steps=1))
    ]
    gate = Impatient()
    simulate(plans, H100, gate)
    gaps_s = [later - earlier for earlier, later in pairwise([0.0, *gate.woken_s])]
    assert max(gaps_s) == pytest.approx(0.001), "not one is late, in the burst as after it"
    assert min(gaps_s[1:]) == pytest.approx(0.001), "and no busy loop either"


# --- against a real server -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gate", "makespan_s", "hit_rate"),
    [
        (Ungoverned, 185.9, 0.130),
        (lambda: fixed(32), 88.8, 0.858),
        (lambda: fixed(48), 99.7, 0.697),
        (lambda: fixed(64), 130.6, 0.528),
    ],
)
def test_a_published_run_of_a_real_server_is_met(
    gate: Callable[[], Gate], makespan_s: float, hit_rate: float
) -> None:
    """96 agents on one H100 with vLLM: makespan and hit rate under four policies."""
    result = simulate(synthetic(96, 8), H100, gate(), record_series=False)
    assert result.hit_rate == pytest.approx(hit_rate, abs=0.02)
    assert result.makespan_s == pytest.approx(makespan_s, rel=0.07)


# --- what is counted -----------------------------------------------------------------------------


def test_one_agent_alone_misses_only_what_is_new() -> None:
    plan = small(1, steps=3)
    result = simulate(plan, H100, Ungoverned())
    assert result.steps == 3
    assert result.prompt_tokens == 1000 + 1150 + 1300
    assert result.output_tokens == 150
    # Whole blocks of 16 tokens of what the call before sent and received.
    assert result.cached_tokens == 1040 + 1184
    assert result.computed_tokens == result.prompt_tokens - result.cached_tokens
    assert result.useful_tokens == 150 + 1000 + 100 + 100
    assert result.hit_deficit == 0.0
    assert result.mean_active == pytest.approx(1.0)
    assert result.makespan_s > 2.0  # two tools


def test_useful_tokens_are_the_same_for_every_gate_and_count_a_shared_prefix_once() -> None:
    plans = synthetic(8, 3, first=(500, 500), gen=(20, 20), obs=(30, 30), shared=1000)
    results = [simulate(plans, H100, gate) for gate in (Ungoverned(), RequestCap(1), fixed(2))]
    assert {r.useful_tokens for r in results} == {1000 + 8 * (500 + 3 * 20 + 2 * 30)}
    for r in results:
        assert r.useful_tokens_per_s == pytest.approx(r.useful_tokens / r.makespan_s)


def test_a_thrashing_pool_shows_as_hit_deficit_and_a_cap_removes_it() -> None:
    """24 agents of 1.5k tokens in a pool for 8 of them."""
    profile = H100.replace(kv_blocks=750)
    plans = small(24, steps=5)
    wild, capped = simulate(plans, profile, Ungoverned()), simulate(plans, profile, fixed(6))
    assert wild.hit_deficit > 0.5
    assert capped.hit_deficit < 0.01
    assert capped.computed_tokens < 0.5 * wild.computed_tokens


def test_waits_are_counted_from_the_arrival_at_the_gate() -> None:
    plans = small(3, steps=2, tool_s=1.0)
    result = simulate(plans, H100, fixed(1))
    first, second, third = result.rows
    assert first.waits_s == (0.0, 0.0)
    assert second.start_s == first.finish_s
    assert second.waits_s[0] == pytest.approx(first.finish_s)
    assert third.waits_s[0] == pytest.approx(second.finish_s)
    assert result.wait_worst_s == third.waits_s[0]
    assert result.wait_p50_s == 0.0  # four of six calls did not wait
    assert result.pauses == 0  # a queued agent is not paused
    assert result.pause_worst_s == 0.0


def test_a_later_arrival_waits_from_when_it_came() -> None:
    plans = arrange(small(2, steps=3), Staggered(1.0))
    result = simulate(plans, H100, fixed(1))
    late = result.rows[1]
    assert late.arrive_s == 1.0
    assert late.waits_s[0] == pytest.approx(result.rows[0].finish_s - 1.0)


def test_a_request_cap_pauses_agents_and_never_has_more_calls_in_flight() -> None:
    result = simulate(small(12, tool_s=0.0), H100, RequestCap(3))
    edges = sorted(
        edge
        for row in result.rows
        for call in row.calls
        for edge in ((call.end_s, -1), (call.start_s, 1))
    )
    in_flight = most = 0
    for _, change in edges:
        in_flight += change
        most = max(most, in_flight)
    assert most == 3
    assert result.pauses > 0
    assert result.pause_worst_s > 0


def test_pauses_that_fall_on_one_agent_have_a_high_gini() -> None:
    class Spiteful(Ungoverned):
        """Everybody but agent-000 passes; that one waits until the next poll."""

        held = False

        def begin_step(self, agent: str, now: float, prompt_tokens: int) -> list[str]:
            if agent != "agent-000":
                return [agent]
            self.held = True
            return []

        def tick(self, reading: Reading | None, now: float) -> list[str]:
            held, self.held = self.held, False
            return ["agent-000"] if held else []

    result = simulate(small(10), H100, Spiteful())
    assert [row.pauses for row in result.rows] == [3] + [0] * 9
    assert result.gini_pauses == pytest.approx(0.9)
    assert simulate(small(10), H100, Ungoverned()).gini_pauses == 0.0


def test_mean_active_is_an_average_over_time() -> None:
    plans = arrange(small(2, steps=2, tool_s=10.0), Staggered(100.0))
    result = simulate(plans, H100, Ungoverned())
    lives_s = sum(row.finish_s - row.arrive_s for row in result.rows)
    assert result.mean_active == pytest.approx(lives_s / result.makespan_s)


def test_the_series_has_a_sample_a_second_and_adds_up_to_the_totals() -> None:
    result = simulate(small(8, steps=6), H100, fixed(4))
    assert [sample.t_s for sample in result.series] == list(range(len(result.series)))
    assert result.series[-1].t_s <= result.makespan_s
    assert max(sample.active for sample in result.series) == 4
    assert all(sample.limit_agents == 4 for sample in result.series)
    seen = sum(sample.output_tokens_per_s for sample in result.series)
    assert 0.9 * result.output_tokens < seen <= result.output_tokens
    assert simulate(small(2), H100, Ungoverned(), record_series=False).series == ()


def test_a_summary_is_plain_json() -> None:
    result = simulate(small(2), H100, RegulatorGate(Regulator(make_law("cache_aimd"))))
    summary = json.loads(json.dumps(result.summary()))
    assert summary["gate"] == "cache_aimd"
    assert summary["makespan_s"] == result.makespan_s
    assert not {"rows", "series"} & set(summary)


# --- the same again ------------------------------------------------------------------------------


@pytest.mark.parametrize("law", ["fixed", "cache_aimd", "working_set"])
def test_the_same_seed_gives_the_same_result_to_the_byte(law: str) -> None:
    traces = load_traces("miniswe-gemini3pro", max_context=20_000)

    def run(seed: int) -> str:
        config = {"agents": 12} if law == "fixed" else {}
        gate = RegulatorGate(Regulator(make_law(law, **config)))
        plans = plans_from_traces(traces, 16, 1, max_steps=12)
        profile = H100.replace(kv_blocks=6000)
        result = simulate(plans, profile, gate, seed=seed)
        return repr((result, result.rows, result.series))

    assert run(1) == run(1)
    if law == "cache_aimd":
        assert run(1) != run(2)  # the polls fall elsewhere


def test_polls_come_with_the_first_agent_then_at_intervals_that_a_seed_shifts() -> None:
    """A governor reads as its first agent comes. When the first poll came an interval later, laws
    knew no pool until then, and a batch that fits was held up for as long.
    """
    gate = Watching()
    simulate(small(2), H100, gate, poll_interval_s=0.5)
    assert [at_s for at_s, _ in gate.readings][:3] == [0.0, 0.5, 1.0]
    shifted = Watching()
    simulate(small(2), H100, shifted, poll_interval_s=0.5, seed=7)
    first, second, third = (at_s for at_s, _ in shifted.readings[:3])
    assert first == 0.0
    assert 0 < second < 0.5
    assert third - second == pytest.approx(0.5)


def test_a_reading_says_what_the_engine_counted() -> None:
    gate = Watching()
    result = simulate(small(4, steps=5), H100, gate)
    at_s, last = gate.readings[-1]
    assert last is not None
    assert last.at_s == at_s
    assert last.capacity_tokens == H100.capacity_tokens
    assert last.query_tokens_total is not None
    assert 0 < last.query_tokens_total <= result.prompt_tokens
    assert [u.prompt_tokens for u in gate.usages].count(1000) == 4
    assert sum(u.cached_tokens or 0 for u in gate.usages) == result.cached_tokens


# --- faults --------------------------------------------------------------------------------------


def test_lost_metrics_are_failed_polls_in_that_interval_only() -> None:
    gate = Watching()
    simulate(small(2, steps=8), H100, gate, faults=[MetricsLost(2.0, 5.0)])
    assert [at_s for at_s, reading in gate.readings if reading is None] == [2.0, 3.0, 4.0]
    blind = Watching()
    simulate(small(2), H100, blind, faults=[MetricsLost()])
    assert all(reading is None for _, reading in blind.readings)


def test_capacity_and_cached_tokens_can_be_hidden() -> None:
    gate = Watching()
    simulate(small(2), H100, gate, faults=[CapacityHidden(), CachedHidden()])
    assert all(r is not None and r.capacity_tokens is None for _, r in gate.readings)
    assert all(r is not None and r.kv_usage is not None for _, r in gate.readings)
    assert all(usage.cached_tokens is None for usage in gate.usages)


def test_a_regulator_may_be_kept_from_hearing_how_large_prompts_are() -> None:
    """A guess of 2,048 for each is what 32,768 tokens have room for; of 1,000 told, more fit."""
    let_in = []
    for sizes_told in (True, False):
        gate = RegulatorGate(Regulator(make_law("working_set")), sizes_told=sizes_told)
        let_in.append(sum(gate.arrive(f"a{i}", 0.0, 1_000) != [] for i in range(100)))
    assert let_in == [24, 13]


def test_a_restart_empties_cache_and_counters_and_loses_no_agent() -> None:
    plans = small(4, steps=6)
    calm, shaken = Watching(), Watching()
    before = simulate(plans, H100, calm)
    after = simulate(plans, H100, shaken, faults=[EngineRestart(3.05)])
    assert after.steps == before.steps == 24
    assert after.cached_tokens < before.cached_tokens
    totals = [r.query_tokens_total for _, r in shaken.readings if r and r.query_tokens_total]
    assert any(b < a for a, b in pairwise(totals))
    assert all(sample.output_tokens_per_s >= 0 for sample in after.series)


def test_a_second_tenant_takes_its_share_and_is_not_counted() -> None:
    profile = H100.replace(kv_blocks=1000)
    plans = small(8, steps=6)
    alone = simulate(plans, profile, Ungoverned())
    tenant = SecondTenant(tuple(steady(4, 2000, steps=3, tools=Constant(0.2))))
    shared = simulate(plans, profile, Ungoverned(), faults=[tenant])
    assert shared.agents == alone.agents
    assert shared.output_tokens == alone.output_tokens
    assert shared.hit_rate < alone.hit_rate
    assert shared.makespan_s > alone.makespan_s
    brief = SecondTenant(tenant.plans, from_s=1.0, to_s=1.5)
    assert simulate(plans, profile, Ungoverned(), faults=[brief]).makespan_s < shared.makespan_s


# --- bounds and errors ---------------------------------------------------------------------------


def test_a_batch_that_cannot_run_is_refused_with_what_to_do() -> None:
    plans = small(2)
    with pytest.raises(ConfigError, match="no agent"):
        simulate([], H100, Ungoverned())
    with pytest.raises(ConfigError, match="'agent-000' is in the batch twice"):
        simulate([plans[0], plans[0]], H100, Ungoverned())
    with pytest.raises(ConfigError, match="has no steps"):
        simulate([AgentPlan("idle", ())], H100, Ungoverned())
    with pytest.raises(ConfigError, match=r"needs a context of 1500 tokens.*max_context=1008"):
        simulate(plans, H100.replace(kv_blocks=63), Ungoverned())
    with pytest.raises(ConfigError, match="poll_interval_s must be above 0 s, got 0"):
        simulate(plans, H100, Ungoverned(), poll_interval_s=0)
    with pytest.raises(ConfigError, match="at least 1 call, got 0"):
        RequestCap(0)


def test_a_gate_that_lets_nobody_in_is_found_out() -> None:
    class Shut(Ungoverned):
        name = "shut"

        def begin_step(self, agent: str, now: float, prompt_tokens: int) -> list[str]:
            return []

    with pytest.raises(ConcurError, match="gate 'shut' lets no agent in: 2 agents wait"):
        simulate(small(2), H100, Shut(), poll_interval_s=3600.0, record_series=False)


def test_a_gate_that_lets_somebody_in_twice_is_found_out() -> None:
    class Double(Ungoverned):
        def begin_step(self, agent: str, now: float, prompt_tokens: int) -> list[str]:
            return [agent, agent]

    with pytest.raises(ConcurError, match="which does not wait"):
        simulate(small(2), H100, Double())


def test_a_gate_is_woken_when_it_asked_to_be() -> None:
    class Timed(Ungoverned):
        """Holds everybody at each boundary for exactly a quarter of a second."""

        def __init__(self) -> None:
            self.due: list[tuple[float, str]] = []

        def begin_step(self, agent: str, now: float, prompt_tokens: int) -> list[str]:
            self.due.append((now + 0.25, agent))
            return []

        def next_wake(self, now: float) -> float | None:
            return min(self.due)[0] if self.due else None

        def advance(self, now: float) -> list[str]:
            woken = [agent for at_s, agent in self.due if at_s <= now]
            self.due = [entry for entry in self.due if entry[0] > now]
            return woken

        def gauges(self, now: float) -> Gauges:
            return Gauges(pressure_tokens=float(len(self.due)))

    result = simulate(small(3), H100, Timed())
    waits = [wait_s for row in result.rows for wait_s in row.waits_s]
    assert waits == pytest.approx([0.25] * len(waits))
    assert any(sample.pressure_tokens for sample in result.series)
    assert not math.isnan(result.wait_p99_s)


def test_a_run_is_cut_at_its_horizon_and_says_who_had_finished():
    plans = small(6)
    whole = simulate(plans, H100, fixed(2))
    half_s = whole.makespan_s / 2

    cut = simulate(plans, H100, fixed(2), horizon_s=half_s)

    assert cut.makespan_s == half_s
    assert (cut.agents, cut.finished) == (6, 2)
    assert cut.rows[:2] == whole.rows[:2]
    assert [row.finish_s for row in cut.rows[2:]] == [math.inf] * 4
    assert [row.start_s for row in cut.rows[4:]] == [math.inf] * 2
    assert cut.steps < whole.steps
    assert cut.wait_worst_s == half_s  # of the two that were never let in
    assert (cut.finish_mean_s, cut.finish_p90_s) == (None, None)
    assert cut.most_open == 2


def test_a_horizon_beyond_the_end_changes_nothing():
    plans = small(4)

    assert simulate(plans, H100, fixed(2), horizon_s=10_000) == simulate(plans, H100, fixed(2))


def test_agents_count_as_open_from_being_let_in_until_they_finish():
    """A cap on calls opens every agent, however few calls it lets through."""
    plans = small(6)

    assert simulate(plans, H100, RequestCap(2)).most_open == 6
    assert simulate(plans, H100, fixed(2)).most_open == 2


def test_times_to_finish_count_from_each_agents_arrival():
    plans = arrange(small(10), Staggered(100.0))

    result = simulate(plans, H100, Ungoverned())

    lives_s = sorted(row.finish_s - row.arrive_s for row in result.rows)
    assert result.finish_mean_s == pytest.approx(sum(lives_s) / 10)
    assert result.finish_p90_s == lives_s[8]
    assert result.finish_p90_s < 100.0 < result.makespan_s
