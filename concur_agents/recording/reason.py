"""The text of a reason, as recordings and `concur watch` show it."""

from __future__ import annotations

from concur_agents.core import Regulator


def why_waiting(regulator: Regulator, agent: str, now: float) -> str:
    """What keeps `agent` waiting, with the numbers of this instant; "" if it does not wait."""
    reason = regulator.why(agent, now)
    return "" if reason is None else reason.numbers
