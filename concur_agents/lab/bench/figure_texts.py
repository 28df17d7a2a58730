"""What the figures of the bench are called, and what variants may cost."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["COST_GOALS", "TEXTS"]

COST_GOALS: Mapping[str, float] = {
    "capacity_unknown": 1.10,
    "sizes_unknown": 1.10,
    "max_wait": 1.10,
    "tau_half": 1.10,
    "tau_double": 1.10,
    "price_half": 1.10,
    "price_double": 1.10,
    "unequal": 1.05,
    "stale_bound": 1.10,
    "sessions_closed": 1.00,
}
"""What a variant may cost at most, over its original, by `measure`."""

TEXTS: Mapping[str, str] = {
    "vs_best_fixed_geomean": "times as fast as the best fixed cap, geomean",
    "vs_best_fixed_worst": "times as fast as the best fixed cap, worst scenario",
    "vs_cache_aimd_geomean": "times as fast as cache_aimd, geomean",
    "vs_cache_aimd_worst": "times as fast as cache_aimd, worst scenario",
    "vs_best_request_geomean": "times as fast as the best cap on calls, geomean",
    "vs_program_gate_geomean": "times as fast as a gate after ThunderAgent, geomean",
    "vs_program_gate_p90_geomean": "nine in ten done, times as fast as that gate, geomean",
    "vs_lease_gate_geomean": "times as fast as a gate after llm-d's leases, geomean",
    "vs_lease_gate_p90_geomean": "nine in ten done, times as fast as that gate, geomean",
    "vs_ungoverned_thrashing_geomean": "times as fast as ungoverned where that thrashes, geomean",
    "vs_ungoverned_fitting_worst": "times as fast as ungoverned where the batch fits, worst",
    "vs_ungoverned_worst": "times as fast as ungoverned, worst scenario",
    "free_tier_distance_geomean": "times the makespan of the free-tier bound, geomean",
    "free_tier_vs_best_fixed_geomean": "the bound over the best fixed cap: what could be won there",
    "free_tier_vs_ungoverned_thrashing_geomean": "the bound over ungoverned where that thrashes",
    "endless_vs_best_fixed_geomean": "agents finished per hour, endless source / best cap, geomean",
    "endless_vs_best_fixed_worst": "agents finished per hour, endless source / best cap, worst",
    "finish_mean_vs_best_fixed_geomean": "mean time to finish / with the best fixed cap, geomean",
    "most_open_vs_best_cap_worst": "most agents open at once / the best fixed cap, worst",
    "fleet_vs_sum_geomean": "fleet: times as fast as one governor on the sum, geomean",
    "fleet_vs_sum_p90_geomean": "fleet: nine in ten done, times as fast as on the sum, geomean",
    "fleet_vs_sticky_geomean": "fleet: times as fast as a sticky router, geomean",
    "fleet_vs_sticky_p90_geomean": "fleet: nine in ten done, times as fast as sticky, geomean",
    "fleet_vs_best_cap_geomean": "fleet: times as fast as the best cap per replica, geomean",
    "fleet_fitting_vs_sticky_worst": "fleet: times as fast as sticky where the batch fits, worst",
    "training_vs_verl_geomean": "rollouts: times as fast as verl's limiter, geomean",
    "training_vs_slime_geomean": "rollouts: times as fast as slime's limiter, geomean",
    "training_vs_prime_rl_geomean": "rollouts: times as fast as prime-rl's limiter, geomean",
    "training_vs_best_cap_geomean": "rollouts: times as fast as the best fixed cap, geomean",
    "training_fitting_worst": "rollouts: times as fast as ungoverned where all fit, worst",
    "training_first_prefills_worst": "rollouts: first prompts computed / different ones, worst",
    "training_stale_worst": "rollouts too stale with max_wait_s, less those with slime's, worst",
    "stale_bound": "rollouts: makespan with max_wait_s / without",
    "unequal": "fleet: makespan with unequal pools / with equal ones",
    "capacity_unknown": "makespan without knowing the capacity / with",
    "sizes_unknown": "makespan without knowing the prompts' sizes beforehand / with",
    "max_wait": "makespan with max_wait_s / without",
    "max_wait_excess_s": "longest wait of a started agent beyond max_wait_s + one step [s]",
    "sessions_closed": "makespan where the engine hears which agents are done / where not",
    "tau_half": "makespan with hold times halved / as they are",
    "tau_double": "makespan with hold times doubled / as they are",
    "price_half": "makespan with t_prefill believed half / as it is",
    "price_double": "makespan with t_prefill believed double / as it is",
}
"""What each figure says, by its key or `measure`."""
