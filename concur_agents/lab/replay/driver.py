"""Runs the same agents through one arm after another and writes down what happened.

Every arm begins the same way: the endpoint is left to fall idle, its prefix cache is emptied if it
allows that (else this arm's content is spelled so that nothing of an earlier arm can be reused), a
short warm-up runs, and the cache is emptied again. Then all agents of the plan run (`batch`).

A call that fails is counted, never hidden: what may pass (no connection, timeouts, 408, 409, 429,
5xx) is tried again within the same step, anything else, or a third failure, ends that agent.
Nothing outlives its time: an arm that reaches its limit is cut and reported as cut, and an arm that
cannot begin any more is reported as skipped.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import openai

from concur_agents.core import Reading
from concur_agents.errors import ConfigError, ProbeError
from concur_agents.lab.replay.arms import Arm, Gate
from concur_agents.lab.replay.batch import Batch, PromptSize, StepRow, WallClock
from concur_agents.lab.replay.endpoint import Completion, Endpoint, EndpointError, Unit, Vocabulary
from concur_agents.lab.replay.replicas import Engines, Replicas
from concur_agents.probes import Probe
from concur_agents.sim.workload import AgentPlan, PlanStep, common_tokens

__all__ = ["ArmRun", "Options", "ReplaySample", "StepRow", "replay"]

_TRIES = 3  # of one call, the first included
_LEAST_ARM_S = 15.0  # an arm with less time left is not begun
_PAUSE_S = 0.05  # holds shorter than this are scheduling noise, not pauses


@dataclass(frozen=True, slots=True)
class Options:
    """How to replay.

    ``limit_s``: longest one arm may take [s]. ``deadline_s``: when everything must be over, counted
    from the start [s]. ``time_scale``: factor on tool times and arrivals. ``repeat``: rounds over
    all arms. ``lengths``: what gates know of a prompt before its step: "estimated" from its size in
    bytes, as the drop-in clients do; "told" exactly, as an agent that counts its own tokens could,
    and the first one on arrival; "unknown" until `usage` reports them.
    """

    limit_s: float = 600.0
    deadline_s: float = 3600.0
    time_scale: float = 1.0
    repeat: int = 1
    lengths: Literal["estimated", "told", "unknown"] = "estimated"
    seed: int = 0
    sample_s: float = 1.0
    retry_wait_s: float = 1.0

    def __post_init__(self) -> None:
        for name in ("limit_s", "deadline_s", "sample_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0 seconds, got {getattr(self, name)}")
        if not self.time_scale >= 0:
            raise ConfigError(f"time_scale must be at least 0, got {self.time_scale}")
        if self.lengths not in ("estimated", "told", "unknown"):
            raise ConfigError(f"lengths are estimated, told or unknown, not {self.lengths!r}")
        if self.repeat < 1:
            raise ConfigError(f"repeat must be at least 1, got {self.repeat}")


@dataclass(frozen=True, slots=True)
class ReplaySample:
    """One second of an arm."""

    at_s: float
    active: int  # agents that hold a place: begun, not done, not at the gate
    in_flight: int  # calls sent and not answered
    waiting: int  # agents at the gate
    done: int
    reading: (
        Reading | None
    )  # None: the endpoint shows no metrics, or they could not be read this time
    gate: dict[str, float | str | None]


@dataclass(slots=True)
class ArmRun:
    """Everything written down about one arm in one round."""

    arm: str
    round: int
    outcome: str = "skipped"
    """"finished", "cut" (out of time), "broken" (by a bug of ours) or "skipped" (no time left)"""
    problem: str = ""  # the traceback of a broken arm
    cache_reset: bool = False
    span_s: float = 0.0  # until the last agent ended, or the cut [s]
    agents: int = 0
    agents_done: int = 0
    agents_failed: int = 0
    agent_done_s: list[float] = field(default_factory=list)
    steps: list[StepRow] = field(default_factory=list)
    samples: list[ReplaySample] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    before: Reading | None = None  # the counters around the arm
    after: Reading | None = None
    wrong_lengths: int = 0  # steps whose prompt was not counted as planned
    sample_failures: int = 0

    @property
    def finished(self) -> bool:
        """Every agent ended, and ended well."""
        return self.outcome == "finished" and self.agents_failed == 0


async def replay(
    endpoint: Endpoint | Replicas,
    plans: Sequence[AgentPlan],
    arms: Sequence[Arm],
    probe: Probe | None,
    options: Options,
    say: Callable[[str], None] = lambda line: None,
    keep: Callable[[Sequence[ArmRun]], None] = lambda runs: None,
    engines: Engines | None = None,
) -> list[ArmRun]:
    """Run all arms, round after round, within the deadline.

    Args:
        endpoint: opened.
        plans: what the agents will ask for; the same in every arm.
        arms: in this order in every round.
        probe: reads the endpoint's metrics; shared with the gates. None: it shows none.
        options: limits and scales.
        say: gets one line now and then.
        keep: given all runs so far after each, so that nothing is lost if we are stopped.
        engines: several pools, which gates read for themselves; None: there is one.
    """
    longest = max(plan.peak_tokens for plan in plans)
    if endpoint.max_context_tokens is not None and longest > endpoint.max_context_tokens:
        raise ConfigError(
            f"an agent reaches {longest} tokens, the server takes {endpoint.max_context_tokens}: "
            "leave such agents out with --max-context, or shrink them with --scale"
        )
    end_s = time.monotonic() + options.deadline_s
    runs: list[ArmRun] = []
    for number in range(options.repeat):
        for arm in arms:
            run = ArmRun(arm.name, number, agents=len(plans))
            runs.append(run)
            left_s = end_s - time.monotonic()
            if left_s < _LEAST_ARM_S:
                say(f"{arm.name}: skipped, {max(0.0, left_s):.0f} s are left")
                continue
            gate = arm.build(probe if engines is None else engines)
            await _run_arm(run, gate, endpoint, plans, probe, options, end_s, say)
            keep(runs)
    return runs


async def _run_arm(
    run: ArmRun,
    gate: Gate,
    endpoint: Endpoint | Replicas,
    plans: Sequence[AgentPlan],
    probe: Probe | None,
    options: Options,
    end_s: float,
    say: Callable[[str], None],
) -> None:
    await _fall_idle(probe, end_s)
    run.cache_reset = await endpoint.reset_cache()
    # without a reset the arms share no content, so that no arm profits from what another left
    # behind
    salt = str(options.seed) if run.cache_reset else f"{options.seed}/{run.round}/{run.arm}"
    await _warm_up(endpoint, endpoint.vocabulary(f"warm-up/{salt}"))
    await endpoint.reset_cache()
    run.before = await _read(probe, run)
    course = _Course(run, gate, endpoint, endpoint.vocabulary(salt), options)
    observer = asyncio.create_task(course.observe(probe, say))
    tasks = [asyncio.create_task(course.batch.live(plan)) for plan in plans]
    try:
        limit_s = max(0.0, min(options.limit_s, end_s - time.monotonic()))
        _, unfinished = await asyncio.wait(tasks, timeout=limit_s)
        run.span_s = course.clock()
        run.outcome = "cut" if unfinished else "finished"
    finally:
        observer.cancel()
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, observer, return_exceptions=True)
        await asyncio.to_thread(gate.close)
        run.agents_done, run.agents_failed = len(run.agent_done_s), course.batch.failed
    broken = [end for end in ends if isinstance(end, Exception)]
    if broken:
        # The endpoint's errors were counted where they happened, so this is a bug of ours. The
        # other arms are worth having all the same.
        run.outcome = "broken"
        run.problem = "".join(traceback.format_exception(broken[0]))
        say(f"{run.arm} broke: {run.problem}")
    run.after = await _read(probe, run)


class _Course:
    """One arm on its way, and the counts the samples are taken from."""

    def __init__(
        self,
        run: ArmRun,
        gate: Gate,
        endpoint: Endpoint | Replicas,
        vocabulary: Vocabulary,
        options: Options,
    ) -> None:
        self._run = run
        self._gate = gate
        self._options = options
        self.clock = WallClock(options.time_scale)
        self.in_flight = 0

        def converse(plan: AgentPlan) -> _Conversation:
            return _Conversation(plan, run, gate, endpoint, vocabulary, options, self)

        self.batch = Batch(gate, self.clock, converse, run.steps, run.agent_done_s)

    async def observe(self, probe: Probe | None, say: Callable[[str], None]) -> None:
        """Take a sample every ``sample_s`` until cancelled."""
        count = 0
        while True:
            count += 1
            await asyncio.sleep(max(0.0, count * self._options.sample_s - self.clock()))
            reading = await _read(probe, self._run)
            sample = ReplaySample(
                at_s=self.clock(),
                active=self.batch.active,
                in_flight=self.in_flight,
                waiting=self.batch.waiting,
                done=len(self.batch.done_s),
                reading=reading,
                gate=self._gate.view(),
            )
            self._run.samples.append(sample)
            if count % 15 == 0:
                say(
                    f"{self._run.arm} {sample.at_s:.0f} s: {sample.done} of {self._run.agents} "
                    f"done, {sample.active} active, {sample.in_flight} in flight, "
                    f"{self._run.errors.total()} errors"
                )


class _Conversation:
    """Prompts of the planned lengths, with what the model said where the endpoint reports it."""

    def __init__(
        self,
        plan: AgentPlan,
        run: ArmRun,
        gate: Gate,
        endpoint: Endpoint | Replicas,
        vocabulary: Vocabulary,
        options: Options,
        course: _Course,
    ) -> None:
        self._plan = plan
        self._run = run
        self._gate = gate
        self._endpoint = endpoint
        self._vocabulary = vocabulary
        self._options = options
        self._course = course
        # content by its key: spelled once, or what the model really said
        self._known: dict[Hashable, list[Unit]] = {}
        self._prompt: list[Unit] = []
        self.first_tokens = plan.steps[0].prompt_tokens if options.lengths == "told" else None

    def prepare(self, step: PlanStep) -> PromptSize:
        """Spell the next prompt; returns what the gate may know of it."""
        self._prompt = prompt = self._spell(step)
        if self._options.lengths == "told":
            return {"prompt_tokens": len(prompt)}
        if self._options.lengths == "unknown":
            return {}
        # as it stands in the request's JSON: a comma after an id, a space before a word
        return {"prompt_bytes": sum(len(str(unit)) + 1 for unit in prompt)}

    async def ask(self, step: PlanStep) -> Completion | None:
        """The answer, or None after the last try failed."""
        for left in reversed(range(_TRIES)):
            self._course.in_flight += 1
            try:
                at = self._gate.address_of(self._plan.id)
                answer = await self._endpoint.complete(self._prompt, step.output.tokens, at)
                if answer.ids is not None:
                    self._known[step.output.key] = list(answer.ids)
                self._run.wrong_lengths += answer.prompt_tokens != len(self._prompt)
                return answer
            except openai.APIError as error:
                status = getattr(error, "status_code", None)
                self._run.errors[f"{type(error).__name__}{f' {status}' if status else ''}"] += 1
                passing = status is None or status in (408, 409, 429) or status >= 500
                if not passing:
                    return None
            except EndpointError as error:
                self._run.errors[str(error)] += 1
                return None
            finally:
                self._course.in_flight -= 1
            if left:
                await asyncio.sleep(self._options.retry_wait_s)
        return None

    def reusable_tokens(self, index: int) -> int:
        """Prompt tokens of a step that the agent had sent or received before."""
        if not index:
            return 0
        before = self._plan.steps[index - 1]
        sent = before.prompt + ((before.output,) if self._endpoint.tells_ids else ())
        return common_tokens(sent, self._plan.steps[index].prompt)

    def _spell(self, step: PlanStep) -> list[Unit]:
        prompt: list[Unit] = []
        for run in step.prompt:
            units = self._known.get(run.key, [])
            if len(units) < run.tokens:
                units = units + self._vocabulary.spell(run.key, run.tokens)[len(units) :]
                self._known[run.key] = units
            prompt += units[: run.tokens]
        return prompt


async def _read(probe: Probe | None, run: ArmRun) -> Reading | None:
    if probe is None:
        return None
    try:
        return await asyncio.to_thread(probe.read)
    except ProbeError:
        run.sample_failures += 1
        return None


async def _fall_idle(probe: Probe | None, end_s: float) -> None:
    """Wait until the engine runs nothing any more, at most a minute: a cut leaves calls behind."""
    until_s = min(end_s, time.monotonic() + 60.0)
    while probe is not None and time.monotonic() < until_s:
        try:
            reading = await asyncio.to_thread(probe.read)
        except ProbeError:
            return
        if not reading.running and not reading.waiting:
            return
        await asyncio.sleep(0.5)


async def _warm_up(endpoint: Endpoint | Replicas, vocabulary: Vocabulary) -> None:
    """Twelve calls of 64 to 1,024 tokens, four at a time: the first call of its shape is never a
    measured one.
    """
    sizes = (64, 256, 512, 1024) * 3
    most = endpoint.max_context_tokens or 2048

    async def lane(number: int) -> None:
        for index in range(number, len(sizes), 4):
            await endpoint.complete(vocabulary.spell(index, min(sizes[index], most - 16)), 8)

    try:
        await asyncio.gather(*(lane(number) for number in range(4)))
    except openai.APIError as error:
        raise EndpointError(f"the warm-up failed: {error}; is the server still up?") from error
