"""A trainer's rollouts, its weight updates, and the limiters that stacks bring along."""

from concur_agents.core import Reading, Regulator, make_law
from concur_agents.sim.faults import WeightUpdate
from concur_agents.sim.gates import RegulatorGate, Ungoverned
from concur_agents.sim.profile import load_profile
from concur_agents.sim.runner import simulate
from concur_agents.sim.samples import samples
from concur_agents.sim.timing import Constant
from concur_agents.sim.trainer_gates import LoadController, PromptCap
from concur_agents.sim.workload import common_tokens

H100 = load_profile("h100-qwen3-8b")


def test_samples_of_a_prompt_begin_alike_and_then_go_their_own_way():
    plans = samples(3, per_prompt=4, shared=1000, seed=1)
    assert [plan.group for plan in plans[:5]] == ["prompt-000"] * 4 + ["prompt-001"]
    one, other, foreign = plans[0], plans[1], plans[4]
    assert one.steps[0].prompt == other.steps[0].prompt
    assert common_tokens(one.steps[0].prompt, foreign.steps[0].prompt) == 1000
    assert one.steps[0].output != other.steps[0].output
    assert len({len(plan.steps) for plan in samples(8, seed=1)}) > 5


def test_later_waves_come_later_and_have_a_lower_priority():
    plans = samples(4, per_prompt=1, waves=2, wave_s=60.0)
    assert [(plan.arrive_s, plan.priority) for plan in plans] == [(0, 0)] * 2 + [(60, -1)] * 2


def test_the_engine_stands_still_during_an_update_and_forgets_its_cache():
    plans = samples(1, per_prompt=2, turns=(6, 0.0, 6), tools=Constant(1.0))
    plain, updated, kept = (
        simulate(plans, H100, Ungoverned(), faults=faults, record_series=False)
        for faults in ((), [WeightUpdate(5.0, 10.0)], [WeightUpdate(5.0, 10.0, flushes=False)])
    )
    assert updated.makespan_s > plain.makespan_s + 9.0
    assert updated.hit_rate < kept.hit_rate == plain.hit_rate


class Watched(RegulatorGate):
    """Counts calls that begin while the engine stands still."""

    begun = 0

    def begin_step(self, agent, now, prompt_tokens):
        woken = super().begin_step(agent, now, prompt_tokens)
        self.begun += agent in woken and self.regulator.is_held("update", now)
        return woken


def test_a_governor_holds_its_agents_if_the_update_is_announced():
    plans = samples(2, per_prompt=4, tools=Constant(1.0))
    gate = Watched(Regulator(make_law("working_set")), plans=plans)
    result = simulate(plans, H100, gate, faults=[WeightUpdate(5.0, 5.0)], record_series=False)
    assert gate.begun == 0
    assert sum(row.pauses for row in result.rows) > 0
    unannounced = [WeightUpdate(5.0, 5.0, is_announced=False)]
    gate = Watched(Regulator(make_law("working_set")), plans=plans)
    result = simulate(plans, H100, gate, faults=unannounced, record_series=False)
    assert sum(row.pauses for row in result.rows) == 0


def test_a_cap_on_prompts_lets_in_whole_groups():
    groups = {"a0": "a", "a1": "a", "b0": "b", "b1": "b"}
    gate = PromptCap(1, groups)
    assert gate.arrive("a0", 0.0, 1) == ["a0"]
    assert gate.arrive("b0", 0.0, 1) == []
    assert gate.arrive("a1", 0.0, 1) == ["a1"]
    assert gate.arrive("b1", 0.0, 1) == []
    assert gate.leave("a0", 1.0) == []
    assert gate.leave("a1", 1.0) == ["b0", "b1"]


def reading(usage, **more):
    return Reading(at_s=0.0, kv_usage=usage, capacity_tokens=100_000, running=4.0, **more)


def test_the_load_controller_grows_while_clear_and_shrinks_when_full():
    gate = LoadController(10_000)
    for number in range(40):
        gate.arrive(f"a{number}", 0.0, 1)
    gate.tick(reading(0.3), 1.0)
    assert gate.gauges(1.0).limit_agents == 10
    for number in range(12):
        gate.leave(f"a{number}", 2.0)
    before = gate.gauges(2.0).limit_agents
    assert before > 10
    gate.tick(reading(0.9), 3.0)
    after = gate.gauges(3.0).limit_agents
    assert after < before
    gate.tick(reading(0.9), 4.0)
    assert gate.gauges(4.0).limit_agents == after, "six polls pass before the next trim"
    gate.tick(reading(0.9, preemptions_total=1.0), 5.0)
    assert gate.gauges(5.0).limit_agents <= after
