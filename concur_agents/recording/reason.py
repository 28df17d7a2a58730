"""The one place where a reason of the Regulator becomes text."""

from __future__ import annotations

from concur_agents.core import Regulator


def why_waiting(regulator: Regulator, agent: str, now: float) -> str:
    """What keeps `agent` waiting, with the numbers of this instant; "" if it does not wait."""
    return str(regulator.why(agent, now) or "")
