"""A family that stood somewhere stands there again, with a Regulator that knows nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from concur_agents.core import AgentId
from concur_agents.wire.book import Entry


def rank(root: Entry) -> int:
    """The smaller ones are put back first: those that have a place, then those that had one."""
    return 0 if root.has_place else 1 if root.entered else 2


def put_back(
    regulator: Any, root: Entry, key: Callable[[Entry], AgentId], now: float
) -> list[AgentId]:
    """What has a place keeps it, whatever the limit says; what waits, waits.

    Args:
        regulator: a `Regulator` or a `Fleet`.
        root: the family, as it is booked.
        key: the regulator's name of an agent.
        now: the time [s].

    Returns:
        The agents that this has let in.
    """
    name, others = key(root), list[AgentId]()
    family = {key(member) for member in root.family}

    def note(let_in: Iterable[AgentId]) -> None:
        others.extend(agent for agent in let_in if agent not in family)

    has_pool = getattr(regulator, "has_pool", lambda _: False)
    arrived = regulator.arrive(
        name,
        now,
        prompt_tokens=root.prompt_tokens,
        priority=root.priority,
        group=root.group,
        pool=root.pool if has_pool(root.pool) else None,
    )
    if root.entered:
        note([*arrived, *regulator.admit(name, now, root.pool)])
        _remember(regulator, root, name, now, note)
        if not root.has_place:
            note(regulator.suspend(name, now))
    for child in root.children.values():
        note(regulator.arrive(key(child), now, parent=name))
        if root.has_place:
            _remember(regulator, child, key(child), now, note)
    for member in root.family:
        for _ in range(member.calls):
            note(begin_passed(regulator, key(member), now, prompt_tokens=member.prompt_tokens))
    if root.suspended and root.has_place:
        note(regulator.suspend(name, now))
    let_in = others if root.entered else [*arrived]
    if root.entered and not root.has_place and not root.suspended:
        let_in += regulator.resume(name, now)
    for member in root.family:
        for _ in member.asks:
            answer = regulator.begin_step(key(member), now, prompt_tokens=member.prompt_tokens)
            let_in += answer
    if root.departed:
        let_in += regulator.leave(name, now)
    return let_in


def begin_passed(
    regulator: Any, agent: AgentId, now: float, pool: str | None = None, **options: Any
) -> list[AgentId]:
    """A call of `agent` has left already: it is in, whatever the limit says."""
    let_in = list(regulator.begin_step(agent, now, **options))
    if agent not in let_in:
        let_in += regulator.admit(agent, now, pool)
    return let_in


def _remember(
    regulator: Any,
    entry: Entry,
    name: AgentId,
    now: float,
    note: Callable[[Iterable[AgentId]], None],
) -> None:
    """It holds the context of its last call."""
    if entry.context is not None:
        note(begin_passed(regulator, name, now))
        note(regulator.end_step(name, now, entry.context))
