"""One set of options: the same names in code, in the environment and on the command line."""

import inspect
import json
import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from concur_agents import ConfigError, Governor
from concur_agents._sockets import sockets
from concur_agents.cli.app import main
from concur_agents.core import make_law
from concur_agents.runtime.config import OPTIONS, environment, governor_options, settings

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in list(os.environ):
        if name.startswith("CONCUR_") or name == "OPENAI_BASE_URL":
            monkeypatch.delenv(name)


def concur(capsys, *words):
    with pytest.raises(SystemExit) as left:
        main(list(words))
    said = capsys.readouterr()
    code = left.value.code
    return (code if isinstance(code, int) else 0), said.out, said.err


def test_every_option_is_a_keyword_of_governor_with_the_same_default():
    """One that is only in one of the places would be a surprise in the others."""
    keywords = inspect.signature(Governor).parameters
    in_code = set(keywords) - {"probe", "background", "clock", "unknown"}
    assert {option.name for option in OPTIONS} - {"law_options"} == in_code
    for option in OPTIONS:
        if option.name != "law_options":
            assert option.default == keywords[option.name].default, option.name


def test_what_is_given_goes_before_the_environment_and_that_before_the_defaults():
    environ = {
        "CONCUR_MAX_WAIT_S": "60",
        "CONCUR_BLIND_AGENTS": "4",
        "OPENAI_BASE_URL": "http://h/v1",
    }
    found = settings({"max_wait_s": "5", "blind_agents": None}, environ, source=lambda o: o.flag)
    said = {name: (setting.value, setting.source) for name, setting in found.items()}
    assert said["max_wait_s"] == (5.0, "--max-wait-s")
    assert said["blind_agents"] == (4, "CONCUR_BLIND_AGENTS")
    assert said["url"] == ("http://h/v1", "OPENAI_BASE_URL")
    assert said["poll_interval_s"] == (1.0, "default")
    assert settings({}, {**environ, "CONCUR_URL": "http://i"})["url"].value == "http://i"


@pytest.mark.parametrize(
    ("environ", "answer"),
    [
        ({"CONCUR_MAXWAIT": "3"}, "no option CONCUR_MAXWAIT: did you mean CONCUR_MAX_WAIT_S?"),
        ({"CONCUR_XYZ": "3"}, "no option CONCUR_XYZ"),
        ({"CONCUR_MAX_WAIT_S": "soon"}, "'soon': it must be a number of seconds"),
        ({"CONCUR_MAX_WAIT_S": "-1"}, "it must be above 0"),
        ({"CONCUR_BLIND_AGENTS": "0"}, "it must be at least 1"),
        ({"CONCUR_UNGOVERNED": "never"}, "it is 'pass', 'agent' or 'error'"),
        ({"CONCUR_LAW": "working_st"}, "CONCUR_LAW: no law 'working_st': did you mean"),
        ({"CONCUR_SHADOW": "cache"}, "CONCUR_SHADOW: no law 'cache'"),
        ({"CONCUR_LAW": "fixed", "CONCUR_LAW_OPTIONS": "agent=3"}, "did you mean 'agents'?"),
        ({"CONCUR_LAW": "fixed", "CONCUR_LAW_OPTIONS": "3"}, "name=value"),
        ({"CONCUR_LAW": "fixed", "CONCUR_LAW_OPTIONS": "agents=x"}, "cannot be used"),
        ({"CONCUR_LAW_OPTIONS": "agents=3"}, "needs the name of a law: set CONCUR_LAW"),
        ({"CONCUR_LIMIT": "8", "CONCUR_LAW": "cache_aimd"}, "LIMIT=8 asks for a fixed cap and"),
        ({"CONCUR_LIMIT": "8", "CONCUR_LAW_OPTIONS": "step=3"}, "leave one of them out"),
    ],
)  # fmt: skip
def test_what_is_unknown_wrong_or_contradictory_is_an_error_that_helps(environ, answer):
    with pytest.raises(ConfigError, match=re.escape(answer)):
        settings({}, environ)


def test_an_unknown_name_in_code_is_an_error_too():
    with pytest.raises(ConfigError, match="no option 'max_wait': did you mean max_wait_s"):
        settings({"max_wait": 3}, {})


def test_a_secret_is_never_shown(capsys, monkeypatch):
    monkeypatch.setenv("CONCUR_API_KEY", "sk-SECRET")
    for words in (["config"], ["config", "--json"]):
        code, out, _ = concur(capsys, *words)
        assert code == 0
        assert "SECRET" not in out
        assert "(set)" in out


def test_the_command_shows_each_value_with_where_it_is_from(capsys, monkeypatch):
    monkeypatch.setenv("CONCUR_LAW", "cache_aimd")
    _, out, _ = concur(capsys, "config", "--max-wait-s", "60", "--json")
    found = json.loads(out)
    assert found["law"] == {"value": "cache_aimd", "source": "CONCUR_LAW", "variable": "CONCUR_LAW"}
    assert found["max_wait_s"]["source"] == "--max-wait-s"
    assert found["blind_agents"] == {
        "value": 8,
        "source": "default",
        "variable": "CONCUR_BLIND_AGENTS",
    }
    code, _, err = concur(capsys, "config", "--limit", "8")
    assert code == 2
    assert err.startswith("concur: --limit=8 asks for a fixed cap and CONCUR_LAW=cache_aimd")


@pytest.mark.parametrize("make", [Governor, Governor.from_env])
def test_an_unknown_keyword_is_an_error_that_names_the_nearest(make):
    with pytest.raises(ConfigError, match="no option 'max_wait': did you mean max_wait_s"):
        make(limit=1, max_wait=60)
    with pytest.raises(ConfigError, match="no option 'sockets': did you mean socket"):
        make(limit=1, sockets="auto")
    with pytest.raises(ConfigError, match="did you mean clock"):
        make(limit=1, clocks=None)


def test_options_of_a_law_in_code_are_those_of_the_law():
    with pytest.raises(ConfigError, match="law=make_law"):
        Governor(law="fixed", law_options="agents=3")


def test_a_governor_is_made_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("CONCUR_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("CONCUR_LAW", "cache_aimd")
    monkeypatch.setenv("CONCUR_LAW_OPTIONS", "interval_s=2.5, start=8")
    monkeypatch.setenv("CONCUR_SHADOW", "working_set")
    monkeypatch.setenv("CONCUR_RECORD", str(tmp_path / "{pid}.jsonl"))
    monkeypatch.setenv("CONCUR_SOCKET", "auto")
    with (
        TemporaryDirectory(prefix="c", dir="/tmp") as folder,
        monkeypatch.context() as elsewhere,
    ):
        elsewhere.setenv("XDG_RUNTIME_DIR", folder)
        with Governor.from_env() as governor:
            assert len(sockets()) == 1
    monkeypatch.delenv("CONCUR_SOCKET")
    with Governor.from_env(max_wait_s=7, clock=lambda: 1.0) as governor:
        assert governor.law == make_law("cache_aimd", interval_s=2.5, start=8)
        assert governor.snapshot().shadow.law == "working_set"
        assert governor._monitor.sessions._max_wait_s == 7
    assert len(list(tmp_path.glob(f"{os.getpid()}.jsonl*"))) == 2, "the first one was kept"


def test_without_anything_to_go_by_it_says_what_to_set():
    with pytest.raises(ConfigError, match="needs something to go by"):
        Governor.from_env()
    with Governor.from_env(limit=3) as governor:
        assert governor.law == make_law("fixed", agents=3)


def test_settings_survive_the_way_through_another_environment():
    """`concur run` hands them to the program in this way."""
    given = {"url": "http://h", "law": "fixed", "law_options": "agents=4", "max_wait_s": "9.5"}
    found = settings(given, {})
    again = settings({}, environment(found))
    assert governor_options(again) == governor_options(found)
    assert "CONCUR_BLIND_AGENTS" not in environment(found)


def test_the_page_of_the_docs_lists_every_option():
    text = (DOCS / "configuration.md").read_text("utf-8")
    for option in OPTIONS:
        assert f"`{option.name}`" in text
        assert f"`{option.variable}`" in text
        assert f"`{option.flag}`" in text
