"""The gates after other projects decide as those describe it, in round numbers."""

from concur_agents.core import Usage
from concur_agents.lab.bench.peer_gates import LeaseGate, ProgramGate
from concur_agents.sim.gates import AgentCap
from concur_agents.sim.profile import load_profile
from concur_agents.sim.runner import simulate
from concur_agents.sim.timing import Uniform
from concur_agents.sim.workload import synthetic


def ended(gate: ProgramGate | LeaseGate, agent: str, now: float, tokens: int) -> list[str]:
    return gate.end_step(agent, now, Usage(tokens - 100, 100))


# -- after ThunderAgent: a hundred tokens for each program, a sweep every five seconds ------------


def test_a_new_program_comes_in_at_once_while_it_fits_and_none_waits() -> None:
    gate = ProgramGate(10_000)
    assert gate.begin_step("a", 0.0, 3_900) == ["a"]
    assert gate.begin_step("b", 0.0, 6_500) == []
    assert gate.begin_step("c", 0.0, 1_900) == [], "one waits already"


def test_a_sweep_resumes_small_programs_first_that_have_begun_before_new_ones() -> None:
    gate = ProgramGate(10_000)
    gate.begin_step("a", 0.0, 8_900)
    for agent, tokens in (("b", 3_000), ("c", 2_000), ("d", 4_000)):
        assert gate.begin_step(agent, 0.0, tokens) == []
    assert gate.leave("a", 4.0) == [], "nothing happens between two sweeps"
    assert gate.next_wake(4.0) == 5.0
    assert gate.advance(5.0) == ["c", "b", "d"]


def test_too_much_pauses_the_smallest_program_that_acts() -> None:
    gate = ProgramGate(10_000)
    for agent in "ab":
        gate.begin_step(agent, 0.0, 4_000)
    ended(gate, "a", 1.0, 4_800)
    ended(gate, "b", 1.0, 5_200)
    gate.advance(5.0)
    assert gate.begin_step("b", 6.0, 5_200) == ["b"]
    assert gate.begin_step("a", 6.0, 4_800) == []
    assert gate.advance(10.0) == []
    assert gate.leave("b", 15.0) == ["a"]


def test_without_a_program_that_acts_all_are_marked_and_pause_at_their_next_request() -> None:
    """As published: the loop that marks leaves out what is marked already."""
    gate = ProgramGate(10_000)
    for agent in "ab":
        gate.begin_step(agent, 0.0, 4_000)
    gate._programs["a"].tokens = 7_000
    gate.advance(5.0)
    for agent in "ab":
        ended(gate, agent, 6.0, 4_000)
        assert gate.begin_step(agent, 7.0, 4_000) == []
    assert gate.advance(10.0) == ["a", "b"]


def test_no_request_is_held_for_longer_than_half_an_hour() -> None:
    gate, lease = ProgramGate(1_000), LeaseGate(1_000)
    for each in (gate, lease):
        each.begin_step("a", 0.0, 900)
        assert each.begin_step("b", 0.0, 800) == []
        assert each.advance(1_800.0) == ["b"]


# -- after llm-d's leases -------------------------------------------------------------------------


def test_a_session_that_is_in_is_never_held_and_pauses_the_longest_idle() -> None:
    gate = LeaseGate(10_000)
    for agent in "abc":
        gate.begin_step(agent, 0.0, 3_000)
    ended(gate, "a", 1.0, 3_000)
    ended(gate, "b", 2.0, 3_000)
    ended(gate, "c", 3.0, 3_000)
    assert gate.begin_step("c", 4.0, 4_500) == ["c"]
    assert [agent for agent, p in gate._programs.items() if p.paused] == ["a"]
    assert gate.begin_step("b", 4.0, 3_000) == ["b"]
    assert gate.begin_step("a", 4.0, 3_000) == []


def test_a_new_session_takes_the_room_of_one_that_was_idle_for_its_lease() -> None:
    gate = LeaseGate(10_000)
    gate.begin_step("a", 0.0, 6_000)
    ended(gate, "a", 1.0, 6_000)
    assert gate.begin_step("b", 2.0, 5_000) == []
    assert gate.next_wake(2.0) == 31.0
    assert gate.advance(31.0) == ["b"]
    assert gate.begin_step("a", 32.0, 6_000) == [], "it was paused"
    assert gate.leave("b", 33.0) == ["a"]


def test_paused_sessions_go_before_new_ones() -> None:
    gate = LeaseGate(10_000)
    for agent in "ab":
        gate.begin_step(agent, 0.0, 5_000)
    ended(gate, "a", 1.0, 5_000)
    gate.begin_step("b", 2.0, 6_000)
    ended(gate, "b", 2.0, 6_000)
    gate.begin_step("b", 3.0, 6_000)
    assert gate.begin_step("new", 3.0, 5_000) == []
    assert gate.begin_step("a", 4.0, 5_000) == []
    assert gate.leave("b", 5.0) == ["a", "new"]


# -- both -----------------------------------------------------------------------------------------


def test_both_finish_a_batch_that_thrashes_and_beat_no_limit_but_not_always_a_good_cap() -> None:
    """72 agents on 200,000 tokens: the real ThunderAgent took 1.0 to 1.05 times as long as ours."""
    profile = load_profile("h200-qwen3-8b").replace(kv_blocks=12_500)
    plans = synthetic(72, 8, tools=Uniform(0.5, 2.5), seed=1_000)
    capacity = profile.capacity_tokens
    for gate in (ProgramGate(capacity), LeaseGate(capacity)):
        result = simulate(plans, profile, gate, record_series=False)
        assert result.finished == 72
        cap = simulate(plans, profile, AgentCap(20), record_series=False)
        assert 0.9 < result.makespan_s / cap.makespan_s < 1.2
