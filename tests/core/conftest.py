from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from concur_agents.core import LawState, Limit, Regulator

INF = float("inf")


@dataclass
class Scripted:
    """A law that decides whatever the test wrote into `limit`."""

    name: ClassVar[str] = "scripted"
    formula: ClassVar[str] = "what the test says"
    limit: Limit = field(default_factory=Limit)
    needs_readings: bool = False

    def initial(self):
        return LawState(self.limit, reason="scripted")

    def decide(self, state, snapshot):
        return LawState(self.limit, reason="scripted")


@pytest.fixture
def regulate():
    """Makes a Regulator under a scripted limit: `regulate(agents=2, max_wait_s=60)`."""

    def make(*, agents=INF, tokens=INF, hold=INF, enter=INF, breadth=INF, near=INF, **options):
        readings = options.pop("needs_readings", False)
        law = Scripted(Limit(agents, tokens, hold, enter, breadth, near), needs_readings=readings)
        return Regulator(law, **options)

    return make


@pytest.fixture
def resize():
    """Changes the limit of such a Regulator, as its law would: returns the agents let in."""

    def change(regulator, now, *, reading=None, **limit):
        law = regulator.law
        law.limit = Limit(**limit)
        return regulator.tick(reading, now)

    return change
