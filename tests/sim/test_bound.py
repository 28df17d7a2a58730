import pytest

from concur_agents.sim import runner
from concur_agents.sim.bound import free_tier_bound
from concur_agents.sim.profile import load_profile
from concur_agents.sim.runner import AgentCap, simulate
from concur_agents.sim.workload import Constant, synthetic

H100 = load_profile("h100-qwen3-8b")


def test_the_free_tier_bound_recomputes_nothing_and_beats_every_cap() -> None:
    profile = H100.replace(kv_blocks=1500)
    plans = synthetic(
        24, 6, first=(1000, 1000), gen=(50, 50), obs=(100, 100), tools=Constant(1.0), shared=0
    )
    bound = free_tier_bound(plans, profile)
    assert bound.hit_deficit == 0.0
    assert bound.preemptions == 0
    best = min(simulate(plans, profile, AgentCap(n)).makespan_s for n in (4, 8, 10, 12, 16, 24))
    assert bound.makespan_s < 0.9 * best


def test_the_free_tier_bound_keeps_calls_in_flight_inside_the_pool() -> None:
    """Two agents whose contexts only fit one after the other, with tools of no length."""
    plans = synthetic(
        2, 1, first=(900, 900), gen=(100, 100), obs=(1, 1), tools=Constant(0), shared=0
    )
    tight = free_tier_bound(plans, H100.replace(kv_blocks=1600 // 16))
    loose = free_tier_bound(plans, H100.replace(kv_blocks=3200 // 16))
    first, second = tight.rows
    assert second.start_s >= first.finish_s
    assert loose.makespan_s < 0.7 * tight.makespan_s


def test_a_shared_prefix_counts_once_for_the_free_tier_bound() -> None:
    plans = synthetic(2, 1, first=(100, 100), gen=(100, 100), obs=(1, 1), shared=1000)
    bound = free_tier_bound(plans, H100.replace(kv_blocks=1408 // 16))
    first, second = bound.rows
    assert second.start_s < first.finish_s


def test_the_bound_is_still_found_beside_the_runner_for_one_release() -> None:
    with pytest.warns(DeprecationWarning, match=r"concur_agents\.sim\.bound\.free_tier_bound"):
        assert runner.free_tier_bound is free_tier_bound
