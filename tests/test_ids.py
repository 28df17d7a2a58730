"""An id is free text: it never makes a call fail, and what is not an id does not leave as it is."""

import http.server
import json
import re
import threading

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

import concur_agents as ca
from concur_agents import Governor
from concur_agents._text import wire_id
from concur_agents.cli.app import main
from concur_agents.core import Reading
from concur_agents.observe.frame import frame_of
from concur_agents.observe.metrics import export
from concur_agents.openai import OpenAI
from concur_agents.recording import Recording, replay

PROMPT = "SECRET-PROMPT: how many\nlines has this? " * 5
HARD = ["", " ", " x ", "Größe", "two\nlines", "x" * 100_000, "\ud800", "\x1b]0;gotcha\x07", "a\0b",
        "x\r\nx-evil: 1", "\u202eevil", "日本語", "#2", "a~b", PROMPT]  # fmt: skip
IDS = st.text(st.characters(codec=None), max_size=100)


class Answering(http.server.BaseHTTPRequestHandler):
    """A model behind a real socket, because a mock transport checks no header."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.seen.append((self.headers.get("x-session-id"), json.loads(body)))
        usage = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
        message = {"role": "assistant", "content": "ok"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        made = {"id": "c", "object": "chat.completion", "created": 0, "model": "m"}
        text = json.dumps({**made, "choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


class Probe:
    engine = "vllm"
    url = "http://localhost:8000"

    def read(self):
        return Reading(at_s=0.0, capacity_tokens=1e6)


@pytest.fixture(scope="module")
def endpoint():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        server.seen = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def governor(tmp_path_factory):
    path = tmp_path_factory.mktemp("ids") / "run.jsonl"
    with Governor(probe=Probe(), law="working_set", record=path) as governor:
        governor.path = path
        yield governor


@pytest.fixture(scope="module")
def client(governor, endpoint):
    url = f"http://127.0.0.1:{endpoint.server_port}/v1"
    with OpenAI(governor=governor, base_url=url, api_key="k", max_retries=0) as client:
        yield client


def ask(client):
    return client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])


def ask_nothing(agent):
    with agent.step():
        pass


def all_of_them(test):
    for name in HARD:
        test = example(name)(test)
    limit = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    return limit(given(IDS)(test))


@all_of_them
def test_no_id_makes_a_call_fail(client, governor, endpoint, name):
    with governor.agent(name) as agent:
        assert ask(client).choices
        assert agent.id == name
        governor.explain(name).encode()
        frame_of(governor)
    sent, body = endpoint.seen[-1]
    assert sent == wire_id(name)
    assert set(body) == {"model", "messages"}


def test_questions_can_be_the_items_of_a_batch(client, governor, endpoint):
    """The commonest key of all is the prompt itself."""
    outcomes = ca.run_agents(lambda item: ask(client).id, HARD, governor=governor)
    assert [outcome.status for outcome in outcomes] == ["ok"] * len(HARD)
    assert not [sent for sent, _ in endpoint.seen if len(sent) > 64 or "SECRET" in sent]


def test_a_thread_of_langgraph_can_have_any_name(client, governor):
    graphs = pytest.importorskip("langgraph.graph")
    builder = graphs.StateGraph(graphs.MessagesState)
    builder.add_node("call", lambda state: {"messages": [ask(client).choices[0].message.content]})
    builder.add_edge(graphs.START, "call")
    builder.add_edge("call", graphs.END)
    graph = governor.wrap(builder.compile())
    for name in ["Jürgen", *HARD]:
        found = graph.invoke({"messages": ["hi"]}, {"configurable": {"thread_id": name}})
        assert found["messages"][-1].content == "ok"


def test_a_recording_holds_no_prompt_that_was_an_id_and_replays_to_the_bit(tmp_path, capsys):
    path = tmp_path / "run.jsonl"
    with Governor(limit=2, record=path) as governor:
        for name in HARD:
            with governor.agent(name) as agent, governor.agent(name + "/inner"), agent.tool(name):
                ask_nothing(agent)
    text = path.read_text("utf-8")
    assert text.isascii()
    assert "SECRET" not in text
    assert len(text) < 100_000, "100,000 characters of an id are bounded"
    recording = Recording(path)
    assert not list(replay(recording))
    arrived = [line.agent for line in recording if getattr(line, "name", "") == "arrive"]
    assert arrived[::2] == [wire_id(name) for name in HARD]
    for name in HARD[1:]:
        with pytest.raises(SystemExit) as left:
            main(["explain", str(path), "--agent", name])
        assert left.value.code in (0, None)
    shown = capsys.readouterr().out
    assert "\x1b]0" not in shown
    assert "\u202e" not in shown


def test_a_recording_begun_late_names_agents_as_its_lines_do(tmp_path):
    path = tmp_path / "run.jsonl"
    with Governor(limit=2) as governor, governor.agent(PROMPT), governor.agent("Größe"):
        governor.record(path)
    assert [who.id for who in Recording(path).header.agents] == [wire_id(PROMPT), wire_id("Größe")]
    assert "SECRET" not in path.read_text("utf-8")


def test_no_name_of_a_governor_makes_a_scrape_fail():
    for name in HARD:
        registry = CollectorRegistry()
        with Governor(limit=2) as governor:
            export(governor, registry, name=name)
            page = generate_latest(registry).decode()
        labels = re.findall(r'governor="((?:[^"\\\\]|\\\\.)*)"', page)
        assert labels
        assert max(map(len, labels)) <= 64


def test_messages_about_an_agent_are_short_and_in_one_line():
    with Governor(limit=1) as governor:
        for name in HARD:
            with governor.agent(name):
                said = governor.explain(name)
                with pytest.raises(ca.ConfigError) as raised, governor.agent(name, detached=True):
                    pass
            for text in (said, str(raised.value)):
                assert text.isprintable()
                assert len(text) < 300
