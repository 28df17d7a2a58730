"""`concur replay-law`: a recording through its law again, and through others."""

import json

import pytest

from concur_agents.cli.app import main
from concur_agents.core import Regulator, make_law
from concur_agents.recording import record
from concur_agents.runtime.config import parse_options


def concur(capsys, *words: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    code = left.value.code
    said = capsys.readouterr()
    return (code if isinstance(code, int) else 0), said.out + said.err


def test_the_recorded_law_answers_the_same_to_the_bit(batch, capsys):
    assert concur(capsys, "replay-law", batch.path)[0] == 0
    code, said = concur(capsys, "replay-law", batch.path, "--json")
    assert code == 0
    assert json.loads(said)["same"] is True
    assert json.loads(said)["calls"] > 500


def test_a_recording_with_another_decision_is_noticed(batch, tmp_path, capsys):
    """After an upgrade this shows whether the new version would have decided the same."""
    lines = batch.path.read_text("utf-8").splitlines()
    place = next(
        n for n, line in enumerate(lines) if '"let_in":["' in line and "begin_step" in line
    )
    changed = json.loads(lines[place])
    agent, changed["let_in"] = changed["let_in"], []
    lines[place] = json.dumps(changed)
    path = tmp_path / "changed.jsonl"
    path.write_text("\n".join(lines) + "\n")
    code, said = concur(capsys, "replay-law", path)
    assert code == 1
    assert f"let in no agent, replayed {agent[0]}" in said
    assert "this version decides differently" in said


def test_the_table_names_both_laws_and_says_what_open_loop_means(batch, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")  # the heads of its columns are read as one line
    code, said = concur(capsys, "replay-law", batch.path, "--law", "fixed", "--set", "agents=4")
    words = " ".join(said.split())
    assert code == 0
    assert "recorded: working_set open loop: fixed" in words
    assert "The first answer that differs: at 0.000 s, arrive" in words
    assert "What the engine would have done with the other load is unknown" in words


def test_one_option_of_the_recorded_law_can_be_changed(tmp_path, capsys):
    recorded, recorder = record(Regulator(make_law("fixed", agents=2)), tmp_path / "run.jsonl")
    with recorder:
        for name in ("a", "b"):
            recorded.arrive(name, 0.0)
        for name in ("a", "b"):
            recorded.leave(name, 10.0)
    code, said = concur(capsys, "replay-law", recorder.path, "--set", "agents=1", "--json")
    found = json.loads(said)
    assert code == 0
    assert found["recorded"]["waits"]["total_s"] == 0
    assert found["other"]["law"] == "fixed"
    assert found["other"]["waits"]["total_s"] == 10
    assert found["other"]["lasts_s"] == 20
    assert found["first_difference"] == {
        "call": "arrive",
        "now": 0.0,
        "agent": "b",
        "recorded": ["b"],
        "replayed": [],
    }


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--law", "fixd"], "did you mean 'fixed'?"),
        (["--law", "fixed", "--set", "agent=3"], "did you mean 'agents'?"),
        (["--law", "fixed", "--set", "agents"], "name=value"),
        (["--law", "fixed", "--set", "agents=many"], "agents"),
    ],
)
def test_wrong_options_are_one_line(batch, capsys, words, answer):
    code, said = concur(capsys, "replay-law", batch.path, *words)
    assert code == 2
    assert answer in said
    assert said.count("\n") == 1


def test_options_are_numbers_where_they_look_like_it():
    words = ["a=1", "b=0.5", "c=true", "d=x=y", "e = inf"]
    expected = {"a": 1, "b": 0.5, "c": True, "d": "x=y", "e": float("inf")}
    assert parse_options(words) == expected
