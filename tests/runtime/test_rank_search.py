"""A page with several engines: pools of their own once the pin is proved, else their sum."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

pytest.importorskip("uvicorn")

from concur_agents.governor import Governor
from concur_agents.openai import OpenAI
from concur_agents.recording import Recording, replay
from concur_agents.recording.timeline_builder import read_timeline
from concur_agents.sim.server import EmbeddedServer

ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@contextmanager
def serving(**options: Any) -> Iterator[EmbeddedServer]:
    options = {"time_scale": 1000, "engines": 2, "model": "m", "worker_header": True, **options}
    with EmbeddedServer("h100-qwen3-8b", **options) as server:
        yield server


def wait_for(met: Callable[[], object], text: str = "it happens") -> None:
    ends_s = time.monotonic() + 30
    while not met():
        assert time.monotonic() < ends_s, f"{text} within 30 s"
        time.sleep(0.01)


def ranks_of(client: OpenAI, calls: int = 4) -> list[str]:
    """Which engines serve an agent's calls."""
    create = client.chat.completions.with_raw_response.create
    answers = [create(**ASK, max_tokens=2) for _ in range(calls)]
    return [answer.headers["x-smg-routed-worker-id"].rpartition("@")[2] for answer in answers]


def logged(caplog: pytest.LogCaptureFixture, event: str) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if getattr(record, "concur", {}).get("event") == event
    ]


def test_several_engines_become_several_pools(caplog: pytest.LogCaptureFixture) -> None:
    """The first agents are there already, and stay where their calls go from then on."""
    caplog.set_level(logging.INFO)
    with serving() as server, Governor(server.url, poll_interval_s=0.2) as gov:
        client = OpenAI(governor=gov, base_url=f"{server.url}/v1", api_key="-", max_retries=0)
        with gov.agent("a") as a:
            ranks_of(client, 1)
            wait_for(lambda: len(gov.addresses) == 2, "the ranks are found")
            assert a.pool in gov.addresses
            assert set(ranks_of(client)) == {a.headers["X-data-parallel-rank"]}
            with gov.agent("b", detached=True) as b:
                assert b.base_url == server.url
                assert a.pool != b.pool
                assert set(ranks_of(client)) == {b.headers["X-data-parallel-rank"]}
        view = gov.snapshot()
        assert view.done_total == 2
        assert {pool.capacity_tokens for pool in view.pools.values()} == {
            server.profile.capacity_tokens
        }
        client.close()
    (said,) = logged(caplog, "ranks_found")
    assert "each of 2 ranks" in said


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"rank_header": "ignore"}, "served by rank"),
        ({"rank_header": "refuse"}, "out of range"),
        ({"fails": True}, "answered HTTP 500"),
    ],
)
def test_ranks_that_calls_cannot_be_pinned_to_are_governed_as_one_pool(
    options: dict[str, Any], word: str, caplog: pytest.LogCaptureFixture
) -> None:
    fails = options.pop("fails", False)
    with (
        serving(**options, middleware=refuse_calls if fails else None) as server,
        Governor(server.url, poll_interval_s=0.2) as gov,
        gov.agent("a") as a,
    ):
        wait_for(lambda: logged(caplog, "several_engines"), "it is said")
        wait_for(lambda: gov.snapshot().capacity_tokens, "it is read")
        assert gov.snapshot().capacity_tokens == 2 * server.profile.capacity_tokens
        assert gov.addresses == {}
        assert "X-data-parallel-rank" not in a.headers
        assert a.pool is None
    (said,) = logged(caplog, "several_engines")
    assert word in said


def refuse_calls(app: Any) -> Any:
    """An engine whose page works and whose calls do not."""

    async def refusing(scope: Any, receive: Any, send: Any) -> None:
        if scope.get("path", "").endswith("completions"):
            await send({"type": "http.response.start", "status": 500, "headers": []})
            await send({"type": "http.response.body", "body": b"broken"})
        else:
            await app(scope, receive, send)

    return refusing


@pytest.mark.parametrize("options", [{"limit": 8}, {"ranks": 1}, {"shadow": "fixed"}])
def test_no_call_is_made_where_one_pool_is_asked_for(
    options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A cap is of the whole; `ranks=1` says it; a shadow decides beside one pool."""
    if "shadow" in options:
        from concur_agents.core import make_law

        options = {"shadow": make_law("fixed", agents=2)}
    with serving() as server, Governor(server.url, poll_interval_s=0.01, **options) as gov:
        with gov.agent("a"):
            wait_for(lambda: gov.snapshot().last_reading, "it is read")
        assert gov.addresses == {}
        assert server.stats.calls == 0
    assert len(logged(caplog, "several_engines")) == (options != {"ranks": 1})


def test_one_engine_is_asked_nothing() -> None:
    with serving(engines=1) as server, Governor(server.url, poll_interval_s=0.01) as gov:
        with gov.agent("a"):
            wait_for(lambda: gov.snapshot().last_reading, "it is read")
        assert gov.addresses == {}
        assert server.stats.calls == 0


def test_of_several_addresses_each_has_its_ranks() -> None:
    with (
        serving() as many,
        serving(engines=1) as one,
        Governor([many.url, one.url], poll_interval_s=0.2) as gov,
        gov.agent("a") as a,
        gov.agent("b", detached=True) as b,
    ):
        wait_for(lambda: len(gov.addresses) == 3, "the ranks are found")
        assert list(gov.addresses) == [f"{many.url}#0", f"{many.url}#1", one.url]
        assert {a.base_url, b.base_url} == {many.url, one.url}, "each stays at its address"


def test_a_recording_of_it_replays_to_the_bit(tmp_path: Any) -> None:
    path = tmp_path / "run.jsonl"
    with (
        serving() as server,
        Governor(server.url, poll_interval_s=0.2, record=path) as gov,
        gov.agent("a", group="g"),
        gov.agent("a.child"),
    ):
        client = OpenAI(governor=gov, base_url=f"{server.url}/v1", api_key="-")
        ranks_of(client, 2)
        wait_for(lambda: len(gov.addresses) == 2, "the ranks are found")
        ranks_of(client, 2)
        wait_for(lambda: all(view.capacity_tokens for view in gov.snapshot().pools.values()))
        client.close()
        pools = set(gov.addresses)
    recording = Recording(path)
    assert "regroup" in {line.name for line in recording if hasattr(line, "name")}
    assert list(replay(recording)) == []
    timeline = read_timeline(recording)
    assert set(timeline.pools) == pools
    assert timeline.lanes["a"].pool in timeline.pools


def test_agents_that_wait_are_let_in_while_it_is_proved() -> None:
    """Nothing of ours stops an agent: here the calls of the proof hang."""
    hanging = threading.Event()

    def hang_calls(app: Any) -> Any:
        async def held(scope: Any, receive: Any, send: Any) -> None:
            if scope.get("path", "").endswith("completions"):
                hanging.set()
                while (await receive())["type"] != "http.disconnect":
                    pass
            else:
                await app(scope, receive, send)

        return held

    with (
        serving(middleware=hang_calls) as server,
        Governor(server.url, poll_interval_s=0.2) as gov,
        gov.agent("a"),
    ):
        assert hanging.wait(10)
        with gov.agent("b", detached=True, timeout_s=20):
            assert gov.snapshot().active == 2


def test_a_refused_rank_makes_one_pool_of_the_ranks(caplog: pytest.LogCaptureFixture) -> None:
    """They were given with `ranks=`; the call that was refused is made again, and none fails."""
    with (
        serving(rank_header="refuse") as server,
        Governor(server.url, ranks=2, poll_interval_s=0.2) as gov,
    ):
        client = OpenAI(governor=gov, base_url=f"{server.url}/v1", api_key="-", max_retries=0)
        with gov.agent("a"), gov.agent("b", detached=True) as b:
            assert b.pool == f"{server.url}#1"
            assert len(ranks_of(client)) == 4
            wait_for(lambda: not gov.addresses, "they are one pool")
            assert b.pool is None
            assert "X-data-parallel-rank" not in b.headers
            ranks_of(client)
            wait_for(lambda: gov.snapshot().capacity_tokens == 2 * server.profile.capacity_tokens)
            assert gov.snapshot().active == 2
        assert gov.snapshot().done_total == 2
        client.close()
    assert sum("refuses rank 1" in text for text in caplog.messages) == 1


def test_langchain_and_a_client_of_ones_own_reach_the_ranks_that_were_found() -> None:
    chat = pytest.importorskip("langchain_openai")
    with (
        serving() as server,
        Governor(server.url, poll_interval_s=0.2) as gov,
        httpx.Client() as own,
        gov.http_client("sync") as http,
        gov.agent("a") as a,
        gov.agent("b", detached=True) as b,
    ):
        wait_for(lambda: len(gov.addresses) == 2, "the ranks are found")
        model = chat.ChatOpenAI(
            model="m", base_url=f"{server.url}/v1", api_key="-", max_tokens=2, http_client=http
        )
        for agent in (a, b):
            with agent.active():
                for _ in range(2):
                    model.invoke("hi")
            for _ in range(2):
                with agent.step() as step:
                    url = f"{agent.base_url}/v1/chat/completions"
                    answer = own.post(url, headers=agent.headers, json={**ASK, "max_tokens": 2})
                    step.record(answer.json()["usage"])
            rank = int(agent.headers["X-data-parallel-rank"])
            assert dict(server.stats.ranks_by_agent[agent.id]) == {rank: 4}


def test_a_pin_that_is_ignored_is_noticed_by_what_warm_agents_find(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No answer says who served: the calls take turns, so that each agent comes back to another."""
    with (
        serving(rank_header="ignore", worker_header=False) as server,
        Governor(server.url, ranks=2, poll_interval_s=0.2) as gov,
    ):
        client = OpenAI(governor=gov, base_url=f"{server.url}/v1", api_key="-", max_retries=0)
        agents = [gov.agent(f"a{n}", detached=True) for n in range(8)]
        for n, agent in enumerate(agents):
            agent.open_sync()
            wait_for(lambda: gov.snapshot().capacity_tokens, "it is read")
            text = f"agent {n}: " + " ".join(f"line {k} of {n}" for k in range(900))
            for turn in range(2):
                asked = {"role": "user", "content": text + " and so on" * turn}
                with agent.active():
                    client.chat.completions.create(model="m", messages=[asked], max_tokens=2)  # type: ignore[list-item]
        wait_for(lambda: not gov.addresses, "they are one pool")
        assert gov.snapshot().active == 8
        for agent in agents:
            agent.close()
        client.close()
    (said,) = logged(caplog, "pin_lost")
    assert "found nothing of their context" in said


def test_pools_that_change_again_and_again_lose_no_agent() -> None:
    """Threads work on while their pools are split and joined."""
    with serving() as server, Governor(server.url, ranks=2, poll_interval_s=0.01) as gov:
        endpoint = gov._endpoints.all[0]
        done: list[str] = []

        def life(name: str) -> None:
            with gov.agent(name, group=name[-1]) as agent:
                for k in range(30):
                    with agent.step() as step:
                        step.record({"prompt_tokens": 100 * (k + 1), "completion_tokens": 10})
                    time.sleep(0.001)
            done.append(name)

        threads = [threading.Thread(target=life, args=(f"a{n}",)) for n in range(12)]
        for thread in threads:
            thread.start()
        changes = 0
        while any(thread.is_alive() for thread in threads):
            endpoint.ranks = 3 - endpoint.ranks
            gov._nudge()
            changes += 1
            time.sleep(0.005)
        for thread in threads:
            thread.join()
        assert len(done) == 12
        assert gov.snapshot().done_total == 12
        assert not gov.snapshot().closed, "it governs on"
        assert changes > 2


# SGLang


def test_where_the_header_is_ignored_sglang_takes_the_rank_in_the_body() -> None:
    with (
        serving(metrics="sglang", rank_header="body") as server,
        Governor(server.url, poll_interval_s=0.2) as gov,
    ):
        client = OpenAI(governor=gov, base_url=f"{server.url}/v1", api_key="-", max_retries=0)
        with gov.agent("a") as a, gov.agent("b", detached=True) as b:
            wait_for(lambda: len(gov.addresses) == 2, "the ranks are found")
            for agent in (a, b):
                with agent.active():
                    assert set(ranks_of(client)) == {agent.headers["X-data-parallel-rank"]}
            assert a.pool != b.pool
            with a.active():
                create = client.completions.with_raw_response.create
                raw = create(model="m", prompt="hi", max_tokens=2)
            assert raw.headers["x-smg-routed-worker-id"].endswith(f"@{(a.pool or '')[-1]}")
        client.close()


def test_no_pin_is_claimed_on_a_route_that_ignores_it(caplog: pytest.LogCaptureFixture) -> None:
    """SGLang answers /v1/responses from any rank."""
    with (
        serving(metrics="sglang", worker_header=False) as server,
        Governor(server.url, ranks=2, poll_interval_s=0.2) as gov,
    ):
        client = OpenAI(governor=gov, base_url=f"{server.url}/v1", api_key="-", max_retries=0)
        with gov.agent("a") as agent:
            wait_for(lambda: gov.snapshot().last_reading, "it is read")
            for _ in range(2):
                client.responses.create(model="m", input="hi", max_output_tokens=2)
            wait_for(lambda: not gov.addresses, "they are one pool")
            assert agent.pool is None
        assert dict(server.stats.ranks_by_agent["a"]) == {0: 1, 1: 1}
        client.close()
    (said,) = [text for text in caplog.messages if "SGLang ignores ranks" in text]
    assert "/v1/responses" in said


@pytest.mark.parametrize("count", [1, 4])
def test_ranks_that_sglang_does_not_show_are_said(
    count: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Its page has one of them, unless it was started with a flag."""

    def with_info(app: Any) -> Any:
        async def answering(scope: Any, receive: Any, send: Any) -> None:
            if scope.get("path") == "/server_info":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                body = f'{{"dp_size": {count}}}'.encode()
                await send({"type": "http.response.body", "body": body})
                asked.set()
            else:
                await app(scope, receive, send)

        return answering

    asked = threading.Event()
    with (
        serving(metrics="sglang", engines=1, middleware=with_info) as server,
        Governor(server.url, poll_interval_s=0.2) as gov,
        gov.agent("a"),
    ):
        assert asked.wait(30)
        wait_for(lambda: gov.snapshot().capacity_tokens, "it is read")
        if count > 1:
            wait_for(lambda: logged(caplog, "several_engines"), "it is said")
        assert server.stats.calls == 0
    said = logged(caplog, "several_engines")
    assert [("--enable-metrics-for-all-schedulers" in text) for text in said] == [True] * (
        count > 1
    )
