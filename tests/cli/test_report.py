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
