"""Settings shared by every test, and what several folders need: a law that follows a timetable.

Other fixtures live beside the tests that use them.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import settings

from concur_agents import Governor
from concur_agents.core import LawState, Limit, Snapshot

# Two busy cores make a single example slow now and then; the suite's own timeout catches hangs.
# Derandomised: a red run on one machine is the same red run on the next.
settings.register_profile("concur", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("concur")

# A shell starts what it runs in the background with Ctrl-C ignored, and children inherit that; some
# tests are about Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Timetable:
    """A law that follows a timetable: at each time [s] its limit."""

    name: ClassVar[str] = "timetable"
    formula: ClassVar[str] = "as written down"
    needs_readings: ClassVar[bool] = False

    rows: tuple[tuple[float, Limit], ...]

    def initial(self) -> LawState:
        return LawState(self.rows[0][1], reason="row 0")

    def decide(self, state: LawState, snapshot: Snapshot) -> LawState:
        past = [i for i, (from_s, _) in enumerate(self.rows) if from_s <= snapshot.at_s]
        return LawState(self.rows[past[-1]][1], reason=f"row {past[-1]}")


@pytest.fixture
def timetable() -> Callable[..., Timetable]:
    """`timetable((0, 4), (10, 1))`: 4 agents, from 10 s on 1."""

    def make(*rows: tuple[float, float | Limit]) -> Timetable:
        return Timetable(
            tuple(
                (float(s), limit if isinstance(limit, Limit) else Limit(agents=limit))
                for s, limit in rows
            )
        )

    return make


def assert_nobody_left_behind(governor: Governor) -> None:
    view = governor.snapshot()
    assert (view.active, view.reasoning, view.acting, view.paused, view.queued) == (0, 0, 0, 0, 0)
    assert view.pressure_tokens == pytest.approx(0)
    assert governor._desk.roster.waiting == 0
    assert not governor._desk.roster.places
    assert not governor._desk.roster.regulator._accounts


@pytest.fixture
def nobody_left() -> Callable[[Governor], None]:
    """Fails if an agent, a waiter or a claim stayed behind."""
    return assert_nobody_left_behind
