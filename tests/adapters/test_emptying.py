"""A request that empties the engine's cache holds the agents and is known to the governor."""

import asyncio
from typing import Any

import pytest

from concur_agents.adapters.http import govern, http_client
from concur_agents.governor import Governor
from concur_agents.openai import AsyncOpenAI, OpenAI

ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
EMPTYING = [
    "/reset_prefix_cache",
    "/reset_prefix_cache?reset_external=true",
    "/flush_cache",
    "/flush_cache/",
    "/sleep?level=1",
    "/release_memory_occupation",
    "/clear_kv_blocks",
    "/behind/a/gateway/flush_cache",
]
ONE, TWO = "http://gpu1:8000", "http://gpu2:9000"


def flushes_of(gov: Governor) -> list[str | None]:
    """The pools that were flushed, as they come; None: all."""
    seen: list[str | None] = []
    gov.on_event(lambda event: seen.append(event.pool) if event.kind == "flushed" else None)
    return seen


@pytest.mark.parametrize("path", EMPTYING)
def test_the_governor_knows_that_the_cache_is_empty(endpoint: Any, path: str) -> None:
    with Governor(limit=2) as gov, govern(gov, endpoint.http("sync")) as client:
        flushes = flushes_of(gov)
        client.post(f"{ONE}{path}")
        assert flushes == [None]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/models"), ("POST", "/tokenize"), ("POST", "/sleepers"), ("PUT", "/sleep")],
)
def test_other_requests_say_nothing(endpoint: Any, method: str, path: str) -> None:
    with Governor(limit=2) as gov, govern(gov, endpoint.http("sync")) as client:
        flushes = flushes_of(gov)
        client.request(method, f"{ONE}{path}")
        assert flushes == []


async def test_agents_are_held_until_it_is_answered(endpoint: Any) -> None:
    gov = Governor(limit=2)

    async def answer(request: Any) -> Any:
        entering = asyncio.ensure_future(second.open())
        while gov.why("second") is None:
            await asyncio.sleep(0)
        held.append((entering, gov.why("second").cause))
        return endpoint.library.Response(200)

    held: list[Any] = []
    transport = endpoint.library.MockTransport(answer)
    client = http_client(gov, "async", transport=transport)
    async with gov, client, gov.agent("first"):
        second = gov.agent("second", detached=True)
        await client.post(f"{ONE}/flush_cache")
        ((entering, cause),) = held
        assert cause == "hold"
        await entering
        second.close()


async def test_one_that_fails_empties_nothing_and_lets_the_agents_go_on(endpoint: Any) -> None:
    """SGLang refuses while calls are in flight."""
    endpoint.refuse = [(400, {}, {"error": "requests are running"})]
    gov = Governor(limit=2)
    async with gov, govern(gov, endpoint.http("async")) as client:
        flushes = flushes_of(gov)
        assert (await client.post(f"{ONE}/flush_cache")).status_code == 400
        assert flushes == []
        async with gov.agent():
            pass


async def test_one_that_is_cancelled_lets_the_agents_go_on(endpoint: Any) -> None:
    gov = Governor(limit=2)

    async def answer(request: Any) -> Any:
        await asyncio.Event().wait()

    client = http_client(gov, "async", transport=endpoint.library.MockTransport(answer))
    async with gov, client:
        flushes = flushes_of(gov)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.post(f"{ONE}/flush_cache"), 0.01)
        async with gov.agent():
            assert flushes == []


def test_of_several_engines_only_the_one_that_was_asked_is_empty(endpoint: Any) -> None:
    with Governor([ONE, TWO], limit=2, background=False) as gov:
        flushes = flushes_of(gov)
        with govern(gov, endpoint.http("sync")) as client:
            client.post(f"{TWO}/reset_prefix_cache")
            (name,) = flushes
            assert gov.addresses[name or ""].url == TWO
            client.post("http://elsewhere:1/reset_prefix_cache")
            assert flushes == [name, None]


def test_a_closed_governor_passes_it(endpoint: Any) -> None:
    gov = Governor(limit=2)
    client = govern(gov, endpoint.http("sync"))
    gov.close()
    assert client.post(f"{ONE}/flush_cache").status_code == 200


@pytest.mark.parametrize("how", ["its own governor", "that of its agents"])
def test_a_drop_in_client_tells_its_governor(endpoint: Any, how: str) -> None:
    options: dict[str, Any] = {"http_client": endpoint.http("sync"), "api_key": "-"}
    with Governor(limit=2) as gov:
        flushes = flushes_of(gov)
        if how == "its own governor":
            client = OpenAI(base_url=f"{ONE}/v1", governor=gov, **options)
        else:
            client = OpenAI(base_url=f"{ONE}/v1", **options)
            client.post(f"{ONE}/reset_prefix_cache", cast_to=object)
            assert flushes == []  # it has had no agent yet
            with gov.agent():
                client.chat.completions.create(**ASK)
        client.post(f"{ONE}/reset_prefix_cache", cast_to=object)
        assert flushes == [None]


async def test_a_drop_in_client_of_two_governors_tells_the_one_that_used_it_last(
    endpoint: Any,
) -> None:
    client = AsyncOpenAI(base_url=f"{ONE}/v1", api_key="-", http_client=endpoint.http("async"))
    async with Governor(limit=2) as first, Governor(limit=2) as second:
        flushes = flushes_of(first), flushes_of(second)
        for gov in (second, first):
            async with gov.agent():
                await client.chat.completions.create(**ASK)
        await client.post(f"{ONE}/reset_prefix_cache", cast_to=object)
        assert flushes == ([None], [])
