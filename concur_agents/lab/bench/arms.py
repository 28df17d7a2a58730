"""Arms: who governs a run. References that know nothing of laws, and laws behind a Regulator.

    ungoverned    every agent at once
    best_fixed    a cap on agents, the best one, found by search for this very draw of agents
    best_request  a cap on calls (a semaphore around each), the best one of a coarse grid
    program_gate  a proxy's gate after ThunderAgent, lease_gate one after llm-d's plugin
    free_tier     idle KV costs nothing and nothing is computed twice: a bound, not a policy
    NAME          a law, with options for it and for the Regulator; NAME_tier_hidden: its readings
                  say nothing of a host tier

The caps are gates of our own rather than the `fixed` law, so that references stand still while
laws and Regulator are worked on. A cap on agents pauses none of them: for it the two are the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from concur_agents.core import FIRST_READING_S, Law, LawState, Reading, Regulator, Snapshot
from concur_agents.errors import ConfigError
from concur_agents.lab.bench.cases import Case
from concur_agents.lab.bench.peer_gates import LeaseGate, ProgramGate
from concur_agents.lab.bench.scenario import Scenario
from concur_agents.lab.bench.search import best_cap
from concur_agents.lab.bench.training import training_metrics
from concur_agents.runtime.law_choice import law_by_name
from concur_agents.sim.bound import free_tier_bound
from concur_agents.sim.gates import AgentCap, RegulatorGate, RequestCap, Ungoverned
from concur_agents.sim.result import Result
from concur_agents.sim.runner import simulate

__all__ = [
    "REFERENCES",
    "ArmOutcome",
    "LawArm",
    "outcome_of",
    "run_law",
    "run_options",
    "run_reference",
    "time_of",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LawArm:
    """A law under test. Plain values only: it travels to worker processes."""

    name: str
    """What the arm is called in tables."""
    law: str
    """Name of a law, or `package.module:Class`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    regulator: Mapping[str, Any] = field(default_factory=dict)
    """Keywords of `Regulator`: `order`, `max_wait_s`, `max_open`, ..."""
    wrong_price: float = 1.0
    tier_hidden: bool = False
    """Whether its readings say nothing of a host tier. A fleet's are as they are."""

    def within(self, scenario: Scenario) -> LawArm:
        """The same arm with what `scenario` says about its law on top."""
        options = {**self.options, **scenario.laws.get(self.law, {})}
        for option, factor in scenario.scales.get(self.law, {}).items():
            as_is = options.get(option, getattr(law_by_name(self.law), option, None))
            if not isinstance(as_is, int | float):
                raise ConfigError(f"{scenario.name}: law {self.law!r} has no number {option!r}")
            options[option] = as_is * factor
        return replace(
            self,
            options=options,
            regulator={**self.regulator, **scenario.regulator},
            wrong_price=self.wrong_price * scenario.wrong_price,
        )

    def regulate(self) -> Regulator:
        """A fresh Regulator, as a Governor with an endpoint makes it.

        Raises:
            ConfigError: an option that the law or the Regulator does not take.
        """
        try:
            law = law_by_name(self.law, **self.options)
            if self.wrong_price != 1.0:
                law = _Misled(law, self.wrong_price)
            return Regulator(law, **{"first_reading_s": FIRST_READING_S, **self.regulator})
        except (ValueError, TypeError) as error:
            raise ConfigError(f"arm {self.name!r}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmOutcome:
    """One arm on one draw of one scenario. JSON-able."""

    scenario: str
    seed: int
    arm: str
    metrics: Mapping[str, Any]
    """What `Result.summary` says, how long steps took, and how oversubscribed the pool was."""
    cap: int | None = None
    """The cap that was found best."""
    tried: Mapping[int, float] = field(default_factory=dict)
    """`time_s` by cap, for all caps that the search tried [s]."""

    @property
    def time_s(self) -> float:
        """What arms are compared by: the makespan; of a run that was cut, the time that all of its
        agents would have taken at the rate at which they finished [s].
        """
        return _time_s(self.metrics["makespan_s"], self.metrics["agents"], self.metrics["finished"])

    @property
    def agents_per_hour(self) -> float:
        """Agents that finished, over the makespan."""
        agents_per_hour: float = 60.0 * self.metrics["agents_per_min"]
        return agents_per_hour


def run_law(scenario: Scenario, case: Case, seed: int, arm: LawArm) -> ArmOutcome:
    """A law on one draw of agents."""
    regulator = arm.within(scenario).regulate()
    plans = case.plans if scenario.trains else ()
    kind = _TierHidden if arm.tier_hidden else RegulatorGate
    gate = kind(regulator, arm.name, sizes_told=scenario.sizes_told, plans=plans)
    closes = scenario.closes_sessions
    result = _simulate(scenario, case, seed, gate, closes_sessions=closes)
    return outcome_of(scenario, case, seed, arm.name, result)


class _TierHidden(RegulatorGate):
    """A Regulator whose engine has a host tier of which the metrics page says nothing."""

    def tick(self, reading: Reading | None, now: float) -> list[str]:
        """See `Gate`."""
        if reading is not None:
            reading = replace(
                reading,
                host_capacity_tokens=None,
                host_used_tokens=None,
                host_hit_tokens_total=None,
            )
        return super().tick(reading, now)


def run_reference(scenario: Scenario, case: Case, seed: int, arm: str) -> ArmOutcome:
    """A reference on one draw of agents; `arm` is one of `REFERENCES`."""
    return REFERENCES[arm](scenario, case, seed)


def _ungoverned(scenario: Scenario, case: Case, seed: int) -> ArmOutcome:
    return outcome_of(
        scenario, case, seed, "ungoverned", _simulate(scenario, case, seed, Ungoverned())
    )


def _best_fixed(scenario: Scenario, case: Case, seed: int) -> ArmOutcome:
    alone = _simulate(scenario, case, seed, AgentCap(1))
    runs = {1: alone}

    def time_s(cap: int) -> float:
        if cap not in runs:
            runs[cap] = _simulate(scenario, case, seed, AgentCap(cap))
        return time_of(runs[cap])

    # One after the other each agent had the engine to itself, and nothing is faster than that.
    serial_s = sum(row.finish_s - row.start_s for row in alone.rows if row.finish_s < math.inf)
    if alone.finished < alone.agents:  # of the others nothing is known; they may be quicker
        serial_s *= 0.8 * alone.agents / max(1, alone.finished)
    cap, tried = best_cap(time_s, len(case.plans), serial_s=serial_s)
    return outcome_of(scenario, case, seed, "best_fixed", runs[cap], cap, tried)


def _best_request(scenario: Scenario, case: Case, seed: int) -> ArmOutcome:
    runs: dict[int, Result] = {}

    def time_s(cap: int) -> float:
        runs[cap] = _simulate(scenario, case, seed, RequestCap(cap))
        return time_of(runs[cap])

    most = len(case.plans)
    least = max(1, most // 16)  # fewer calls than that leave the engine idle
    cap, tried = best_cap(time_s, most, least=least, ratio=1.5, valleys=0)
    return outcome_of(scenario, case, seed, "best_request", runs[cap], cap, tried)


def _program_gate(scenario: Scenario, case: Case, seed: int) -> ArmOutcome:
    gate = ProgramGate(case.profile.capacity_tokens)
    return outcome_of(scenario, case, seed, gate.name, _simulate(scenario, case, seed, gate))


def _lease_gate(scenario: Scenario, case: Case, seed: int) -> ArmOutcome:
    gate = LeaseGate(case.profile.capacity_tokens)
    return outcome_of(scenario, case, seed, gate.name, _simulate(scenario, case, seed, gate))


def _free_tier(scenario: Scenario, case: Case, seed: int) -> ArmOutcome:
    bound = free_tier_bound(case.plans, case.profile, seed=seed)
    return outcome_of(scenario, case, seed, "free_tier", bound)


REFERENCES = {
    "ungoverned": _ungoverned,
    "best_fixed": _best_fixed,
    "best_request": _best_request,
    "program_gate": _program_gate,
    "lease_gate": _lease_gate,
    "free_tier": _free_tier,
}
"""Arms that are no laws."""


def _simulate(
    scenario: Scenario,
    case: Case,
    seed: int,
    gate: Ungoverned | RegulatorGate,
    *,
    closes_sessions: bool = False,
) -> Result:
    options = run_options(scenario, case, seed)
    return simulate(case.plans, case.profile, gate, closes_sessions=closes_sessions, **options)


def run_options(scenario: Scenario, case: Case, seed: int) -> dict[str, Any]:
    """The keywords of `simulate` and `simulate_fleet` on one draw."""
    return {
        "poll_interval_s": scenario.poll_interval_s,
        "seed": seed,
        "record_series": False,
        "faults": case.faults,
        "horizon_s": math.inf if scenario.horizon_s is None else scenario.horizon_s,
    }


def time_of(result: Result) -> float:
    """See `ArmOutcome.time_s`."""
    return _time_s(result.makespan_s, result.agents, result.finished)


def _time_s(makespan_s: float, agents: int, finished: int) -> float:
    return makespan_s * agents / max(1, finished)


def outcome_of(
    scenario: Scenario,
    case: Case,
    seed: int,
    arm: str,
    result: Result,
    cap: int | None = None,
    tried: Mapping[int, float] | None = None,
) -> ArmOutcome:
    """What is kept of a run."""
    metrics = result.summary()
    for key in ("gate", "profile", "seed"):
        del metrics[key]
    steps_s = sorted(call.end_s - call.start_s for row in result.rows for call in row.calls)
    metrics["step_p50_s"] = steps_s[(len(steps_s) - 1) // 2] if steps_s else 0.0
    metrics["step_p99_s"] = steps_s[math.ceil(0.99 * len(steps_s)) - 1] if steps_s else 0.0
    metrics["oversubscription"] = case.oversubscription
    if scenario.trains:
        metrics |= training_metrics(case, result, scenario.staleness)
    return ArmOutcome(
        scenario=scenario.name, seed=seed, arm=arm, metrics=metrics, cap=cap, tried=tried or {}
    )


class _Misled:
    """A law that gets a wrong price of a prefill."""

    name: ClassVar[str] = "misled"
    formula: ClassVar[str] = "another law, given a wrong price of a prefill"
    needs_readings: ClassVar[bool] = False

    def __init__(self, law: Law, factor: float) -> None:
        self._law = law
        self._factor = factor

    def initial(self) -> LawState:
        return self._law.initial()

    def decide(self, state: LawState, snapshot: Snapshot) -> LawState:
        price = snapshot.prefill_s_per_token
        if price is not None:
            snapshot = replace(snapshot, prefill_s_per_token=price * self._factor)
        return self._law.decide(state, snapshot)
