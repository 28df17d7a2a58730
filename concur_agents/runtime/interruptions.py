"""A decision that an exception from outside cut off halfway: the regulator is made anew.

The sessions say where each agent stands; `rebuilt` puts the same agents there again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from concur_agents.core import Law, Regulator, make_law

if TYPE_CHECKING:
    from concur_agents.runtime.session import Session


def rebuilt(
    old: Regulator,
    agents: Iterable[Session],
    parent_of: Callable[[Session], str | None],
    make: Callable[[Law], Regulator],
    now: float,
) -> tuple[Regulator, list[str]]:
    """A regulator in which the same agents stand where they stood, as far as that is known.

    The law's state, what was learned of the engine, and each agent's context are kept. Lost: which
    prefixes agents share and which contexts the engine has evicted, until they are seen again; and
    waits count from now.

    Args:
        old: perhaps half-changed; not to be used any more.
        agents: all that are here, in order of arrival.
        parent_of: the agent whose place an agent shares.
        make: makes a regulator with the same options, which waits for no first reading.
        now: the time [s].

    Returns:
        The regulator, and the agents that it has let in.
    """
    agents = list(agents)
    inside = [session for session in agents if session.entering is None]
    # Without a limit first, because those that are in stay in.
    new = make(make_law("fixed", agents=math.inf))
    for session in inside:
        new.arrive(
            session.id,
            now,
            parent=parent_of(session),
            priority=session.priority,
            group=session.group,
            pool=None if parent_of(session) else old.pool_of(session.id),
        )
        context, _ = old.memory_of(session.id)
        if context is not None:
            new.begin_step(session.id, now)
            new.end_step(session.id, now, context)
    for session in inside:
        has_gone = session.suspended or (session.asked and not session.calls)
        if has_gone and parent_of(session) is None:
            new.suspend(session.id, now)
    for session in inside:
        for ticket in session.calls.values():
            new.begin_step(session.id, now, prompt_tokens=ticket.prompt_tokens)
    new.take_over(old, now)
    let_in: list[str] = []
    for session in inside:
        for ticket in session.asked:
            let_in += new.begin_step(session.id, now, prompt_tokens=ticket.prompt_tokens)
    for session in agents:
        if session.entering is not None:
            let_in += new.arrive(
                session.id,
                now,
                prompt_tokens=old.memory_of(session.id)[1],
                parent=parent_of(session),
                priority=session.priority,
                group=session.group,
            )
    return new, let_in
