"""Recorded prompts as chat messages whose lengths the embedded server counts exactly as recorded.

A plan's prompt is a row of Runs: pieces of content with a name and a length. Each becomes one
message. What the model said is repeated as it really said it; everything else is spelled out of
words, the same ones in every arm. Four characters are one token (`concur_agents.sim.text`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TypeAlias

from concur_agents.sim.cache import Run
from concur_agents.sim.text import text_of_tokens
from concur_agents.sim.workload import AgentPlan, PlanStep

__all__ = ["Chat", "Message", "Texts"]

Message: TypeAlias = dict[str, str]


class Texts:
    """Spells content. All of it is spelled beforehand, which takes a second that no arm shall pay.

    Args:
        plans: whose content.
        seed: another one gives other words.
    """

    def __init__(self, plans: Iterable[AgentPlan], seed: int) -> None:
        self._spelled: dict[Run, str] = {}
        for plan in plans:
            said = {step.output for step in plan.steps}
            for run in {run for step in plan.steps for run in step.prompt} - said:
                if run not in self._spelled:
                    self._spelled[run] = text_of_tokens(run.tokens, f"{seed}/{run.key!r}")

    def spell(self, run: Run) -> str:
        """A text of exactly `run.tokens` tokens, another one for every content."""
        return self._spelled[run]


class Chat:
    """One agent's side of its conversation."""

    def __init__(self, plan: AgentPlan, texts: Texts) -> None:
        self._texts = texts
        self._said: dict[Hashable, Message] = {}
        self._outputs = {step.output.key for step in plan.steps}

    def messages(self, step: PlanStep) -> list[Message]:
        """What to send: the recorded prompt, with the model's own words where they belong."""
        return [
            self._said[run.key]
            if run.key in self._outputs
            else {"role": "user" if i else "system", "content": self._texts.spell(run)}
            for i, run in enumerate(step.prompt)
        ]

    def hear(self, step: PlanStep, reply: str) -> None:
        """Remember what the model answered."""
        self._said[step.output.key] = {"role": "assistant", "content": reply}
