"""Arms for a fleet: who routes, who governs, and each law with a Regulator for each replica.

round_robin      every agent at once, call by call in turn
sticky           every agent at once, each where its first call went: with the fewest agents
sum              the default law in one Regulator over the sum of all pools, behind `sticky`
cap_per_replica  a cap on the agents of each replica, the best one of a coarse grid
NAME             a law, in a `Fleet`
"""

from __future__ import annotations

import math

from concur_agents.core import FIRST_READING_S, Fleet, Regulator, make_law
from concur_agents.errors import ConfigError
from concur_agents.lab.bench.arms import ArmOutcome, LawArm, outcome_of, run_options, time_of
from concur_agents.lab.bench.cases import Case
from concur_agents.lab.bench.scenario import Scenario
from concur_agents.lab.bench.search import best_cap
from concur_agents.sim.replicas import (
    CappedFleet,
    FleetGate,
    RoutingGate,
    SumGate,
    UngovernedFleet,
    simulate_fleet,
)
from concur_agents.sim.result import Result

__all__ = ["FLEET_REFERENCES", "run_fleet_law", "run_fleet_reference"]


def run_fleet_law(scenario: Scenario, case: Case, seed: int, arm: LawArm) -> ArmOutcome:
    """A law on one draw of agents, in a fleet.

    Raises:
        ConfigError: an option that the law or the Fleet does not take.
    """
    arm = arm.within(scenario)
    law = arm.regulate().law
    names = [str(n) for n in range(len(case.replicas))]
    try:
        fleet = Fleet(law, names, **{"first_reading_s": FIRST_READING_S, **arm.regulator})
    except (ValueError, TypeError) as error:
        raise ConfigError(f"arm {arm.name!r}: {error}") from error
    groups = {plan.id: plan.group for plan in case.plans}
    gate = FleetGate(fleet, groups, name=arm.name, sizes_told=scenario.sizes_told)
    return outcome_of(scenario, case, seed, arm.name, _simulate(scenario, case, seed, gate))


def run_fleet_reference(scenario: Scenario, case: Case, seed: int, arm: str) -> ArmOutcome:
    """A reference on one draw of agents, in a fleet; `arm` is one of `FLEET_REFERENCES`."""
    replicas = len(case.replicas)
    if arm == "cap_per_replica":
        return _best_cap(scenario, case, seed)
    gate: RoutingGate
    if arm == "sum":
        regulator = Regulator(make_law("working_set"), first_reading_s=FIRST_READING_S)
        gate = SumGate(regulator, replicas, sizes_told=scenario.sizes_told)
    else:
        gate = UngovernedFleet(replicas, sticky=arm == "sticky")
    return outcome_of(scenario, case, seed, arm, _simulate(scenario, case, seed, gate))


def _best_cap(scenario: Scenario, case: Case, seed: int) -> ArmOutcome:
    replicas = len(case.replicas)
    runs: dict[int, Result] = {}

    def time_s(cap: int) -> float:
        runs[cap] = _simulate(scenario, case, seed, CappedFleet(replicas, cap))
        return time_of(runs[cap])

    most = math.ceil(len(case.plans) / replicas)
    least = max(1, most // 12)  # fewer agents than that leave the engines idle
    cap, tried = best_cap(time_s, most, least=least, ratio=1.5, valleys=0)
    return outcome_of(scenario, case, seed, "cap_per_replica", runs[cap], cap, tried)


FLEET_REFERENCES = ("round_robin", "sticky", "sum", "cap_per_replica")
"""Arms for a fleet that are no laws of its own."""


def _simulate(scenario: Scenario, case: Case, seed: int, gate: RoutingGate) -> Result:
    options = run_options(scenario, case, seed)
    return simulate_fleet(case.plans, case.replicas, gate, **options)
