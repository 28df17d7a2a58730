"""Drop-in clients without `governor=`: each call goes by the governor of its agent."""

import asyncio
from typing import Any

import openai
import pytest

from concur_agents.adapters.by_agent import govern_by_agent
from concur_agents.adapters.http import govern
from concur_agents.governor import Governor
from concur_agents.openai import AsyncOpenAI, OpenAI

ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
URL = "http://engine/v1"


def sync(endpoint: Any, **options: Any) -> OpenAI:
    http = endpoint.http("sync")
    return OpenAI(base_url=URL, api_key="-", http_client=http, max_retries=0, **options)


def asynchronous(endpoint: Any, **options: Any) -> AsyncOpenAI:
    http = endpoint.http("async")
    return AsyncOpenAI(base_url=URL, api_key="-", http_client=http, max_retries=0, **options)


def test_a_call_is_a_step_of_its_agent_with_the_usage_of_its_answer(endpoint: Any) -> None:
    client = sync(endpoint)
    with Governor(limit=1) as gov, gov.agent("a") as agent:
        client.chat.completions.create(**ASK)
        client.chat.completions.create(**ASK)
        assert (agent.stats.steps, agent.stats.prompt_tokens) == (2, 200)


async def test_a_paused_agent_waits_at_its_call_and_nothing_is_sent(endpoint: Any) -> None:
    gov, client = Governor(limit=1), asynchronous(endpoint)
    async with gov.agent("a") as agent:
        await client.chat.completions.create(**ASK)
        other = gov.agent("b", detached=True)
        async with agent.suspended():
            await other.open()
        call = asyncio.create_task(client.chat.completions.create(**ASK))
        for _ in range(20):
            await asyncio.sleep(0)
        assert (agent.state, len(endpoint.requests)) == ("paused", 1)
        other.close()
        await call
        assert len(endpoint.requests) == 2


def test_two_governors_each_decide_about_their_own_agents(endpoint: Any) -> None:
    client = sync(endpoint)
    with Governor(limit=1) as first, Governor(limit=1) as second:
        steps = {first: 0, second: 0}
        for gov in (first, second, first):
            with gov.agent() as agent:
                client.chat.completions.create(**ASK)
                steps[gov] += agent.stats.steps
        assert list(steps.values()) == [2, 1]


def test_a_sub_agent_of_another_governor_goes_by_its_own(endpoint: Any) -> None:
    client = sync(endpoint)
    with Governor(limit=1) as outer, Governor(limit=1) as inner:
        with outer.agent() as agent, inner.agent() as sub_agent:
            client.chat.completions.create(**ASK)
        assert (agent.stats.steps, sub_agent.stats.steps) == (0, 1)


def test_outside_of_any_agent_calls_pass_and_it_is_logged_once(
    endpoint: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client = sync(endpoint)
    client.models.list()
    assert caplog.messages == []
    client.chat.completions.create(**ASK)
    client.chat.completions.create(**ASK)
    assert len(endpoint.requests) == 3
    (said,) = caplog.messages
    assert "/v1/chat/completions was called outside of any agent" in said


@pytest.mark.parametrize("how", ["copy", "wrap", "given"])
def test_a_copy_stays_governed_and_a_governor_that_is_given_takes_its_place(
    how: str, endpoint: Any
) -> None:
    client: Any = sync(endpoint)
    with Governor(limit=1, ungoverned="agent") as gov:
        if how == "copy":
            client = client.with_options(timeout=3)
        elif how == "wrap":
            client = gov.wrap(client)
        else:
            client = client.with_options(governor=gov)
        with gov.agent() as agent:
            client.chat.completions.create(**ASK)
            assert agent.stats.steps == 1
        client.chat.completions.create(**ASK)  # which only a governor of its own governs
        assert gov.snapshot().done_total == (1 if how == "copy" else 2)


def test_what_others_have_put_on_the_http_client_still_runs(endpoint: Any) -> None:
    http = endpoint.http("sync")
    plain, sent = http.send, []
    http.send = lambda request, **options: sent.append(request) or plain(request, **options)
    client = OpenAI(base_url=URL, api_key="-", http_client=http, max_retries=0)
    with Governor(limit=1) as gov, gov.agent() as agent:
        client.chat.completions.create(**ASK)
        assert (agent.stats.steps, len(sent)) == (1, 1)


def test_a_client_that_is_governed_already_is_left_alone(endpoint: Any) -> None:
    with Governor(limit=1) as gov:
        governed = govern(gov, endpoint.http("sync"))
        assert govern_by_agent(governed) is governed


async def test_a_stream_ends_its_step_with_its_usage(endpoint: Any) -> None:
    client = asynchronous(endpoint)
    async with Governor(limit=1) as gov, gov.agent() as agent:
        async for _ in await client.chat.completions.create(**ASK, stream=True):
            assert agent.state == "reasoning"
        assert (agent.state, agent.stats.prompt_tokens) == ("acting", 100)


def test_it_is_still_a_client_of_openai(endpoint: Any) -> None:
    assert isinstance(sync(endpoint), openai.OpenAI)
