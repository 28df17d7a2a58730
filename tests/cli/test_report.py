"""`concur report`: writes the page."""

import json

import pytest

from concur_agents.cli.app import main


def concur(*words: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    code = left.value.code
    return code if isinstance(code, int) else 0


def test_the_command_writes_one_file_and_says_so(batch, tmp_path, capsys):
    output = tmp_path / "report.html"
    assert concur("report", batch.path, "-o", output, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"output": str(output), "bytes": output.stat().st_size, "agents": 12}
    assert concur("report", batch.path, "-o", tmp_path / "no" / "x.html") == 2
    assert "cannot write" in capsys.readouterr().err


def test_of_several_pools_it_says_what_each_did(batch_of_three, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")  # because a narrow terminal cuts cells
    output = tmp_path / "report.html"
    assert concur("report", batch_of_three.path, "-o", output, "--json") == 0
    pools = json.loads(capsys.readouterr().out)["pools"]
    assert [row["pool"] for row in pools] == [f"http://gpu{n}:8000" for n in (1, 2, 3)]
    assert concur("report", batch_of_three.path, "-o", output) == 0
    said = capsys.readouterr().out
    assert "http://gpu2:8000" in said
    assert "down for" in said
