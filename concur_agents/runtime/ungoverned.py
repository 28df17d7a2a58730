"""What happens to calls that are made with no agent in context."""

from __future__ import annotations

import logging
from typing import Literal

from concur_agents.errors import ConfigError, UngovernedError

logger = logging.getLogger("concur_agents")

Ungoverned = Literal["pass", "agent", "error"]


def check_ungoverned(policy: Ungoverned) -> Ungoverned:
    """The policy, if there is such a one.

    Raises:
        ConfigError: there is none.
    """
    if policy not in ("pass", "agent", "error"):
        raise ConfigError(f"ungoverned must be 'pass', 'agent' or 'error', got {policy!r}")
    return policy


class UngovernedCalls:
    """Lets them pass with one warning, or raises; those taken for an agent never come here."""

    def __init__(self) -> None:
        self._warned = False

    def meet(self, what: str, policy: Ungoverned, others: str | None = None) -> None:
        """See `Host.meet_ungoverned`; `others` is the agent of another governor that it is in."""
        if others is not None:
            self._meet_in_other(what, policy, others)
        elif policy == "error":
            raise UngovernedError(
                f"{what} was called outside of any agent, and this governor was made with "
                'ungoverned="error": put it inside `async with governor.agent(...)`; in a thread '
                "of your own, start it through `concur_agents.bind`"
            )
        elif policy == "pass" and not self._warned:
            self._warned = True
            logger.warning(
                "%s was called outside of any agent and passes ungoverned; wrap the agent in "
                "`async with governor.agent(...)`, and start threads of your own through "
                "`concur_agents.bind`. An agent that was entered in another task, as by "
                "`asyncio.wait_for` or in an async generator, is not found either: bound the wait "
                "with `agent(..., timeout_s=)` (said once)",
                what,
            )

    def _meet_in_other(self, what: str, policy: Ungoverned, agent: str) -> None:
        wish = (
            f"{what} was called in agent {agent!r} of another governor than the one that its "
            "client was made with: make both with the same governor"
        )
        if policy == "error":
            raise UngovernedError(wish)
        if policy == "pass" and not self._warned:
            self._warned = True
            logger.warning("%s; the call passes ungoverned (said once)", wish)
