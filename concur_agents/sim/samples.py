"""The rollouts of a training run: groups of samples of one prompt, in waves, with long tails."""

from __future__ import annotations

import math
import random

from concur_agents.sim.cache import Run
from concur_agents.sim.timing import ToolTimes, Uniform
from concur_agents.sim.workload import AgentPlan, PlanStep, Prompt


def samples(
    prompts: int,
    *,
    per_prompt: int = 8,
    prompt: tuple[int, int] = (2000, 8000),
    turns: tuple[int, float, int] = (8, 0.7, 48),
    gen: tuple[int, int] = (60, 400),
    obs: tuple[int, int] = (200, 1500),
    tools: ToolTimes | None = None,
    shared: int = 1024,
    waves: int = 1,
    wave_s: float = 0.0,
    seed: int = 0,
) -> list[AgentPlan]:
    """Agents in groups: all members of one send the same first prompt, and then go their own way.

    Args:
        prompts: how many groups.
        per_prompt: samples of each.
        prompt: bounds of a first prompt beyond what all share [tokens].
        turns: calls of an agent, log-normal: the median, sigma, and the most.
        gen: bounds of an output [tokens].
        obs: bounds of a tool result [tokens].
        tools: tool-time model; default: uniform, 0.5 to 2.5 s.
        shared: length of the system prompt that all share [tokens].
        waves: steps of training that ask for rollouts, one after the other; later ones have a
            lower priority, because those of older weights go first.
        wave_s: time between two waves [s].
        seed: of everything drawn.
    """
    tools = tools or Uniform(0.5, 2.5)
    median, sigma, most = turns
    plans = []
    for number in range(prompts):
        rng = random.Random(f"samples:{seed}:{number}")
        wave = number * waves // prompts
        head: Prompt = (Run(("shared", "samples", shared), shared),) if shared else ()
        head += (Run(("prompt", seed, number), rng.randint(*prompt)),)
        for member in range(per_prompt):
            name = f"prompt-{number:03d}/{member}"
            calls = round(math.exp(rng.gauss(math.log(median), sigma)))
            steps, said = [], head
            calls = max(1, min(most, calls))
            for k in range(calls):
                output = Run((name, seed, k, "output"), rng.randint(*gen))
                tool_s = tools.draw(rng, None) if k + 1 < calls else 0.0
                steps.append(PlanStep(said, output, tool_s))
                said += (output, Run((name, seed, k + 1), rng.randint(*obs)))
            group = f"prompt-{number:03d}"
            plans.append(AgentPlan(name, tuple(steps), wave * wave_s, group, -wave))
    return plans
