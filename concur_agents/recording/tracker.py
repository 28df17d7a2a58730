"""Where each agent stands, followed line by line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from concur_agents.core import Usage
from concur_agents.recording.model import AgentState, Happening, Line, Standing


class Tracker:
    """Follows the lines of a recording; `agents` holds every agent that is present, by id."""

    def __init__(self, agents: Iterable[Standing] = ()) -> None:
        self.agents: dict[str, Standing] = {who.id: who for who in agents}

    def take(self, line: Line) -> list[tuple[Standing, AgentState, float]]:
        """Follows one line.

        Returns:
            The states that it ended: the agent, its former state, and when that began [s].
        """
        if isinstance(line, Happening) or line.error is not None:
            return []
        ended: list[tuple[Standing, AgentState, float]] = []
        now, who = line.now, self.agents.get(line.agent or "")
        if line.name == "arrive" and line.agent is not None:
            self.agents[line.agent] = Standing(
                line.agent,
                now,
                parent=line.options.get("parent"),
                priority=line.options.get("priority", 0),
                since_s=now,
            )
        elif who is not None and line.name == "begin_step":
            who.is_suspended = False
            if line.agent in line.let_in:
                who.calls += 1
                self._move(who, "reasoning", now, ended)
            else:
                who.waiting_calls += 1
                family = self.agents.get(who.parent or "", who)
                self._move(who, "paused" if family.steps else "queued", now, ended)
        elif who is not None and line.name in ("end_step", "withdraw_step"):
            self._end(who, line.options.get("usage"), now, ended)
        elif who is not None and line.name == "suspend":
            who.is_suspended = True
        elif who is not None and line.name == "resume":
            who.is_suspended = False
            if who.state == "suspended":
                self._move(who, "paused" if who.steps else "queued", now, ended)
        elif who is not None and line.name == "leave":
            ended.append((who, who.state, who.since_s))
            del self.agents[who.id]
        if who is not None and who.is_suspended and not who.calls and not who.waiting_calls:
            self._move(who, "suspended", now, ended)
        for agent in line.let_in:
            let_in = self.agents.get(agent)
            if let_in is not None and let_in.state in ("queued", "paused"):
                let_in.calls, let_in.waiting_calls = let_in.calls + let_in.waiting_calls, 0
                self._move(let_in, "reasoning" if let_in.calls else "acting", now, ended)
        return ended

    def _end(
        self,
        who: Standing,
        usage: Usage | None,
        now: float,
        ended: list[tuple[Standing, AgentState, float]],
    ) -> None:
        if who.waiting_calls:  # its caller gave up; a root still waits for its place
            who.waiting_calls -= 1
            if not who.waiting_calls and who.parent is not None:
                self._move(who, "acting", now, ended)
            return
        who.calls = max(0, who.calls - 1)
        if usage is not None:
            who.steps += 1
            who.prompt_tokens += usage.prompt_tokens
            who.cached_tokens += usage.cached_tokens or 0
            who.footprint_tokens = usage.prompt_tokens + usage.completion_tokens
        if not who.calls:
            self._move(who, "acting", now, ended)

    @staticmethod
    def _move(
        who: Standing,
        state: AgentState,
        now: float,
        ended: list[tuple[Standing, AgentState, float]],
    ) -> None:
        if who.state != state:
            ended.append((who, who.state, who.since_s))
            who.state, who.since_s = state, now


def standing_of(
    agents: Sequence[tuple[str, str | None, int]],
    state: Callable[[str], str | None],
    now: float,
) -> tuple[Standing, ...]:
    """The agents that are present when a recording begins late.

    Args:
        agents: id, parent and priority of each.
        state: the Regulator's `agent_state`.
        now: the time [s]; each state counts from here, because its beginning is not known.
    """
    found = []
    for agent, parent, priority in agents:
        stands: Any = state(agent)
        if stands is not None:
            found.append(
                Standing(
                    agent,
                    now,
                    parent,
                    priority,
                    stands,
                    now,
                    calls=int(stands == "reasoning"),
                    waiting_calls=int(stands == "paused"),
                    is_suspended=stands == "suspended",
                )
            )
    return tuple(found)
