"""Anthropic's own client on a governed HTTP client: its calls are steps, and errors of ours are
raised as they are."""

from __future__ import annotations

import json
from typing import Any

import pytest

import concur_agents as ca
from concur_agents.core import Usage
from concur_agents.governor import Governor
from concur_agents.runtime.events import Event

anthropic: Any = pytest.importorskip("anthropic")
httpx: Any = pytest.importorskip("httpx2")  # which this client is made with

ASK: dict[str, Any] = {
    "model": "m",
    "max_tokens": 10,
    "messages": [{"role": "user", "content": "hi"}],
}
USAGE = {
    "input_tokens": 10,
    "cache_read_input_tokens": 90,
    "cache_creation_input_tokens": 0,
    "output_tokens": 7,
}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "hi"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": USAGE,
}
EVENTS: list[dict[str, Any]] = [
    {
        "type": "message_start",
        "message": {**MESSAGE, "content": [], "usage": {**USAGE, "output_tokens": 1}},
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "ping"},
    {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "text_delta", "text": "hi"},
    },
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}},
    {"type": "message_stop"},
]


class Server:
    """Anthropic's API, as far as it is asked here."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def __call__(self, request: Any) -> Any:
        self.paths.append(request.url.path)
        if request.url.path.endswith("count_tokens"):
            return httpx.Response(200, json={"input_tokens": 100})
        if not json.loads(request.content).get("stream"):
            return httpx.Response(200, json=MESSAGE)
        text = "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in EVENTS)
        headers = {"content-type": "text/event-stream"}
        return httpx.Response(200, headers=headers, content=text.encode())


def governed(gov: Governor, server: Server, kind: str) -> Any:
    transport = httpx.MockTransport(server)
    options: dict[str, Any] = {"base_url": "http://engine", "api_key": "-"}
    if kind == "sync":
        http = gov.wrap(httpx.Client(transport=transport))
        return anthropic.Anthropic(http_client=http, **options)
    http = gov.wrap(httpx.AsyncClient(transport=transport))
    return anthropic.AsyncAnthropic(http_client=http, **options)


def test_plain_and_streamed_messages_are_steps_with_their_usage(
    gov: Governor, steps: list[Event]
) -> None:
    client = governed(gov, Server(), "sync")
    with gov.agent("a"):
        assert client.messages.create(**ASK).content[0].text == "hi"
        assert list(client.messages.create(stream=True, **ASK))[-1].type == "message_stop"
        with client.messages.stream(**ASK) as stream:
            assert stream.get_final_text() == "hi"
        client.messages.count_tokens(model="m", messages=ASK["messages"])
        client.with_options(timeout=5).messages.with_raw_response.create(**ASK)
    assert len(steps) == 4  # tokens are counted without a model
    assert {step.usage for step in steps} == {Usage(100, 7, 90)}


async def test_messages_of_the_async_client_too(gov: Governor, steps: list[Event]) -> None:
    client = governed(gov, Server(), "async")
    async with gov.agent("a"):
        await client.messages.create(**ASK)
        async with client.messages.stream(**ASK) as stream:
            assert await stream.get_final_text() == "hi"
    assert [step.usage for step in steps] == [Usage(100, 7, 90)] * 2


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_an_error_of_ours_is_raised_as_it_is_and_not_tried_again(kind: str) -> None:
    """The user saw "Connection error." after some seconds of retries."""
    server = Server()
    with Governor(limit=1, ungoverned="error") as gov:
        client = governed(gov, server, kind)
        with pytest.raises(ca.UngovernedError, match="/v1/messages"):
            client.messages.create(**ASK) if kind == "sync" else await client.messages.create(**ASK)
    assert server.paths == []
