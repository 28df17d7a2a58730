"""Timelines of recordings."""

from concur_agents.core import make_law
from concur_agents.recording import Recording
from concur_agents.recording.timeline_builder import read_timeline
from concur_agents.recording.what_if import what_if


def test_a_file_that_still_grows_has_a_timeline_so_far(batch, tmp_path):
    """A live recording has agents in the middle of things."""
    lines = batch.path.read_bytes().splitlines(keepends=True)
    path = tmp_path / "half.jsonl"
    path.write_bytes(b"".join(lines[: len(lines) // 2]))
    timeline = read_timeline(Recording(path))
    assert any(
        lane.segments and lane.segments[-1].to_s == timeline.end_s
        for lane in timeline.lanes.values()
    )
    assert any(not wait.ended_by for wait in timeline.waits)
    assert what_if(Recording(path), make_law("fixed", agents=2)).other.agents == 12
