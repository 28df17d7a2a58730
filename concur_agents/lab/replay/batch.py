"""Agents on their way through a gate: the one loop of replays and the demo.

Wait for the turn, call, wait for as long as the tool took. The clock says how time passes, the
conversation what is sent and how.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, TypedDict

from concur_agents.lab.replay.arms import Gate
from concur_agents.lab.replay.endpoint import Completion
from concur_agents.sim.workload import AgentPlan, PlanStep

__all__ = ["Batch", "Clock", "Conversation", "PromptSize", "StepRow", "WallClock"]


@dataclass(frozen=True, slots=True)
class StepRow:
    """One step that ended well; instants in seconds since the arm began."""

    agent: str
    step: int
    at_gate_s: float  # arrival at the gate; for a first step, arrival of the agent
    sent_s: float
    done_s: float
    prompt_tokens: int
    cached_tokens: int | None  # None: not reported
    output_tokens: int
    reusable_tokens: int  # prompt tokens this agent had sent or received before

    @property
    def waited_s(self) -> float:
        """Time at the gate [s]."""
        return self.sent_s - self.at_gate_s

    @property
    def latency_s(self) -> float:
        """From arrival at the gate to the answer, the hold included [s]."""
        return self.done_s - self.at_gate_s


class Clock(Protocol):
    """How time passes for one arm."""

    def __call__(self) -> float:
        """The time since the arm began [s]."""
        ...

    def client(self) -> AbstractContextManager[None]:
        """Around an agent's whole life."""
        ...

    async def sleep(self, delay_s: float) -> None:
        """Wait for a tool or an arrival [s]."""
        ...


class WallClock:
    """Real time. Tools and arrivals take `time_scale` times as long as planned."""

    def __init__(self, time_scale: float = 1.0) -> None:
        self._began_s = time.monotonic()
        self._time_scale = time_scale

    def __call__(self) -> float:
        """The time since it was made [s]."""
        return time.monotonic() - self._began_s

    def client(self) -> AbstractContextManager[None]:
        """Real time waits for no client."""
        return nullcontext()

    async def sleep(self, delay_s: float) -> None:
        """Wait [s as planned]."""
        await asyncio.sleep(delay_s * self._time_scale)


class PromptSize(TypedDict, total=False):
    """What a gate may know of a prompt before its step."""

    prompt_tokens: int
    prompt_bytes: int


class Conversation(Protocol):
    """One agent's side of its calls."""

    first_tokens: int | None
    """Size of the first prompt [tokens], if the gate may know it on arrival."""

    def prepare(self, step: PlanStep) -> PromptSize:
        """Spell the prompt of the next call."""
        ...

    async def ask(self, step: PlanStep) -> Completion | None:
        """Make the call that was prepared. None: it failed for good, and the agent ends."""
        ...

    def reusable_tokens(self, index: int) -> int:
        """Prompt tokens of a step that the agent had sent or received before."""
        ...


class Batch:
    """The agents of one arm, and the counts of where they stand.

    Args:
        gate: who decides which agents run.
        clock: how time passes.
        converse: makes an agent's side of its calls.
        rows: where steps that ended well are written down.
        done_s: where the instants of agents that ended well are written down [s].
    """

    def __init__(
        self,
        gate: Gate,
        clock: Clock,
        converse: Callable[[AgentPlan], Conversation],
        rows: list[StepRow],
        done_s: list[float],
    ) -> None:
        self._gate = gate
        self._clock = clock
        self._converse = converse
        self.rows = rows
        self.done_s = done_s
        self.failed = 0
        self.waiting = 0
        """Agents at the gate."""
        self._present = 0

    @property
    def active(self) -> int:
        """Agents that are there and do not wait at the gate."""
        return self._present - self.waiting

    async def live(self, plan: AgentPlan) -> None:
        """One agent from arrival to end."""
        with self._clock.client():
            await self._clock.sleep(plan.arrive_s)
            at_gate_s = self._clock()
            self._present += 1
            self.waiting += 1
            waits = True
            talk = self._converse(plan)
            try:
                async with self._gate.agent(plan.id, prompt_tokens=talk.first_tokens) as agent:
                    for index, step in enumerate(plan.steps):
                        if index:
                            async with agent.tool("replayed tool"):
                                await self._clock.sleep(plan.steps[index - 1].tool_s)
                            at_gate_s = self._clock()
                            self.waiting += 1
                            waits = True
                        async with agent.step(**talk.prepare(step)) as turn:
                            self.waiting -= 1
                            waits = False
                            await self._clock.sleep(0.0)  # agents let in together send one by one
                            sent_s = self._clock()
                            answer = await talk.ask(step)
                            if answer is None:
                                self.failed += 1
                                return
                            turn.record(answer.usage)
                        self.rows.append(
                            StepRow(
                                agent=plan.id,
                                step=index,
                                at_gate_s=at_gate_s,
                                sent_s=sent_s,
                                done_s=self._clock(),
                                prompt_tokens=answer.prompt_tokens,
                                cached_tokens=answer.cached_tokens,
                                output_tokens=answer.output_tokens,
                                reusable_tokens=talk.reusable_tokens(index),
                            )
                        )
                self.done_s.append(self._clock())
            finally:
                self._present -= 1
                self.waiting -= waits
