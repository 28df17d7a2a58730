"""The flight recorder: every deciding call of a Regulator with all its inputs, a JSON line each.

The Regulator is pure, so its calls are enough to repeat every decision exactly: `replay` makes the
recorded calls on a fresh one and compares the answers. The same lines show where each agent stood
at any time; `concur explain`, `report` and `watch` read that.

    {"concur_recording": 2, "law": {"name": "working_set", ...}, "start_s": 0.0, ...}
    {"call": "begin_step", "now": 12.5, "agent": "b", "let_in": [], "moves": {"b": "paused"}}
    {"call": "tick", "now": 13.0, "reading": {...}, "let_in": ["b"], "moves": {...}, ...}
    {"event": "tool_began", "now": 13.1, "agent": "issue-3", "reason": "pytest"}

A recording holds ids, counts and times. It never holds prompts, answers or keys; names of shared
prefixes and ids that are texts are written as digests, because a caller may make them from a
prompt. The governor hands a
line over under its lock, and a thread of the recorder writes it a moment later.
"""

from __future__ import annotations

from typing import Any

from concur_agents import _moved
from concur_agents.recording.model import (
    FORMAT,
    Happening,
    Header,
    Line,
    RecordedCall,
    Shadow,
    Standing,
    Tick,
)
from concur_agents.recording.reader import Recording
from concur_agents.recording.recording_regulator import RecordingRegulator, record
from concur_agents.recording.replay import Difference, apply, make_regulator, replay
from concur_agents.recording.standing import standing_of
from concur_agents.recording.tracker import Tracker
from concur_agents.recording.values import describe_law, scrub
from concur_agents.recording.writer import MAX_BYTES, Recorder

__all__ = [
    "FORMAT",
    "MAX_BYTES",
    "Difference",
    "Happening",
    "Header",
    "Line",
    "RecordedCall",
    "Recorder",
    "Recording",
    "RecordingRegulator",
    "Shadow",
    "Standing",
    "Tick",
    "Tracker",
    "apply",
    "describe_law",
    "make_regulator",
    "record",
    "replay",
    "scrub",
    "standing_of",
]


def __getattr__(name: str) -> Any:
    return _moved.attribute(__name__, {"Call": "RecordedCall", "Taped": "RecordingRegulator"}, name)
