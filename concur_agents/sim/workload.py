"""What a batch of agents will ask for: every prompt, output and tool time, decided before the run.

A plan is content, not behaviour: a prompt is a tuple of ``Run`` s, and two prompts share KV exactly
as far as their Runs agree. So the same plan can be driven through the virtual-time runner, or
turned into text for a server, and every arm of an experiment does the same work. All generators are
deterministic by seed.

How a recorded agent becomes Runs: the prompt of call k+1 keeps the leading ``shared_prefix_tokens``
of prompt k. If that is all of prompt k and there is room, the output of call k follows (it is in
the cache as well), then what the tool said. Otherwise the context was edited, dropped or
summarised, and everything from there on is new. Prompt lengths equal the recording's, always.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Hashable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import pairwise

from concur_agents.errors import ConfigError
from concur_agents.sim.cache import Run
from concur_agents.sim.timing import (
    Arrival,
    AsRecorded,
    Burst,
    Constant,
    HeavyTailed,
    LogNormal,
    Poisson,
    Staggered,
    ToolTimes,
    Uniform,
    parse_arrival,
    parse_tools,
)
from concur_agents.sim.traces import TraceAgent, TraceStep

__all__ = [
    "AgentPlan",
    "Arrival",
    "AsRecorded",
    "Burst",
    "Constant",
    "HeavyTailed",
    "LogNormal",
    "PlanStep",
    "Poisson",
    "Prompt",
    "Staggered",
    "ToolTimes",
    "Uniform",
    "arrange",
    "common_tokens",
    "mix",
    "parse_arrival",
    "parse_tools",
    "plans_from_traces",
    "steady",
    "synthetic",
]
# Tool times and arrivals have a file of their own; a caller that makes a batch finds them here too.

Prompt = tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class PlanStep:
    """One LLM call to come."""

    prompt: Prompt
    output: Run  # at least one token
    tool_s: float  # seconds between this call's end and the next boundary; 0 after the last

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt [tokens]."""
        return sum(run.tokens for run in self.prompt)


@dataclass(frozen=True, slots=True)
class AgentPlan:
    """One agent to come: when it asks to start, and all of its calls."""

    id: str
    steps: tuple[PlanStep, ...]
    arrive_s: float = 0.0
    group: str | None = None  # agents of one session or task; None: on its own
    priority: int = 0  # larger goes first

    @property
    def peak_tokens(self) -> int:
        """The largest context this agent will hold: prompt + output [tokens]."""
        return max(s.prompt_tokens + s.output.tokens for s in self.steps)


def common_tokens(one: Prompt, other: Prompt) -> int:
    """How far two prompts share KV [tokens]: as long as their Runs are equal."""
    tokens = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        tokens += a.tokens
    return tokens


def arrange(plans: Sequence[AgentPlan], arrival: Arrival, *, seed: int = 0) -> list[AgentPlan]:
    """The same agents in the same order, arriving by another pattern."""
    times = arrival.times(len(plans), random.Random(f"arrival:{seed}"))
    return [dataclasses.replace(plan, arrive_s=at) for plan, at in zip(plans, times, strict=True)]


def plans_from_traces(
    traces: Sequence[TraceAgent],
    n: int,
    seed: int = 0,
    *,
    tools: ToolTimes | None = None,
    arrival: Arrival | None = None,
    max_steps: int | None = None,
) -> list[AgentPlan]:
    """``n`` agents drawn from recordings.

    No agent is drawn twice before all were drawn once. A second copy is another agent (``id~2``)
    with content of its own; it shares only what the recording's agents share among themselves.

    Args:
        traces: what to draw from.
        n: how many agents.
        seed: of the draw, the tool times and the arrivals.
        tools: tool-time model; default: as recorded.
        arrival: arrival pattern; default: all at once.
        max_steps: end every agent after so many calls.

    Raises:
        ConfigError: there is nothing to draw from.
    """
    if not traces:
        raise ConfigError(
            "no recorded agent to draw from; raise max_context, or use cut=True, when loading"
        )
    rng = random.Random(f"draw:{seed}")
    drawn: list[tuple[TraceAgent, str]] = []
    copy = 1
    while len(drawn) < n:
        names = [(trace, trace.id if copy == 1 else f"{trace.id}~{copy}") for trace in traces]
        drawn += rng.sample(names, min(len(names), n - len(drawn)))
        copy += 1
    tools = tools or AsRecorded()
    cuts: _Cuts = {}
    plans = [_from_trace(trace, name, tools, seed, max_steps, cuts) for trace, name in drawn]
    return arrange(_split(plans, cuts), arrival or Burst(), seed=seed)


# Where Runs are cut, by key: some prompt keeps only so many tokens of that Run.
_Cuts = dict[Hashable, set[int]]


def _from_trace(
    trace: TraceAgent,
    name: str,
    tools: ToolTimes,
    seed: int,
    max_steps: int | None,
    cuts: _Cuts,
) -> AgentPlan:
    recorded = trace.steps[:max_steps]
    rng = random.Random(f"tools:{seed}:{name}")
    steps: list[PlanStep] = []
    outputs: set[Hashable] = set()
    for k, step in enumerate(recorded):
        if k:
            kept = _kept(recorded[k - 1], steps[k - 1], step, outputs, cuts)
        else:
            kept = _shared(trace, cuts)
        new_tokens = step.prompt_tokens - sum(run.tokens for run in kept)
        prompt = (*kept, Run((name, k), new_tokens)) if new_tokens else kept
        output = Run((name, k, "output"), max(1, step.output_tokens))
        outputs.add(output.key)
        tool_s = tools.draw(rng, step.tool_s) if k + 1 < len(recorded) else 0.0
        steps.append(PlanStep(prompt, output, tool_s))
    return AgentPlan(name, tuple(steps), group=trace.group)


def _shared(trace: TraceAgent, cuts: _Cuts) -> Prompt:
    """What a first prompt has in common with others: system prompt and tools, then its group's."""
    first = trace.steps[0]
    most = first.prompt_tokens - 1  # its own task is at least one token
    in_all = min(trace.group_shared_tokens, most)
    siblings = min(first.shared_prefix_tokens, most) - in_all
    both = (
        Run(("shared", trace.source, trace.group_shared_tokens), in_all),
        Run(("group", trace.source, trace.group), siblings),
    )
    runs = tuple(run for run in both if run.tokens > 0)
    for run in runs:
        cuts.setdefault(run.key, set()).add(run.tokens)
    return runs


def _kept(
    before: TraceStep,
    planned: PlanStep,
    step: TraceStep,
    outputs: AbstractSet[Hashable],
    cuts: _Cuts,
) -> Prompt:
    """What the prompt of ``step`` keeps of the call before it."""
    survives = min(step.shared_prefix_tokens, before.prompt_tokens, step.prompt_tokens)
    room = step.prompt_tokens >= before.prompt_tokens + before.output_tokens
    if survives == before.prompt_tokens and before.output_tokens and room:
        return (*planned.prompt, planned.output)
    return _leading(planned.prompt, survives, outputs, cuts)


def _leading(prompt: Prompt, tokens: int, outputs: AbstractSet[Hashable], cuts: _Cuts) -> Prompt:
    """The first ``tokens`` tokens of a prompt; an output is kept whole or not at all."""
    runs: list[Run] = []
    for run in prompt:
        if run.tokens > tokens:
            if tokens and run.key not in outputs:
                cuts.setdefault(run.key, set()).update((tokens, run.tokens))
                runs.append(Run(run.key, tokens))
            break
        runs.append(run)
        tokens -= run.tokens
    return tuple(runs)


def _split(plans: list[AgentPlan], cuts: _Cuts) -> list[AgentPlan]:
    """Write every Run that is cut somewhere as pieces, so that the parts kept are equal Runs."""
    pieces: dict[Run, Prompt] = {}
    for key, ends in cuts.items():
        for end in ends:
            bounds = sorted({0, end, *(cut for cut in ends if cut < end)})
            pieces[Run(key, end)] = tuple(Run((key, a), b - a) for a, b in pairwise(bounds))
    out = []
    for plan in plans:
        steps = tuple(_in_pieces(step, pieces) for step in plan.steps)
        out.append(dataclasses.replace(plan, steps=steps))
    return out


def _in_pieces(step: PlanStep, pieces: Mapping[Run, Prompt]) -> PlanStep:
    if pieces.keys().isdisjoint(step.prompt):
        return step
    prompt = tuple(piece for run in step.prompt for piece in pieces.get(run, (run,)))
    return dataclasses.replace(step, prompt=prompt)


_IDS = 150_999  # token ids that the published measurements drew from
_ID_BITS = _IDS.bit_length()


def synthetic(
    agents: int,
    steps: int,
    *,
    first: tuple[int, int] = (3000, 6000),
    gen: tuple[int, int] = (60, 140),
    obs: tuple[int, int] = (400, 1000),
    tools: ToolTimes | None = None,
    steps_range: tuple[int, int] | None = None,
    steps_tail: float | None = None,
    shared: int = 1024,
    seed: int = 1000,
    arrival: Arrival | None = None,
) -> list[AgentPlan]:
    """Agents of a simple shape: a shared system prompt, a first prompt, then output and tool result
    per step.

    With ``seed=1000`` these are, number by number, the agents of the published measurements of a
    real server that the engine profiles are held against: agent i draws from ``random.Random(seed +
    i)``, first the tokens of its prompt, then its calls.

    Args:
        agents: how many.
        steps: calls of each agent.
        first: bounds of the first prompt beyond the shared part [tokens].
        gen: bounds of an output [tokens].
        obs: bounds of a tool result [tokens].
        tools: tool-time model; default: uniform, 0.5 to 2.5 s.
        steps_range: bounds of the number of calls, drawn per agent, instead of ``steps``.
        steps_tail: index of a Pareto distribution from which that number is drawn, cut at the upper
            bound; the smaller, the heavier the tail. None: each number is as likely.
        shared: length of the system prompt that all share [tokens].
        seed: of agent 0; agent i has ``seed + i``.
        arrival: arrival pattern; default: all at once.
    """
    tools = tools or Uniform(0.5, 2.5)
    plans = [
        _synthetic_agent(i, steps, first, gen, obs, tools, steps_range, steps_tail, shared, seed)
        for i in range(agents)
    ]
    return arrange(plans, arrival or Burst(), seed=seed)


def _synthetic_agent(
    i: int,
    steps: int,
    first: tuple[int, int],
    gen: tuple[int, int],
    obs: tuple[int, int],
    tools: ToolTimes,
    steps_range: tuple[int, int] | None,
    steps_tail: float | None,
    shared: int,
    seed: int,
) -> AgentPlan:
    rng = random.Random(seed + i)
    name = f"agent-{i:03d}"
    first_tokens = rng.randint(*first)
    _skip_ids(rng, first_tokens)
    if steps_range and steps_tail:
        steps = min(steps_range[1], int(steps_range[0] * rng.paretovariate(steps_tail)))
    elif steps_range:
        steps = rng.randint(*steps_range)
    drawn = [(rng.randint(*gen), rng.randint(*obs), tools.draw(rng, None)) for _ in range(steps)]
    prompt: Prompt = (Run(("shared", "synthetic", shared), shared),) if shared else ()
    prompt += (Run((name, seed, 0), first_tokens),)
    planned = []
    for k, (output_tokens, result_tokens, tool_s) in enumerate(drawn):
        output = Run((name, seed, k, "output"), output_tokens)
        planned.append(PlanStep(prompt, output, tool_s if k + 1 < steps else 0.0))
        prompt += (output, Run((name, seed, k + 1), result_tokens))
    return AgentPlan(name, tuple(planned))


def _skip_ids(rng: random.Random, tokens: int) -> None:
    """Draw as many token ids as ``rng.randrange(1, 151000)`` would, which is what keeps later draws
    in step.
    """
    while tokens:
        tokens -= rng.getrandbits(_ID_BITS) < _IDS


def steady(
    agents: int,
    context_tokens: int,
    *,
    steps: int = 64,
    obs_tokens: int = 256,
    output_tokens: int = 64,
    tools: ToolTimes | None = None,
    seed: int = 0,
    name: str = "tenant",
) -> list[AgentPlan]:
    """Agents whose context stays as it is: every call repeats a base and looks at something new. A
    second tenant for a pool.

    Args:
        agents: how many; together they hold ``agents * context_tokens`` tokens of the pool while
            they come back often enough.
        context_tokens: prompt + output of every call.
        steps: calls of each agent.
        obs_tokens: part of the prompt that is new in every call.
        output_tokens: length of every output.
        tools: tool-time model; default: 1 s.
        seed: of the tool times.
        name: first part of the agents' ids.
    """
    base_tokens = context_tokens - obs_tokens - output_tokens
    if base_tokens < 1:
        raise ConfigError(
            f"context_tokens must exceed obs_tokens + output_tokens, got {context_tokens} tokens"
        )
    tools = tools or Constant(1.0)
    plans = []
    for i in range(agents):
        own = f"{name}-{i:03d}"
        rng = random.Random(f"steady:{seed}:{own}")
        base = Run((own, "base"), base_tokens)
        plans.append(
            AgentPlan(
                own,
                tuple(
                    PlanStep(
                        (base, Run((own, k), obs_tokens)),
                        Run((own, k, "output"), output_tokens),
                        tools.draw(rng, None),
                    )
                    for k in range(steps)
                ),
            )
        )
    return plans


def mix(*batches: Iterable[AgentPlan], seed: int = 0) -> list[AgentPlan]:
    """Several batches as one, shuffled; agents that arrive earlier still come earlier.

    Raises:
        ConfigError: two agents have the same id.
    """
    plans = [plan for batch in batches for plan in batch]
    seen: set[str] = set()
    for plan in plans:
        if plan.id in seen:
            raise ConfigError(
                f"agent id {plan.id!r} is in the mix twice; draw from different recordings"
            )
        seen.add(plan.id)
    random.Random(f"mix:{seed}").shuffle(plans)
    return sorted(plans, key=lambda plan: plan.arrive_s)
