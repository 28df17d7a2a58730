"""Gates: what decides which agents of a simulated batch may run.

`RegulatorGate` puts the Regulator under test in front of the engine. The others are references that
know nothing of laws: `Ungoverned`, `AgentCap` and `RequestCap`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from concur_agents.core import Reading, Regulator, Usage
from concur_agents.errors import ConfigError
from concur_agents.sim.workload import AgentPlan

__all__ = ["AgentCap", "Gate", "Gauges", "RegulatorGate", "RequestCap", "Ungoverned"]


class Gauges(NamedTuple):
    """What a gate shows for the series; None: it has no such number."""

    pressure_tokens: float | None = None
    limit_agents: float | None = None
    limit_tokens: float | None = None


class Gate(Protocol):
    """Who may run. Every call returns the agents it has just let in."""

    @property
    def name(self) -> str:
        """For tables."""
        ...

    def arrive(self, agent: str, now: float, prompt_tokens: int) -> list[str]:
        """`agent` asks to start; absent from the list: it will be in a later one."""
        ...

    def begin_step(self, agent: str, now: float, prompt_tokens: int) -> list[str]:
        """`agent` stands before a call; absent from the list: it will be in a later one."""
        ...

    def end_step(self, agent: str, now: float, usage: Usage) -> list[str]:
        """Its call is over."""
        ...

    def leave(self, agent: str, now: float) -> list[str]:
        """It is done."""
        ...

    def tick(self, reading: Reading | None, now: float) -> list[str]:
        """A poll of the engine came back; None: it failed."""
        ...

    def advance(self, now: float) -> list[str]:
        """Time has passed."""
        ...

    def next_wake(self, now: float) -> float | None:
        """When to call `advance`; None: no need."""
        ...

    def gauges(self, now: float) -> Gauges:
        """For the series."""
        ...


class Ungoverned:
    """Every agent runs at once."""

    name = "ungoverned"

    def arrive(self, agent: str, now: float, prompt_tokens: int) -> list[str]:
        """See `Gate`."""
        return [agent]

    def begin_step(self, agent: str, now: float, prompt_tokens: int) -> list[str]:
        """See `Gate`."""
        return [agent]

    def end_step(self, agent: str, now: float, usage: Usage) -> list[str]:
        """See `Gate`."""
        return []

    def leave(self, agent: str, now: float) -> list[str]:
        """See `Gate`."""
        return []

    def tick(self, reading: Reading | None, now: float) -> list[str]:
        """See `Gate`."""
        return []

    def advance(self, now: float) -> list[str]:
        """See `Gate`."""
        return []

    def next_wake(self, now: float) -> float | None:
        """See `Gate`."""
        return None

    def gauges(self, now: float) -> Gauges:
        """See `Gate`."""
        return Gauges()


class RequestCap(Ungoverned):
    """A semaphore around each call: what most people try first. It does not know agents."""

    def __init__(self, calls: int) -> None:
        if calls < 1:
            raise ConfigError(f"a request cap must be at least 1 call, got {calls}")
        self.name = f"request_cap({calls})"
        self._calls = calls
        self._in_flight = 0
        self._waiting: deque[str] = deque()

    def begin_step(self, agent: str, now: float, prompt_tokens: int) -> list[str]:
        """See `Gate`."""
        if self._in_flight >= self._calls:
            self._waiting.append(agent)
            return []
        self._in_flight += 1
        return [agent]

    def end_step(self, agent: str, now: float, usage: Usage) -> list[str]:
        """See `Gate`."""
        if self._waiting:
            return [self._waiting.popleft()]
        self._in_flight -= 1
        return []

    def gauges(self, now: float) -> Gauges:
        """See `Gate`."""
        return Gauges(limit_agents=float(self._calls))


class AgentCap(Ungoverned):
    """At most so many agents at once; the next one starts when one has finished."""

    def __init__(self, agents: int) -> None:
        self.name = f"agent_cap({agents})"
        self._agents = agents
        self._active: set[str] = set()
        self._queue: deque[str] = deque()

    def arrive(self, agent: str, now: float, prompt_tokens: int) -> list[str]:
        """See `Gate`."""
        self._queue.append(agent)
        return self._fill()

    def leave(self, agent: str, now: float) -> list[str]:
        """See `Gate`."""
        self._active.discard(agent)
        return self._fill()

    def gauges(self, now: float) -> Gauges:
        """See `Gate`."""
        return Gauges(limit_agents=float(self._agents))

    def _fill(self) -> list[str]:
        woken = []
        while self._queue and len(self._active) < self._agents:
            self._active.add(agent := self._queue.popleft())
            woken.append(agent)
        return woken


class RegulatorGate:
    """The Regulator under test: every call goes to it as it is.

    Args:
        regulator: a fresh one.
        name: for tables; default: the law's.
        sizes_told: it learns how large prompts are before they are sent; False: only from `usage`
            afterwards.
        plans: whose groups and priorities it is given; those of other agents are not.
    """

    def __init__(
        self,
        regulator: Regulator,
        name: str | None = None,
        *,
        sizes_told: bool = True,
        plans: Sequence[AgentPlan] = (),
    ) -> None:
        self.regulator = regulator
        self.name = name or regulator.law.name
        self._sizes_told = sizes_told
        self._plans = {plan.id: plan for plan in plans}

    def arrive(self, agent: str, now: float, prompt_tokens: int) -> list[str]:
        """See `Gate`."""
        size = prompt_tokens if self._sizes_told else None
        plan = self._plans.get(agent)
        if plan is None:
            return self.regulator.arrive(agent, now, prompt_tokens=size)
        return self.regulator.arrive(
            agent, now, prompt_tokens=size, group=plan.group, priority=plan.priority
        )

    def begin_step(self, agent: str, now: float, prompt_tokens: int) -> list[str]:
        """See `Gate`."""
        size = prompt_tokens if self._sizes_told else None
        return self.regulator.begin_step(agent, now, prompt_tokens=size)

    def end_step(self, agent: str, now: float, usage: Usage) -> list[str]:
        """See `Gate`."""
        return self.regulator.end_step(agent, now, usage)

    def leave(self, agent: str, now: float) -> list[str]:
        """See `Gate`."""
        return self.regulator.leave(agent, now)

    def tick(self, reading: Reading | None, now: float) -> list[str]:
        """See `Gate`."""
        return self.regulator.tick(reading, now)

    def update_begins(self, now: float) -> list[str]:
        """The engine's weights change from now on."""
        return self.regulator.hold("update", now, 300.0)

    def update_ends(self, now: float, *, flushed: bool) -> list[str]:
        """They have changed."""
        let_in = self.regulator.flushed(now) if flushed else []
        return [*let_in, *self.regulator.end_hold("update", now)]

    def advance(self, now: float) -> list[str]:
        """See `Gate`."""
        return self.regulator.advance(now)

    def next_wake(self, now: float) -> float | None:
        """See `Gate`."""
        return self.regulator.next_wake(now)

    def gauges(self, now: float) -> Gauges:
        """See `Gate`."""
        view = self.regulator.view(now)
        agents, tokens = view.limit.agents, view.limit.tokens
        return Gauges(
            view.pressure_tokens,
            None if agents == math.inf else agents,
            None if tokens == math.inf else tokens,
        )
