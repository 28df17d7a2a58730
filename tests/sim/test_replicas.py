"""A batch against several engines, in virtual time."""

from collections import Counter

import pytest

from concur_agents.core import Fleet, Regulator, make_law
from concur_agents.errors import ConfigError
from concur_agents.sim.faults import ReplicaDies
from concur_agents.sim.profile import load_profile
from concur_agents.sim.replicas import (
    CappedFleet,
    FleetGate,
    RoutingGate,
    SumGate,
    UngovernedFleet,
    simulate_fleet,
)
from concur_agents.sim.runner import AgentCap, Ungoverned, simulate
from concur_agents.sim.timing import Constant
from concur_agents.sim.workload import synthetic

SMALL = load_profile("h100-qwen3-8b").replace(kv_blocks=1000)
PLANS = synthetic(24, 6, first=(1000, 3000), shared=500, tools=Constant(0.5))
FEW = PLANS[:4]


def fleet_gate(pools: int = 4, law: str = "working_set", **options: object) -> FleetGate:
    names = [str(n) for n in range(pools)]
    return FleetGate(Fleet(make_law(law, **options), names, first_reading_s=1.0))


GATES = [
    UngovernedFleet(4, sticky=False),
    UngovernedFleet(4, sticky=True),
    CappedFleet(4, 2),
    SumGate(Regulator(make_law("working_set"), first_reading_s=1.0), 4),
    fleet_gate(),
]


def by_name(gate: RoutingGate) -> str:
    return gate.name


@pytest.mark.parametrize("gate", GATES, ids=by_name)
def test_every_agent_finishes_though_a_replica_dies_and_stays_dead(gate: RoutingGate) -> None:
    result = simulate_fleet(PLANS, [SMALL] * 4, gate, faults=[ReplicaDies(1, 3.0)])

    assert result.finished == 24


def test_with_one_replica_a_router_changes_nothing() -> None:
    alone = simulate(PLANS, SMALL, Ungoverned())
    for sticky in (True, False):
        routed = simulate_fleet(PLANS, [SMALL], UngovernedFleet(1, sticky=sticky))
        assert routed.rows == alone.rows


def test_a_cap_per_replica_is_a_cap_on_agents_where_there_is_one() -> None:
    alone = simulate(PLANS, SMALL, AgentCap(3))

    assert simulate_fleet(PLANS, [SMALL], CappedFleet(1, 3)).rows == alone.rows


def test_a_cap_per_replica_holds_in_each() -> None:
    gate = CappedFleet(4, 2)
    most: Counter[int] = Counter()
    inside: Counter[int] = Counter()
    homes: dict[str, int] = {}

    def replica_of(agent: str) -> int:
        home = UngovernedFleet.replica_of(gate, agent)
        if agent not in homes:
            homes[agent] = home
            inside[home] += 1
            most[home] = max(most[home], inside[home])
        assert homes[agent] == home
        return home

    def leave(agent: str, now: float) -> list[str]:
        inside[homes[agent]] -= 1
        return CappedFleet.leave(gate, agent, now)

    gate.replica_of, gate.leave = replica_of, leave  # type: ignore[method-assign]
    simulate_fleet(PLANS, [SMALL] * 4, gate)

    assert most == {0: 2, 1: 2, 2: 2, 3: 2}


def test_sticky_finds_histories_that_round_robin_loses() -> None:
    hits = [
        simulate_fleet(FEW, [SMALL] * 4, UngovernedFleet(4, sticky=sticky)).hit_rate
        for sticky in (False, True)
    ]

    assert hits[0] is not None
    assert hits[1] is not None
    assert hits[1] > hits[0] + 0.1


def test_a_fleet_in_which_everything_fits_is_not_noticed() -> None:
    sticky = simulate_fleet(FEW, [SMALL] * 4, UngovernedFleet(4, sticky=True))
    governed = simulate_fleet(FEW, [SMALL] * 4, fleet_gate())

    assert governed.makespan_s <= 1.005 * sticky.makespan_s


def test_a_fleet_that_hears_no_sizes_lets_every_agent_in_at_last() -> None:
    fleet = Fleet(make_law("working_set"), ["0", "1"], first_reading_s=1.0)
    result = simulate_fleet(PLANS, [SMALL] * 2, FleetGate(fleet, sizes_told=False))

    assert result.finished == 24


def test_every_plan_must_fit_into_every_replica() -> None:
    tiny = SMALL.replace(kv_blocks=10)
    with pytest.raises(ConfigError, match="needs a context"):
        simulate_fleet(FEW, [SMALL, tiny], UngovernedFleet(2, sticky=True))
