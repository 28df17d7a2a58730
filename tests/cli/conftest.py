"""A recording that several tests of the commands look at."""

import pytest

from concur_agents.core import Reading, Regulator, Usage, make_law
from concur_agents.recording import Recording, record


@pytest.fixture
def half_way(tmp_path):
    """One reasons, one acts with a context that has half faded, one waits for 30 s."""
    recorded, recorder = record(Regulator(make_law("fixed", agents=2)), tmp_path / "run.jsonl")
    for name in ("reasons", "acts", "waits"):
        recorded.arrive(name, 0.0)
    for name in ("reasons", "acts"):
        recorded.begin_step(name, 0.0)
        recorded.end_step(name, 5.0, Usage(4000, 0, 1000))
    recorded.begin_step("reasons", 6.0)
    recorded.tick(Reading(at_s=10.0, capacity_tokens=10_000), 10.0)
    recorded.advance(30.0)
    recorder.close()
    return Recording(recorder.path)
