"""A small endpoint without a socket: answers every call shape, always with the same usage."""

import importlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from concur_agents.governor import Governor
from concur_agents.runtime.events import Event

NATIVE = "httpx2" if int(openai.__version__.partition(".")[0]) >= 3 else "httpx"

USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 7,
    "total_tokens": 107,
    "prompt_tokens_details": {"cached_tokens": 64},
}
RESPONSES_USAGE = {
    "input_tokens": 100,
    "output_tokens": 7,
    "total_tokens": 107,
    "input_tokens_details": {"cached_tokens": 64},
    "output_tokens_details": {"reasoning_tokens": 0},
}


class Endpoint:
    """Speaks enough of the OpenAI API; remembers the requests it saw."""

    def __init__(self) -> None:
        self.library: Any = importlib.import_module(NATIVE)
        self.requests: list[Any] = []
        self.bodies: list[dict[str, Any]] = []
        self.refuse: list[tuple[int, dict[str, str], dict[str, Any]]] = []
        self.check: Callable[[dict[str, Any]], str | None] = lambda body: None

    def transport(self, module: str | None = None) -> Any:
        if module is not None:
            self.library = importlib.import_module(module)
        return self.library.MockTransport(self.answer)

    def http(self, kind: str) -> Any:
        """An ordinary client of the library that openai uses, talking to this endpoint."""
        make = self.library.Client if kind == "sync" else self.library.AsyncClient
        return make(transport=self.transport())

    def answer(self, request: Any) -> Any:
        body = json.loads(request.content) if request.content else {}
        self.requests.append(request)
        self.bodies.append(body)
        if self.refuse:
            status, headers, error = self.refuse.pop(0)
            return self.library.Response(status, headers=headers, json=error)
        complaint = self.check(body)
        if complaint is not None:
            return self.library.Response(400, json={"error": {"message": complaint}})
        path = request.url.path
        if path.endswith("/chat/completions"):
            return self._chat(body)
        if path.endswith("/completions"):
            return self._completion(body)
        if path.endswith("/responses"):
            return self._response(body)
        return self.library.Response(200, json={"object": "list", "data": []})

    def _chat(self, body: dict[str, Any]) -> Any:
        base = {"id": "c", "object": "chat.completion", "created": 0, "model": "m"}
        # The words of a user must not be taken for the server's.
        text = 'the "usage": {"prompt_tokens": 9} of it'
        if "response_format" in body:
            text = '{"answer": 42}'
        message = {"role": "assistant", "content": text}
        if not body.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return self.library.Response(200, json={**base, "choices": [choice], "usage": USAGE})
        base["object"] = "chat.completion.chunk"
        deltas: list[dict[str, Any]] = [
            {"index": 0, "delta": {"role": "assistant", "content": text[:9]}},
            {"index": 0, "delta": {"content": text[9:]}, "finish_reason": "stop"},
        ]
        return self._sse(body, [{**base, "choices": [delta]} for delta in deltas], base)

    def _completion(self, body: dict[str, Any]) -> Any:
        base = {"id": "c", "object": "text_completion", "created": 0, "model": "m"}
        choices = [{"index": 0, "text": "hello", "finish_reason": "stop", "logprobs": None}]
        if not body.get("stream"):
            return self.library.Response(200, json={**base, "choices": choices, "usage": USAGE})
        return self._sse(body, [{**base, "choices": choices}], base)

    def _sse(self, body: dict[str, Any], chunks: list[dict[str, Any]], base: dict[str, Any]) -> Any:
        asked = (body.get("stream_options") or {}).get("include_usage")
        if asked:
            for chunk in chunks:
                chunk["usage"] = None
            chunks = [*chunks, {**base, "choices": [], "usage": USAGE}]
        text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        return self.library.Response(
            200,
            headers={"content-type": "text/event-stream; charset=utf-8"},
            stream=self._pieces(text.encode()),
        )

    def _response(self, body: dict[str, Any]) -> Any:
        text = '{"answer": 42}' if "text" in body else "hello"
        content = [{"type": "output_text", "text": text, "annotations": []}]
        output = {
            "id": "m",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": content,
        }
        whole = {
            "id": "r",
            "object": "response",
            "created_at": 0,
            "model": "m",
            "status": "completed",
            "output": [output],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": RESPONSES_USAGE,
            "metadata": {},
        }
        if not body.get("stream"):
            return self.library.Response(200, json=whole)
        created = {**whole, "status": "in_progress", "output": [], "usage": None}
        events = [
            {"type": "response.created", "sequence_number": 0, "response": created},
            {"type": "response.completed", "sequence_number": 1, "response": whole},
        ]
        text = "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events)
        return self.library.Response(
            200, headers={"content-type": "text/event-stream"}, stream=self._pieces(text.encode())
        )

    def _pieces(self, text: bytes, size: int = 37) -> Any:
        """A body that arrives in small pieces, which end anywhere."""
        pieces = [text[at : at + size] for at in range(0, len(text), size)]

        class Pieces(self.library.SyncByteStream, self.library.AsyncByteStream):  # type: ignore[misc, name-defined]
            def __iter__(self) -> Iterator[bytes]:
                yield from pieces

            async def __aiter__(self) -> Any:
                for piece in pieces:
                    yield piece

        return Pieces()


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoint()


@pytest.fixture
def gov() -> Iterator[Governor]:
    with Governor(limit=2) as governor:
        yield governor


@pytest.fixture
def steps(gov: Governor) -> list[Event]:
    """The steps that have ended, with what they used."""
    ended: list[Event] = []
    gov.on_event(lambda event: ended.append(event) if event.kind == "step_ended" else None)
    return ended


@pytest.fixture
def server() -> Iterator[Any]:
    """A simulated engine whose answers take some 10 ms: calls overlap, and hundreds can be made."""
    pytest.importorskip("uvicorn")
    from concur_agents.sim.server import EmbeddedServer

    with EmbeddedServer("h100-qwen3-8b", time_scale=30, model="looker") as running:
        yield running
