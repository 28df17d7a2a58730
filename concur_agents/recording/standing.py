"""What a Regulator says of its agents, as recordings and `concur watch` have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from concur_agents.core import Decision, Fleet, Regulator, View
from concur_agents.recording.model import AgentState, Standing


def why_waiting(regulator: Regulator, agent: str, now: float) -> str:
    """What keeps `agent` waiting, with the numbers of this instant; "" if it does not wait."""
    reason = regulator.why(agent, now)
    return "" if reason is None else reason.numbers


def moves_of(
    regulator: Regulator, decision: Decision, agent: str | None = None, *others: str
) -> dict[str, AgentState]:
    """Where the agents stand now that a decision moved.

    A transition is the move of a family, under the id of its root. So the others that are named
    are looked at too: `agent`, which made the call, those that were let in, and `others`.
    """
    caller = () if agent is None else (agent,)
    moved = dict.fromkeys((*(m.agent for m in decision.transitions), *caller, *others, *decision))
    return {who.agent: cast("AgentState", who.state) for who in regulator.agents(moved)}


def view_at_tick(regulator: Regulator | Fleet, now: float, pool: str | None) -> View:
    """Where a regulator stands after a tick: the sums, and of its pools the one that was ticked.

    The others are left out, because each of them has ticks of its own.
    """
    view = regulator.view(now)
    if pool is None or not view.pools:
        return view
    return replace(view, pools={pool: view.pools[pool]} if pool in view.pools else {})


def standing_of(
    regulator: Regulator, priorities: Mapping[str, int], now: float
) -> tuple[Standing, ...]:
    """The agents that are present when a recording begins late.

    Args:
        regulator: says where each stands.
        priorities: of the agents, by id.
        now: the time [s]; each state counts from here, as the recording does.
    """
    return tuple(
        Standing(
            who.agent,
            now,
            who.parent,
            priority=priorities[who.agent],
            state=cast("AgentState", who.state),
            since_s=now,
            pool=who.pool,
        )
        for who in regulator.agents(priorities)
    )
