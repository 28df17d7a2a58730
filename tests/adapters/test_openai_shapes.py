"""Every way to make a call with openai's clients: gated once, usage known, answer untouched."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from concur_agents.adapters.http import http_client
from concur_agents.adapters.openai_client import wrap_client
from concur_agents.core import Usage
from concur_agents.governor import Governor
from concur_agents.openai import (
    AsyncAzureOpenAI,
    AsyncOpenAI,
    AzureOpenAI,
    OpenAI,
)
from concur_agents.runtime.events import Event

ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TEXT = 'the "usage": {"prompt_tokens": 9} of it'
USED = Usage(prompt_tokens=100, completion_tokens=7, cached_tokens=64)


class Answer(BaseModel):
    answer: int


def text_of(chunks: list[Any]) -> str:
    # What most people write; it dies on a chunk without choices.
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


# Each does one call and checks what the user gets.


def chat(c: Any) -> None:
    assert c.chat.completions.create(**ASK).choices[0].message.content == TEXT


def chat_stream(c: Any) -> None:
    chunks = list(c.chat.completions.create(**ASK, stream=True))
    assert text_of(chunks) == TEXT
    assert all(chunk.usage is None for chunk in chunks)


def chat_stream_with_usage(c: Any) -> None:
    options = {"include_usage": True}
    *chunks, last = c.chat.completions.create(**ASK, stream=True, stream_options=options)
    assert text_of(chunks) == TEXT
    assert last.choices == []
    assert last.usage.prompt_tokens == 100


def chat_stream_helper(c: Any) -> None:
    with c.chat.completions.stream(**ASK) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == TEXT


def chat_parse(c: Any) -> None:
    parsed = c.chat.completions.parse(**ASK, response_format=Answer)
    assert parsed.choices[0].message.parsed == Answer(answer=42)


def chat_raw(c: Any) -> None:
    raw = c.chat.completions.with_raw_response.create(**ASK)
    assert raw.headers["content-type"] == "application/json"
    assert raw.parse().choices[0].message.content == TEXT


def chat_streaming_response(c: Any) -> None:
    with c.chat.completions.with_streaming_response.create(**ASK) as response:
        assert TEXT[:4] in "".join(response.iter_text())


def chat_raw_stream(c: Any) -> None:
    with c.chat.completions.with_streaming_response.create(**ASK, stream=True) as response:
        lines = [line for line in response.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        assert len(lines) == 3


def chat_raw_parsed_stream(c: Any) -> None:
    raw = c.chat.completions.with_raw_response.create(**ASK, stream=True)
    assert text_of(list(raw.parse())) == TEXT


def chat_parse_stream(c: Any) -> None:
    with c.chat.completions.stream(**ASK, response_format=Answer) as stream:
        parsed = stream.get_final_completion()
    assert parsed.choices[0].message.parsed == Answer(answer=42)


def completion(c: Any) -> None:
    assert c.completions.create(model="m", prompt="hi").choices[0].text == "hello"


def completion_stream(c: Any) -> None:
    (chunk,) = c.completions.create(model="m", prompt="hi", stream=True)
    assert chunk.choices[0].text == "hello"


def responses(c: Any) -> None:
    assert c.responses.create(model="m", input="hi").output_text == "hello"


def responses_raw(c: Any) -> None:
    raw = c.responses.with_raw_response.create(model="m", input="hi")
    assert raw.parse().output_text == "hello"


def responses_streaming_response(c: Any) -> None:
    with c.responses.with_streaming_response.create(model="m", input="hi") as response:
        assert response.parse().output_text == "hello"


def responses_parse(c: Any) -> None:
    parsed = c.responses.parse(model="m", input="42?", text_format=Answer)
    assert parsed.output_parsed == Answer(answer=42)


def responses_stream_helper(c: Any) -> None:
    with c.responses.stream(model="m", input="hi") as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == "hello"


def responses_stream(c: Any) -> None:
    events = list(c.responses.create(model="m", input="hi", stream=True))
    assert [event.type for event in events] == ["response.created", "response.completed"]


def with_options(c: Any) -> None:
    chat(c.with_options(timeout=5).copy(max_retries=0))


SYNC: list[Callable[[Any], None]] = [
    chat,
    chat_stream,
    chat_stream_with_usage,
    chat_stream_helper,
    chat_parse,
    chat_raw,
    chat_streaming_response,
    chat_raw_stream,
    chat_raw_parsed_stream,
    chat_parse_stream,
    completion,
    completion_stream,
    responses,
    responses_raw,
    responses_streaming_response,
    responses_parse,
    responses_stream_helper,
    responses_stream,
    with_options,
]


async def achat(c: Any) -> None:
    assert (await c.chat.completions.create(**ASK)).choices[0].message.content == TEXT


async def achat_stream(c: Any) -> None:
    chunks = [chunk async for chunk in await c.chat.completions.create(**ASK, stream=True)]
    assert text_of(chunks) == TEXT
    assert all(chunk.usage is None for chunk in chunks)


async def achat_stream_with_usage(c: Any) -> None:
    options = {"include_usage": True}
    stream = await c.chat.completions.create(**ASK, stream=True, stream_options=options)
    *chunks, last = [chunk async for chunk in stream]
    assert text_of(chunks) == TEXT
    assert last.usage.prompt_tokens == 100


async def achat_stream_helper(c: Any) -> None:
    async with c.chat.completions.stream(**ASK) as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_completion()
        assert final.choices[0].message.content == TEXT


async def achat_parse(c: Any) -> None:
    parsed = await c.chat.completions.parse(**ASK, response_format=Answer)
    assert parsed.choices[0].message.parsed == Answer(answer=42)


async def achat_raw(c: Any) -> None:
    raw = await c.chat.completions.with_raw_response.create(**ASK)
    assert raw.parse().choices[0].message.content == TEXT


async def achat_streaming_response(c: Any) -> None:
    async with c.chat.completions.with_streaming_response.create(**ASK) as response:
        text = "".join([piece async for piece in response.iter_text()])
        assert TEXT[:4] in text


async def achat_parse_stream(c: Any) -> None:
    async with c.chat.completions.stream(**ASK, response_format=Answer) as stream:
        parsed = await stream.get_final_completion()
    assert parsed.choices[0].message.parsed == Answer(answer=42)


async def acompletion(c: Any) -> None:
    assert (await c.completions.create(model="m", prompt="hi")).choices[0].text == "hello"


async def acompletion_stream(c: Any) -> None:
    stream = await c.completions.create(model="m", prompt="hi", stream=True)
    assert [chunk.choices[0].text async for chunk in stream] == ["hello"]


async def aresponses(c: Any) -> None:
    assert (await c.responses.create(model="m", input="hi")).output_text == "hello"


async def aresponses_parse(c: Any) -> None:
    parsed = await c.responses.parse(model="m", input="42?", text_format=Answer)
    assert parsed.output_parsed == Answer(answer=42)


async def aresponses_streaming_response(c: Any) -> None:
    async with c.responses.with_streaming_response.create(model="m", input="hi") as response:
        assert (await response.parse()).output_text == "hello"


async def aresponses_stream_helper(c: Any) -> None:
    async with c.responses.stream(model="m", input="hi") as stream:
        async for _ in stream:
            pass
        assert (await stream.get_final_response()).output_text == "hello"


async def aresponses_stream(c: Any) -> None:
    stream = await c.responses.create(model="m", input="hi", stream=True)
    assert [event.type async for event in stream] == ["response.created", "response.completed"]


async def awith_options(c: Any) -> None:
    await achat(c.with_options(timeout=5).copy(max_retries=0))


ASYNC: list[Callable[[Any], Awaitable[None]]] = [
    achat,
    achat_stream,
    achat_stream_with_usage,
    achat_stream_helper,
    achat_parse,
    achat_raw,
    achat_streaming_response,
    achat_parse_stream,
    acompletion,
    acompletion_stream,
    aresponses,
    aresponses_parse,
    aresponses_streaming_response,
    aresponses_stream_helper,
    aresponses_stream,
    awith_options,
]

HOW = ["subclass", "wrap", "http_client", "legacy"]


def sync_client(how: str, gov: Governor, endpoint: Any) -> openai.OpenAI:
    given: dict[str, Any] = {"base_url": "http://engine/v1", "api_key": "-"}
    if how == "subclass":
        return OpenAI(governor=gov, http_client=endpoint.http("sync"), **given)
    if how == "wrap":
        return wrap_client(gov, openai.OpenAI(http_client=endpoint.http("sync"), **given))
    module: Any = "httpx" if how == "legacy" else None
    http = http_client(gov, "sync", module=module, transport=endpoint.transport(module))
    return openai.OpenAI(http_client=http, **given)


def async_client(how: str, gov: Governor, endpoint: Any) -> openai.AsyncOpenAI:
    given: dict[str, Any] = {"base_url": "http://engine/v1", "api_key": "-"}
    if how == "subclass":
        return AsyncOpenAI(governor=gov, http_client=endpoint.http("async"), **given)
    if how == "wrap":
        return wrap_client(gov, openai.AsyncOpenAI(http_client=endpoint.http("async"), **given))
    module: Any = "httpx" if how == "legacy" else None
    http = http_client(gov, "async", module=module, transport=endpoint.transport(module))
    return openai.AsyncOpenAI(http_client=http, **given)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("shape", SYNC, ids=lambda shape: shape.__name__)
def test_each_sync_call_is_one_step_with_its_usage(
    shape: Callable[[Any], None], how: str, gov: Governor, endpoint: Any, steps: list[Event]
) -> None:
    if how == "legacy":
        pytest.importorskip("httpx")
    client = sync_client(how, gov, endpoint)
    with gov.agent("a") as agent:
        shape(client)
        assert agent.state == "acting"
    assert [step.usage for step in steps] == [USED]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("shape", ASYNC, ids=lambda shape: shape.__name__)
async def test_each_async_call_is_one_step_with_its_usage(
    shape: Callable[[Any], Awaitable[None]],
    how: str,
    gov: Governor,
    endpoint: Any,
    steps: list[Event],
) -> None:
    if how == "legacy":
        pytest.importorskip("httpx")
    client = async_client(how, gov, endpoint)
    async with gov.agent("a") as agent:
        await shape(client)
        assert agent.state == "acting"
    assert [step.usage for step in steps] == [USED]


def test_azure_clients_are_governed_too(gov: Governor, endpoint: Any, steps: list[Event]) -> None:
    client = AzureOpenAI(
        governor=gov,
        azure_endpoint="http://azure",
        api_version="2024-10-21",
        api_key="-",
        http_client=endpoint.http("sync"),
    )
    with gov.agent("a"):
        chat(client)
        chat_stream(client)
        with_options(client)
    assert isinstance(client, openai.AzureOpenAI)
    assert [step.usage for step in steps] == [USED, USED, USED]


async def test_async_azure_clients_are_governed_too(
    gov: Governor, endpoint: Any, steps: list[Event]
) -> None:
    client = AsyncAzureOpenAI(
        governor=gov,
        azure_endpoint="http://azure",
        api_version="2024-10-21",
        api_key="-",
        http_client=endpoint.http("async"),
    )
    async with gov.agent("a"):
        await achat(client)
        await achat_stream(client)
        await awith_options(client)
    assert [step.usage for step in steps] == [USED, USED, USED]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_wrapped_azure_clients_too(
    asynchronous: bool, gov: Governor, endpoint: Any, steps: list[Event]
) -> None:
    given: Any = {"azure_endpoint": "http://azure", "api_version": "2024-10-21", "api_key": "-"}
    if asynchronous:
        http = endpoint.http("async")
        azure = gov.wrap(openai.AsyncAzureOpenAI(http_client=http, **given))

        async def run() -> None:
            async with gov.agent("a"):
                await achat_stream(azure)

        asyncio.run(run())
    else:
        http = endpoint.http("sync")
        with gov.agent("a"):
            chat(gov.wrap(openai.AzureOpenAI(http_client=http, **given)))
    assert endpoint.requests[0].url.path == "/openai/deployments/m/chat/completions"
    assert [step.usage for step in steps] == [USED]


def test_copies_ask_the_same_governor_and_keep_their_class(gov: Governor, endpoint: Any) -> None:
    client = sync_client("subclass", gov, endpoint)
    copied = client.with_options(timeout=3)
    assert type(copied) is OpenAI
    assert copied.governor is gov
    other = Governor(limit=1)
    assert client.copy(governor=other).governor is other  # type: ignore[call-arg]


def test_a_wrapped_client_keeps_its_class_options_and_connections(
    gov: Governor, endpoint: Any
) -> None:
    class Mine(openai.OpenAI):
        pass

    http = endpoint.http("sync")
    mine = Mine(base_url="http://engine/v1", api_key="key", max_retries=7, http_client=http)
    wrapped = wrap_client(gov, mine)
    assert isinstance(wrapped, Mine)
    assert type(wrapped).__qualname__ == Mine.__qualname__
    assert (wrapped.max_retries, wrapped.api_key) == (7, "key")
    assert isinstance(wrapped._client, endpoint.library.Client)
    assert wrapped._client._transport is http._transport
    assert mine._client is http, "the user's own client is left alone"


def test_wrapping_twice_gates_once(gov: Governor, endpoint: Any, steps: list[Event]) -> None:
    client = wrap_client(gov, sync_client("wrap", gov, endpoint))
    with gov.agent("a"):
        chat(client)
    assert len(steps) == 1
