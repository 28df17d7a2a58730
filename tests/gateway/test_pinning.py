"""Calls are pinned to a rank where the engine reads it: in a header, or in the body."""

import asyncio
import json

import pytest

pytest.importorskip("uvicorn")

from aiohttp import web

from concur_agents.governor import Governor
from concur_agents.runtime.endpoints import Address
from concur_agents.sim.server import EmbeddedServer

CHAT = "/v1/chat/completions"
ASK = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
SGLANG = {"engines": 2, "metrics": "sglang", "worker_header": True, "model": "m"}


def sglang(**options):
    return EmbeddedServer("h100-qwen3-8b", time_scale=1000, **SGLANG, **options)


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
async def test_sglang_that_reads_ranks_in_the_body_is_pinned(before, path):
    ask = ASK | {"prompt": "hi"}
    with sglang(rank_header="body") as server:
        governor = Governor(server.url, poll_interval_s=0.1)
        async with before(governor=governor, engines=server.url) as front:
            await front.ask(path, agent="a", json=ask)  # ranks are looked for once an agent is in
            await front.until(lambda: len(governor.addresses) == 2)
            for agent in ("a", "b"):
                served = set()
                for stream in (False, True, False):
                    async with front.post(path, agent=agent, json=ask | {"stream": stream}) as said:
                        assert said.status == 200
                        served.add(said.headers["x-smg-routed-worker-id"].rpartition("@")[2])
                assert served == {governor.pool_of(agent)[-1]}
            assert governor.pool_of("a") != governor.pool_of("b")


async def test_no_pin_is_claimed_on_a_route_that_ignores_it(before, caplog):
    with sglang() as server:
        governor = Governor(server.url, ranks=2, poll_interval_s=0.1)
        async with before(governor=governor, engines=server.url) as front:
            await front.ask(json=ASK)
            await front.until(lambda: governor.snapshot().last_reading)
            for _ in range(2):
                ask = {"model": "m", "input": "hi", "max_output_tokens": 2}
                assert (await front.ask("/v1/responses", json=ask))[0] == 200
            await front.until(lambda: not governor.addresses)
    assert "SGLang ignores ranks on /v1/responses" in caplog.text


@pytest.fixture
async def pinned(engine, before, monkeypatch):
    """A gateway whose agents all have rank 1, to be named in the body."""
    governor = Governor(engine.url, ranks=2, limit=4, poll_interval_s=60)
    monkeypatch.setattr(
        governor, "address_of", lambda agent: Address(engine.url, 1, True, served_rank=1)
    )
    async with before(governor=governor) as front:
        yield front


def posts(engine):
    return [seen for seen in engine.seen if seen.method == "POST"]


async def test_the_rank_is_put_before_the_rest_of_the_body_which_stays_as_it_is(engine, pinned):
    body = b'{ "model":"m",\n"messages": [ {"role":"user","content":"\\u00e4 \xc3\xa4"} ] }'
    assert (await pinned.ask(data=body))[0] == 200
    assert posts(engine)[0].body == b'{"routed_dp_rank":1,' + body[1:]
    assert posts(engine)[0].header("x-data-parallel-rank") == "1"


async def test_a_rank_of_the_clients_own_counts(engine, pinned):
    assert (await pinned.ask(json=ASK | {"routed_dp_rank": 0}))[0] == 200
    assert posts(engine)[0].json["routed_dp_rank"] == 0


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/messages", b'{"messages":[]}'), (CHAT, b"{}"), (CHAT, b"[1]"), (CHAT, b"{ }")],
)
async def test_no_other_body_gets_a_rank(engine, pinned, path, body):
    async def any_answer(request, body):
        return web.Response()

    engine.answer = any_answer
    await pinned.ask(path, data=body)
    assert posts(engine)[0].body == body


@pytest.mark.parametrize("is_chunked", [True, False])
async def test_a_body_that_is_too_large_to_be_read_gets_its_rank(engine, pinned, is_chunked):
    content = b"x" * 5_000_000

    async def pieces():
        yield b'{"content":"'
        yield content
        yield b'"}'

    body = b"".join([piece async for piece in pieces()])
    headers = {} if is_chunked else {"Content-Length": str(len(body))}

    async def large(request):
        read = b""
        while piece := await request.content.readany():
            read += piece
        received.append(read)
        return web.Response()

    received = []
    runner = web.ServerRunner(web.Server(large, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    pinned.governor.address_of = lambda agent: Address(url, 1, True, served_rank=1)
    assert (await pinned.ask(data=pieces(), headers=headers))[0] == 200
    await runner.cleanup()
    assert received == [b'{"routed_dp_rank":1,' + body[1:]]


async def test_a_rank_in_the_body_that_is_refused_is_left_out(engine, pinned):
    async def refuses(request, body):
        if b"routed_dp_rank" in body:
            return web.Response(status=400, text="routed_dp_rank 1 is out of range [0, 1).")
        return await engine.usual(request, body)

    engine.answer = refuses
    asks = [pinned.ask(json=ASK) for _ in range(2)]
    assert {status for status, _ in await asyncio.gather(*asks)} == {200}
    (last, *_) = posts(engine)[::-1]
    assert json.loads(last.body) == ASK
    assert last.header("x-data-parallel-rank") is None
