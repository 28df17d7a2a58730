"""The agents that are alive at the gateway: opened by their first request, ended by one of four.

An agent ends with `DELETE /agent/ID`, with the process that it is, with the gateway, or when it has
been silent for longer than agents are (see `idle.py`). Until then it keeps its place between its
requests, as an agent does that runs in the governor's own process; only if others wait, one that
has been silent for a while gives its place back until its next call.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field

from concur_agents.gateway.identity import Identity
from concur_agents.gateway.idle import IdleTimes
from concur_agents.runtime.agent import Agent, Governing

_MOST_REMEMBERED = 4096  # agents that were ended for their silence: a return says, too early


@dataclass(eq=False, slots=True)
class Living:
    """One agent that is alive."""

    identity: Identity
    agent: Agent
    parent: Living | None
    last_s: float
    """When its latest request came or ended [s]."""
    let_in: asyncio.Event = field(default_factory=asyncio.Event)
    calls: int = 0
    """Its calls that are held or in flight, with those of its children."""
    process: int | None = None
    """The process that it is; it ends with it."""
    is_away: bool = False
    """Whether it has given its place back."""

    def use(self, now: float, calls: int) -> None:
        """A call of it begins (1) or ends (-1)."""
        living: Living | None = self
        while living is not None:
            living.calls += calls
            living.last_s = now
            living.is_away = False  # because a call asks for a place
            living = living.parent


class Agents:
    """Opens agents and ends them. To be used on one event loop.

    Args:
        governor: lets them in.
        clock: the time [s].
    """

    def __init__(self, governor: Governing, clock: Callable[[], float]) -> None:
        self._governor = governor
        self._clock = clock
        self._living: dict[str, Living] = {}
        self._ended: OrderedDict[str, float] = OrderedDict()  # when they were last heard of [s]
        self.idle = IdleTimes()

    def __len__(self) -> int:
        return len(self._living)

    def guessed(self) -> int:
        """How many of them are guesses."""
        return sum(living.identity.is_guess for living in self._living.values())

    def find(self, agent: str) -> Living | None:
        """An agent that is alive."""
        return self._living.get(agent)

    def meet(self, identity: Identity, process: int | None = None) -> Living:
        """The agent of a request, which begins a call; `let_in` is set once it has a place.

        The call is to be ended with `leave`.

        Raises:
            ClosedError: the governor is closed.
            ConfigError: the governor has an agent of this name that is none of the gateway's.
        """
        now = self._clock()
        living = self._living.get(identity.agent)
        if living is None:
            living = self._open(identity, now)
            living.process = process
        elif not living.calls:
            self.idle.note(now - living.last_s)
        living.use(now, 1)
        return living

    def leave(self, living: Living) -> None:
        """A call of an agent is over. A family that was never let in, and waits no more, leaves."""
        living.use(self._clock(), -1)
        while living.parent is not None:
            living = living.parent
        if not living.calls and not living.let_in.is_set():
            self.end(living.identity.agent)

    def end(self, agent: str) -> bool:
        """Ends an agent and its children; whether there was one."""
        living = self._living.get(agent)
        if living is None:
            return False
        for child in [one for one in self._living.values() if one.parent is living]:
            self.end(child.identity.agent)
        del self._living[agent]
        living.agent.close()
        living.let_in.set()  # because its gates pass from here on
        return True

    def end_all(self) -> None:
        """Ends them all."""
        for agent in list(self._living):
            self.end(agent)

    def end_idle(self) -> list[str]:
        """Ends those that have been silent for too long; returns their names."""
        idle = self._silent_since(self.idle.ended_s)
        for living in idle:
            self.end(living.identity.agent)
            self._ended[living.identity.agent] = living.last_s
            if len(self._ended) > _MOST_REMEMBERED:
                self._ended.popitem(last=False)
        return [living.identity.agent for living in idle]

    def give_way(self) -> None:
        """Agents that have been silent for a while give their places back, for others that wait."""
        for living in self._silent_since(self.idle.away_s):
            if not living.is_away and living.parent is None:  # a child has no place of its own
                living.is_away = True
                living.agent.suspended().__enter__()  # its next call ends this

    def _silent_since(self, bound_s: float) -> list[Living]:
        late_s = self._clock() - bound_s
        return [one for one in self._living.values() if not one.calls and one.last_s < late_s]

    def end_processes(self, is_alive: Callable[[int], bool]) -> None:
        """Ends the agents whose process has ended."""
        for name, living in list(self._living.items()):
            if living.process is not None and not living.calls and not is_alive(living.process):
                self.end(name)

    def _open(self, identity: Identity, now: float) -> Living:
        parent: Living | None = None
        if identity.parent is not None and identity.parent != identity.agent:
            parent = self._living.get(identity.parent)
            if parent is None:  # a child may be heard of first
                parent = self._open(Identity(identity.parent, identity.source), now)
        with nullcontext() if parent is None else parent.agent.active():
            agent = self._governor.agent(identity.agent)
        living = Living(identity, agent, parent, now)
        loop = asyncio.get_running_loop()

        def let_in() -> None:
            with suppress(RuntimeError):  # the gateway has ended, and its loop is closed
                loop.call_soon_threadsafe(living.let_in.set)

        if agent.arrive(let_in):
            living.let_in.set()
        self._living[identity.agent] = living
        last_s = self._ended.pop(identity.agent, None)
        if last_s is not None:
            self.idle.note(now - last_s)
        return living
