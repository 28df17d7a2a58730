"""`concur watch` on the socket of a living governor."""

import json
import tempfile
from pathlib import Path

import pytest

from concur_agents import Governor
from concur_agents.cli.app import main
from concur_agents.observe.frame import Frame


@pytest.fixture
def folder():
    """A folder of one's own with a short name: the path of a socket has about 100 characters."""
    with tempfile.TemporaryDirectory(prefix="c", dir="/tmp") as name:
        yield Path(name)


def concur(*words):
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    code = left.value.code
    return code if isinstance(code, int) else 0


def test_watch_finds_the_only_governor_and_lists_several(folder, monkeypatch, capsys):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    assert concur("watch") == 2
    assert 'socket="auto"' in capsys.readouterr().err
    with Governor(limit=3, socket="auto") as governor, governor.agent("issue-17"):
        assert concur("watch", "--count", "2", "--interval", "0.05", "--json") == 0
        frames = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [frame["acting"] for frame in frames] == [1, 1]
        assert set(frames[0]) == set(Frame.__slots__)
        assert concur("watch", "--count", "1") == 0
        shown = capsys.readouterr().out
        assert "issue-17" in shown
        assert "1 of 3" in shown
        with Governor(limit=1, socket="auto"):
            assert concur("watch") == 2
            assert capsys.readouterr().err.count(".sock") == 2
    assert concur("watch", folder / "gone.sock") == 2
    assert "no governor listens" in capsys.readouterr().err
