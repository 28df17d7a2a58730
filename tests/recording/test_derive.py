"""Recordings whose lines do not say who moved."""

from __future__ import annotations

import json

from concur_agents.recording import RecordedCall, Recording
from concur_agents.recording.timeline_builder import read_timeline


def test_a_file_without_moves_gives_the_same_timeline(batch, tmp_path):
    """Versions before `moves` wrote format 2 too."""
    old = tmp_path / "old.jsonl"
    with old.open("w", encoding="utf-8") as lines:
        for raw in batch.path.read_text("utf-8").splitlines():
            found = json.loads(raw)
            found.pop("moves", None)
            lines.write(json.dumps(found) + "\n")
    assert all(line.moves is None for line in Recording(old) if isinstance(line, RecordedCall))
    assert all(line.moves is not None for line in batch if isinstance(line, RecordedCall))
    assert read_timeline(Recording(old)) == read_timeline(batch)
