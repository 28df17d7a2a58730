"""Pools behind a router that picks: an agent's pool is the one that has answered."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

pytest.importorskip("uvicorn")

import httpx

from concur_agents.errors import ConfigError
from concur_agents.governor import Governor
from concur_agents.openai import AsyncOpenAI, OpenAI
from concur_agents.recording import Recording, replay
from concur_agents.runtime.endpoints import Address
from concur_agents.runtime.served import pool_named
from concur_agents.sim.server import EmbeddedServer

ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
NAMES = ("default/engine-0", "default/engine-1")


@contextmanager
def serving(router: Any, **options: Any) -> Iterator[EmbeddedServer]:
    given = {"time_scale": 1000, "engines": 2, "model": "m", "router": router, **options}
    with EmbeddedServer("h100-qwen3-8b", **given) as server:
        yield server


@contextmanager
def governing(server: EmbeddedServer, *, named: bool = False, **options: Any) -> Iterator[Governor]:
    urls = [f"{server.url}/engine/{rank}" for rank in range(2)]
    pools: Any = dict(zip(NAMES, urls, strict=True)) if named else urls
    with Governor(server.url, pools=pools, poll_interval_s=0.2, **options) as gov:
        yield gov


def wait_for(met: Callable[[], object], text: str = "it happens") -> None:
    ends_s = time.monotonic() + 30
    while not met():
        assert time.monotonic() < ends_s, f"{text} within 30 s"
        time.sleep(0.01)


def engines_of(server: EmbeddedServer, agent: str) -> dict[int, int]:
    """How many calls of an agent each engine has served."""
    return dict(server.stats.ranks_by_agent[agent])


def only(counts: dict[int, int]) -> int:
    (rank,) = counts
    return rank


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """All but that a page was late: a busy machine needs more than the two seconds it has."""
    said = [
        record.getMessage()
        for record in caplog.records
        if record.name == "concur_agents" and record.levelno >= logging.WARNING
    ]
    return [text for text in said if not text.startswith("cannot read the engine")]


@pytest.mark.parametrize("router", ["smg", "llm-d"])
def test_an_agent_is_where_its_first_answer_is_from(
    router: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Four agents of one thread, opened in an order that the router's turn does not follow."""
    with serving(router) as server, governing(server, named=router == "llm-d") as gov:
        client = OpenAI(governor=gov, base_url=f"{server.url}/v1", api_key="-", max_retries=0)
        names = list(gov.addresses)
        agents = [gov.agent(name, detached=True) for name in "abcd"]
        for agent in agents:
            agent.open_sync()
        for agent in reversed(agents):
            for _ in range(3):
                with agent.active():
                    client.chat.completions.create(**ASK, max_tokens=2)
        for agent in agents:
            rank = only(engines_of(server, agent.id))
            assert agent.pool == names[rank]
            assert agent.base_url == server.url
            agent.close()
        client.close()
    assert warnings_of(caplog) == []


async def test_asynchronous_calls_streams_and_children_go_with_their_agent() -> None:
    with serving("smg") as server, governing(server) as gov:
        client = AsyncOpenAI(governor=gov, base_url=f"{server.url}/v1", api_key="-")

        async def life(name: str) -> None:
            async with gov.agent(name) as agent:
                stream = await client.chat.completions.create(**ASK, max_tokens=2, stream=True)
                assert [chunk async for chunk in stream]
                async with gov.agent(f"{name}.child") as child:
                    await client.chat.completions.create(**ASK, max_tokens=2)
                    assert child.headers["X-SMG-Routing-Key"] == name
                await client.chat.completions.create(**ASK, max_tokens=2)
                rank = only(engines_of(server, name))
                assert agent.pool == list(gov.addresses)[rank]

        await asyncio.gather(*(life(name) for name in "abcd"))
        await client.close()


def test_langchain_goes_with_its_agent() -> None:
    chat = pytest.importorskip("langchain_openai")
    with serving("smg") as server, governing(server) as gov:
        http = gov.http_client("sync")
        model = chat.ChatOpenAI(
            model="m", base_url=f"{server.url}/v1", api_key="-", max_tokens=2, http_client=http
        )
        for name in "ab":
            with gov.agent(name) as agent:
                for _ in range(2):
                    model.invoke("hi")
                assert agent.pool == list(gov.addresses)[only(engines_of(server, name))]
        http.close()


@pytest.mark.parametrize("router", ["smg", "llm-d"])
def test_a_client_that_is_not_ours_has_headers_to_send_and_says_what_came(router: str) -> None:
    with (
        serving(router) as server,
        governing(server, named=router == "llm-d") as gov,
        httpx.Client() as client,
        gov.agent("a") as a,
        gov.agent("b", detached=True) as b,
    ):
        for agent in (b, a, b, a):
            with agent.step() as step:
                url = f"{agent.base_url}/v1/chat/completions"
                answer = client.post(url, headers=agent.headers, json={**ASK, "max_tokens": 2})
                agent.heard(answer.headers)
                step.record(answer.json()["usage"])
        for agent in (a, b):
            rank = only(engines_of(server, agent.id))
            assert agent.pool == list(gov.addresses)[rank]


@pytest.mark.parametrize(
    ("router", "calls", "word"),
    [("silent", 1, "do not say which engine"), ("turn", 20, "does not keep agents")],
)
def test_a_router_that_says_nothing_or_keeps_none_is_governed_by_the_sum(
    router: str, calls: int, word: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(router) as server, governing(server) as gov:
        client = OpenAI(governor=gov, base_url=f"{server.url}/v1", api_key="-", max_retries=0)
        with gov.agent("a") as agent:
            for _ in range(calls):
                client.chat.completions.create(**ASK, max_tokens=2)
            wait_for(lambda: not gov.addresses, "they are one pool")
            assert (agent.pool, agent.base_url) == (None, server.url)
            whole = 2 * server.profile.capacity_tokens
            wait_for(lambda: gov.snapshot().capacity_tokens == whole, "both pages count")
            client.chat.completions.create(**ASK, max_tokens=2)
            assert agent.headers["X-SMG-Routing-Key"] == "a", "it may keep agents yet"
            readings = [each.last_reading for each in gov.snapshot().endpoints]
            assert None not in readings
        client.close()
    (said,) = warnings_of(caplog)
    assert word in said


def test_names_that_are_no_pools_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with serving("llm-d") as server, governing(server) as gov:
        client = OpenAI(governor=gov, base_url=f"{server.url}/v1", api_key="-", max_retries=0)
        with gov.agent("a"):
            for _ in range(3):
                client.chat.completions.create(**ASK, max_tokens=2)
            wait_for(lambda: not gov.addresses, "they are one pool")
        assert len(engines_of(server, "a")) == 1, "the token is sent back all the same"
        client.close()
    (said,) = warnings_of(caplog)
    assert "'default/engine-0', which is none of `pools=`" in said


def test_answers_that_nothing_has_seen_are_said(caplog: pytest.LogCaptureFixture) -> None:
    """A client of one's own that does not tell `heard`."""
    with serving("smg") as server, governing(server) as gov, gov.agent("a") as agent:
        for _ in range(8):
            with agent.step() as step:
                step.record({"prompt_tokens": 10, "completion_tokens": 1})
        wait_for(lambda: not gov.addresses, "they are one pool")
    (said,) = warnings_of(caplog)
    assert "agent.heard(response.headers)" in said


def test_a_call_that_does_not_go_to_the_router_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with serving("smg") as server, governing(server) as gov:
        url = server.url.replace("127.0.0.1", "localhost")
        client = OpenAI(governor=gov, base_url=f"{url}/v1", api_key="-", max_retries=0)
        with gov.agent("a"):
            client.chat.completions.create(**ASK, max_tokens=2)
        client.close()
        (said,) = warnings_of(caplog)
        assert f"make the client for one of {server.url}" in said


def test_what_was_learned_is_recorded_and_replays_to_the_bit(tmp_path: Any) -> None:
    path = tmp_path / "run.jsonl"
    with serving("smg") as server, governing(server, record=path) as gov:
        client = OpenAI(governor=gov, base_url=f"{server.url}/v1", api_key="-")
        second = list(gov.addresses)[1]
        with gov.agent("early"):  # else a page that comes late leaves one pool to both
            wait_for(lambda: None not in [each.last_reading for each in gov.snapshot().endpoints])
        with gov.agent("b") as b, ExitStack() as inner:
            inner.enter_context(gov.agent("a", detached=True))
            if b.pool == second:
                inner.close()  # so that the call is of the agent in the second pool
            # The router's first agent goes to its first engine, and so this one is elsewhere.
            client.chat.completions.create(**ASK, max_tokens=2)
        client.close()
    recording = Recording(path)
    assert "found" in {line.name for line in recording if hasattr(line, "name")}
    assert list(replay(recording)) == []


@pytest.mark.parametrize(
    ("url", "pools", "why"),
    [
        (None, ["http://a"], "url= is its address"),
        (["http://r", "http://s"], ["http://a"], "url= is its address"),
        ("http://r", ["http://a", "http://a"], "twice"),
        ("http://r", [], "address"),
    ],
)
def test_pools_need_a_router(url: Any, pools: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Governor(url, pools=pools)


def test_how_answers_name_pools() -> None:
    router = "http://router"
    addresses = {
        "http://gpu1:8000#0": Address(router, worker="http://gpu1:8000/v1", served_rank=0),
        "http://gpu1:8000#1": Address(router, worker="http://gpu1:8000/v1", served_rank=1),
        "pod": Address(router, worker="http://10.0.0.2:8000"),
        "https://x": Address(router, worker="https://x"),
    }
    for said, pool in {
        "http://gpu1:8000@1": "http://gpu1:8000#1",
        "gpu1:8000@0": "http://gpu1:8000#0",
        "http://gpu1:8000#1": "http://gpu1:8000#1",
        "http://GPU1:8000/@1": "http://gpu1:8000#1",
        "http://gpu1:8000": None,
        "http://gpu1:8000@7": None,
        "pod": "pod",
        "10.0.0.2:8000": "pod",
        "http://10.0.0.2:8000/": "pod",
        "x:443": "https://x",
        "http://[broken": None,
        "": None,
    }.items():
        assert pool_named(said, addresses) == pool, said
