"""The pure heart: who may run, decided from numbers and `now` alone.

Nothing in here reads a clock, opens a file, starts a thread or draws a random number; a test
parses the imports and holds that.  Everything that a host, a simulator or a judge needs:
"""

from __future__ import annotations

from concur_agents.core.fleet import Fleet
from concur_agents.core.laws import law_formulas, law_names, make_law
from concur_agents.core.laws.law import Law, LawState
from concur_agents.core.order import ORDERS, Order
from concur_agents.core.prefixes import Chain
from concur_agents.core.readings import sum_of
from concur_agents.core.regroup import (
    AnyRegulator,
    Present,
    pools_of,
    regrouped,
    without_fleet_options,
)
from concur_agents.core.regulator import FIRST_READING_S, Regulator
from concur_agents.core.types import (
    AgentId,
    AgentView,
    Decision,
    Limit,
    Reading,
    Snapshot,
    State,
    Transition,
    Usage,
    View,
)
from concur_agents.core.why import Reason

__all__ = [
    "FIRST_READING_S",
    "ORDERS",
    "AgentId",
    "AgentView",
    "AnyRegulator",
    "Chain",
    "Decision",
    "Fleet",
    "Law",
    "LawState",
    "Limit",
    "Order",
    "Present",
    "Reading",
    "Reason",
    "Regulator",
    "Snapshot",
    "State",
    "Transition",
    "Usage",
    "View",
    "law_formulas",
    "law_names",
    "make_law",
    "pools_of",
    "regrouped",
    "sum_of",
    "without_fleet_options",
]
