"""What a daemon shows of the agents of all processes: dashboard, page, metrics, and recording."""

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import threading
import urllib.request

import pytest
from prometheus_client import CollectorRegistry

from concur_agents import Governor
from concur_agents.cli.app import main
from concur_agents.observe.metrics import export
from concur_agents.recording import Recording
from concur_agents.recording.replay import replay
from concur_agents.testing import assert_idle

CLIENT = """
import sys, threading
import concur_agents as ca
gov = ca.Governor(shared=sys.argv[1])
agents = [gov.agent(name, detached=True) for name in sys.argv[2:]]
for agent in agents:
    threading.Thread(target=agent.open_sync, daemon=True).start()
print("started", flush=True)
sys.stdin.readline()
for agent in agents:
    agent.close()
"""


@pytest.fixture
def client(serve_process):
    """`client(address, "a", "b")`: a process with these agents."""
    started = []

    def start(where, *agents):
        process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, where, *agents],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        started.append(process)
        assert process.stdout.readline() == b"started\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=30)


def concur(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(list(map(str, words)))
    return end.value.code, capsys.readouterr().out


def frame_of(capsys):
    code, out = concur(capsys, "watch", "--count", "1", "--json")
    assert code == 0
    return json.loads(out.splitlines()[-1])


def test_one_dashboard_shows_the_agents_of_all_processes_with_their_process(
    folder, serve_process, client, until, capsys
):
    where = f"unix:{folder}/d/s"
    serve_process(where, "--limit", "2")
    one, other = client(where, "first"), client(where, "second", "third")
    until(lambda: (f := frame_of(capsys))["acting"] == 2 and f["queued"] == 1)
    found = frame_of(capsys)
    ids = [each["agent"] for each in (*found["active"], *found["waiting"])]
    process_of = {id_.rpartition("/")[2]: int(id_.split(":")[1]) for id_ in ids}
    assert process_of == {"first": one.pid, "second": other.pid, "third": other.pid}
    assert "2 of 2 agents" in found["waiting"][0]["why"]
    code, text = concur(capsys, "watch", "--count", "1")
    assert code == 0
    assert "2 of 2" in text
    assert all(str(process.pid) in text for process in (one, other))
    one.communicate(b"go\n", timeout=60)
    until(lambda: frame_of(capsys)["queued"] == 0)


def test_the_page_in_a_browser_is_of_the_daemon_too(folder, serve_process, client, until):
    pytest.importorskip("starlette")
    where = f"unix:{folder}/d/s"
    serve_process(where, "--limit", "2")
    process = client(where, "first")
    words = ["watch", "--web", "--port", "0", "--interval", "0.1"]
    code = "from concur_agents.cli.app import main; main()"
    page = subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        url = re.search(r"http://[\d.]+:\d+", page.stdout.readline().decode()).group()
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert b"<html" in answer.read()
        with urllib.request.urlopen(f"{url}/events", timeout=30) as answer:
            until(lambda: f":{process.pid}:" in (line := text_of(answer)) and "/first" in line)
    finally:
        page.kill()
        page.communicate(timeout=30)


def text_of(answer):
    return answer.readline().decode()


def test_the_metrics_of_a_daemon_count_the_agents_of_all_processes(
    folder, serve_process, client, until
):
    where = f"unix:{folder}/d/s"
    daemon = serve_process(where, "--limit", "2", "--metrics", "0")
    url = re.search(r"http://\S+", daemon.stderr.readline()).group()
    client(where, "first")
    client(where, "second", "third")

    def agents():
        with urllib.request.urlopen(url, timeout=30) as answer:
            text = answer.read().decode()
        rows = re.findall(r'^concur_agents\{.*state="(\w+)"\} (\S+)$', text, re.MULTILINE)
        return {state: float(count) for state, count in rows if float(count)}

    until(lambda: agents() == {"acting": 2.0, "queued": 1.0})


def test_waits_and_steps_of_all_processes_are_in_the_metrics_of_the_daemon(folder, serve, until):
    """With the agents and waiters in its snapshot, and until the last has left it is not idle."""
    where = f"unix:{folder}/d/s"
    governor = serve(where, limit=1)._governor
    registry = CollectorRegistry()
    export(governor, registry)

    def number(name, **labels):
        return registry.get_sample_value(name, {"governor": "default", **labels})

    with Governor(shared=where) as first, Governor(shared=where) as second:
        with first.agent("a") as agent:
            other = second.agent("a")
            thread = threading.Thread(target=other.open_sync)
            thread.start()
            until(lambda: governor.snapshot().queued == 1)
            assert (governor.snapshot().alive, governor.snapshot().waiters) == (2, 1)
            assert "acting" in governor.explain(governor.agents()[0].agent)
            with pytest.raises(AssertionError, match="alive=2 waiters=1"):
                assert_idle(governor)
            for _ in range(2):
                with agent.step() as step:
                    step.record({"prompt_tokens": 100, "completion_tokens": 10})
            with agent.step():
                pass
        thread.join(30)
        with other.step() as step:
            step.record({"prompt_tokens": 1000, "completion_tokens": 5})
        other.close()
        until(lambda: number("concur_agents_done_total") == 2)
    assert_idle(governor)
    assert number("concur_steps_total") == number("concur_step_seconds_count") == 4
    assert number("concur_steps_untold_total") == 1
    assert number("concur_prompt_tokens_total") == 1200
    assert number("concur_output_tokens_total") == 25
    assert number("concur_wait_seconds_count", kind="queued") == 2
    assert number("concur_wait_seconds_sum", kind="queued") > 0


def test_the_report_of_a_daemon_is_of_all_processes(folder, serve, until, capsys, monkeypatch):
    monkeypatch.chdir(folder)  # the page is written where one is
    where = f"unix:{folder}/d/s"
    path = folder / "run.jsonl"
    daemon = serve(where, limit=1, record=path)

    async def work(governor, name):
        async with governor.agent(name) as agent, agent.step() as step:
            step.record({"prompt_tokens": 100, "completion_tokens": 10})

    async def batch(governors):
        await asyncio.gather(*(work(each, f"a{n}") for each in governors for n in range(5)))

    with contextlib.ExitStack() as stack:
        governors = [stack.enter_context(Governor(shared=where)) for _ in range(2)]
        asyncio.run(batch(governors))
        until(lambda: not daemon._governor.agents())
    daemon._governor.close()
    code, out = concur(capsys, "report", path, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["agents"] == 10
    code, out = concur(capsys, "replay-law", path, "--law", "fixed", "--json")
    assert code == 0


def test_the_recording_of_a_daemon_has_all_processes_and_replays(folder, serve, until):
    where = f"unix:{folder}/d/s"
    path = folder / "run.jsonl"
    daemon = serve(where, limit=1, record=path)
    with Governor(shared=where) as first, Governor(shared=where) as second:
        with first.agent("a") as agent, agent.step():
            other = second.agent("a")
            thread = threading.Thread(target=other.open_sync)
            thread.start()
            until(lambda: daemon._governor.snapshot().queued == 1)
        thread.join(20)
        other.close()
        until(lambda: not daemon._governor.agents())
    daemon._governor.close()
    recording = Recording(path)
    assert list(replay(recording)) == []
    ids = {line.agent for line in recording if getattr(line, "name", "") == "arrive"}
    assert len(ids) == 2
    assert {name.rpartition("/")[2] for name in ids} == {"a"}
