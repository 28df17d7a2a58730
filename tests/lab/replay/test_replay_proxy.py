"""The arm `proxy:URL`: calls go through a proxy that schedules agents, and those alone."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from concur_agents.errors import ConfigError
from concur_agents.lab.replay import Endpoint, Options, parse_arm, parse_arms, replay
from concur_agents.lab.replay.endpoint import EndpointError
from concur_agents.sim.engine import Run
from concur_agents.sim.workload import AgentPlan, PlanStep


class _Server:
    """An engine with a chat route, or a proxy before it: both answer alike and write down."""

    def __init__(self) -> None:
        self.programs: list[str | None] = []
        self.released: list[str] = []
        self.releases = 200

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if path == "/tokenize":
            words = body["prompt"].split()
            return 200, {"tokens": [int(word[1:]) if word[0] == "t" else 0 for word in words]}
        if path == "/programs/release":
            self.released.append(body["program_id"])
            return self.releases, {}
        if path != "/v1/chat/completions":
            return 404, {}
        self.programs.append(body.get("program_id"))
        prompt, output = len(body["messages"][0]["content"].split()), body["max_tokens"]
        message = {"role": "assistant", "content": "x"}
        return 200, {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [{"index": 0, "message": message, "finish_reason": "length"}],
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": output,
                "total_tokens": prompt + output,
            },
        }


@contextmanager
def _serving(server: _Server) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            model = {"id": "m", "object": "model", "created": 0, "owned_by": "us"}
            self._reply(200, {"object": "list", "data": [model]})

        def do_POST(self) -> None:
            size = int(self.headers.get("content-length") or 0)
            self._reply(*server.answer(self.path, json.loads(self.rfile.read(size) or b"{}")))

        def _reply(self, status: int, body: dict[str, Any]) -> None:
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}"
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def _plans() -> list[AgentPlan]:
    step = PlanStep((Run("a", 40),), Run("said", 5), 0.0)
    return [AgentPlan(name, (step, step)) for name in ("a", "b")]


async def test_calls_go_through_the_proxy_with_a_program_each_and_it_hears_of_their_end() -> None:
    """Two rounds, because a proxy remembers: no name comes twice."""
    engine, proxy = _Server(), _Server()
    with _serving(engine) as url, _serving(proxy) as proxy_url:
        endpoint = Endpoint(url, chat_only=True)
        await endpoint.open()
        engine.programs.clear()
        arms = parse_arms(f"proxy:{proxy_url}/v1+release")
        runs = await replay(endpoint, _plans(), arms, None, Options(repeat=2))
        await endpoint.close()
    assert [run.outcome for run in runs] == ["finished", "finished"]
    assert set(engine.programs) == {None}, "only the warm-up went past the proxy"
    assert len(proxy.programs) == 8
    assert sorted(set(proxy.programs), key=str) == sorted(proxy.released)
    assert len(set(proxy.released)) == 4


async def test_without_release_the_proxy_is_not_told_of_an_end() -> None:
    proxy = _Server()
    with _serving(_Server()) as url, _serving(proxy) as proxy_url:
        endpoint = Endpoint(url, chat_only=True)
        await endpoint.open()
        (run,) = await replay(endpoint, _plans(), parse_arms(f"proxy:{proxy_url}"), None, Options())
        await endpoint.close()
    assert (run.outcome, proxy.released) == ("finished", [])


async def test_a_release_that_is_refused_breaks_the_arm_which_is_not_what_it_says() -> None:
    proxy = _Server()
    proxy.releases = 404
    with _serving(proxy) as url:
        gate = parse_arm(f"proxy:{url}+release").build(None)
        with pytest.raises(EndpointError, match="programs/release answered 404"):
            async with gate.agent("a"):
                pass


@pytest.mark.parametrize("text", ["proxy:", "proxy:127.0.0.1:1", "proxy:http://a+free"])
def test_a_proxy_needs_an_address(text: str) -> None:
    with pytest.raises(ConfigError, match="is not proxy:URL or proxy:URL"):
        parse_arm(text)
