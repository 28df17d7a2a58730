"""Settings shared by every test, and what several folders need: a law that follows a timetable.

Other fixtures live beside the tests that use them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

import pytest
from hypothesis import settings

from concur_agents.core import Fleet, Law, LawState, Limit, Reading, Regulator, Snapshot, make_law
from concur_agents.recording import Recording, RecordingRegulator, record
from concur_agents.runtime.config import NOT_OURS
from concur_agents.runtime.poller import EnginePoller
from concur_agents.sim.faults import ReplicaDies
from concur_agents.sim.profile import load_profile
from concur_agents.sim.replicas import FleetGate, simulate_fleet
from concur_agents.sim.runner import RegulatorGate, simulate
from concur_agents.sim.traces import load_traces
from concur_agents.sim.workload import plans_from_traces
from concur_agents.testing import ScriptedProbe

# Two busy cores make a single example slow now and then; the suite's own timeout catches hangs.
# Derandomised: a red run on one machine is the same red run on the next.
settings.register_profile("concur", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("concur")

# A developer's shell may hold options of governors, keys and addresses of clients, a proxy that
# cannot reach loopback, and a wish for colours in the words that tests read.
for name in list(os.environ):
    if (
        (name.startswith("CONCUR_") and not name.startswith(NOT_OURS))
        or name.startswith("OPENAI_")
        or name.lower() in ("http_proxy", "https_proxy", "all_proxy")
        or name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    ):
        del os.environ[name]

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


SMALL_POOL = 3000
"""KV blocks that hold a few of the agents below: most of them have to wait now and then."""


def simulated(
    path: Path,
    *,
    law: str = "working_set",
    agents: int = 12,
    seed: int = 0,
    shadow: Law | None = None,
    kv_blocks: int = SMALL_POOL,
    wrap: Callable[[RecordingRegulator], RecordingRegulator] = lambda recorded: recorded,
    max_bytes: int = 2**28,
    **options: object,
) -> Recording:
    """A recording of a simulated batch of real traces; every seed is another story."""
    traces = load_traces("miniswe-gemini3pro", max_context=16_000, cut=True, tool_cap_s=20)
    plans = plans_from_traces(traces, agents, seed)
    profile = load_profile("h100-qwen3-8b").replace(kv_blocks=kv_blocks)
    recorded, recorder = record(
        Regulator(make_law(law), 0.0, **options),
        path,
        shadow=shadow,
        max_bytes=max_bytes,
        **options,
    )
    with recorder:
        simulate(plans, profile, RegulatorGate(wrap(recorded)), seed=seed, record_series=False)
    return Recording(path)


@pytest.fixture(scope="session")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Twelve agents on an engine with room for a few of them, under `working_set`."""
    folder = tmp_path_factory.mktemp("recording")
    return simulated(folder / "run.jsonl", shadow=make_law("cache_aimd", start=4))


@pytest.fixture
def scripted_engines(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[dict[str, Callable[[float], Reading | None]]], list[str]]:
    """`Governor(scripted_engines({url: script, ...}))` reads each address from its script."""

    def engines(scripts: dict[str, Callable[[float], Reading | None]]) -> list[str]:
        monkeypatch.setattr(
            EnginePoller,
            "_make_probe",
            lambda poller: ScriptedProbe(scripts[poller.url], poller._clock),
        )
        return list(scripts)

    return engines


@pytest.fixture(scope="session")
def batch_of_three(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Real traces on three simulated engines, of which the second is dead for two minutes."""
    path = tmp_path_factory.mktemp("fleet") / "run.jsonl"
    traces = load_traces("miniswe-gemini3pro", max_context=16_000, cut=True, tool_cap_s=20)
    profile = load_profile("h100-qwen3-8b").replace(kv_blocks=1500)
    pools = [f"http://gpu{n}:8000" for n in (1, 2, 3)]
    recorded, recorder = record(Fleet(make_law("working_set"), pools), path)
    with recorder:
        simulate_fleet(
            plans_from_traces(traces, 18, 0),
            [profile] * 3,
            FleetGate(cast("Fleet", recorded)),
            faults=[ReplicaDies(1, 60.0, 180.0)],
            record_series=False,
        )
    return Recording(path)
