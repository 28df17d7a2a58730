"""Runs the batch through one arm: real concurrent clients, real HTTP, real waits for tools.

The embedded server lets `time_scale` of its seconds pass in a real one. Everything here keeps the
server's time: tools sleep that much shorter, and the governor is given a clock that runs that much
faster, so that its intervals mean what they mean on a real engine. All times that come out are
seconds on the engine's clock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import openai

from concur_agents.errors import ConcurError
from concur_agents.governor import Governor
from concur_agents.lab.demo.chat import Chat, Message, Texts
from concur_agents.lab.demo.scenario import POLL_INTERVAL_S, Arm, Scenario
from concur_agents.runtime.events import Event
from concur_agents.sim.workload import AgentPlan, PlanStep, common_tokens

__all__ = ["CallRow", "Course", "Progress", "counting_stalls", "run_arm"]


_PATIENCE_S = 600.0
"""Longest that a call may take [s]: on a busy machine even connecting takes its time."""

_NAP_S, _LATE_S = 0.05, 0.1
"""Every so often it is looked whether the clients are held up, and from when on that counts [s]."""


@dataclass(frozen=True, slots=True)
class CallRow:
    """One LLM call that was answered; instants in seconds since the arm began."""

    gate_s: float  # when the agent stood before it (the first one: when the agent asked to start)
    sent_s: float
    done_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    reusable_tokens: int  # of the prompt, in whole blocks, that this agent had sent or received


@dataclass(slots=True)
class Progress:
    """One arm as it stands, for whoever watches."""

    arm: Arm
    agents: int
    time_scale: float
    began_s: float = 0.0  # on the real clock
    makespan_s: float | None = None  # None: it runs
    done: int = 0
    present: int = 0
    waiting: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0

    @property
    def now_s(self) -> float:
        """Since it began [s]."""
        return (time.monotonic() - self.began_s) * self.time_scale

    @property
    def active(self) -> int:
        """Agents that are there and do not wait at a gate."""
        return self.present - self.waiting


@dataclass(slots=True)
class Course:
    """Everything written down about one arm."""

    arm: Arm
    calls: dict[str, list[CallRow]] = field(default_factory=dict)  # by agent
    pauses: int = 0
    makespan_s: float = 0.0
    stalled_s: float = 0.0  # real time in which the machine did not let the clients run

    def note(self, event: Event) -> None:
        """Count what the governor says it does."""
        self.pauses += event.kind == "paused"


class _Turn(Protocol):
    def record(self, usage: Any) -> None: ...


class _Agent(Protocol):
    def step(self) -> AbstractAsyncContextManager[_Turn]: ...


class _Gate(Protocol):
    """What the batch sees of whoever decides: a Governor, or nobody."""

    def agent(self, id: str, /) -> AbstractAsyncContextManager[_Agent]: ...  # noqa: A002


class _Nobody:
    """Lets everybody do everything at once."""

    @asynccontextmanager
    async def agent(self, name: str, /) -> AsyncIterator[_Nobody]:
        yield self

    @asynccontextmanager
    async def step(self) -> AsyncIterator[_Nobody]:
        yield self

    def record(self, usage: Any) -> None:
        """Nobody learns from it."""


async def run_arm(
    arm: Arm,
    scenario: Scenario,
    url: str,
    texts: Texts,
    watch: Callable[[Progress], object] = lambda progress: None,
) -> Course:
    """Run the whole batch, beginning with an empty cache.

    Args:
        arm: who decides.
        scenario: what to run.
        url: the embedded server; it runs `scenario.profile` at `scenario.time_scale`.
        texts: what the agents say.
        watch: is handed the progress once, before the first call; it changes from there on.

    Raises:
        ConcurError: a call failed, or was not counted as recorded.
    """
    progress = Progress(arm, len(scenario.plans), scenario.time_scale)
    course = Course(arm)
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="none", timeout=_PATIENCE_S
    ) as client:
        await client.post(f"{url}/reset_prefix_cache", cast_to=object)
        async with _gate(course, url, scenario.time_scale) as gate:
            progress.began_s = time.monotonic()
            watch(progress)
            batch = _Batch(scenario, gate, client, texts, course, progress)
            try:
                async with counting_stalls(course), asyncio.TaskGroup() as group:
                    for plan in scenario.plans:
                        group.create_task(batch.live(plan))
            except ExceptionGroup as failed:
                error = failed.exceptions[0]
                if isinstance(error, openai.APIError):
                    raise ConcurError(f"a call to the embedded server failed: {error}") from error
                raise error from None
    course.makespan_s = progress.makespan_s = max(
        rows[-1].done_s for rows in course.calls.values()
    ) - min(rows[0].gate_s for rows in course.calls.values())
    return course


class _Batch:
    """The agents of one arm on their way."""

    def __init__(
        self,
        scenario: Scenario,
        gate: _Gate,
        client: openai.AsyncOpenAI,
        texts: Texts,
        course: Course,
        progress: Progress,
    ) -> None:
        self._scale = scenario.time_scale
        self._block_size = scenario.profile.block_size
        self._model = scenario.profile.model
        self._gate = gate
        self._client = client
        self._texts = texts
        self._course = course
        self._progress = progress

    async def live(self, plan: AgentPlan) -> None:
        """One agent, first call to last."""
        await self._sleep(plan.arrive_s)
        seen = self._progress
        chat = Chat(plan, self._texts)
        rows = self._course.calls[plan.id] = []
        reusable = _reusable_tokens(plan, self._block_size)
        gate_s = seen.now_s
        seen.present += 1
        seen.waiting += 1
        async with self._gate.agent(plan.id) as agent:
            for k, step in enumerate(plan.steps):
                if k:
                    await self._sleep(plan.steps[k - 1].tool_s)
                    gate_s = seen.now_s
                    seen.waiting += 1
                messages = chat.messages(step)
                async with agent.step() as turn:
                    seen.waiting -= 1
                    sent_s = seen.now_s
                    reply, usage = await self._call(messages, step)
                    turn.record(usage)
                chat.hear(step, reply)
                cached = usage.prompt_tokens_details.cached_tokens
                rows.append(
                    CallRow(
                        gate_s,
                        sent_s,
                        seen.now_s,
                        usage.prompt_tokens,
                        cached,
                        usage.completion_tokens,
                        reusable[k],
                    )
                )
                seen.prompt_tokens += usage.prompt_tokens
                seen.cached_tokens += cached
        seen.present -= 1
        seen.done += 1

    async def _call(self, messages: list[Message], step: PlanStep) -> tuple[str, Any]:
        """One LLM call, as any agent makes it."""
        answer = await self._client.chat.completions.create(
            model=self._model,
            messages=[],
            max_tokens=step.output.tokens,
            # The client walks through `messages` one by one, 0.1 ms each. This batch sends tens
            # of thousands of them in seconds: they go past that walk to the same place of the body.
            extra_body={
                "messages": messages,
                "min_tokens": step.output.tokens,
                "ignore_eos": True,
            },
        )
        usage = answer.usage
        assert usage is not None
        counted = usage.prompt_tokens, usage.completion_tokens
        if counted != (step.prompt_tokens, step.output.tokens):
            raise ConcurError(
                f"a call of {step.prompt_tokens} + {step.output.tokens} tokens was counted as "
                f"{counted[0]} + {counted[1]}: the arms would not do the same work"
            )
        return answer.choices[0].message.content or "", usage

    async def _sleep(self, engine_s: float) -> None:
        if engine_s > 0:
            await asyncio.sleep(engine_s / self._scale)


@asynccontextmanager
async def _gate(course: Course, url: str, time_scale: float) -> AsyncIterator[_Gate]:
    if course.arm.law is None:
        yield _Nobody()
        return
    governor = Governor(
        url,
        law=course.arm.law,
        poll_interval_s=POLL_INTERVAL_S,
        clock=lambda: time.monotonic() * time_scale,
        background=False,
    )
    governor.on_event(course.note)
    async with governor:
        beating = asyncio.create_task(_beat(governor, time_scale))
        try:
            yield governor
        finally:
            beating.cancel()
            with suppress(asyncio.CancelledError):
                await beating


async def _beat(governor: Governor, time_scale: float) -> None:
    """The governor's own thread sleeps real seconds; this does its work on the faster clock."""
    loop = asyncio.get_running_loop()
    due = asyncio.Event()

    def wake() -> None:
        loop.call_soon_threadsafe(due.set)

    governor.on_due = wake
    while True:
        rest_s = await asyncio.to_thread(governor.beat)
        with suppress(TimeoutError):
            async with asyncio.timeout(None if rest_s is None else rest_s / time_scale):
                await due.wait()
        due.clear()


@asynccontextmanager
async def counting_stalls(course: Course) -> AsyncIterator[None]:
    """Nothing here computes for long, so a nap that ends late was held up by the machine."""

    async def nap() -> None:
        while True:
            began_s = time.monotonic()
            await asyncio.sleep(_NAP_S)
            late_s = time.monotonic() - began_s - _NAP_S
            course.stalled_s += late_s if late_s > _LATE_S else 0.0

    napping = asyncio.create_task(nap())
    try:
        yield
    finally:
        napping.cancel()


def _reusable_tokens(plan: AgentPlan, block_size: int) -> list[int]:
    """Per call: prompt tokens that the call before sent or received, as far as whole blocks go."""
    reusable = [0]
    for before, step in pairwise(plan.steps):
        sent = common_tokens((*before.prompt, before.output), step.prompt)
        # the last token of an answer has no KV yet, and the last one of a prompt is computed anew
        held = before.prompt_tokens + before.output.tokens - 1
        whole = min(sent, held, step.prompt_tokens - 1) // block_size
        reusable.append(whole * block_size)
    return reusable
