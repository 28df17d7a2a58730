"""Behind a router the daemon learns from its clients' answers which engine has which agent."""

import asyncio
import contextlib
import os
import pickle
import signal
import time

import pytest

pytest.importorskip("uvicorn")

from concur_agents import Governor
from concur_agents.sim.server import EmbeddedServer

NAMES = ("default/engine-0", "default/engine-1")


@pytest.fixture
def behind(folder, serve, patient):
    """`behind("smg")`: an engine of two behind a router, a daemon, and two clients of it."""
    with contextlib.ExitStack() as stack:

        def start(router, *, named=False):
            options = {"time_scale": 1000, "engines": 2, "model": "m", "router": router}
            server = stack.enter_context(EmbeddedServer("h100-qwen3-8b", **options))
            urls = [f"{server.url}/engine/{rank}" for rank in range(2)]
            pools = dict(zip(NAMES, urls, strict=True)) if named else urls
            where = f"unix:{folder}/d/s"
            daemon = serve(where, url=server.url, pools=pools, poll_interval_s=0.2)
            clients = [stack.enter_context(Governor(shared=where)) for _ in range(2)]
            return server, daemon, clients

        yield start


async def call(client, server, **headers):
    body = {"model": "m", "prompt": "a b c", "max_tokens": 2}
    reply = await client.post(f"{server.url}/v1/completions", json=body, headers=headers)
    reply.raise_for_status()
    return reply


@pytest.mark.parametrize("router", ["smg", "llm-d"])
def test_the_daemon_has_each_agent_where_the_router_has_it(behind, until, router):
    server, daemon, clients = behind(router, named=router == "llm-d")
    governor = daemon._governor

    async def life(client, gov, name):
        async with gov.agent(name) as agent:
            for _ in range(3):
                await call(client, server)
            (rank,) = server.stats.ranks_by_agent[name]
            pool = list(governor.addresses)[rank]
            ends_s = time.monotonic() + 30
            while agent.pool != pool:
                assert time.monotonic() < ends_s, (name, agent.pool, pool)
                await asyncio.sleep(0.01)
            (key,) = [
                each for each in governor.monitor.sessions.regulator.ids() if each.endswith(name)
            ]
            assert governor.pool_of(key) == pool

    async def batch():
        async with contextlib.AsyncExitStack() as stack:
            https = [
                await stack.enter_async_context(each.http_client("async", module="httpx"))
                for each in clients
            ]
            lives = [life(https[n % 2], clients[n % 2], f"{'ab'[n % 2]}{n}") for n in range(8)]
            await asyncio.gather(*lives)

    asyncio.run(batch())
    assert clients[0].router == server.url
    until(lambda: not daemon._governor.monitor.sessions.regulator.ids())


@pytest.mark.parametrize(
    ("router", "text"),
    [("silent", "do not say which engine"), ("turn", "does not keep agents")],
)
def test_where_answers_do_not_tell_the_pools_are_one_for_all_processes(
    behind, until, caplog, router, text
):
    server, daemon, clients = behind(router)
    governor = daemon._governor

    async def batch():
        async with clients[0].http_client("async", module="httpx") as client:
            for name in "abcdef":
                async with clients[0].agent(name):
                    for _ in range(6):
                        await call(client, server)

    asyncio.run(batch())
    until(lambda: not governor.addresses)
    assert sum(text in line for line in caplog.messages) == 1
    with clients[0].agent("z") as one, clients[1].agent("z") as other:
        until(lambda: clients[0].addresses == clients[1].addresses == {})
        assert one.pool is other.pool is None
        assert one.base_url == server.url
        assert "x-session-id" in one.headers


def test_a_client_that_does_not_report_answers_lets_the_daemon_give_up(behind, until, caplog):
    """An older one, or one in another language: its calls end, and nothing is said of them."""
    _, daemon, (client, _) = behind("smg")
    with client.agent("a") as agent:
        for _ in range(9):
            with agent.step() as step:
                step.record({"prompt_tokens": 10, "completion_tokens": 1})
        until(lambda: not daemon._governor.addresses)
    assert sum("only that calls were answered" in line for line in caplog.messages) == 1


def test_the_daemon_of_auto_has_the_pools_behind_its_router(folder, until, patient):
    """The process that starts it says which; another one of the same router finds it."""
    with EmbeddedServer(
        "h100-qwen3-8b", time_scale=1000, engines=2, model="m", router="smg"
    ) as server:
        urls = [f"{server.url}/engine/{rank}" for rank in range(2)]
        pools = dict(zip(NAMES, urls, strict=True))
        with (
            Governor(server.url, pools=pools, limit=8, shared="auto") as first,
            first.agent("a") as agent,
            Governor(server.url, pools=pools, limit=8, shared="auto") as second,
            second.agent("a"),
        ):
            until(lambda: second.snapshot().reason == "shared")
            assert agent.pool in NAMES
            assert list(second.addresses) == list(NAMES)
            assert second.router == server.url
            assert len(list((folder / "concur-agents").glob("*.daemon"))) == 1
            with pickle.loads(pickle.dumps(first)) as third:
                assert third.router == server.url
        for path in (folder / "concur-agents").glob("*.sock"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.name.partition("-")[0]), signal.SIGTERM)
        until(lambda: not list((folder / "concur-agents").glob("*.daemon")))
