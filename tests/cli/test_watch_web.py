"""`concur watch --web`: a governor in a browser."""

import json
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from concur_agents import Governor
from concur_agents.cli.app import main


@pytest.fixture
def path():
    """A socket with a short name, in a folder of one's own."""
    with tempfile.TemporaryDirectory(prefix="c", dir="/tmp") as name:
        yield Path(name) / "gov.sock"


@contextmanager
def watching(*words):
    """The address of a page; at the end the command has ended by itself."""
    command = [sys.executable, "-m", "concur_agents.cli.app", "watch", "--web", "--json"]
    with subprocess.Popen(
        [*command, "--port", "0", "--interval", "0.05", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield json.loads(line)["url"], process


def ask(url, **headers):
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30)


def next_event(stream):
    name, data, end = (stream.readline().decode().rstrip("\n") for _ in range(3))
    assert end == ""
    return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def test_a_page_follows_a_governor_until_it_ends(path):
    governor = Governor(limit=1, socket=path)
    with watching(path) as (url, process):
        assert url.startswith("http://127.0.0.1:")
        with ask(url + "/") as page:
            assert b"EventSource" in page.read()
        with governor.agent("issue-17"), ask(url + "/events") as stream:
            assert next_event(stream)[0] == "trail"
            while "issue-17" not in (frame := next_event(stream))[1]["lists"]:
                pass
            assert frame[0] == "frame"
            governor.close()
            while (event := next_event(stream))[0] == "frame":
                pass
            assert event[0] == "end"
        assert process.wait(30) == 0
        assert process.stderr.read() == ""


def test_a_page_of_another_site_cannot_read_through_a_name_of_its_own(path):
    """A browser sends such a request to 127.0.0.1, but with the name of that site."""
    with Governor(limit=1, socket=path) as governor, watching(path) as (url, _):
        for where in ("/", "/events"):
            with pytest.raises(urllib.error.HTTPError, match="400") as refused:
                ask(url + where, Host="evil.example")
            refused.value.close()
        governor.close()


def test_a_token_guards_the_page_and_a_browser_asks_for_it(path, monkeypatch):
    monkeypatch.setenv("CONCUR_WATCH_TOKEN", "abc")
    governor = Governor(limit=1, socket=path)
    with watching(path) as (url, _):
        for where in ("/", "/events"):
            with pytest.raises(urllib.error.HTTPError, match="401") as refused:
                ask(url + where)
            assert refused.value.headers["www-authenticate"].startswith("Basic ")
            refused.value.close()
        with ask(url + "/", Authorization="Bearer abc", Host="gpu1") as page:
            assert page.status == 200
        governor.close()


def test_ctrl_c_ends_it_quietly_while_a_browser_looks_on(path):
    with Governor(limit=1, socket=path), watching(path) as (url, process):
        with ask(url + "/events") as stream:
            assert next_event(stream)[0] == "trail"
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        assert process.stderr.read() == ""


def test_a_recording_can_be_shown_too(batch):
    with watching("--count", "1", batch.path) as (_, process):
        assert process.wait(30) == 0


def test_an_endpoint_has_no_agents_to_show(capsys):
    with pytest.raises(SystemExit) as left:
        main(["watch", "--web", "http://127.0.0.1:1"])
    assert left.value.code == 2
    assert "--web shows a governor" in capsys.readouterr().err
