"""A cache that was emptied, by a restart or a weight update, is not taken for a small pool."""

import pytest

from concur_agents.core import Reading, Regulator, Usage, make_law
from concur_agents.sim.profile import load_profile
from concur_agents.sim.runner import CacheEmptied, RegulatorGate, SecondTenant, simulate
from concur_agents.sim.workload import Constant, Uniform, steady, synthetic

POOL = 400_000
H100 = load_profile("h100-qwen3-8b")
PROFILE = H100.replace(kv_blocks=POOL // H100.block_size)


class Watched(RegulatorGate):
    """The least limit that was ever enforced [tokens]."""

    least_tokens = float("inf")

    def tick(self, reading: Reading | None, now: float) -> list[str]:
        woken = super().tick(reading, now)
        self.least_tokens = min(self.least_tokens, self.regulator.state.limit.tokens)
        return woken


def run(*faults, tools=None, sizes_told=True):
    """24 agents that fit a pool of 400,000 tokens together."""
    plans = synthetic(24, 14, tools=tools or Uniform(0.5, 2.5))
    gate = Watched(Regulator(make_law("working_set")), sizes_told=sizes_told)
    result = simulate(plans, PROFILE, gate, record_series=False, faults=faults)
    return gate, gate.regulator.view(result.makespan_s), result


@pytest.mark.parametrize("every_s", [1.0, 3.0, 10.0])
@pytest.mark.parametrize(
    "tools", [Uniform(0.5, 2.5), Constant(1.0), Uniform(0.0, 0.2), Uniform(2.0, 20.0)]
)
def test_weight_updates_pause_no_agent_of_a_batch_that_fits(every_s, tools):
    """Taken for a pool too small, the limit fell from 380,000 to 76,000, with 57 pauses."""
    _, view, _ = run(CacheEmptied(every_s), tools=tools)
    assert view.pauses_total == 0


@pytest.mark.parametrize("sizes_told", [True, False])
def test_the_limit_stays_through_weight_updates_every_3_s(sizes_told):
    gate, view, _ = run(CacheEmptied(3.0), sizes_told=sizes_told)
    assert gate.least_tokens == pytest.approx(0.95 * POOL, rel=0.01)
    assert view.pauses_total == 0


def test_a_long_system_prompt_hides_no_weight_update():
    """It stays cached while an agent is in a call, so no context misses whole."""
    gate = Watched(Regulator(make_law("working_set")))
    plans = synthetic(24, 14, tools=Uniform(0.5, 2.5), shared=8_000, first=(1_000, 3_000))
    result = simulate(plans, PROFILE, gate, record_series=False, faults=[CacheEmptied(3.0)])
    assert gate.regulator.view(result.makespan_s).pauses_total == 0
    assert gate.least_tokens == pytest.approx(0.95 * POOL, rel=0.01)


def test_another_tenant_is_still_noticed():
    """It holds 60 % of the pool: nothing is emptied, and what does not fit any more is evicted."""
    tenant = SecondTenant(tuple(steady(12, 20_000, steps=200, tools=Constant(0.5))), from_s=5.0)
    gate, _, _ = run(tenant, tools=Constant(8.0))
    assert gate.least_tokens < 0.8 * POOL


def returns(r, agents, now, cached):
    """All come back at once with 10,000 tokens, and find so much cached."""
    for agent in agents:
        r.begin_step(agent, now)
    for agent in agents:
        r.end_step(agent, now + 1.0, Usage(10_000, 0, cached))


def batch(agents, rounds=4):
    """So many agents have hit in each of some rounds, one every 10 s; the next is at 50 s."""
    r = Regulator(make_law("working_set"))
    reading = Reading(
        at_s=0.0,
        capacity_tokens=500_000.0,
        hit_tokens_total=10_000.0,
        query_tokens_total=1_000_000.0,
    )
    r.tick(reading, 0.0)
    for agent in agents:
        r.arrive(agent, 0.0)
    for second in range(rounds):
        returns(r, agents, 10.0 * (second + 1), 10_000 if second else 0)
    return r


def test_what_missed_between_a_restart_and_its_reading_says_nothing():
    """The counters fall at the next reading only; the miss before it had taught a pool."""
    r = batch("ab")
    r.tick(
        Reading(
            at_s=49.0,
            capacity_tokens=500_000.0,
            hit_tokens_total=10_000.0,
            query_tokens_total=1_000_000.0,
        ),
        49.0,
    )
    returns(r, "ab", 50.0, 0)
    assert r._sizes.residency.learned_tokens == 10_000
    r.tick(
        Reading(
            at_s=52.0, capacity_tokens=500_000.0, hit_tokens_total=0.0, query_tokens_total=10_000.0
        ),
        52.0,
    )
    assert r.last_snapshot.learned_tokens is None


@pytest.mark.parametrize("reports", [True, False])
def test_after_a_flush_that_was_announced_nothing_is_learned_down(reports):
    """All agents miss whole; without the word the pool was taken for one of 10,000 tokens.

    The limit is back with the next reading, whether the engine reports its pool or it was learned
    from what survived.
    """
    agents = [f"a{i}" for i in range(8)]
    r = Regulator(make_law("working_set"))
    capacity = 500_000.0 if reports else None
    for agent in agents:
        r.arrive(agent, 0.0)
    for second in range(4):
        returns(r, agents, 10.0 * (second + 1), 10_000 if second else 0)
        r.tick(Reading(at_s=10.0 * second + 12.0, capacity_tokens=capacity), 10.0 * second + 12.0)
    before = r.state.limit.tokens
    r.flushed(49.0)
    returns(r, agents, 50.0, 0)
    r.tick(Reading(at_s=52.0, capacity_tokens=capacity), 52.0)
    assert r.last_snapshot.learned_tokens is None
    assert r.state.limit.tokens >= before
