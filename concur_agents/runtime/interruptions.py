"""The agents that are here, as the core rebuilds a regulator around them.

For a decision that an exception from outside cut off halfway, and for pools that change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from concur_agents.core import Present

if TYPE_CHECKING:
    from concur_agents.runtime.session import Session


def present(
    agents: Iterable[Session],
    parent_of: Callable[[Session], str | None],
    pool_of: Callable[[str], str | None],
) -> list[Present]:
    """The agents, each where it stands.

    Args:
        agents: in order of arrival.
        parent_of: the agent whose place an agent shares.
        pool_of: where an agent is to be.
    """
    return [
        Present(
            agent=session.id,
            parent=(parent := parent_of(session)),
            priority=session.priority,
            group=session.group,
            pool=None if parent else pool_of(session.id),
            enters=session.entering is not None,
            is_suspended=session.suspended,
            calls=tuple(ticket.prompt_tokens for ticket in session.calls.values()),
            asked=tuple(ticket.prompt_tokens for ticket in session.asked),
        )
        for session in agents
    ]
