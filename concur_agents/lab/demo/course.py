"""Runs the batch through one arm: real concurrent clients and real HTTP, in virtual time.

The embedded server's clock waits for its clients (`sim.client_clock`), and the governor has the
same clock. All times are seconds on it.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import openai

from concur_agents.errors import ConcurError
from concur_agents.governor import Governor
from concur_agents.lab.demo.chat import Chat, Message, Texts
from concur_agents.lab.demo.scenario import POLL_INTERVAL_S, Arm, Scenario
from concur_agents.lab.replay.arms import Gate, Governed, Open, Sticky
from concur_agents.lab.replay.batch import Batch, PromptSize, StepRow
from concur_agents.lab.replay.endpoint import Completion
from concur_agents.lab.replay.replicas import Engines
from concur_agents.runtime.events import Event
from concur_agents.sim.client_clock import Alarm, ClientClock
from concur_agents.sim.profile import Profile
from concur_agents.sim.server import EmbeddedServer
from concur_agents.sim.workload import AgentPlan, PlanStep, common_tokens

__all__ = ["Course", "Progress", "keep_time", "run_arm"]


_PATIENCE_S = 600.0
"""Longest that a call may take [s]: on a busy machine even connecting takes its time."""


@dataclass(slots=True)
class Progress:
    """One arm as it stands, for the live view."""

    arm: Arm
    agents: int
    clock: ClientClock
    batch: Batch
    makespan_s: float | None = None  # None: it runs

    @property
    def cached_share(self) -> float:
        """Share of all prompt tokens so far that was cached."""
        rows = list(self.batch.rows)
        prompt_tokens = sum(row.prompt_tokens for row in rows)
        return sum(row.cached_tokens or 0 for row in rows) / max(1, prompt_tokens)


@dataclass(slots=True)
class Course:
    """Everything written down about one arm."""

    arm: Arm
    calls: dict[str, list[StepRow]] = field(default_factory=dict)  # by agent
    pauses: int = 0
    makespan_s: float = 0.0
    real_s: float = 0.0  # time on the wall

    def note(self, event: Event) -> None:
        """Count what the governor says it does."""
        self.pauses += event.kind == "paused"


async def run_arm(
    arm: Arm,
    scenario: Scenario,
    servers: Sequence[EmbeddedServer],
    texts: Texts,
    watch: Callable[[Progress], object] = lambda progress: None,
) -> Course:
    """Run the whole batch.

    Args:
        arm: who decides.
        scenario: what to run.
        servers: the replicas, made with one `ClientClock`, running, and new: their caches are
            empty.
        texts: what the agents say.
        watch: is handed the progress once, before the first call; it changes from there on.

    Raises:
        ConcurError: a call failed, or was not counted as recorded.
    """
    clock = servers[0].clock
    assert clock is not None
    course = Course(arm, {plan.id: [] for plan in scenario.plans})
    began_s = time.monotonic()
    urls = [server.url for server in servers]
    async with (
        AsyncExitStack() as stack,
        _gate(course, urls, clock) as gate,
    ):
        clients = {}
        for url in urls:
            client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=_PATIENCE_S)
            clients[url] = await stack.enter_async_context(client)
        turn = itertools.cycle(clients.values())

        def client_of(agent: str) -> openai.AsyncOpenAI:
            address = gate.address_of(agent)
            return next(turn) if address is None else clients[address.url]

        def converse(plan: AgentPlan) -> _Conversation:
            return _Conversation(plan, texts, partial(client_of, plan.id), scenario.profile)

        batch = Batch(gate, clock, converse, [], [])
        progress = Progress(arm, len(scenario.plans), clock, batch)
        watch(progress)
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
    for row in batch.rows:
        course.calls[row.agent].append(row)
    course.makespan_s = progress.makespan_s = max(row.done_s for row in batch.rows) - min(
        row.at_gate_s for row in batch.rows
    )
    return course


class _Conversation:
    """The recorded calls of one agent, made as any openai client makes them."""

    first_tokens: int | None = None  # agents learn from `usage` how large their prompts are

    def __init__(
        self,
        plan: AgentPlan,
        texts: Texts,
        client: Callable[[], openai.AsyncOpenAI],
        profile: Profile,
    ) -> None:
        self._client = client  # of the replica that the next call goes to
        self._model = profile.model
        self._chat = Chat(plan, texts)
        self._reusable = _reusable_tokens(plan, profile.block_size)
        self._messages: list[Message] = []

    def prepare(self, step: PlanStep) -> PromptSize:
        """Spell the messages of the next call."""
        self._messages = self._chat.messages(step)
        return {}

    async def ask(self, step: PlanStep) -> Completion:
        """One LLM call."""
        answer = await self._client().chat.completions.create(
            model=self._model,
            messages=[],
            max_tokens=step.output.tokens,
            # The client walks through `messages` one by one, 0.1 ms each. This batch sends tens
            # of thousands of them in seconds: they go past that walk to the same place of the body.
            extra_body={
                "messages": self._messages,
                "min_tokens": step.output.tokens,
                "ignore_eos": True,
            },
        )
        usage = answer.usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        counted = usage.prompt_tokens, usage.completion_tokens
        if counted != (step.prompt_tokens, step.output.tokens):
            raise ConcurError(
                f"a call of {step.prompt_tokens} + {step.output.tokens} tokens was counted as "
                f"{counted[0]} + {counted[1]}: the arms would not do the same work"
            )
        self._chat.hear(step, answer.choices[0].message.content or "")
        cached = usage.prompt_tokens_details.cached_tokens
        return Completion(usage, counted[0], counted[1], cached, None)

    def reusable_tokens(self, index: int) -> int:
        """Prompt tokens of a step that the agent had sent or received, in whole blocks."""
        return self._reusable[index]


@asynccontextmanager
async def _gate(course: Course, urls: list[str], clock: ClientClock) -> AsyncIterator[Gate]:
    if course.arm.law is None:
        yield Sticky(Engines(tuple(urls))) if course.arm.router == "sticky" else Open()
        return
    governor = Governor(
        urls if len(urls) > 1 else urls[0],
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
        beating = asyncio.create_task(keep_time(governor, clock))
        try:
            yield Governed(governor)
        finally:
            clock.held = lambda: 0
            beating.cancel()
            with suppress(asyncio.CancelledError):
                await beating


async def keep_time(governor: Governor, clock: ClientClock) -> None:
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
            beat = asyncio.ensure_future(asyncio.to_thread(governor.beat))
            try:
                rest_s = await asyncio.shield(beat)
            except asyncio.CancelledError:
                await beat  # the governor closes only when its last reading is over
                raise
            await alarm.sleep(rest_s)


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
