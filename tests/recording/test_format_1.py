"""Recordings of format 1, written by version 0.1: they are read, explained, reported and watched.

`format-1.jsonl` is a whole recording of four agents in 30 s, watched meanwhile; the other began
late, while one agent was suspended. They replay to the bit only where the law has not changed.
"""

import json
from pathlib import Path

import pytest

from concur_agents.cli.app import main
from concur_agents.cli.watch_recording import Screen
from concur_agents.core import make_law
from concur_agents.recording import Happening, RecordedCall, Recording, apply, make_regulator
from concur_agents.recording.model import CALLS
from concur_agents.recording.page import page
from concur_agents.recording.timeline_builder import read_timeline

DATA = Path(__file__).parent / "data"
WHOLE = DATA / "format-1.jsonl"
LATE = DATA / "format-1-late.jsonl"


def concur(*words: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    code = left.value.code
    return code if isinstance(code, int) else 0


def test_its_names_are_those_of_today():
    recording = Recording(WHOLE)
    assert recording.format == 1
    assert recording.header.regulator["max_open"] == 3
    kinds = {line.kind for line in recording if isinstance(line, Happening)}
    assert {"suspended", "resume_asked"} <= kinds
    views = [line.tick.view for line in recording if isinstance(line, RecordedCall) and line.tick]
    assert max(view.suspended for view in views) >= 1


def test_its_questions_are_dropped():
    assert '"call":"ask"' in WHOLE.read_text("utf-8")
    calls = [line for line in Recording(WHOLE) if isinstance(line, RecordedCall)]
    assert {call.name for call in calls} <= set(CALLS)
    assert not any("asked" in call.options for call in calls)


def test_agents_that_were_off_at_the_beginning_are_suspended():
    header = Recording(LATE).header
    first = next(who for who in header.agents if who.id == "first")
    assert (first.state, first.is_suspended, first.waiting_calls) == ("suspended", True, 0)


def test_every_agent_has_its_lane():
    timeline = read_timeline(Recording(WHOLE))
    assert {lane.id: lane.steps for lane in timeline.lanes.values()} == {
        "first": 3,
        "second": 3,
        "third": 3,
        "fourth": 3,
    }
    assert timeline.lanes["first"].seconds("suspended") == pytest.approx(6.0)
    assert timeline.done == 4


def test_it_is_explained(capsys):
    assert concur("explain", WHOLE, "--agent", "second", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["steps"] == 3
    assert said["waits"][0]["why"].startswith("pressure ")
    assert concur("explain", LATE) == 0
    assert "third" in capsys.readouterr().out


def test_it_is_reported(tmp_path):
    assert '"first"' in page(read_timeline(Recording(WHOLE)), title="format 1")
    assert concur("report", LATE, "-o", tmp_path / "late.html") == 0


def test_it_is_watched(capsys):
    assert concur("watch", WHOLE, "--json", "--count", "1") == 0
    frame = json.loads(capsys.readouterr().out)
    assert (frame["done_total"], frame["closed"]) == (4, True)
    screen = Screen(Recording(LATE))
    assert screen.frame().suspended == 1


@pytest.mark.parametrize("options", [(), ("--law", "fixed")])
def test_a_law_that_has_changed_since_is_one_line(capsys, options):
    """The recorded `working_set` has options that today's has not, so it cannot be replayed."""
    assert concur("replay-law", WHOLE, *options) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "the recorded law 'working_set' cannot be made here" in said.err
    assert "concur explain and concur report do without it" in said.err, "another law needs it too"


def test_its_calls_can_be_made_on_another_law():
    """They take the same arguments as today."""
    recording = Recording(WHOLE)
    regulator = make_regulator(recording, make_law("fixed", agents=1))
    errors = [apply(regulator, line)[1] for line in recording if isinstance(line, RecordedCall)]
    assert set(errors) == {None}
    assert regulator.view(100.0).done_total == 4


def test_a_late_one_cannot_be_replayed(capsys):
    assert concur("replay-law", LATE) == 2
    assert "it was begun later" in capsys.readouterr().err
