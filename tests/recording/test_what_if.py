"""A recording through another law, in open loop."""

import pytest

from concur_agents.core import make_law
from concur_agents.recording.spread import spread
from concur_agents.recording.timeline_builder import read_timeline
from concur_agents.recording.what_if import what_if


def test_through_the_same_law_the_open_loop_changes_nothing(batch):
    """So what another law changes is that law's doing, not the replay's."""
    found = what_if(batch, batch.header.make_law())
    assert found.first is None
    assert found.other.steps == found.recorded.steps
    assert found.other.pauses == found.recorded.pauses > 0
    assert found.other.waits == pytest.approx(found.recorded.waits, rel=1e-3)
    assert found.other.mean_active == pytest.approx(found.recorded.mean_active, rel=1e-3)
    assert found.other.unfinished == 0


def test_the_recorded_side_agrees_with_the_timeline(batch):
    found, timeline = what_if(batch, make_law("fixed", agents=3)), read_timeline(batch)
    lanes = timeline.lanes.values()
    waited = spread(lane.seconds("queued", "paused") for lane in lanes)
    assert found.recorded.waits == pytest.approx(waited)
    assert found.recorded.pauses == timeline.pauses
    assert found.recorded.agents == len(timeline.lanes) == timeline.done


def test_a_tight_cap_makes_agents_wait_one_by_one(batch):
    found = what_if(batch, make_law("fixed", agents=1))
    assert found.other.agents == found.recorded.agents
    assert found.other.steps == found.recorded.steps, "nothing is lost, only later"
    assert found.other.mean_active == pytest.approx(1.0, abs=0.01)
    assert found.other.waits.total_s > 3 * found.recorded.waits.total_s
    assert found.other.over_capacity_s == 0.0
    assert found.first.call.name == "arrive"


def test_without_any_bound_no_agent_waits(batch):
    found = what_if(batch, make_law("fixed", agents=1000))
    assert found.other.waits.total_s == 0.0
    assert found.other.pauses == 0
    assert found.other.lasts_s < found.recorded.lasts_s
    assert found.other.over_capacity_s > found.recorded.over_capacity_s
