"""A batch against several engines, in virtual time: who routes, and what a dead engine does."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import count
from typing import Protocol

from concur_agents.core import Fleet, Reading, Regulator, sum_of
from concur_agents.errors import ConfigError
from concur_agents.sim.counters import EngineCounters
from concur_agents.sim.engine import Engine, Event, Request
from concur_agents.sim.faults import Fault, ReplicaDies
from concur_agents.sim.gates import AgentCap, Gate, RegulatorGate, Ungoverned
from concur_agents.sim.profile import Profile
from concur_agents.sim.result import Result
from concur_agents.sim.runner import SimulatedAgent, Simulation, check_plans
from concur_agents.sim.workload import AgentPlan

__all__ = [
    "CappedFleet",
    "FleetGate",
    "RoutingGate",
    "SumGate",
    "UngovernedFleet",
    "simulate_fleet",
]

_RETRY_S = 1.0
"""From a failed call until the client tries again."""


class RoutingGate(Gate, Protocol):
    """A gate that also says which replica serves an agent's next call."""

    def replica_of(self, agent: str) -> int:
        """Where the call that `agent` is about to send goes."""
        ...

    def tick_replica(self, replica: int, reading: Reading | None, now: float) -> list[str]:
        """A poll of one replica came back; None: it failed."""
        ...

    def fail_step(self, agent: str, now: float) -> list[str]:
        """Its call has failed."""
        ...


class FleetGate(RegulatorGate):
    """The fleet under test: a Regulator for each replica.

    Args:
        fleet: whose pools are the replicas, in order.
        groups: of which group an agent is.
        name: for tables; default: the law's.
        sizes_told: see `RegulatorGate`.
    """

    def __init__(
        self,
        fleet: Fleet,
        groups: Mapping[str, str | None] | None = None,
        *,
        name: str | None = None,
        sizes_told: bool = True,
    ) -> None:
        self.fleet, self._groups = fleet, groups or {}
        super().__init__(fleet, name, sizes_told=sizes_told)  # type: ignore[arg-type]  # same door
        self._replicas = {pool.name: n for n, pool in enumerate(fleet.pools)}

    def arrive(self, agent: str, now: float, prompt_tokens: int) -> list[str]:
        """See `Gate`."""
        size = prompt_tokens if self._sizes_told else None
        return self.fleet.arrive(agent, now, prompt_tokens=size, group=self._groups.get(agent))

    def replica_of(self, agent: str) -> int:
        """See `RoutingGate`."""
        return self._replicas[self.fleet.pool_of(agent) or ""]

    def tick_replica(self, replica: int, reading: Reading | None, now: float) -> list[str]:
        """See `RoutingGate`."""
        return self.fleet.tick(reading, now, list(self._replicas)[replica])

    def fail_step(self, agent: str, now: float) -> list[str]:
        """See `RoutingGate`."""
        return self.fleet.end_step(agent, now, None)


class UngovernedFleet(Ungoverned):
    """Every agent runs at once, behind a router.

    Args:
        replicas: how many there are.
        sticky: an agent's calls go where its first one went, to the replica with fewest agents,
            until a call fails there; else call by call in turn.
    """

    def __init__(self, replicas: int, *, sticky: bool) -> None:
        self.name = "sticky" if sticky else "round_robin"
        self._turn = count()
        self._replicas, self._sticky = replicas, sticky
        self._failing: set[int] = set()
        self._home: dict[str, int] = {}
        self._agents = Counter(dict.fromkeys(range(replicas), 0))

    def replica_of(self, agent: str) -> int:
        """See `RoutingGate`."""
        if not self._sticky:
            return next(self._turn) % self._replicas
        if agent not in self._home:
            well = set(self._agents) - self._failing or self._agents
            home = self._home[agent] = min(well, key=lambda n: (self._agents[n], n))
            self._agents[home] += 1
        return self._home[agent]

    def leave(self, agent: str, now: float) -> list[str]:
        """See `Gate`."""
        self._go(agent)
        return super().leave(agent, now)

    def tick_replica(self, replica: int, reading: Reading | None, now: float) -> list[str]:
        """A replica whose page answers is well again."""
        if reading is not None:
            self._failing.discard(replica)
        return []

    def fail_step(self, agent: str, now: float) -> list[str]:
        """Its next call goes to another replica, as with a router that checks their health."""
        self._failing.add(self._home.get(agent, -1))
        self._go(agent)
        return []

    def _go(self, agent: str) -> None:
        if agent in self._home:
            self._agents[self._home.pop(agent)] -= 1


class CappedFleet(UngovernedFleet):
    """At most so many agents in each replica at once, the others in one queue; sticky."""

    def __init__(self, replicas: int, agents: int) -> None:
        super().__init__(replicas, sticky=True)
        self.name = f"cap_per_replica({agents})"
        self._places = AgentCap(replicas * agents)  # with the emptiest replica first, as many each

    def arrive(self, agent: str, now: float, prompt_tokens: int) -> list[str]:
        """See `Gate`."""
        return self._places.arrive(agent, now, prompt_tokens)

    def leave(self, agent: str, now: float) -> list[str]:
        """See `Gate`."""
        super().leave(agent, now)
        return self._places.leave(agent, now)


class SumGate(RegulatorGate):
    """One Regulator over the sum of all pools, behind a sticky router."""

    def __init__(self, regulator: Regulator, replicas: int, *, sizes_told: bool = True) -> None:
        super().__init__(regulator, f"{regulator.law.name} on the sum", sizes_told=sizes_told)
        self._router = UngovernedFleet(replicas, sticky=True)
        self._readings: list[Reading | None] = [None] * replicas

    def replica_of(self, agent: str) -> int:
        """See `RoutingGate`."""
        return self._router.replica_of(agent)

    def leave(self, agent: str, now: float) -> list[str]:
        """See `Gate`."""
        self._router.leave(agent, now)
        return super().leave(agent, now)

    def tick_replica(self, replica: int, reading: Reading | None, now: float) -> list[str]:
        """See `RoutingGate`."""
        self._router.tick_replica(replica, reading, now)
        self._readings[replica] = reading
        if replica + 1 < len(self._readings):
            return []
        known = [reading for reading in self._readings if reading is not None]
        return self.regulator.tick(sum_of(known, now) if known else None, now)

    def fail_step(self, agent: str, now: float) -> list[str]:
        """See `RoutingGate`."""
        self._router.fail_step(agent, now)
        return self.regulator.end_step(agent, now, None)


def simulate_fleet(
    plans: Sequence[AgentPlan],
    profiles: Sequence[Profile],
    gate: RoutingGate,
    *,
    poll_interval_s: float = 1.0,
    seed: int = 0,
    record_series: bool = True,
    faults: Sequence[Fault] = (),
    horizon_s: float = math.inf,
) -> Result:
    """Run a batch against several engines, as `simulate` does against one.

    Arguments and errors are those of `simulate`, but for:

    Args:
        profiles: the engines.
        gate: who may run, and where; it gets a reading of each engine.
        record_series: the samples are of all engines together.
    """
    for profile in profiles:
        check_plans(plans, profile)
    if not poll_interval_s > 0 or not horizon_s > 0:
        raise ConfigError("poll_interval_s and horizon_s must be above 0 s")
    simulation = _FleetSimulation(
        plans, profiles, gate, poll_interval_s, seed, record_series, faults
    )
    return simulation.run(horizon_s)


class _Replicas:
    """Several engines behind the calls that the runner makes to one."""

    def __init__(self, profiles: Sequence[Profile]) -> None:
        self.engines = [Engine(profile) for profile in profiles]

    def next_event_s(self) -> float | None:
        events_s = [engine.next_event_s() for engine in self.engines]
        return min((at_s for at_s in events_s if at_s is not None), default=None)

    def advance(self, to_s: float) -> list[Event]:
        return [event for engine in self.engines for event in engine.advance(to_s)]

    def counters(self) -> EngineCounters:
        counters = [engine.counters() for engine in self.engines]
        sums = {
            field.name: sum(getattr(one, field.name) for one in counters)
            for field in dataclasses.fields(EngineCounters)
        }
        sums["at_s"], sums["block_size"] = counters[0].at_s, counters[0].block_size
        sums["kv_usage"] /= len(counters)
        return EngineCounters(**sums)

    def restart(self) -> None:
        for engine in self.engines:
            engine.restart()


class _FleetSimulation(Simulation):
    """The state of one run against several engines."""

    gate: RoutingGate

    def __init__(
        self,
        plans: Sequence[AgentPlan],
        profiles: Sequence[Profile],
        gate: RoutingGate,
        poll_interval_s: float,
        seed: int,
        record_series: bool,
        faults: Sequence[Fault],
    ) -> None:
        self._profiles = profiles
        self._served_by: dict[str, int] = {}  # request in flight -> replica
        self._dead: set[int] = set()
        super().__init__(plans, profiles[0], gate, poll_interval_s, seed, record_series, faults)
        for fault in faults:
            if isinstance(fault, ReplicaDies):
                self._at(fault.at_s, partial(self._die, fault.replica))
                if fault.to_s < math.inf:
                    self._at(fault.to_s, partial(self._dead.discard, fault.replica))

    def _make_engine(self) -> _Replicas:
        return _Replicas(self._profiles)

    def _tick(self, lost: bool) -> None:
        for n, engine in enumerate(self.engine.engines):
            failed = lost or n in self._dead
            reading = None if failed else self._reading(engine.counters())
            self._let_in(self.gate.tick_replica(n, reading, self.now))

    def _call(self, agent: SimulatedAgent) -> None:
        replica = self.gate.replica_of(agent.plan.id)
        if replica in self._dead:
            self._at(self.now, partial(self._fail, agent))
            return
        name = f"{agent.plan.id}/{agent.k}"
        self._served_by[name] = replica
        self._on_finish[name] = partial(self._end_call, agent)
        request = Request(name, agent.step.prompt, agent.step.output, self.now)
        self.engine.engines[replica].submit(request)

    def _end_call(self, agent: SimulatedAgent, request: Request) -> None:
        del self._served_by[request.id]
        super()._end_call(agent, request)

    def _fail(self, agent: SimulatedAgent) -> None:
        """The agent's call has failed: it is at a boundary again a second later."""
        self._let_in(self.gate.fail_step(agent.plan.id, self.now))
        self._at(self.now + _RETRY_S, partial(self._stand_at_boundary, agent))

    def _die(self, replica: int) -> None:
        self._dead.add(replica)
        engine = self.engine.engines[replica]
        lost = [name for name, at in self._served_by.items() if at == replica]
        for name in lost:
            engine.cancel(name, self.now)
            del self._on_finish[name], self._served_by[name]
        engine.restart()
        for name in lost:
            self._fail(self.agents[name.rpartition("/")[0]])
