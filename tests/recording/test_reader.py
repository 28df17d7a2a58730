"""Reading recordings: whole, torn, growing, foreign."""

import json
from itertools import islice

import pytest

from concur_agents import RecordingError
from concur_agents.core import Regulator, make_law
from concur_agents.recording import (
    Header,
    Recorder,
    Recording,
    RecordingRegulator,
    describe_law,
)


@pytest.mark.parametrize(
    "text", ["", "{}\n", '{"concur_journal": 1}\n', '{"concur_recording": 99}\n', "hm"]
)
def test_what_is_no_recording_is_refused_in_words(tmp_path, text):
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(RecordingError, match=r"x\.jsonl is"):
        Recording(path)


def test_a_missing_recording_is_refused_in_words(tmp_path):
    with pytest.raises(RecordingError, match="No such file"):
        Recording(tmp_path / "x.jsonl")


def test_a_broken_line_is_named_and_a_torn_last_one_is_not_missed(tmp_path, batch):
    lines = batch.path.read_bytes().splitlines(keepends=True)
    path = tmp_path / "torn.jsonl"
    path.write_bytes(b"".join(lines[:50]) + lines[50][:20])
    assert len(list(Recording(path))) == 49
    path.write_bytes(b"".join(lines[:50]) + b"hm\n" + lines[50])
    with pytest.raises(RecordingError, match="line 51 of"):
        list(Recording(path))


def test_fields_that_only_another_version_knows_are_passed_over(tmp_path, batch):
    """A recording is often looked at with a newer version than the one that made it."""
    lines = [json.loads(line) for line in batch.path.read_text("utf-8").splitlines()]
    for line in lines:
        for part in ("view", "snapshot", "reading"):
            if line.get(part):
                line[part]["of_tomorrow"] = 1
        if "view" in line:
            line["view"]["limit"]["of_tomorrow"] = None
    path = tmp_path / "newer.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert list(Recording(path)) == list(batch)


def test_a_reader_can_follow_a_recording_that_is_being_written_and_turned_over(tmp_path):
    header = Header(start_s=0, now=0, unix_s=0, law=describe_law(make_law("fixed")), regulator={})
    with Recorder(tmp_path / "run.jsonl", header, max_bytes=80 * 1024) as recorder:
        recorded = RecordingRegulator(Regulator(make_law("fixed")), recorder.note)
        followed = Recording(recorder.path).follow(lambda: None)
        assert next(followed) is None
        recorded.arrive("a", 1.0)
        recorded.begin_step("a", 2.0)
        recorder.flush()
        assert [line.name for line in islice(followed, 2)] == ["arrive", "begin_step"]
        assert next(followed) is None
        seen = 0
        for n in range(400):
            recorded.end_step("a", n + 2.5, None)
            recorded.begin_step("a", n + 3.0)
            recorder.flush()
            while next(followed) is not None:
                seen += 1
    assert seen == 800
    assert (tmp_path / "run.jsonl.1").exists()
