"""Agents of other processes that a governor decides about: those of a daemon."""

from __future__ import annotations

from concur_agents.core import View


class Elsewhere:
    """There are none.  A daemon puts its own in place of this."""

    def let_in(self, agent: str, now: float) -> None:
        """The regulator has let in an agent that is not of this process."""

    @property
    def alive(self) -> int:
        """How many there are, waiting or not."""
        return 0

    @property
    def may_wait(self) -> bool:
        """False: for certain none waits.  O(1)."""
        return False

    def waiters(self, view: View) -> int:
        """How many of them wait.

        Args:
            view: the regulator at this instant.
        """
        return 0
