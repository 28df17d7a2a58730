"""The `concur` command itself: what it says about a wrong option, on any terminal."""

import io
import json
import os
import subprocess
import sys

import pytest

from concur_agents.cli.app import main

CONCUR = [sys.executable, "-m", "concur_agents.cli.app"]


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_a_wrong_option_is_said_in_one_line_however_narrow_the_terminal(columns, tmp_path):
    file = tmp_path / ("x" * 100)
    file.touch()
    ran = subprocess.run(
        [*CONCUR, "demo", "--out", str(file)],
        env={**os.environ, "COLUMNS": columns},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    last = ran.stderr.splitlines()[-1]
    assert last.startswith("Error: Invalid value for '--out': ")
    assert last.endswith(f"{str(file)!r} is a file.")


def test_what_a_terminal_cannot_show_is_replaced(monkeypatch):
    """A table with a multiplication sign ended in a UnicodeEncodeError on an ASCII locale."""
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "ascii", write_through=True))
    with pytest.raises(SystemExit):
        main(["--version"])
    sys.stdout.write("2×3")
    assert shown.getvalue().endswith(b"2?3")


def test_several_engines_are_given_one_by_one_or_with_commas(capsys):
    for words in (
        ["--engine", "http://gpu1:8000", "--engine", "http://gpu2:8000"],
        ["--url", "http://gpu1:8000,http://gpu2:8000"],
    ):
        with pytest.raises(SystemExit) as left:
            main(["config", "--json", "--ranks", "2", *words])
        assert not left.value.code
        found = json.loads(capsys.readouterr().out)
        assert found["url"]["value"] == ["http://gpu1:8000", "http://gpu2:8000"]
        assert found["ranks"]["value"] == 2
    with pytest.raises(SystemExit):
        main(["config", "--json", "--engine", "http://gpu1:8000"])
    assert json.loads(capsys.readouterr().out)["url"]["value"] == "http://gpu1:8000"


def test_config_folds_a_long_address_and_cuts_nothing(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:8000/a/path/that/is/long/v1")
    with pytest.raises(SystemExit) as left:
        main(["config"])
    assert not left.value.code
    shown = capsys.readouterr().out
    assert "long/v1" in shown
    assert "…" not in shown
