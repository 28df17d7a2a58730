"""Where each agent stands, followed line by line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from concur_agents.recording.derive import derived_moves
from concur_agents.recording.model import AgentState, Happening, Line, Standing


class Move(NamedTuple):
    """An agent has moved."""

    who: Standing
    """Where it stands now; once it has left, where it stood last."""
    before: AgentState | None
    """None: it has just arrived."""
    since_s: float
    """When it came to stand there [s]."""
    left: bool = False

    @property
    def waits(self) -> bool:
        """Whether it waits to be let in from now on, or still."""
        return self.who.waits and not self.left


class Tracker:
    """Follows the lines of a recording; `agents` holds every agent that is present, by id."""

    def __init__(self, agents: Iterable[Standing] = ()) -> None:
        self.agents: dict[str, Standing] = {who.id: who for who in agents}

    def root(self, who: Standing) -> Standing:
        """The agent whose place an agent shares, as far as it is still here."""
        while (parent := self.agents.get(who.parent or "")) is not None:
            who = parent
        return who

    def take(self, line: Line) -> list[Move]:
        """Follows one line; returns who moved."""
        if isinstance(line, Happening) or line.error is not None:
            return []
        moved: list[Move] = []
        now, who = line.now, self.agents.get(line.agent or "")
        if line.name == "arrive" and line.agent is not None:
            parent, priority = line.options.get("parent"), line.options.get("priority", 0)
            who = Standing(line.agent, now, parent, priority, since_s=now)
            if parent in self.agents:
                who.pool = self.agents[parent].pool
            self.agents[line.agent] = who
            moved.append(Move(who, None, now))
        elif line.name == "end_step" and who is not None and who.state == "reasoning":
            who.note(line.options.get("usage"))
        elif line.name == "leave" and who is not None:
            del self.agents[who.id]
            moved.append(Move(who, who.state, who.since_s, left=True))
        elif line.name == "regroup":
            for here in self.agents.values():
                here.pool = None
        moves = derived_moves(line, self.agents) if line.moves is None else line.moves
        for agent, after in moves.items():
            mover = self.agents.get(agent)
            if mover is not None and mover.state != after:
                moved.append(Move(mover, mover.state, mover.since_s))
                mover.state, mover.since_s = after, now
        for agent, pool in line.pools.items():
            if agent in self.agents:
                self._place(self.agents[agent], pool)
        return moved

    def _place(self, who: Standing, pool: str) -> None:
        """`who` is in another pool now, and so are its children."""
        if who.pool is not None and who.pool != pool:
            for other in self.agents.values():
                if other.parent == who.id:
                    other.pool = pool
        who.pool = pool
