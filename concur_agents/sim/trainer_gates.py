"""The limiters that trainers bring along, as their documentation and code have them.

verl       at most 16 prompts in flight for each replica, each with all its samples (0.8)
slime      a semaphore of 512 samples for each engine (0.3.1)
prime-rl   a cap on rollouts that follows the engine's usage, preemptions and queue (0.8)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from concur_agents.core import Reading
from concur_agents.sim.gates import AgentCap

VERL_PROMPTS = 16
SLIME_SAMPLES = 512


class PromptCap(AgentCap):
    """At most so many groups at once; the next one starts when one has finished.

    Args:
        prompts: how many.
        groups: of which group an agent is.
    """

    def __init__(self, prompts: int, groups: Mapping[str, str | None]) -> None:
        super().__init__(prompts)
        self.name = f"prompt_cap({prompts})"
        self._groups = groups

    def _fill(self) -> list[str]:
        inside = {self._groups[agent] for agent in self._active}
        woken, waiting = [], deque[str]()
        for agent in self._queue:
            group = self._groups[agent]
            if group in inside or len(inside) < self._agents:
                inside.add(group)
                self._active.add(agent)
                woken.append(agent)
            else:
                waiting.append(agent)
        self._queue = waiting
        return woken


class LoadController(AgentCap):
    """prime-rl's: grows by a quarter per turnover while the engine is clear, else shrinks.

    It starts at the pool over the longest context.  Below 60 % usage, with no queue, each rollout
    that ends while the cap binds lets it grow.  Above 80 % it becomes what fits at 70 %, once in
    six polls; preemptions cut it to 80 %, and a queue of more than half of what runs, six polls
    long, to 90 %; then it waits until it has drained.  Rollouts beyond the cap are cancelled
    there; here they run on, which spares it the work thrown away.

    Args:
        most_tokens: the longest context that the engine takes.
    """

    def __init__(self, most_tokens: int) -> None:
        super().__init__(1)
        self.name = "load_controller"
        self._most_tokens = most_tokens
        self._cap = 0.0  # not known before the first reading
        self._may_grow = self._drains = False
        self._preemptions = 0.0
        self._rest = self._queued_polls = 0

    def leave(self, agent: str, now: float) -> list[str]:
        """See `Gate`."""
        inside = len(self._active)
        if self._may_grow and inside >= 0.9 * self._agents:
            self._resize(self._cap * 1.25 ** (1 / inside))
        return super().leave(agent, now)

    def tick(self, reading: Reading | None, now: float) -> list[str]:
        """See `Gate`."""
        self._may_grow = False
        if reading is None or reading.kv_usage is None:
            return []
        inside, usage = len(self._active), reading.kv_usage
        running, waiting = reading.running or 0.0, reading.waiting or 0.0
        preempted = (reading.preemptions_total or 0.0) > self._preemptions
        self._preemptions = reading.preemptions_total or 0.0
        if not self._cap and reading.capacity_tokens:
            self._resize(reading.capacity_tokens / self._most_tokens)
        self._queued_polls = self._queued_polls + 1 if waiting > 0.5 * running > 0 else 0
        is_queued, self._rest = self._queued_polls >= 6, max(0, self._rest - 1)
        if self._drains and inside <= self._agents and not (preempted or is_queued):
            self._drains = False
        self._may_grow = usage < 0.6 and not (waiting or preempted or self._drains)
        if not self._drains and (preempted or is_queued):
            self._drains, self._queued_polls = True, 0
            self._resize(min(self._cap, inside * (0.9 if is_queued else 0.8)))
        elif not self._drains and usage > 0.8 and inside and not self._rest:
            self._rest = 6
            self._resize(min(self._cap, inside * 0.7 / usage))
        return self._fill()

    def _resize(self, cap: float) -> None:
        self._cap = min(max(cap, 1.0), 1024.0)
        self._agents = int(self._cap)
