"""An engine that does as a test says, and a gateway in front of it."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("aiohttp")

import aiohttp
from aiohttp import web

from concur_agents.gateway.app import Gateway
from concur_agents.gateway.holding import Times
from concur_agents.governor import Governor
from concur_agents.runtime.events import Event
from concur_agents.testing import assert_idle

CHAT = "/v1/chat/completions"
USAGE = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
ANSWER = {
    "id": "c",
    "object": "chat.completion",
    "created": 0,
    "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
    ],
    "usage": USAGE,
}
CHUNK = {
    "id": "c",
    "object": "chat.completion.chunk",
    "created": 0,
    "model": "m",
    "choices": [{"index": 0, "delta": {"content": "hello"}, "finish_reason": None}],
}
MESSAGE = {
    "id": "m",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "hello"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 90, "cache_read_input_tokens": 10, "output_tokens": 7},
}
MESSAGE_EVENTS = (
    {"type": "message_start", "message": MESSAGE | {"content": [], "stop_reason": None}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "text_delta", "text": "hello"},
    },
    {"type": "content_block_stop", "index": 0},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {"output_tokens": 7},
    },
    {"type": "message_stop"},
)


@dataclass
class Seen:
    """A request as the engine saw it."""

    method: str
    path: str
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def header(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key.lower() == name.encode()]
        return found[0].decode() if found else None

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Answering = Callable[[web.BaseRequest, bytes], Awaitable[web.StreamResponse]]


class Engine:
    """Answers as OpenAI and Anthropic do, or as `answer` says; remembers what it saw."""

    message_events = MESSAGE_EVENTS

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.hung_up = 0
        self.answer: Answering = self.usual
        self.url = ""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        self.seen.append(Seen(request.method, request.raw_path, list(request.raw_headers), body))
        try:
            return await self.answer(request, body)
        except asyncio.CancelledError:
            self.hung_up += 1
            raise

    async def stream(self, request: web.BaseRequest, *events: str) -> web.StreamResponse:
        return await stream(request, *events)

    async def usual(self, request: web.BaseRequest, body: bytes) -> web.StreamResponse:
        path = request.path
        asked = json.loads(body) if body else {}
        if path.endswith("/messages"):
            if not asked.get("stream"):
                return web.json_response(MESSAGE)
            events = [f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in MESSAGE_EVENTS]
            return await stream(request, *events)
        if path.endswith("/completions"):
            if not asked.get("stream"):
                return web.json_response(ANSWER)
            chunks = [CHUNK, CHUNK]
            if asked.get("stream_options", {}).get("include_usage"):
                chunks.append({**CHUNK, "choices": [], "usage": USAGE})
            return await stream(request, *[data(chunk) for chunk in chunks], "data: [DONE]\n\n")
        return web.json_response({"object": "list", "data": []})


def data(value: Any) -> str:
    return f"data: {json.dumps(value)}\n\n"


async def stream(request: web.BaseRequest, *events: str) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await answer.prepare(request)
    for event in events:
        await answer.write(event.encode())
    await answer.write_eof()
    return answer


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    made = Engine()
    server = web.Server(made.handle, handler_cancellation=True, access_log=None)
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


class Front:
    """A gateway with its governor, and a client."""

    def __init__(self, gateway: Gateway, governor: Governor, client: aiohttp.ClientSession) -> None:
        self.gateway = gateway
        self.governor = governor
        self.client = client
        self.ended: list[Event] = []
        governor.on_event(lambda e: self.ended.append(e) if e.kind == "step_ended" else None)

    @property
    def url(self) -> str:
        return self.gateway.url

    def post(self, path: str = CHAT, *, agent: str | None = "a", **options: Any) -> Any:
        options.setdefault("json", {"model": "m", "messages": [{"role": "user", "content": "hi"}]})
        if "data" in options:
            del options["json"]
        named = f"/agent/{agent}" if agent else ""
        return self.client.post(f"{self.url}{named}{path}", **options)

    async def ask(self, path: str = CHAT, **options: Any) -> tuple[int, bytes]:
        async with self.post(path, **options) as answer:
            return answer.status, await answer.read()

    async def until(self, holds: Callable[[], Any]) -> None:
        """Returns once something holds; a test's timeout is the bound."""
        while not holds():
            await asyncio.sleep(0.005)

    async def waiting(self, agents: int) -> None:
        """Returns once so many agents wait."""

        def wait() -> bool:
            now = self.governor.snapshot()
            return now.queued + now.paused == agents

        await self.until(wait)

    async def metric(self, name: str) -> float:
        async with self.client.get(f"{self.url}/metrics") as answer:
            rows = (await answer.text()).splitlines()
        return float(next(row for row in rows if row.startswith(f"{name} ")).rpartition(" ")[2])


@asynccontextmanager
async def gateway_before(
    url: str, *, limit: int = 2, governor: Governor | None = None, **options: Any
) -> AsyncIterator[Front]:
    """A gateway before an engine; at its end no agent is left."""
    async with governor or Governor(limit=limit) as gov, aiohttp.ClientSession() as client:
        async with Gateway(gov, options.pop("engines", url), **options) as gateway:
            yield Front(gateway, gov, client)
        assert_idle(gov)


QUICK = Times(untold_s=0.05, first_s=0.05, every_s=0.05)


@pytest.fixture
def before(engine: Engine) -> Callable[..., Any]:
    """`async with before(limit=1) as front`: a gateway before the engine."""

    def make(**options: Any) -> Any:
        return gateway_before(engine.url, **({"times": QUICK} | options))

    return make
