"""Real clients, whose read timeout is shorter than the hold: none fails that can be saved.

All are held at once, behind one agent that keeps the only place for longer than any of them waits
without a byte.
"""

import asyncio
import importlib
import importlib.util
import inspect
import json
import time

import aiohttp
import httpx
import openai
import requests

from concur_agents.gateway.holding import Times

TIMEOUT_S, HELD_S = 2.0, 2.6
SAY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
STREAM = SAY | {"stream": True}
QUICK = Times(untold_s=0.2, first_s=0.2, every_s=0.2, timeout_part=0.25)
"""Signs of life ten times within the timeout, because a machine may be busy; what is silent passes
after a quarter of it."""


def openai_stream(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="-", timeout=TIMEOUT_S, max_retries=0) as one:
        chunks = list(one.chat.completions.create(**STREAM))
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def openai_plain(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="-", timeout=TIMEOUT_S, max_retries=0) as one:
        return one.chat.completions.create(**SAY).choices[0].message.content


async def openai_async_stream(url):
    options = {"base_url": f"{url}/v1", "api_key": "-", "timeout": TIMEOUT_S, "max_retries": 0}
    async with openai.AsyncOpenAI(**options) as one:
        chunks = [chunk async for chunk in await one.chat.completions.create(**STREAM)]
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def anthropic_stream(url):
    options = {"base_url": url, "api_key": "-", "timeout": TIMEOUT_S, "max_retries": 0}
    with (
        anthropic.Anthropic(**options) as one,
        one.messages.stream(max_tokens=9, **SAY) as stream,
    ):
        return "".join(stream.text_stream)


def anthropic_plain(url):
    options = {"base_url": url, "api_key": "-", "timeout": TIMEOUT_S, "max_retries": 0}
    with anthropic.Anthropic(**options) as one:
        return one.messages.create(max_tokens=9, **SAY).content[0].text


def of_events(lines):
    found = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return "".join(event["choices"][0]["delta"]["content"] for event in found)


def requests_stream(url):
    with requests.post(
        f"{url}/v1/chat/completions", json=STREAM, stream=True, timeout=TIMEOUT_S
    ) as answer:
        answer.raise_for_status()
        return of_events(line.decode() for line in answer.iter_lines())


def httpx_stream(url):
    with (
        httpx.Client(timeout=TIMEOUT_S, trust_env=False) as client,
        client.stream("POST", f"{url}/v1/chat/completions", json=STREAM) as answer,
    ):
        return of_events(answer.iter_lines())


async def aiohttp_stream(url):
    timeout = aiohttp.ClientTimeout(sock_read=TIMEOUT_S)
    async with (
        aiohttp.ClientSession(timeout=timeout) as client,
        client.post(f"{url}/v1/chat/completions", json=STREAM) as answer,
    ):
        return of_events((await answer.text()).splitlines())


CLIENTS = [
    openai_stream,
    openai_plain,
    openai_async_stream,
    requests_stream,
    httpx_stream,
    aiohttp_stream,
]
if importlib.util.find_spec("anthropic") is not None:
    anthropic = importlib.import_module("anthropic")
    CLIENTS += [anthropic_stream, anthropic_plain]


async def test_no_client_fails_whose_timeout_is_shorter_than_its_hold(engine, before):
    async with before(limit=1, times=QUICK) as front:

        async def ask(client):
            url = f"{front.url}/agent/{client.__name__}"
            running = client(url) if inspect.iscoroutinefunction(client) else None
            said = await (running or asyncio.to_thread(client, url))
            async with front.client.delete(url):
                pass
            return said

        async with front.governor.agent("holder"):
            asked_s = time.monotonic()
            streams = [asyncio.create_task(ask(one)) for one in CLIENTS if "stream" in one.__name__]
            await front.waiting(len(streams))
            plain = [one for one in CLIENTS if "plain" in one.__name__]
            assert await asyncio.gather(*map(ask, plain)) == ["hello"] * len(plain)
            assert await front.metric("concur_gateway_passed_total") == len(plain)
            await asyncio.sleep(asked_s + HELD_S - time.monotonic())
            assert not any(stream.done() for stream in streams), "all are held"
        assert set(await asyncio.gather(*streams)) <= {"hello", "hellohello"}
