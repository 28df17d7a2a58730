"""Clients that sign their requests, against a server that checks the signature."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from concur_agents.core import Reading
from concur_agents.governor import Governor
from concur_agents.openai import AsyncOpenAI, OpenAI

pytest.importorskip("botocore")
providers = pytest.importorskip("openai.providers.bedrock")

REGION, KEY, SECRET = "us-east-1", "AKIDEXAMPLE", "wJalrXUtnFEMI"
KEYS = {"region": REGION, "access_key_id": KEY, "secret_access_key": SECRET}
ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
CHUNK = {"id": "c", "object": "chat.completion", "created": 0, "model": "m"}
COUNTS = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
MESSAGE = {"role": "assistant", "content": "hello"}
ANSWER = {
    **CHUNK,
    "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}],
    "usage": COUNTS,
}
DELTA = {"index": 0, "delta": MESSAGE, "finish_reason": "stop"}
DELTAS = [
    {**CHUNK, "object": "chat.completion.chunk", "choices": [DELTA]},
    {**CHUNK, "object": "chat.completion.chunk", "choices": [], "usage": COUNTS},
]
STREAM = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in DELTAS) + "data: [DONE]\n\n"
CLAUDE = {
    "id": "msg",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "hello"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 100, "output_tokens": 7},
}


def signature(method: str, target: str, headers: Any, body: bytes) -> str:
    """Signature Version 4 of a request, as AWS documents it."""
    given = dict(
        part.strip().split("=", 1)
        for part in headers["authorization"].removeprefix("AWS4-HMAC-SHA256").split(",")
    )
    _, day, region, service, last = given["Credential"].split("/")
    url = urlsplit(target)
    names = given["SignedHeaders"].split(";")
    canonical = "\n".join(
        [
            method,
            quote(url.path, safe="/~"),
            "&".join(sorted(url.query.split("&"))),
            *(f"{name}:{' '.join(headers[name].split())}" for name in names),
            "",
            ";".join(names),
            hashlib.sha256(body).hexdigest(),
        ]
    )
    to_sign = "\n".join(
        [
            "AWS4-HMAC-SHA256",
            headers["x-amz-date"],
            f"{day}/{region}/{service}/{last}",
            hashlib.sha256(canonical.encode()).hexdigest(),
        ]
    )
    key = f"AWS4{SECRET}".encode()
    for part in (day, region, service, last, to_sign):
        key = hmac.digest(key, part.encode(), "sha256")
    return f"{given['Signature']} {key.hex()}"


class Bedrock:
    """Answers a request with the right signature, and any other with 403."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[set[str]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                server.bodies.append(body)
                server.headers.append({name.lower() for name in self.headers})
                given, right = signature(self.command, self.path, self.headers, body).split()
                asked = json.loads(body)
                if given != right:
                    self.answer(403, "application/json", '{"message": "wrong signature"}')
                elif self.path.endswith("/invoke"):
                    self.answer(200, "application/json", json.dumps(CLAUDE))
                elif asked.get("stream"):
                    self.answer(200, "text/event-stream", STREAM)
                else:
                    self.answer(200, "application/json", json.dumps(ANSWER))

            def answer(self, status: int, kind: str, text: str) -> None:
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def bedrock() -> Iterator[Bedrock]:
    running = Bedrock()
    yield running
    running.close()


class Probe:
    """An engine for which a request would get fields and a header."""

    url = "http://engine"
    engine = "vllm"

    def read(self) -> Reading:
        return Reading(at_s=0.0)


@pytest.fixture
def gov() -> Iterator[Governor]:
    with Governor(law="working_set", probe=Probe()) as governor:  # type: ignore[arg-type]
        yield governor


def drop_in(kind: str, gov: Governor, url: str) -> Any:
    make: Any = OpenAI if kind == "sync" else AsyncOpenAI
    return make(governor=gov, provider=providers.bedrock(base_url=f"{url}/openai/v1", **KEYS))


def of_wrap(kind: str, gov: Governor, url: str) -> Any:
    import openai

    make: Any = openai.OpenAI if kind == "sync" else openai.AsyncOpenAI
    return gov.wrap(make(provider=providers.bedrock(base_url=f"{url}/openai/v1", **KEYS)))


def own_class(kind: str, gov: Governor, url: str) -> Any:
    import openai

    make: Any = openai.BedrockOpenAI if kind == "sync" else openai.AsyncBedrockOpenAI
    options = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "aws_region": REGION}
    return gov.wrap(make(base_url=f"{url}/openai/v1", **options))


async def close(client: Any) -> None:
    closing = client.close()
    if closing is not None:
        await closing


@pytest.mark.parametrize("make", [drop_in, of_wrap, own_class])
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("stream", [False, True])
async def test_openai_on_bedrock_is_signed_and_passes_unchanged(
    make: Callable[..., Any], kind: str, stream: bool, gov: Governor, bedrock: Bedrock
) -> None:
    """Every stream was answered with 403, because of a field that we added."""
    client = make(kind, gov, bedrock.url)
    async with gov.agent("issue-17", priority=3) as agent:
        for _ in range(2):
            if kind == "sync":
                answer = client.chat.completions.create(**ASK, stream=stream)
                chunks = list(answer) if stream else [answer]
            else:
                answer = await client.chat.completions.create(**ASK, stream=stream)
                chunks = [chunk async for chunk in answer] if stream else [answer]
        assert agent.stats.steps == 2
        assert agent.stats.prompt_tokens == 200
    await close(client)
    if stream:
        assert [len(chunk.choices) for chunk in chunks] == [1, 0]  # the last was sent unasked
        assert chunks[1].usage.prompt_tokens == 100
    else:
        assert chunks[0].choices[0].message.content == "hello"
    (body,) = set(bedrock.bodies)
    assert {**json.loads(body), "stream": stream} == {**ASK, "stream": stream}
    assert all("x-session-id" not in names for names in bedrock.headers)


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_claude_on_bedrock_is_signed_and_passes_unchanged(
    kind: str, gov: Governor, bedrock: Bedrock
) -> None:
    anthropic = pytest.importorskip("anthropic")
    pytest.importorskip("boto3")
    make = anthropic.AnthropicBedrock if kind == "sync" else anthropic.AsyncAnthropicBedrock
    client = make(
        aws_access_key=KEY, aws_secret_key=SECRET, aws_region=REGION, base_url=bedrock.url
    )
    client._client = gov.wrap(client._client)
    ask = {**ASK, "model": "us.anthropic.claude-v1:0", "max_tokens": 10}
    async with gov.agent("issue-17") as agent:
        answer = client.messages.create(**ask)
        answer = await answer if kind == "async" else answer
        assert answer.content[0].text == "hello"
        assert agent.stats.steps == 1
        assert agent.stats.prompt_tokens == 100
    await close(client)
