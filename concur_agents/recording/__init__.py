"""The flight recorder: every call of a Regulator with all its inputs, one JSON line each.

The Regulator is pure, so a recording is enough to have every decision again, exactly: `replay`
drives a fresh one with the recorded calls and compares the answers. The same lines tell who was
where when, which is what `concur explain`, `report` and `watch` read.

    {"concur_recording": 1, "law": {"name": "working_set", ...}, "start_s": 0.0, ...}
    {"call": "begin_step", "now": 12.5, "agent": "issue-17", "prompt_tokens": 9000, "let_in": []}
    {"call": "tick", "now": 13.0, "reading": {...}, "let_in": ["issue-17"], "reason": "grow", ...}
    {"event": "tool_began", "now": 13.1, "agent": "issue-3", "reason": "pytest"}

It holds ids, counts and times; prompts, answers and keys never reach it, and the names of shared
prefixes, which a caller may have made from a prompt, are kept as digests. A line is handed over
under the governor's lock and written by a thread of the recorder's own, a moment later.
"""

from __future__ import annotations

from typing import Any

from concur_agents import _moved
from concur_agents.recording.model import (
    Happening,
    Header,
    Line,
    Question,
    RecordedCall,
    Shadow,
    Standing,
    Tick,
)
from concur_agents.recording.reader import Recording
from concur_agents.recording.recording_regulator import RecordingRegulator, record
from concur_agents.recording.replay import Difference, apply, make_regulator, replay
from concur_agents.recording.tracker import Tracker, standing_of
from concur_agents.recording.values import describe_law, scrub
from concur_agents.recording.writer import MAX_BYTES, Recorder

__all__ = [
    "MAX_BYTES",
    "Difference",
    "Happening",
    "Header",
    "Line",
    "Question",
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
