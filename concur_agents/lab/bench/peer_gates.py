"""Gates of other projects, as far as one engine goes: what they decide, in code of our own.

`ProgramGate` is after ThunderAgent, a proxy that learns of agents by an id in
each request; `LeaseGate` is after the thunder-agent plugin of llm-d's scheduler. Both hold requests
and not agents: every agent has begun, with its sandbox, before it is held.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from concur_agents.core import Reading, Usage
from concur_agents.sim.gates import Ungoverned

__all__ = ["LeaseGate", "ProgramGate"]

_FORCED_S = 1800.0
"""No request is held for longer."""


@dataclass(slots=True, eq=False)
class _Program:
    """What such a gate knows of an agent."""

    agent: str
    tokens: float  # prompt and output of its last call; before that its prompt
    calling: bool = False
    paused: bool = False
    marked: bool = False  # to be paused at its next request
    calls: int = 0
    held_s: float = math.inf  # since when its request is held; infinity: it has none
    idle_s: float = 0.0  # since when it has no call in flight


class _Programs(Ungoverned):
    """The books that both gates keep."""

    def __init__(self, capacity_tokens: float) -> None:
        self._capacity_tokens = capacity_tokens
        self._programs: dict[str, _Program] = {}

    def end_step(self, agent: str, now: float, usage: Usage) -> list[str]:
        """See `Gate`."""
        program = self._programs[agent]
        program.calling = False
        program.idle_s = now
        program.tokens = usage.prompt_tokens + usage.completion_tokens
        return self._look(now)

    def leave(self, agent: str, now: float) -> list[str]:
        """See `Gate`.  Such gates ask their users to say when an agent is done."""
        self._programs.pop(agent, None)
        return self._look(now)

    def tick(self, reading: Reading | None, now: float) -> list[str]:
        """See `Gate`."""
        if reading is not None and reading.capacity_tokens is not None:
            self._capacity_tokens = reading.capacity_tokens
        return []

    def next_wake(self, now: float) -> float | None:
        """See `Gate`: when a request will have been held for too long."""
        due_s = min((p.held_s for p in self._held()), default=math.inf) + _FORCED_S
        return None if due_s == math.inf else due_s

    def advance(self, now: float) -> list[str]:
        """See `Gate`."""
        return self._look(now)

    def _held(self) -> list[_Program]:
        return [program for program in self._programs.values() if program.held_s < math.inf]

    def _forced(self, now: float) -> list[str]:
        due = [program for program in self._held() if now - program.held_s >= _FORCED_S]
        return [self._go_on(program) for program in due]

    def _go_on(self, program: _Program) -> str:
        """Its request goes to the engine."""
        program.held_s = math.inf
        program.paused = program.marked = False
        program.calling = True
        program.calls += 1
        return program.agent

    def _look(self, now: float) -> list[str]:
        """The requests that are let go now."""
        raise NotImplementedError


class ProgramGate(_Programs):
    """Every five seconds: paused programs resume while they fit, small ones first; while there are
    too many, the smallest that acts pauses, or else those that reason are marked.

    A new program comes in at once if none waits and it fits. As published, the test in the last
    loop leaves out what is marked already, so without a program that acts all are marked.
    """

    name = "program_gate"
    sweep_s = 5.0
    overhead_tokens = 100.0
    """Counted for each program on top of its tokens."""

    def __init__(self, capacity_tokens: float) -> None:
        super().__init__(capacity_tokens)
        self._sweep_s = self.sweep_s

    def begin_step(self, agent: str, now: float, prompt_tokens: int) -> list[str]:
        """See `Gate`."""
        program = self._programs.get(agent)
        if program is None:
            program = _Program(agent, prompt_tokens, paused=True)
            alone = not self._held()
            fits = self._remaining() >= prompt_tokens + self.overhead_tokens
            self._programs[agent] = program
            if alone and fits:
                return [self._go_on(program)]
        program.tokens = max(program.tokens, prompt_tokens)
        if program.marked:
            program.marked, program.paused = False, True
        if not program.paused:
            return [self._go_on(program)]
        program.held_s = now
        return []

    def next_wake(self, now: float) -> float | None:
        """See `Gate`: the next sweep."""
        if not self._programs:
            return None
        if self._sweep_s <= now:  # none was needed meanwhile
            self._sweep_s = now + self.sweep_s
        return self._sweep_s

    def _look(self, now: float) -> list[str]:
        if now < self._sweep_s:
            return []
        self._sweep_s = now + self.sweep_s
        woken = [*self._forced(now), *self._resume()]
        self._pause()
        return woken

    def _remaining(self) -> float:
        used = [p.tokens + self.overhead_tokens for p in self._programs.values() if not p.paused]
        return self._capacity_tokens - sum(used)

    def _resume(self) -> list[str]:
        def rank(program: _Program) -> tuple[int, float]:
            waits = program.held_s < math.inf
            return (0 if waits and program.calls else 1 if waits else 2, program.tokens)

        woken, left = [], self._remaining()
        for program in sorted((p for p in self._programs.values() if p.paused), key=rank):
            left -= program.tokens + self.overhead_tokens
            if left < 0:
                break
            if program.held_s < math.inf:
                woken.append(self._go_on(program))
            else:
                program.paused = False
        return woken

    def _pause(self) -> None:
        running = [p for p in self._programs.values() if not p.paused]
        acting = sorted((p for p in running if not p.calling), key=lambda p: p.tokens)
        reasoning = sorted((p for p in running if p.calling), key=lambda p: p.tokens)
        left = self._remaining()
        for program in acting:
            if left >= 0:
                return
            program.paused = True
            left += program.tokens + self.overhead_tokens
        if left < 0:
            for program in reasoning:
                program.marked = True


class LeaseGate(_Programs):
    """A ledger of all sessions that are not paused, kept at each request, without a timer.

    A session that is in is never held. One that is paused or new comes in if the ledger has room,
    or if pausing idle ones makes it, longest idle first, of those idle for `lease_s`. If a session
    that is in outgrows the pool, the longest idle ones pause.
    """

    name = "lease_gate"
    lease_s = 30.0

    def begin_step(self, agent: str, now: float, prompt_tokens: int) -> list[str]:
        """See `Gate`."""
        program = self._programs.get(agent)
        if program is None:
            program = self._programs[agent] = _Program(agent, prompt_tokens, paused=True)
        program.tokens = max(program.tokens, prompt_tokens)
        if program.paused:
            program.held_s = now
            return self._look(now)
        go_on = self._go_on(program)
        self._make_room(0.0, now, idle_for_s=0.0)
        return [go_on]

    def next_wake(self, now: float) -> float | None:
        """See `Gate`: also when a lease will be over that a held request waits for."""
        forced_s = super().next_wake(now)
        if forced_s is None:
            return None
        leases_s = [p.idle_s + self.lease_s for p in self._idle() if p.idle_s + self.lease_s > now]
        return min([forced_s, *leases_s])

    def _look(self, now: float) -> list[str]:
        woken = self._forced(now)
        for program in sorted(self._held(), key=lambda p: (not p.calls, p.held_s)):
            if not self._make_room(program.tokens, now, idle_for_s=self.lease_s):
                break
            woken.append(self._go_on(program))
        return woken

    def _idle(self) -> list[_Program]:
        return [p for p in self._programs.values() if not p.paused and not p.calling]

    def _make_room(self, tokens: float, now: float, *, idle_for_s: float) -> bool:
        """Whether the ledger has room for `tokens` more, after idle sessions were paused for it."""
        ledger = sum(p.tokens for p in self._programs.values() if not p.paused)
        over = ledger + tokens - self._capacity_tokens
        if over <= 0 or not ledger:
            return True
        idle = [p for p in self._idle() if now - p.idle_s >= idle_for_s]
        if tokens and sum(p.tokens for p in idle) < over:
            return False
        for program in sorted(idle, key=lambda p: p.idle_s):
            if over <= 0:
                break
            program.paused = True
            over -= program.tokens
        return True
