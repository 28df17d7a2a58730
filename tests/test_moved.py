"""Names of before 0.2: each still works, warns once, and is in the changelog's table."""

import importlib
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import concur_agents
from concur_agents import Governor, _moved
from concur_agents.runtime.config import RENAMED

CHANGELOG = (Path(__file__).parents[1] / "CHANGELOG.md").read_text("utf-8")
ATTRIBUTES = {
    "observe.socket:Looker": "observe.socket_client:SocketClient",
    "recording:Call": "recording:RecordedCall",
    "recording:Taped": "recording:RecordingRegulator",
    "recording.timeline:tell": "recording.timeline_builder:read_timeline",
    "sim.runner:free_tier_bound": "sim.bound:free_tier_bound",
}


def find(path):
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(f"concur_agents.{module}"), name)


def table():
    """(before, now) of each row, with names such as `.agent` written out."""
    section = CHANGELOG.partition("| before | now |")[2].partition("\n\n")[0]
    for before, now in re.findall(r"(?m)^\| (`.*) \| (.*) \|$", section):
        yield spelt(before), spelt(now)


def spelt(cell):
    found = []
    for name in re.findall(r"`([^`]+)`", cell):
        found.append(found[0].rpartition(".")[0] + name if name.startswith(".") else name)
        if name.startswith(".") and found[0].count(".") == 1:  # `concur_agents.hosts`, `.agent`
            found.append(found[0] + name)
    return found


@pytest.mark.parametrize(("old", "new"), _moved.MODULES.items())
def test_an_old_module_is_the_new_one_and_warns(old, new, monkeypatch):
    monkeypatch.delitem(sys.modules, f"concur_agents.{old}", raising=False)
    if "." in old:  # its package warns, too
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(f"concur_agents.{old.partition('.')[0]}")
    with pytest.warns(DeprecationWarning, match=re.escape(f"concur_agents.{old} is now called")):
        module = importlib.import_module(f"concur_agents.{old}")
    assert module is importlib.import_module(f"concur_agents.{new}")


@pytest.mark.parametrize(("old", "new"), ATTRIBUTES.items())
def test_an_old_name_in_a_module_is_the_new_one_and_warns(old, new):
    with pytest.warns(DeprecationWarning, match="the old name goes with the next release"):
        assert find(old) is find(new)


def test_a_module_in_an_old_package_is_no_second_copy(monkeypatch):
    """Its classes would be others, and `isinstance` would fail."""
    monkeypatch.delitem(sys.modules, "concur_agents.record.timeline", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old = importlib.import_module("concur_agents.record.timeline")
    assert old is importlib.import_module("concur_agents.recording.timeline")


def test_every_old_name_in_a_module_is_tested_above():
    """A module has such names if it asks `_moved`; the sources say which."""
    package = Path(concur_agents.__file__).parent
    asking = {
        ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__")
        for path in package.rglob("*.py")
        if re.search(r"^def __getattr__", path.read_text("utf-8"), re.MULTILINE)
        and "_moved." in path.read_text("utf-8")
    }
    assert asking - {"__init__"} == {name.partition(":")[0] for name in ATTRIBUTES}


def test_a_name_that_never_was_is_an_error():
    for module in ("observe.socket", "recording", "recording.timeline", "sim.runner"):
        with pytest.raises(AttributeError, match="no attribute 'never_was'"):
            find(f"{module}:never_was")
    with pytest.raises(AttributeError, match="no attribute 'never_was'"):
        concur_agents.never_was  # noqa: B018


def test_the_old_option_works_in_code_and_environment_and_warns(monkeypatch):
    assert RENAMED == {"max_started": "max_open"}, "another one needs a test here"
    with pytest.warns(DeprecationWarning, match="max_started is now called max_open"):
        governor = Governor(limit=4, max_started=2)
    monkeypatch.setenv("CONCUR_MAX_STARTED", "2")
    with pytest.warns(DeprecationWarning, match="CONCUR_MAX_OPEN"):
        second = Governor.from_env(limit=4)
    for one in (governor, second):
        regulator = one._monitor.sessions.regulator
        assert [len(regulator.arrive(f"a{n}", 0.0)) for n in range(3)] == [1, 1, 0]
        one.close()


def test_the_old_option_works_on_the_command_line(capsys):
    pytest.importorskip("typer")
    from concur_agents.cli.app import main

    with pytest.raises(SystemExit) as left:
        main(["config", "--max-started", "2", "--json"])
    assert left.value.code in (0, None)
    said = capsys.readouterr()
    assert json.loads(said.out)["max_open"]["value"] == 2
    assert "concur: max_started is now called max_open" in said.err, "Python hides a warning"


def test_the_new_option_goes_before_the_old_one():
    with pytest.warns(DeprecationWarning, match="max_started is now called max_open"):
        governor = Governor(limit=4, max_started=3, max_open=1)
    regulator = governor._monitor.sessions.regulator
    assert [len(regulator.arrive(f"a{n}", 0.0)) for n in range(2)] == [1, 0]
    governor.close()


FORMER = """
from concur_agents.context import bind
import concur_agents as ca
ca.Governor.from_env(limit=2)
ca.Governor(limit=2, max_started=3)
from concur_agents.recording import Taped
"""


def test_a_program_sees_each_warning_at_its_own_line(tmp_path):
    """Python shows a `DeprecationWarning` only where it is laid to the program itself."""
    program = tmp_path / "program.py"
    program.write_text(FORMER)
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    ran = subprocess.run(
        [sys.executable, program],
        env=environ | {"CONCUR_MAX_STARTED": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    for line, name in ((2, "concur_agents.context"), (4, "CONCUR_MAX_STARTED"), (5, "max_started")):
        assert f"program.py:{line}: DeprecationWarning: {name} is now called" in ran.stderr
    assert "program.py:6: DeprecationWarning: concur_agents.recording.Taped" in ran.stderr


def test_the_simulators_former_command_names_the_new_one():
    ran = subprocess.run(
        [sys.executable, "-m", "concur_agents.sim.server"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert "is now called concur serve-sim" in ran.stderr


def test_the_old_method_of_an_agent_works_and_warns():
    with Governor(limit=1) as governor, governor.agent("a") as agent:
        with pytest.warns(DeprecationWarning, match=r"Agent\.off is now called Agent\.suspended"):
            block = agent.off()
        with block:
            assert agent.state == "suspended"


def test_the_changelog_has_every_old_name():
    before = {name for row, _ in table() for name in row}
    now = {name for _, row in table() for name in row}
    for old, new in _moved.MODULES.items():
        assert f"concur_agents.{old}" in before
        assert f"concur_agents.{new}" in now
    for old in ATTRIBUTES:
        module, _, name = old.partition(":")
        assert any(entry.endswith(f"{module.rpartition('.')[2]}.{name}") or
                   entry == f"live.{name}" for entry in before), old  # fmt: skip
    for old in RENAMED:
        assert any(f"{old}=" in entry for entry in before)
    assert "agent.off()" in before
