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

import dataclasses
import heapq
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise, takewhile
from typing import Any, NamedTuple, Protocol

from concur_agents.core import Reading, Regulator, Usage
from concur_agents.errors import ConcurError, ConfigError
from concur_agents.sim.engine import Engine, Request, Run
from concur_agents.sim.profile import Profile
from concur_agents.sim.workload import AgentPlan, PlanStep, Prompt, common_tokens

__all__ = [
    "AgentRow",
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
    "free_tier_bound",
    "simulate",
]

_STALLED_POLLS = 10_000
"""Polls in a row in which nothing at all happens before the runner gives up."""

_SAMPLE_S = 1.0
"""Between two samples of the series."""

_TIMER_S = 1e-3
"""A gate that wants to be woken at once, again and again, is woken once a millisecond, as by a
host's timer.
"""


# --- gates ---------------------------------------------------------------------------------------


class Gauges(NamedTuple):
    """What a gate shows of itself; None: it has no such number."""

    pressure_tokens: float | None = None
    limit_agents: float | None = None
    limit_tokens: float | None = None


class Gate(Protocol):
    """Who may run. Every call returns the agents it has just let in."""

    @property
    def name(self) -> str:
        """For tables."""
        ...

    def arrive(self, agent: str, now: float, prompt_tokens: int) -> list[str]:
        """`agent` asks to start; absent from the list: it will be in a later one."""
        ...

    def begin_step(self, agent: str, now: float, prompt_tokens: int) -> list[str]:
        """`agent` stands before a call; absent from the list: it will be in a later one."""
        ...

    def end_step(self, agent: str, now: float, usage: Usage) -> list[str]:
        """Its call is over."""
        ...

    def leave(self, agent: str, now: float) -> list[str]:
        """It is done."""
        ...

    def tick(self, reading: Reading | None, now: float) -> list[str]:
        """A poll of the engine came back; None: it failed."""
        ...

    def advance(self, now: float) -> list[str]:
        """Time has passed."""
        ...

    def next_wake(self, now: float) -> float | None:
        """When to call `advance`; None: no need."""
        ...

    def gauges(self, now: float) -> Gauges:
        """For the series."""
        ...


class Ungoverned:
    """Everybody runs at once."""

    name = "ungoverned"

    def arrive(self, agent: str, now: float, prompt_tokens: int) -> list[str]:
        """See `Gate`."""
        return [agent]

    def begin_step(self, agent: str, now: float, prompt_tokens: int) -> list[str]:
        """See `Gate`."""
        return [agent]

    def end_step(self, agent: str, now: float, usage: Usage) -> list[str]:
        """See `Gate`."""
        return []

    def leave(self, agent: str, now: float) -> list[str]:
        """See `Gate`."""
        return []

    def tick(self, reading: Reading | None, now: float) -> list[str]:
        """See `Gate`."""
        return []

    def advance(self, now: float) -> list[str]:
        """See `Gate`."""
        return []

    def next_wake(self, now: float) -> float | None:
        """See `Gate`."""
        return None

    def gauges(self, now: float) -> Gauges:
        """See `Gate`."""
        return Gauges()


class RequestCap(Ungoverned):
    """A semaphore around each call: what most people try first. It does not know agents."""

    def __init__(self, calls: int) -> None:
        if calls < 1:
            raise ConfigError(f"a request cap must be at least 1 call, got {calls}")
        self.name = f"request_cap({calls})"
        self._calls = calls
        self._in_flight = 0
        self._waiting: deque[str] = deque()

    def begin_step(self, agent: str, now: float, prompt_tokens: int) -> list[str]:
        """See `Gate`."""
        if self._in_flight >= self._calls:
            self._waiting.append(agent)
            return []
        self._in_flight += 1
        return [agent]

    def end_step(self, agent: str, now: float, usage: Usage) -> list[str]:
        """See `Gate`."""
        if self._waiting:
            return [self._waiting.popleft()]
        self._in_flight -= 1
        return []

    def gauges(self, now: float) -> Gauges:
        """See `Gate`."""
        return Gauges(limit_agents=float(self._calls))


class RegulatorGate:
    """The Regulator under test: every call goes to it as it is.

    With `sizes_told=False` it does not hear how large prompts are before they are sent, as from a
    loop that only tells `usage` afterwards.
    """

    def __init__(
        self, regulator: Regulator, name: str | None = None, *, sizes_told: bool = True
    ) -> None:
        self.regulator = regulator
        self.name = name or regulator.law.name
        self._sizes_told = sizes_told

    def arrive(self, agent: str, now: float, prompt_tokens: int) -> list[str]:
        """See `Gate`."""
        told = prompt_tokens if self._sizes_told else None
        return self.regulator.arrive(agent, now, prompt_tokens=told)

    def begin_step(self, agent: str, now: float, prompt_tokens: int) -> list[str]:
        """See `Gate`."""
        told = prompt_tokens if self._sizes_told else None
        return self.regulator.begin_step(agent, now, prompt_tokens=told)

    def end_step(self, agent: str, now: float, usage: Usage) -> list[str]:
        """See `Gate`."""
        return self.regulator.end_step(agent, now, usage)

    def leave(self, agent: str, now: float) -> list[str]:
        """See `Gate`."""
        return self.regulator.leave(agent, now)

    def tick(self, reading: Reading | None, now: float) -> list[str]:
        """See `Gate`."""
        return self.regulator.tick(reading, now)

    def advance(self, now: float) -> list[str]:
        """See `Gate`."""
        return self.regulator.advance(now)

    def next_wake(self, now: float) -> float | None:
        """See `Gate`."""
        return self.regulator.next_wake(now)

    def gauges(self, now: float) -> Gauges:
        """See `Gate`."""
        view = self.regulator.view(now)
        agents, tokens = view.limit.agents, view.limit.tokens
        return Gauges(
            view.pressure_tokens,
            None if agents == math.inf else agents,
            None if tokens == math.inf else tokens,
        )


# --- what can go wrong ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MetricsLost:
    """Polls fail in an interval; the default is: always, an endpoint without metrics."""

    from_s: float = 0.0
    to_s: float = math.inf


@dataclass(frozen=True, slots=True)
class CapacityHidden:
    """The engine does not say how large its pool is."""


@dataclass(frozen=True, slots=True)
class CachedHidden:
    """Responses do not say how many prompt tokens were cached."""


@dataclass(frozen=True, slots=True)
class EngineRestart:
    """The engine loses its cache and its counters; clients send what was in flight again."""

    at_s: float


@dataclass(frozen=True, slots=True)
class SecondTenant:
    """Somebody else's agents use the same engine and no gate; each begins anew when it has
    finished.

    They count for the engine's counters and for nothing in the `Result`.
    """

    plans: tuple[AgentPlan, ...]
    from_s: float = 0.0
    to_s: float = math.inf


Fault = MetricsLost | CapacityHidden | CachedHidden | EngineRestart | SecondTenant


# --- what comes out ------------------------------------------------------------------------------


class SimulatedCall(NamedTuple):
    """One LLM call of one agent."""

    gate_s: float
    """When it reached the gate (the first one: when it asked to start)."""
    start_s: float
    """When it was let through and sent."""
    end_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class AgentRow:
    """What happened to one agent."""

    id: str
    group: str | None
    arrive_s: float
    start_s: float
    """When its first call was sent; inf: it was not, when the run was cut."""
    finish_s: float
    """When its last call ended; inf: it had not, when the run was cut."""
    pauses: int
    """How often it waited at a gate after its first call."""
    calls: tuple[SimulatedCall, ...]
    """Those that ended."""

    @property
    def waits_s(self) -> tuple[float, ...]:
        """How long it waited before each of its calls."""
        return tuple(call.start_s - call.gate_s for call in self.calls)


class SeriesPoint(NamedTuple):
    """One instant of the series."""

    t_s: float
    active: int
    """Agents that have arrived, are not done and do not wait at a gate."""
    waiting: int
    """Agents that wait at a gate."""
    running: int
    """Requests in the engine's batch, tenants' included, as the next two."""
    queued: int
    """Requests in the engine's queue."""
    kv_usage: float
    """Share of the pool held by requests in the batch."""
    hit_rate: float | None
    """Cached share of the prompt tokens admitted since the last sample; None: there were none."""
    output_tokens_per_s: float
    prefill_tokens_per_s: float
    """Prompt tokens really computed."""
    pressure_tokens: float | None
    limit_agents: float | None
    limit_tokens: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run. Token counts are those of the governed agents."""

    gate: str
    profile: str
    seed: int
    agents: int
    finished: int
    """Agents that finished: all of them, unless the run was cut."""
    steps: int
    """Calls that ended."""
    makespan_s: float
    """From the first arrival to the last finish, or to the cut."""
    finish_mean_s: float | None
    """From an agent's arrival to its finish, on average. None: the run was cut before that."""
    finish_p90_s: float | None
    """In this time after their arrival nine in ten were done. None: the run was cut before that."""
    most_open: int
    """Most agents open at once: let in and not finished."""
    prompt_tokens: int
    cached_tokens: int
    computed_tokens: int
    """Prompt tokens that were not cached. What a preemption throws away comes on top."""
    output_tokens: int
    useful_tokens: int
    """Output, and every prompt token the first time that anybody sends it: the same for every gate.
    """
    useful_tokens_per_s: float
    output_tokens_per_s: float
    agents_per_min: float
    """Agents that finished, over the makespan."""
    hit_rate: float
    """Cached share of all prompt tokens."""
    hit_deficit: float
    """1 - H/H*: share of what each agent had sent before (in whole blocks), and was not cached any
    more.
    """
    preemptions: int
    pauses: int
    gini_pauses: float
    """How unevenly pauses fell on agents: 0 evenly, towards 1 all on one."""
    wait_p50_s: float
    """Waits at the gate, one per call, zeros included; the first is counted from the arrival."""
    wait_p99_s: float
    wait_worst_s: float
    pause_worst_s: float
    """The longest wait of an agent that had started."""
    mean_active: float
    """Agents that are there and do not wait at a gate, averaged over the makespan."""
    rows: tuple[AgentRow, ...] = field(repr=False)
    """In the order of the plans."""
    series: tuple[SeriesPoint, ...] = field(repr=False)
    """One sample a second; empty if not recorded."""

    def summary(self) -> dict[str, Any]:
        """All but rows and series, JSON-able."""
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in {"rows", "series"}
        }


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

    Raises:
        ConfigError: there is no agent, an id is used twice, or a plan does not fit the engine.
        ConcurError: the gate lets nobody in although nothing runs.
    """
    if not poll_interval_s > 0:
        raise ConfigError(f"poll_interval_s must be above 0 s, got {poll_interval_s}")
    if not horizon_s > 0:
        raise ConfigError(f"horizon_s must be above 0 s, got {horizon_s}")
    _check(plans, profile)
    for fault in faults:
        if isinstance(fault, SecondTenant):
            _check(fault.plans, profile)
    simulation = _Simulation(plans, profile, gate, poll_interval_s, seed, record_series, faults)
    return simulation.run(horizon_s)


def free_tier_bound(plans: Sequence[AgentPlan], profile: Profile, *, seed: int = 0) -> Result:
    """A run that no client can beat by much: idle KV costs nothing and nothing is ever computed
    twice.

    The engine keeps every prefix for ever, as if an endless free tier lay under its pool; only the
    KV of calls in flight (prompt and output, shared prefixes counted once) has to fit into the
    pool, and a call waits until it does. Of several bounds on the calls in flight the fastest is
    returned. It is a schedule, not a theorem: it lets calls in first come, first served, and
    another order could be a little faster.
    """
    _check(plans, profile)
    new_tokens = _new_tokens(plans) + sum(s.output.tokens for p in plans for s in p.steps)
    runs = sum(len(p.steps) + len(p.steps[0].prompt) for p in plans)
    endless = profile.replace(
        kv_blocks=profile.kv_blocks + new_tokens // profile.block_size + 2 * runs
    )
    caps = {len(plans), *(max(1, len(plans) // part) for part in (2, 4, 8))}
    results = [
        simulate(
            plans,
            endless,
            _FreeTier(plans, profile.capacity_tokens, cap),
            seed=seed,
            record_series=False,
        )
        for cap in sorted(caps)
    ]
    return min(results, key=lambda result: result.makespan_s)


class _FreeTier(RequestCap):
    """Calls in flight fit into the pool and under a cap; the first that fits goes first."""

    def __init__(self, plans: Sequence[AgentPlan], capacity_tokens: int, calls: int) -> None:
        super().__init__(calls)
        self.name = "free_tier"
        self._next = {plan.id: iter(plan.steps) for plan in plans}
        beginnings = Counter(run for plan in plans for run in plan.steps[0].prompt)
        self._shared = {run for run, agents in beginnings.items() if agents > 1}
        self._free_tokens = capacity_tokens
        self._holders: Counter[Run] = Counter()  # of the shared runs: calls in flight
        self._needs: dict[str, tuple[int, tuple[Run, ...]]] = {}  # own tokens, shared runs
        self._queue: dict[str, None] = {}

    def begin_step(self, agent: str, now: float, prompt_tokens: int) -> list[str]:
        """See `Gate`."""
        step = next(self._next[agent])
        shared = tuple(takewhile(self._shared.__contains__, step.prompt))
        own_tokens = prompt_tokens + step.output.tokens - sum(run.tokens for run in shared)
        self._needs[agent] = own_tokens, shared
        self._queue[agent] = None
        return self._fill()

    def end_step(self, agent: str, now: float, usage: Usage) -> list[str]:
        """See `Gate`."""
        own_tokens, shared = self._needs.pop(agent)
        self._holders.subtract(shared)
        self._free_tokens += own_tokens
        self._free_tokens += sum(run.tokens for run in shared if not self._holders[run])
        self._in_flight -= 1
        return self._fill()

    def _fill(self) -> list[str]:
        woken: list[str] = []
        for agent in self._queue:
            if self._in_flight >= self._calls:
                break
            own_tokens, shared = self._needs[agent]
            need = own_tokens + sum(run.tokens for run in shared if not self._holders[run])
            if need <= self._free_tokens:
                self._free_tokens -= need
                self._holders.update(shared)
                self._in_flight += 1
                woken.append(agent)
        for agent in woken:
            del self._queue[agent]
        return woken


def _check(plans: Sequence[AgentPlan], profile: Profile) -> None:
    if not plans:
        raise ConfigError("nothing to run: the batch has no agent")
    most = min(profile.capacity_tokens, profile.max_model_len)
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


def _new_tokens(plans: Sequence[AgentPlan]) -> int:
    """Prompt tokens the first time that anybody sends them, whoever is let in first."""
    new = 0
    seen: set[Prompt] = set()
    for plan in plans:
        first = plan.steps[0].prompt
        for n, run in enumerate(first, start=1):
            if first[:n] not in seen:
                seen.add(first[:n])
                new += run.tokens
        later = (step.prompt_tokens for step in plan.steps[1:])
        new += sum(tokens - sent for tokens, sent in zip(later, _sent_before(plan), strict=True))
    return new


def _sent_before(plan: AgentPlan) -> list[int]:
    """Per call but the first: its prompt tokens that the call before sent or received."""
    return [
        common_tokens((*before.prompt, before.output), step.prompt)
        for before, step in pairwise(plan.steps)
    ]


class _Agent:
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


class _Simulation:
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
        self.engine = Engine(profile)
        self.agents = {plan.id: _Agent(plan) for plan in plans}
        self.unfinished = len(plans)
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
            elif isinstance(fault, SecondTenant):
                for plan in fault.plans:
                    from_s = fault.from_s + plan.arrive_s
                    self._at(from_s, partial(self._tenant_call, plan, 0, fault.to_s))

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

    # -- one agent's loop

    def _at(self, at_s: float, do: Callable[[], None]) -> None:
        self._planned += 1
        heapq.heappush(self._heap, (at_s, self._planned, do))

    def _arrive(self, agent: _Agent) -> None:
        agent.gate_s = self.now
        agent.waits_to_start = True
        self._count(waiting=1)
        self._let_in(self.gate.arrive(agent.plan.id, self.now, agent.step.prompt_tokens))

    def _stand_at_boundary(self, agent: _Agent) -> None:
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
                    f"gate {self.gate.name!r} let in agent {agent.plan.id!r}, who does not wait"
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
            self._send(f"{agent.plan.id}/{agent.k}", agent.step, partial(self._end_call, agent))

    def _send(self, name: str, step: PlanStep, then: Callable[[Request], None]) -> None:
        self._on_finish[name] = then
        self.engine.submit(Request(name, step.prompt, step.output, self.now))

    def _end_call(self, agent: _Agent, request: Request) -> None:
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
                f"gate {self.gate.name!r} lets nobody in: {self._waiting} agents wait, nothing runs"
            )
        lost = any(fault.from_s <= self.now < fault.to_s for fault in self._lost)
        self._let_in(self.gate.tick(None if lost else self._reading(), self.now))

    def _reading(self) -> Reading:
        at = self.engine.counters()
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
        )

    def _sample(self) -> None:
        at, last = self.engine.counters(), self._sampled
        if at.steps_total < last.steps_total:  # it has restarted: counters began at 0 again
            last = Engine(self.profile).counters()
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
        rows = tuple(_row(agent) for agent in self.agents.values())
        calls = [call for row in rows for call in row.calls]
        prompt_tokens = sum(call.prompt_tokens for call in calls)
        cached_tokens = sum(call.cached_tokens for call in calls)
        output_tokens = sum(call.output_tokens for call in calls)
        sent = [
            dataclasses.replace(plan, steps=plan.steps[: len(row.calls)])
            for plan, row in zip(self.plans, rows, strict=True)
            if row.calls
        ]
        useful_tokens = output_tokens + _new_tokens(sent)
        makespan_s = self.now - min(row.arrive_s for row in rows)
        begun = [agent for agent in self.agents.values() if agent.plan.arrive_s <= self.now]
        still_s = [(agent.k, self.now - agent.gate_s) for agent in begun if agent.waits]
        waits_s = sorted(
            [wait_s for row in rows for wait_s in row.waits_s] + [wait_s for _, wait_s in still_s]
        )
        pauses_s = [wait_s for row in rows for wait_s in row.waits_s[1:]]
        pauses_s += [wait_s for k, wait_s in still_s if k]
        lives_s = sorted(row.finish_s - row.arrive_s for row in rows)
        finished = sum(life_s < math.inf for life_s in lives_s)
        p90_s = _rank(lives_s, 0.9)
        pauses = [row.pauses for row in rows]
        return Result(
            gate=self.gate.name,
            profile=self.profile.name,
            seed=self.seed,
            agents=len(rows),
            finished=finished,
            steps=len(calls),
            makespan_s=makespan_s,
            finish_mean_s=math.fsum(lives_s) / len(rows) if finished == len(rows) else None,
            finish_p90_s=p90_s if p90_s < math.inf else None,
            most_open=self._most_open,
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
            computed_tokens=prompt_tokens - cached_tokens,
            output_tokens=output_tokens,
            useful_tokens=useful_tokens,
            useful_tokens_per_s=useful_tokens / makespan_s,
            output_tokens_per_s=output_tokens / makespan_s,
            agents_per_min=60.0 * finished / makespan_s,
            hit_rate=cached_tokens / prompt_tokens if prompt_tokens else 0.0,
            hit_deficit=_hit_deficit(self.plans, rows, self.profile.block_size),
            preemptions=self.preemptions,
            pauses=sum(pauses),
            gini_pauses=_gini(pauses),
            wait_p50_s=_rank(waits_s, 0.50),
            wait_p99_s=_rank(waits_s, 0.99),
            wait_worst_s=max(waits_s, default=0.0),
            pause_worst_s=max(pauses_s, default=0.0),
            mean_active=self._active_s / makespan_s,
            rows=rows,
            series=tuple(self._samples),
        )


def _row(agent: _Agent) -> AgentRow:
    plan, calls = agent.plan, tuple(agent.calls)
    start_s = calls[0].start_s if calls else math.inf if agent.start_s is None else agent.start_s
    finish_s = calls[-1].end_s if len(calls) == len(plan.steps) else math.inf
    return AgentRow(plan.id, plan.group, plan.arrive_s, start_s, finish_s, agent.pauses, calls)


def _hit_deficit(plans: Sequence[AgentPlan], rows: Sequence[AgentRow], block_size: int) -> float:
    """1 - H/H* over all calls but first ones: the engine caches whole blocks and computes at least
    one token.
    """
    reusable = reused = 0
    for plan, row in zip(plans, rows, strict=True):
        for sent, (before, call) in zip(_sent_before(plan), pairwise(row.calls), strict=False):
            held = before.prompt_tokens + before.output_tokens - 1  # the last token has no KV yet
            could = min(sent, held, call.prompt_tokens - 1) // block_size * block_size
            reusable += could
            reused += min(call.cached_tokens, could)
    return 1.0 - reused / reusable if reusable else 0.0


def _gini(values: Sequence[int]) -> float:
    total, n = sum(values), len(values)
    if not total:
        return 0.0
    weighted = sum(i * value for i, value in enumerate(sorted(values), start=1))
    return 2.0 * weighted / (n * total) - (n + 1) / n


def _rank(rising: Sequence[float], share: float) -> float:
    """Nearest-rank percentile."""
    return rising[max(0, math.ceil(share * len(rising)) - 1)] if rising else 0.0
