"""Recordings of real decisions, made in virtual time."""

from collections.abc import Callable
from pathlib import Path

import pytest

from concur_agents.core import Law, Regulator, make_law
from concur_agents.record import Recording, Taped, record
from concur_agents.sim.profile import load_profile
from concur_agents.sim.runner import RegulatorGate, simulate
from concur_agents.sim.traces import load_traces
from concur_agents.sim.workload import plans_from_traces

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
    wrap: Callable[[Taped], Taped] = lambda taped: taped,
    max_bytes: int = 2**28,
    **options: object,
) -> Recording:
    """A recording of a simulated batch of real traces; every seed is another story."""
    traces = load_traces("miniswe-gemini3pro", max_context=16_000, cut=True, tool_cap_s=20)
    plans = plans_from_traces(traces, agents, seed)
    profile = load_profile("h100-qwen3-8b").replace(kv_blocks=kv_blocks)
    taped, recorder = record(
        Regulator(make_law(law), 0.0, **options),
        path,
        shadow=shadow,
        max_bytes=max_bytes,
        **options,
    )
    with recorder:
        simulate(plans, profile, RegulatorGate(wrap(taped)), seed=seed, record_series=False)
    return Recording(path)


@pytest.fixture(scope="session")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Twelve agents on an engine with room for a few of them, under `working_set`."""
    folder = tmp_path_factory.mktemp("recording")
    return simulated(folder / "run.jsonl", shadow=make_law("cache_aimd", start=4))
