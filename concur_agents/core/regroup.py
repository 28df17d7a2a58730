"""The same agents under another Regulator or Fleet: where they stood, as far as that is known.

For a decision that was cut off halfway, and for pools that turn out to be several, or to be one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from concur_agents.core.fleet import Fleet
from concur_agents.core.laws import make_law
from concur_agents.core.laws.law import Law
from concur_agents.core.regulator import Regulator
from concur_agents.core.types import AgentId, Reading

AnyRegulator: TypeAlias = Regulator | Fleet


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """One agent that is here."""

    agent: AgentId
    parent: AgentId | None = None
    """Whose place it shares."""
    priority: int = 0
    group: str | None = None
    pool: str | None = None
    """Where it goes in the new one; None: wherever there is room."""
    enters: bool = False
    """It waits to be let in for the first time."""
    is_suspended: bool = False
    calls: tuple[int | None, ...] = ()
    """The prompts of its calls in flight [tokens]; None: unknown."""
    asked: tuple[int | None, ...] = ()
    """The same of its calls that wait."""


def regrouped(
    old: AnyRegulator,
    make: Callable[[Law, float], AnyRegulator],
    agents: Sequence[Present],
    now: float,
    *,
    readings: Mapping[str | None, Reading] | None = None,
) -> tuple[AnyRegulator, list[AgentId]]:
    """A regulator in which the same agents stand where they stood.

    Each agent's context is kept. Where a pool stays, so are its law's state and what was learned of
    its engine; a pool that is new begins anew. Lost: which prefixes agents share and which contexts
    the engine has evicted, until they are seen again; and waits count from now.

    Args:
        old: perhaps half-changed; not to be used any more.
        make: makes a regulator that starts now, with the same options; it waits for no first
            reading.
        agents: all that are here, in order of arrival.
        now: the time [s].
        readings: of new pools, by name (None: there is one pool), because agents that wait are let
            in here; None: `old` was cut off, and its pools stay.

    Returns:
        The regulator, and the agents that it has let in.
    """
    inside = [who for who in agents if not who.enters]
    new = make(make_law("fixed", agents=math.inf), now)  # because those that are in stay in
    for who in inside:
        new.arrive(
            who.agent,
            now,
            parent=who.parent,
            priority=who.priority,
            group=who.group,
            pool=None if who.parent else who.pool,
        )
        context, _ = old.memory_of(who.agent)
        if context is not None:
            new.begin_step(who.agent, now)
            new.end_step(who.agent, now, context)
    for who in inside:
        has_gone = who.is_suspended or (who.asked and not who.calls)
        if has_gone and who.parent is None:
            new.suspend(who.agent, now)
    for who in inside:
        for tokens in who.calls:
            new.begin_step(who.agent, now, prompt_tokens=tokens)
    let_in: list[AgentId] = []
    if readings is None:
        new.take_over(old, now)  # type: ignore[arg-type]  # it is of the same kind
    else:
        _follow(old, new, now)
        for pool, reading in readings.items():
            let_in += new.tick(reading, now, pool)
    for who in inside:
        for tokens in who.asked:
            let_in += new.begin_step(who.agent, now, prompt_tokens=tokens)
    for who in agents:
        if who.enters:
            let_in += new.arrive(
                who.agent,
                now,
                prompt_tokens=old.memory_of(who.agent)[1],
                parent=who.parent,
                priority=who.priority,
                group=who.group,
            )
    return new, let_in


def pools_of(regulator: AnyRegulator) -> list[str]:
    """The names of its pools; empty: there is one."""
    return [pool.name for pool in regulator.pools] if isinstance(regulator, Fleet) else []


def without_fleet_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a `Fleet` as one `Regulator` takes them, where there is one pool."""
    return {name: value for name, value in options.items() if name != "moves_paused"}


def _follow(old: AnyRegulator, new: AnyRegulator, now: float) -> None:
    """`new`, whose pools are others, goes on in place of `old`."""
    view = old.view(now)
    if isinstance(new, Fleet):
        new.follow(old.law, view, old.pools if isinstance(old, Fleet) else [], now)
    else:
        new.follow(old.law, view, now)
