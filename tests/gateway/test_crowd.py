"""A thousand connections at once: all are served, and those that go leave no place behind."""

import asyncio
import json
import resource

import aiohttp
import pytest

from concur_agents.gateway.holding import Times

CHAT = "/v1/chat/completions"
MANY = 1000
SAY = {"model": "m", "messages": [{"role": "user", "content": "hi " * 1000}]}
SPARE_FILES = 4 * MANY
"""Both ends of a connection to the gateway, and of one to the engine."""


@pytest.fixture(autouse=True)
def files():
    """As many open files as they take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < SPARE_FILES + 200:
        pytest.skip(f"only {hard} files may be open here")
    if soft != resource.RLIM_INFINITY and soft < SPARE_FILES + 200:
        resource.setrlimit(resource.RLIMIT_NOFILE, (SPARE_FILES + 200, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
async def crowd():
    """A client without a bound on its connections."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        yield client


async def test_a_thousand_held_calls_are_all_answered(engine, before, crowd):
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with before(limit=1, times=Times()) as front:

        async def ask(number):
            said = SAY | {"stream": number % 2 == 0}
            async with crowd.post(f"{front.url}/agent/a{CHAT}", json=said) as answer:
                return answer.status, (await answer.read()).removesuffix(b"\n\n")[-6:]

        async with front.governor.agent("holder"):
            asking = [asyncio.create_task(ask(number)) for number in range(MANY)]
            await front.until(lambda: (one := front.gateway.agents.find("a")) and one.calls == MANY)
            assert engine.seen == []
        answers = await asyncio.gather(*asking)
        assert {status for status, _ in answers} == {200}
        assert [text for _, text in answers[::2]] == [b"[DONE]"] * (MANY // 2)
        assert len(front.ended) == MANY
        assert front.governor.snapshot().reasoning == 0
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb
    assert grown < 300 * 1024, "kilobytes, with those of the engine and of the clients"


async def test_a_thousand_that_hang_up_leave_no_place(engine, before, crowd):
    """A third of them have sent half of a request, a third are silent, a third have a stream."""
    async with before(limit=1) as front:
        host, _, port = front.url.partition("://")[2].partition(":")
        body = json.dumps(SAY).encode()
        writers = []

        async def connect(number):
            _, writer = await asyncio.open_connection(host, int(port))
            writers.append(writer)
            said = body[:-1] + b', "stream": true}' if number % 3 == 2 else body
            head = f"POST /agent/a{number}{CHAT} HTTP/1.1\r\nHost: h\r\n"
            head += f"Content-Length: {len(said)}\r\n\r\n"
            writer.write(head.encode() + (said[:100] if number % 3 == 0 else said))
            await writer.drain()

        async with front.governor.agent("holder"):
            await asyncio.gather(*(connect(number) for number in range(MANY)))
            await front.waiting(MANY - (MANY + 2) // 3)
            for writer in writers:
                writer.close()
            await front.until(lambda: front.governor.snapshot().alive == 1)
        assert engine.seen == []
        assert len(front.gateway.agents) == 0
        assert front.gateway._proxy._room.used == 0
        assert (await front.ask(agent="last"))[0] == 200
