"""The gateway listens, and has pages of its own."""

import asyncio
import contextlib
import socket
import subprocess
import sys

import pytest
import requests

from concur_agents.errors import ConcurError, ConfigError
from concur_agents.gateway.app import Gateway, in_thread
from concur_agents.governor import Governor
from concur_agents.testing import assert_idle

CHAT = "/v1/chat/completions"
ENGINE = "http://127.0.0.1:9"


async def test_an_agent_ends_when_it_says_so(engine, before):
    async with before(limit=1) as front:
        await front.ask(agent="a")
        asking = asyncio.create_task(front.ask(agent="b"))
        await front.waiting(1)
        async with front.client.delete(f"{front.url}/agent/a") as answer:
            assert answer.status == 204
        assert (await asking)[0] == 200
        async with front.client.delete(f"{front.url}/agent/a") as answer:
            assert answer.status == 404


async def test_an_agent_that_is_ended_in_a_call_finishes_it(engine, before):
    may_answer = asyncio.Event()

    async def late(request, body):
        await may_answer.wait()
        return await engine.usual(request, body)

    engine.answer = late
    async with before() as front:
        asking = asyncio.create_task(front.ask(agent="a"))
        await front.until(lambda: engine.seen)
        async with front.client.delete(f"{front.url}/agent/a") as answer:
            assert answer.status == 204
        may_answer.set()
        assert (await asking)[0] == 200


async def test_metrics_are_the_governors_and_its_own(engine, before):
    async with before() as front:
        await front.ask()
        assert await front.metric(
            'concur_gateway_requests_total{dialect="openai",outcome="answered"}'
        )
        assert await front.metric('concur_gateway_agents{identity="given"}') == 1
        assert await front.metric('concur_steps_total{governor="default"}') == 1


@pytest.mark.parametrize("key", ["s3cret", "sk-agent-k:s3cret"])
async def test_with_a_token_only_those_who_have_it_get_in(engine, before, key):
    async with before(token="s3cret", key="engine-key") as front:
        for method, path in (("post", CHAT), ("get", "/metrics"), ("delete", "/agent/a")):
            async with getattr(front.client, method)(f"{front.url}{path}") as answer:
                assert answer.status == 401
        async with front.client.get(f"{front.url}/healthz") as answer:
            assert answer.status == 200
        headers = {"Authorization": f"Bearer {key}"}
        assert (await front.ask(headers=headers))[0] == 200
        assert (await front.ask(headers={"x-api-key": key}))[0] == 200
        async with front.client.get(f"{front.url}/metrics", headers=headers) as answer:
            assert answer.status == 200
        assert {seen.header("authorization") for seen in engine.seen} == {"Bearer engine-key"}


async def test_two_governed_engines_each_get_the_calls_of_their_agents(engine, before):
    """The gateway is a router as well: an agent's prefix is in one pool."""
    pytest.importorskip("uvicorn")
    from concur_agents.sim.server import EmbeddedServer

    profile = "h100-qwen3-8b"
    with EmbeddedServer(profile, model="m") as one, EmbeddedServer(profile, model="m") as two:
        urls = [one.url, two.url]
        governor = Governor(urls, limit=4, poll_interval_s=60)
        async with before(governor=governor, engines=urls) as front:
            for _ in range(3):
                asks = [front.ask(agent=f"a{n}") for n in range(6)]
                assert {status for status, _ in await asyncio.gather(*asks)} == {200}
            pools = [governor.pool_of(f"a{n}") for n in range(6)]
            for server in (one, two):
                assert server.stats.calls == 3 * pools.count(server.url) > 0


async def test_a_request_that_empties_a_cache_goes_to_all_engines(engine, before):
    """Whoever sends it knows one address; who cannot be reached is no reason to skip the others."""
    gone = "http://127.0.0.1:9"
    governor = Governor([engine.url, gone], limit=4, poll_interval_s=60)
    async with before(governor=governor, engines=[engine.url, gone]) as front:
        flushed = []
        governor.on_event(lambda e: flushed.append(e.pool) if e.kind == "flushed" else None)
        async with front.client.post(f"{front.url}/sleep?level=1", json={"tags": []}) as answer:
            assert answer.status == 502
            assert gone in await answer.text()
        (seen,) = [seen for seen in engine.seen if seen.method == "POST"]
        assert (seen.path, seen.json) == ("/sleep?level=1", {"tags": []})
        assert [governor.addresses[name].url for name in flushed] == [engine.url]


@pytest.mark.parametrize("refusing", ["/one/flush_cache", "/two/flush_cache"])
async def test_of_the_answers_of_all_engines_the_client_gets_the_worst(engine, before, refusing):
    from aiohttp import web

    async def answer(request, body):
        return web.Response(status=400 if request.path == refusing else 200, text=request.path)

    engine.answer = answer
    async with before(engines=[f"{engine.url}/one", f"{engine.url}/two"]) as front:
        async with front.client.get(f"{front.url}/flush_cache") as answer:
            assert (answer.status, await answer.text()) == (400, refusing)
        assert len(engine.seen) == 2


async def test_a_rank_is_pinned(engine, before):
    async with before(governor=Governor(engine.url, ranks=2, limit=2, poll_interval_s=60)) as front:
        await front.ask(agent="a")
        rank = front.governor.pool_of("a")[-1]
        posts = [seen for seen in engine.seen if seen.method == "POST"]
        assert posts[0].header("x-data-parallel-rank") == rank
        assert posts[0].header("x-session-id") == "a"


async def test_a_rank_that_is_refused_is_left_out(engine, before):
    async def refuses(request, body):
        if "x-data-parallel-rank" in request.headers:
            from aiohttp import web

            return web.Response(status=400, text="data_parallel_rank 1 is out of range [0, 1).")
        return await engine.usual(request, body)

    engine.answer = refuses
    async with before(governor=Governor(engine.url, ranks=2, limit=2, poll_interval_s=60)) as front:
        assert (await front.ask(agent="a"))[0] == 200


def test_it_runs_in_a_thread_for_synchronous_code():
    with Governor(limit=1) as governor:
        with in_thread(Gateway(governor, ENGINE)) as gateway:
            assert requests.get(f"{gateway.url}/healthz", timeout=10).json()["status"] == "ok"
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{gateway_url(gateway)}/healthz", timeout=10)
        assert_idle(governor)


def gateway_url(gateway):
    with pytest.raises(ConcurError):
        gateway.url  # noqa: B018
    return ENGINE


def test_what_goes_wrong_in_its_thread_is_raised():
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with (
            Governor(limit=1) as governor,
            pytest.raises(ConfigError, match="port 0 takes any free one"),
            in_thread(Gateway(governor, ENGINE, port=port)),
        ):
            pass


def test_it_does_not_call_itself():
    """OPENAI_BASE_URL, which is also a governor's address, may name the gateway."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as found:
        port = found.getsockname()[1]
    with (
        Governor(limit=1) as governor,
        pytest.raises(ConfigError, match="it would call itself"),
        in_thread(Gateway(governor, f"http://127.0.0.1:{port}/v1", port=port)),
    ):
        pass


def test_elsewhere_it_asks_for_a_token():
    with Governor(limit=1) as governor:
        with pytest.raises(ConfigError, match="give a token"):
            Gateway(governor, ENGINE, host="0.0.0.0")
        Gateway(governor, ENGINE, host="0.0.0.0", token="t")


def test_a_missing_extra_is_named():
    code = "import sys; sys.modules['aiohttp'] = None; import concur_agents.gateway.app"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "concur-agents[gateway]"' in ran.stderr
