"""`concur gateway` and `concur run --gateway`, whole."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import requests

pytest.importorskip("aiohttp")
pytest.importorskip("uvicorn")

from concur_agents.sim.server import EmbeddedServer

SAY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
CONCUR = [sys.executable, "-c", "from concur_agents.cli.app import main; main()"]


@pytest.fixture
def server():
    with EmbeddedServer("h100-qwen3-8b", time_scale=30, model="m") as running:
        yield running


def test_a_gateway_serves_until_ctrl_c_and_logs_each_request(server):
    command = [*CONCUR, "gateway", "--engine", server.url, "--port", "0", "--json", "--log", "json"]
    process = subprocess.Popen(
        [*command, "--limit", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        found = json.loads(process.stdout.readline())
        assert found["law"] == "fixed"
        url = found["url"]
        answer = requests.post(f"{url}/agent/a/v1/chat/completions", json=SAY, timeout=60)
        assert answer.json()["usage"]["completion_tokens"] == 5
        assert requests.delete(f"{url}/agent/a", timeout=60).status_code == 204
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    lines = [json.loads(line) for line in errors.splitlines()]
    calls = [line for line in lines if line.get("event") == "request"]
    assert [(call["agent"], call["guess"], call["status"]) for call in calls] == [("a", False, 200)]


def test_a_gateway_needs_an_engine():
    command = [*CONCUR, "gateway", "--limit", "2"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "needs the address of an engine: give its url (--engine)" in ran.stderr


def test_a_gateway_for_other_machines_names_the_option_of_its_token():
    command = [*CONCUR, "gateway", "--engine", "http://127.0.0.1:1", "--host", "0.0.0.0"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CONCUR_")}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=clean)
    assert ran.returncode == 2
    assert "--client-token or CONCUR_GATEWAY_TOKEN" in ran.stderr


def test_a_program_that_does_not_call_the_address_is_said():
    """It was summed up as "0 agents, 0 steps"."""
    command = [*CONCUR, "run", "--gateway", "--limit", "2", "--engine", "http://127.0.0.1:1"]
    ran = subprocess.run(
        [*command, "--", sys.executable, "-c", ""], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "no call of an agent came through the gateway" in ran.stderr.replace("\n", " ")
    assert "0 agents" not in ran.stderr


PROGRAM = """
import json, os, subprocess, sys, urllib.request

def call(path, headers, **body):
    request = urllib.request.Request(
        path,
        json.dumps({"model": "m", "max_tokens": 5, **body}).encode(),
        {"content-type": "application/json", **headers},
    )
    return json.load(urllib.request.urlopen(request, timeout=60))

def work():
    key = {"authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
    url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
    for word in ("one", "two"):
        call(url, key, messages=[{"role": "user", "content": word}])

if len(sys.argv) > 1:
    work()
else:
    others = [subprocess.Popen([sys.executable, __file__, "child"]) for _ in range(3)]
    codes = [process.wait() for process in others]
    print(codes, os.environ["ANTHROPIC_BASE_URL"] + "/v1" == os.environ["OPENAI_BASE_URL"])
"""


@pytest.mark.parametrize(("per", "agents"), [("process", 3), ("session", 2)])
def test_a_program_in_any_language_is_governed_by_an_address(tmp_path, server, per, agents):
    """With --agent-per process each process is an agent; else first messages tell them apart."""
    if per == "process" and sys.platform != "linux":
        pytest.skip("the process is found in /proc")
    program, record = tmp_path / "program.py", tmp_path / "run.jsonl"
    program.write_text(textwrap.dedent(PROGRAM))
    options = ["--engine", server.url, "--limit", "2", "--record", str(record)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CONCUR_")}
    ran = subprocess.run(
        [*CONCUR, "run", "--gateway", "--agent-per", per, *options, "--", sys.executable, program],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
        env=clean,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split("\n")[0] == "[0, 0, 0] True"
    assert f"{agents} agents, 6 steps" in ran.stderr.replace("\n", " ")
    assert server.stats.calls == 6
    lines = record.read_text("utf-8")
    assert ("guess~" in lines) == (per == "session"), "a guess is marked where it is kept"
    assert ("process-" in lines) == (per == "process")
