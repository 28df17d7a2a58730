"""A law of the user's own, in a file of the current folder, wherever a command names a law."""

from __future__ import annotations

import json
import sys
import textwrap

import pytest

from concur_agents import Governor
from concur_agents.cli.app import main

LAW = """
from dataclasses import dataclass
from typing import ClassVar

from concur_agents.core import LawState, Limit, Snapshot


@dataclass(frozen=True, slots=True)
class Two:
    name: ClassVar[str] = "two"
    formula: ClassVar[str] = "agents"
    needs_readings: ClassVar[bool] = False

    agents: int = 2

    def initial(self) -> LawState:
        return LawState(Limit(agents=self.agents), reason="mine")

    def decide(self, state: LawState, snapshot: Snapshot) -> LawState:
        return state
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "own_laws_of_a_test.py").write_text(textwrap.dedent(LAW))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_laws_of_a_test", raising=False)
    return tmp_path


def left(*words):
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return ended.value.code or 0


def test_options_of_a_governor_take_it_with_its_options(capsys):
    words = ["--law", "own_laws_of_a_test:Two", "--law-options", "agents=3"]
    assert left("config", *words, "--json") == 0
    assert json.loads(capsys.readouterr().out)["law"]["value"] == "own_laws_of_a_test:Two"
    assert left("config", "--shadow", "own_laws_of_a_test:Two") == 0
    assert left("config", "--law", "own_laws_of_a_test:Three") == 2
    assert "cannot load law 'own_laws_of_a_test:Three'" in capsys.readouterr().err


def test_a_dry_run_takes_it(capsys):
    assert (
        left("watch", "http://127.0.0.1:9", "--law", "own_laws_of_a_test:Two", "--count", "1") == 1
    )
    assert "no law" not in capsys.readouterr().err


def test_a_replay_takes_it(here, capsys):
    record = here / "run.jsonl"
    with Governor(limit=1, record=record) as gov, gov.agent("a") as agent, agent.step():
        pass
    words = ["--law", "own_laws_of_a_test:Two", "--set", "agents=1", "--json"]
    assert left("replay-law", str(here / "run.jsonl"), *words) == 0
    assert json.loads(capsys.readouterr().out)["other"]["law"] == "two"


def test_a_program_of_concur_run_finds_it_from_another_folder(here):
    (here / "other").mkdir()
    (here / "other" / "program.py").write_text("import own_laws_of_a_test")
    words = ["--law", "own_laws_of_a_test:Two", "--", sys.executable, "other/program.py"]
    assert left("run", *words) == 0
