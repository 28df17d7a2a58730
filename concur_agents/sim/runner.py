"""A batch of agents against the engine, in virtual time.

Each agent is a closed loop: ask to start, then gate -> LLM call -> tool, step by step, then leave.
The runner holds a heap of what is to come, asks the engine when it has something to say, jumps to
whatever is first and never sleeps. Who may run is the gate's decision: a `Regulator` behind
`RegulatorGate`, or one of the references (`Ungoverned`, `RequestCap`). The gate is driven as a real
host drives it: through the same calls, with a reading of the engine's counters every poll interval.

At one instant, in this order: what the engine finished, then agents in the order in which their
instants were planned, then the poll, then the gate's own wake-up. Nothing else decides, so the same
arguments give the same `Result`, to the byte.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from concur_agents import _moved
from concur_agents.core import Reading, Usage
from concur_agents.errors import ConcurError, ConfigError
from concur_agents.sim.counters import EngineCounters
from concur_agents.sim.engine import Engine, Request
from concur_agents.sim.faults import (
    CachedHidden,
    CacheEmptied,
    CapacityHidden,
    EngineRestart,
    Fault,
    MetricsLost,
    SecondTenant,
    WeightUpdate,
)
from concur_agents.sim.gates import AgentCap, Gate, Gauges, RegulatorGate, RequestCap, Ungoverned
from concur_agents.sim.profile import Profile
from concur_agents.sim.result import AgentRow, Result, SeriesPoint, SimulatedCall, make_result
from concur_agents.sim.workload import AgentPlan, PlanStep

__all__ = [
    "AgentCap",
    "AgentRow",
    "CacheEmptied",
    "CachedHidden",
    "CapacityHidden",
    "EngineRestart",
    "Fault",
    "Gate",
    "Gauges",
    "MetricsLost",
    "RegulatorGate",
    "RequestCap",
    "Result",
    "SecondTenant",
    "SeriesPoint",
    "SimulatedCall",
    "Ungoverned",
    "check_plans",
    "simulate",
]
# Gates, faults and results have files of their own; a caller of `simulate` finds them here too.

_STALLED_POLLS = 10_000
"""Polls in a row in which nothing at all happens before the runner gives up."""

_SAMPLE_S = 1.0
"""Between two samples of the series."""

_TIMER_S = 1e-3
"""A gate that wants to be woken at once, again and again, is woken once a millisecond, as by a
host's timer.
"""


def simulate(
    plans: Sequence[AgentPlan],
    profile: Profile,
    gate: Gate,
    *,
    poll_interval_s: float = 1.0,
    seed: int = 0,
    record_series: bool = True,
    faults: Sequence[Fault] = (),
    horizon_s: float = math.inf,
    closes_sessions: bool = False,
) -> Result:
    """Run a batch to its end, or to a horizon.

    Args:
        plans: the agents, in the order in which they arrive if they arrive at once.
        profile: the engine.
        gate: who may run. It is used up: make a new one for every run.
        poll_interval_s: how often the gate gets a reading of the engine [s].
        seed: shifts the polls after the first by up to one interval; 0: polls at whole multiples
            of the interval.
        record_series: take a sample every second.
        faults: what goes wrong.
        horizon_s: cut the run so long after the first arrival [s].
        closes_sessions: the engine is told of each agent that is done, and evicts its context next.

    Raises:
        ConfigError: there is no agent, an id is used twice, or a plan does not fit the engine.
        ConcurError: the gate lets no agent in although nothing runs.
    """
    if not poll_interval_s > 0:
        raise ConfigError(f"poll_interval_s must be above 0 s, got {poll_interval_s}")
    if not horizon_s > 0:
        raise ConfigError(f"horizon_s must be above 0 s, got {horizon_s}")
    check_plans(plans, profile)
    for fault in faults:
        if isinstance(fault, SecondTenant):
            check_plans(fault.plans, profile)
    simulation = Simulation(plans, profile, gate, poll_interval_s, seed, record_series, faults)
    simulation.closes_sessions = closes_sessions
    return simulation.run(horizon_s)


def check_plans(plans: Sequence[AgentPlan], profile: Profile) -> None:
    """Raise ConfigError if there is no agent, an id is used twice, or a plan does not fit."""
    if not plans:
        raise ConfigError("nothing to run: the batch has no agent")
    most = profile.longest_context
    seen: set[str] = set()
    for plan in plans:
        if plan.id in seen:
            raise ConfigError(
                f"agent id {plan.id!r} is in the batch twice; give every agent its own"
            )
        seen.add(plan.id)
        if not plan.steps:
            raise ConfigError(f"agent {plan.id!r} has no steps; leave it out")
        if plan.peak_tokens > most:
            raise ConfigError(
                f"agent {plan.id!r} needs a context of {plan.peak_tokens} tokens, profile "
                f"{profile.name!r} holds {most}; load the recording with max_context={most}, "
                "or take a larger profile"
            )


class SimulatedAgent:
    """One governed agent on its way."""

    __slots__ = ("calls", "gate_s", "k", "pauses", "plan", "start_s", "waits_to_start")

    def __init__(self, plan: AgentPlan) -> None:
        self.plan = plan
        self.k = 0  # the call it stands before, or is in
        self.gate_s = math.nan  # when it reached the gate before that call
        self.start_s: float | None = None  # when that call was sent; None: not yet
        self.waits_to_start = False  # it has asked for a place and not got it yet
        self.pauses = 0
        self.calls: list[SimulatedCall] = []

    @property
    def step(self) -> PlanStep:
        return self.plan.steps[self.k]

    @property
    def waits(self) -> bool:
        """It stands at the gate."""
        return not math.isnan(self.gate_s) and self.start_s is None


class Simulation:
    """The state of one run."""

    def __init__(
        self,
        plans: Sequence[AgentPlan],
        profile: Profile,
        gate: Gate,
        poll_interval_s: float,
        seed: int,
        record_series: bool,
        faults: Sequence[Fault],
    ) -> None:
        self.plans = plans
        self.profile = profile
        self.gate = gate
        self.seed = seed
        self.engine = self._make_engine()
        self.agents = {plan.id: SimulatedAgent(plan) for plan in plans}
        self.unfinished = len(plans)
        self.closes_sessions = False
        self.now = 0.0
        self.preemptions = 0
        # what is to come
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._planned = 0
        self._on_finish: dict[str, Callable[[Request], None]] = {}
        # the poller
        self._poll_interval_s = poll_interval_s
        # The first poll comes with the first agent, as a Governor's does; then the phase.
        phase_s = random.Random(seed).uniform(0.0, poll_interval_s) if seed else 0.0
        self._poll_s = min((plan.arrive_s for plan in plans), default=0.0)
        self._polls_s = self._poll_s + (phase_s or poll_interval_s)
        self._lost = [fault for fault in faults if isinstance(fault, MetricsLost)]
        self._hide_capacity = any(isinstance(fault, CapacityHidden) for fault in faults)
        self._hide_cached = any(isinstance(fault, CachedHidden) for fault in faults)
        self._stalled_polls = 0
        self._wake_s = math.inf  # when the gate is woken, if nothing happens before
        # the series
        self._sample_s = 0.0 if record_series else math.inf
        self._samples: list[SeriesPoint] = []
        self._sampled = self.engine.counters()
        # who is active and who waits, and the first integrated over time
        self._active = self._waiting = 0
        self._counted_s = 0.0
        self._active_s = 0.0
        # agents that were let in and have not finished
        self._open = self._most_open = 0

        for plan in plans:
            self._at(plan.arrive_s, partial(self._arrive, self.agents[plan.id]))
        for fault in faults:
            if isinstance(fault, EngineRestart):
                self._at(fault.at_s, self.engine.restart)
            elif isinstance(fault, CacheEmptied):
                self._at(fault.every_s, partial(self._empty_cache, fault.every_s))
            elif isinstance(fault, WeightUpdate):
                self._at(fault.every_s, partial(self._begin_update, fault))
            elif isinstance(fault, SecondTenant):
                for plan in fault.plans:
                    from_s = fault.from_s + plan.arrive_s
                    self._at(from_s, partial(self._tenant_call, plan, 0, fault.to_s))

    def _make_engine(self) -> Any:
        """One engine; a fleet has several behind the same calls."""
        return Engine(self.profile)

    def run(self, horizon_s: float) -> Result:
        gate, engine = self.gate, self.engine
        cut_s = min(plan.arrive_s for plan in self.plans) + horizon_s
        while self.unfinished:
            engine_s = engine.next_event_s()
            wake_s = gate.next_wake(self.now)
            if wake_s is not None:  # one that is planned is not put off by what happens before it
                self._wake_s = min(self._wake_s, max(wake_s, self.now + _TIMER_S))
            self.now = min(
                self._heap[0][0] if self._heap else math.inf,
                self._poll_s,
                self._sample_s,
                math.inf if engine_s is None else engine_s,
                self._wake_s,
            )
            if self.now > cut_s:
                self.now = cut_s
                break
            for event in engine.advance(self.now):
                if event.kind == "finished":
                    self._on_finish.pop(event.request.id)(event.request)
                elif event.kind == "preempted":
                    self.preemptions += 1
            while self._heap and self._heap[0][0] <= self.now:
                heapq.heappop(self._heap)[2]()
            if self._poll_s <= self.now:
                self._poll()
            if self._wake_s <= self.now:
                self._wake_s = math.inf
                self._let_in(gate.advance(self.now))
            if self._sample_s <= self.now:
                self._sample()
        return self._result()

    def _empty_cache(self, every_s: float) -> None:
        self.engine.reset_cache()
        self._at(self.now + every_s, partial(self._empty_cache, every_s))

    def _begin_update(self, update: WeightUpdate) -> None:
        self.engine.halt(self.now + update.lasts_s)
        self._at(self.now + update.lasts_s, partial(self._end_update, update))
        if update.is_announced and isinstance(self.gate, RegulatorGate):
            self._let_in(self.gate.update_begins(self.now))

    def _end_update(self, update: WeightUpdate) -> None:
        if update.flushes:
            self.engine.reset_cache()
        self._at(self.now + update.every_s, partial(self._begin_update, update))
        if update.is_announced and isinstance(self.gate, RegulatorGate):
            self._let_in(self.gate.update_ends(self.now, flushed=update.flushes))

    # -- one agent's loop

    def _at(self, at_s: float, do: Callable[[], None]) -> None:
        self._planned += 1
        heapq.heappush(self._heap, (at_s, self._planned, do))

    def _arrive(self, agent: SimulatedAgent) -> None:
        agent.gate_s = self.now
        agent.waits_to_start = True
        self._count(waiting=1)
        self._let_in(self.gate.arrive(agent.plan.id, self.now, agent.step.prompt_tokens))

    def _stand_at_boundary(self, agent: SimulatedAgent) -> None:
        agent.gate_s = self.now
        agent.start_s = None
        self._count(active=-1, waiting=1)
        self._let_in(self.gate.begin_step(agent.plan.id, self.now, agent.step.prompt_tokens))
        agent.pauses += agent.start_s is None

    def _let_in(self, woken: list[str]) -> None:
        todo = deque(woken)
        while todo:
            self._stalled_polls = 0
            agent = self.agents[todo.popleft()]
            if agent.start_s is not None:
                raise ConcurError(
                    f"gate {self.gate.name!r} let in agent {agent.plan.id!r}, which does not wait"
                )
            if agent.waits_to_start:  # it has its place; now it stands before its first call
                agent.waits_to_start = False
                self._open += 1
                self._most_open = max(self._most_open, self._open)
                tokens = agent.step.prompt_tokens
                todo.extend(self.gate.begin_step(agent.plan.id, self.now, tokens))
                continue
            self._count(active=1, waiting=-1)
            agent.start_s = self.now
            self._call(agent)

    def _call(self, agent: SimulatedAgent) -> None:
        self._send(f"{agent.plan.id}/{agent.k}", agent.step, partial(self._end_call, agent))

    def _send(self, name: str, step: PlanStep, then: Callable[[Request], None]) -> None:
        self._on_finish[name] = then
        self.engine.submit(Request(name, step.prompt, step.output, self.now))

    def _end_call(self, agent: SimulatedAgent, request: Request) -> None:
        step = agent.step
        cached = request.cached_tokens or 0
        assert agent.start_s is not None
        call = SimulatedCall(
            agent.gate_s, agent.start_s, self.now, step.prompt_tokens, cached, step.output.tokens
        )
        agent.calls.append(call)
        usage = Usage(call.prompt_tokens, call.output_tokens, None if self._hide_cached else cached)
        self._let_in(self.gate.end_step(agent.plan.id, self.now, usage))
        agent.k += 1
        if agent.k < len(agent.plan.steps):
            self._at(self.now + step.tool_s, partial(self._stand_at_boundary, agent))
        else:
            self.unfinished -= 1
            self._open -= 1
            self._count(active=-1)
            if self.closes_sessions:
                self.engine.cache.let_go((*step.prompt, step.output))
            self._let_in(self.gate.leave(agent.plan.id, self.now))

    def _tenant_call(self, plan: AgentPlan, k: int, to_s: float) -> None:
        if self.now >= to_s:
            return
        step = plan.steps[k % len(plan.steps)]
        again = partial(self._tenant_call, plan, k + 1, to_s)
        self._send(
            f"second tenant {plan.id}/{k}",
            step,
            lambda _: self._at(self.now + max(step.tool_s, _TIMER_S), again),
        )

    # -- the poller and the series

    def _poll(self) -> None:
        self._poll_s, self._polls_s = self._polls_s, self._polls_s + self._poll_interval_s
        idle = not self._heap and self.engine.next_event_s() is None
        self._stalled_polls = self._stalled_polls + 1 if idle else 0
        if self._stalled_polls > _STALLED_POLLS:
            raise ConcurError(
                f"gate {self.gate.name!r} lets no agent in: "
                f"{self._waiting} agents wait, nothing runs"
            )
        lost = any(fault.from_s <= self.now < fault.to_s for fault in self._lost)
        self._tick(lost)

    def _tick(self, lost: bool) -> None:
        reading = None if lost else self._reading(self.engine.counters())
        self._let_in(self.gate.tick(reading, self.now))

    def _reading(self, at: EngineCounters) -> Reading:
        return Reading(
            at_s=self.now,
            kv_usage=at.kv_usage,
            capacity_tokens=None if self._hide_capacity else at.capacity_tokens,
            # as of finished prefills, which is what probes prefer of what a real page offers
            hit_tokens_total=at.cached_tokens_total,
            query_tokens_total=at.prompt_tokens_total,
            running=at.running,
            waiting=at.waiting,
            preemptions_total=at.preemptions_total,
            computed_tokens_total=at.computed_tokens_total,
            prefill_s_total=at.prefill_s_total,
            generated_tokens_total=at.generated_tokens_total,
            decode_s_total=at.decode_s_total,
            # as vLLM's page, which says how large its tier is once something is in it
            host_capacity_tokens=at.host_capacity_tokens if at.stored_tokens_total else None,
            host_hit_tokens_total=at.cached_host_tokens_total,
        )

    def _sample(self) -> None:
        at, last = self.engine.counters(), self._sampled
        if at.steps_total < last.steps_total:  # it has restarted: counters began at 0 again
            last = self._make_engine().counters()
        queries = at.query_tokens_total - last.query_tokens_total
        hits = at.hit_tokens_total - last.hit_tokens_total
        self._samples.append(
            SeriesPoint(
                self.now,
                self._active,
                self._waiting,
                at.running,
                at.waiting,
                at.kv_usage,
                hits / queries if queries else None,
                (at.generated_tokens_total - last.generated_tokens_total) / _SAMPLE_S,
                (at.computed_tokens_total - last.computed_tokens_total) / _SAMPLE_S,
                *self.gate.gauges(self.now),
            )
        )
        self._sampled = at
        self._sample_s += _SAMPLE_S

    def _count(self, *, active: int = 0, waiting: int = 0) -> None:
        self._active_s += self._active * (self.now - self._counted_s)
        self._counted_s = self.now
        self._active += active
        self._waiting += waiting

    # -- the end

    def _result(self) -> Result:
        self._count()
        begun = [agent for agent in self.agents.values() if agent.plan.arrive_s <= self.now]
        return make_result(
            self.plans,
            self.profile,
            tuple(_row(agent) for agent in self.agents.values()),
            gate=self.gate.name,
            seed=self.seed,
            end_s=self.now,
            still_waiting=[(agent.k, self.now - agent.gate_s) for agent in begun if agent.waits],
            preemptions=self.preemptions,
            active_s=self._active_s,
            most_open=self._most_open,
            series=tuple(self._samples),
        )


def _row(agent: SimulatedAgent) -> AgentRow:
    plan, calls = agent.plan, tuple(agent.calls)
    start_s = calls[0].start_s if calls else math.inf if agent.start_s is None else agent.start_s
    finish_s = calls[-1].end_s if len(calls) == len(plan.steps) else math.inf
    return AgentRow(plan.id, plan.group, plan.arrive_s, start_s, finish_s, agent.pauses, calls)


def __getattr__(name: str) -> Any:
    return _moved.attribute(__name__, {"free_tier_bound": "sim.bound:free_tier_bound"}, name)
