"""Runs the batch through one arm: real concurrent clients and real HTTP, in virtual time.

The embedded server's clock waits for its clients (`sim.client_clock`), and the governor has the
same clock. All times are seconds on it.
"""

from __future__ import annotations

import asyncio
import threading
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
from concur_agents.sim.client_clock import Alarm, ClientClock
from concur_agents.sim.server import EmbeddedServer
from concur_agents.sim.workload import AgentPlan, PlanStep, common_tokens

__all__ = ["CallRow", "Course", "Progress", "run_arm"]


_PATIENCE_S = 600.0
"""Longest that a call may take [s]: on a busy machine even connecting takes its time."""


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
    clock: ClientClock
    began_s: float = 0.0
    makespan_s: float | None = None  # None: it runs
    done: int = 0
    present: int = 0
    waiting: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0

    @property
    def now_s(self) -> float:
        """Since it began [s]."""
        return self.clock() - self.began_s

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
    real_s: float = 0.0  # time on the wall

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
    server: EmbeddedServer,
    texts: Texts,
    watch: Callable[[Progress], object] = lambda progress: None,
) -> Course:
    """Run the whole batch.

    Args:
        arm: who decides.
        scenario: what to run.
        server: made with a `ClientClock`, running, and new: its cache is empty.
        texts: what the agents say.
        watch: is handed the progress once, before the first call; it changes from there on.

    Raises:
        ConcurError: a call failed, or was not counted as recorded.
    """
    assert server.clock is not None
    progress = Progress(arm, len(scenario.plans), server.clock, began_s=server.clock())
    course = Course(arm)
    began_s = time.monotonic()
    async with (
        openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="none", timeout=_PATIENCE_S
        ) as client,
        _gate(course, server.url, server.clock) as gate,
    ):
        watch(progress)
        batch = _Batch(scenario, gate, client, server.clock, texts, course, progress)
        try:
            async with asyncio.TaskGroup() as group:
                for plan in scenario.plans:
                    group.create_task(batch.live(plan))
        except ExceptionGroup as failed:
            error = failed.exceptions[0]
            if isinstance(error, openai.APIError):
                raise ConcurError(f"a call to the embedded server failed: {error}") from error
            raise error from None
    course.real_s = time.monotonic() - began_s
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
        clock: ClientClock,
        texts: Texts,
        course: Course,
        progress: Progress,
    ) -> None:
        self._clock = clock
        self._block_size = scenario.profile.block_size
        self._model = scenario.profile.model
        self._gate = gate
        self._client = client
        self._texts = texts
        self._course = course
        self._progress = progress

    async def live(self, plan: AgentPlan) -> None:
        """One agent, first call to last."""
        with self._clock.client():
            await self._live(plan)

    async def _live(self, plan: AgentPlan) -> None:
        await self._clock.sleep(plan.arrive_s)
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
                    await self._clock.sleep(plan.steps[k - 1].tool_s)
                    gate_s = seen.now_s
                    seen.waiting += 1
                messages = chat.messages(step)
                async with agent.step() as turn:
                    seen.waiting -= 1
                    await self._clock.sleep(0.0)  # agents let in together send one by one
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


@asynccontextmanager
async def _gate(course: Course, url: str, clock: ClientClock) -> AsyncIterator[_Gate]:
    if course.arm.law is None:
        yield _Nobody()
        return
    governor = Governor(
        url,
        law=course.arm.law,
        poll_interval_s=POLL_INTERVAL_S,
        clock=clock,
        background=False,
    )
    loop = asyncio.get_running_loop()

    def note(event: Event) -> None:
        course.note(event)
        loop.call_soon_threadsafe(clock.look)  # because an agent may have begun to wait

    governor.on_event(note)
    async with governor:
        clock.held = lambda: governor.snapshot().waiters
        beating = asyncio.create_task(_beat(governor, clock))
        try:
            yield governor
        finally:
            clock.held = lambda: 0
            beating.cancel()
            with suppress(asyncio.CancelledError):
                await beating


async def _beat(governor: Governor, clock: ClientClock) -> None:
    """Does the work of the governor's own thread, which would sleep real seconds."""
    loop = asyncio.get_running_loop()
    alarm = Alarm(clock)
    here = threading.get_ident()

    def ring() -> None:
        if threading.get_ident() == here:
            alarm.ring()
        else:
            loop.call_soon_threadsafe(alarm.ring)

    governor.on_due = ring
    with clock.client():
        await alarm.sleep(None)  # until the first agent, as the governor's own thread does
        while True:
            # In a thread, because it waits for the server, which runs on this loop.
            await alarm.sleep(await asyncio.to_thread(governor.beat))


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
