"""Arms for a trainer's rollouts: the limiters that stacks bring along, as documented.

verl      16 prompts in flight, each with all its samples
slime     a semaphore of 512 samples
prime_rl  a cap that follows the engine's load
"""

from __future__ import annotations

from concur_agents.lab.bench.arms import ArmOutcome, outcome_of, run_options
from concur_agents.lab.bench.cases import Case
from concur_agents.lab.bench.scenario import Scenario
from concur_agents.sim.gates import AgentCap
from concur_agents.sim.runner import simulate
from concur_agents.sim.trainer_gates import (
    SLIME_SAMPLES,
    VERL_PROMPTS,
    LoadController,
    PromptCap,
)

__all__ = ["TRAINER_REFERENCES", "run_trainer_reference"]

TRAINER_REFERENCES = ("verl", "slime", "prime_rl")
"""Arms for scenarios whose agents are a trainer's rollouts."""


def run_trainer_reference(scenario: Scenario, case: Case, seed: int, arm: str) -> ArmOutcome:
    """A stack's own limiter on one draw of agents; `arm` is one of `TRAINER_REFERENCES`."""
    gate: AgentCap
    if arm == "verl":
        gate = PromptCap(VERL_PROMPTS, {plan.id: plan.group for plan in case.plans})
    elif arm == "slime":
        gate = AgentCap(SLIME_SAMPLES)
    else:
        gate = LoadController(min(case.profile.max_model_len, case.profile.capacity_tokens))
    result = simulate(case.plans, case.profile, gate, **run_options(scenario, case, seed))
    return outcome_of(scenario, case, seed, arm, result)
