"""A step is one call of the user with all its retries: openai's own, tenacity's, and ours."""

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest
import tenacity

from concur_agents.adapters.http import http_client
from concur_agents.core import Usage
from concur_agents.governor import Governor
from concur_agents.openai import AsyncOpenAI, OpenAI
from concur_agents.recording import RecordedCall, Recording
from concur_agents.runtime.events import Event

ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
GIVEN: dict[str, Any] = {"base_url": "http://engine/v1", "api_key": "-"}
USED = Usage(prompt_tokens=100, completion_tokens=7, cached_tokens=64)
BROKEN = (500, {"retry-after-ms": "1"}, {"error": {"message": "broken"}})
BUSY = (429, {"retry-after-ms": "1"}, {"error": {"message": "busy"}})


@pytest.fixture
def pauses(gov: Governor) -> list[Event]:
    """What happened at boundaries."""
    seen: list[Event] = []
    gov.on_event(lambda e: seen.append(e) if e.kind in ("step_began", "paused") else None)
    return seen


def sync_client(how: str, gov: Governor, endpoint: Any, **options: Any) -> openai.OpenAI:
    http = endpoint.http("sync")
    if how == "subclass":
        return OpenAI(governor=gov, http_client=http, **GIVEN, **options)
    if how == "copy":
        return OpenAI(governor=gov, http_client=http, **GIVEN).with_options(**options)
    wrapped = gov.wrap(openai.OpenAI(http_client=http, **GIVEN, **options))
    return wrapped.with_options(timeout=5) if how == "copy of wrapped" else wrapped


def async_client(how: str, gov: Governor, endpoint: Any, **options: Any) -> openai.AsyncOpenAI:
    http = endpoint.http("async")
    if how == "subclass":
        return AsyncOpenAI(governor=gov, http_client=http, **GIVEN, **options)
    if how == "copy":
        return AsyncOpenAI(governor=gov, http_client=http, **GIVEN).with_options(**options)
    wrapped = gov.wrap(openai.AsyncOpenAI(http_client=http, **GIVEN, **options))
    return wrapped.with_options(timeout=5) if how == "copy of wrapped" else wrapped


HOW = ["subclass", "copy", "wrap", "copy of wrapped"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", HOW)
def test_the_retries_of_a_sync_client_are_part_of_its_step(
    how: str, stream: bool, gov: Governor, endpoint: Any, steps: list[Event], pauses: list[Event]
) -> None:
    """A retry that asked the gate again could be paused with its work half done."""
    endpoint.refuse = [BROKEN, BUSY]
    client = sync_client(how, gov, endpoint, max_retries=2)
    with gov.agent("a") as agent:
        answer = client.chat.completions.create(**ASK, stream=stream)
        if stream:
            assert agent.state == "reasoning"
            list(answer)
        assert agent.state == "acting"
    assert len(endpoint.requests) == 3
    assert [step.usage for step in steps] == [USED]
    assert [event.kind for event in pauses] == ["step_began"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", HOW)
async def test_the_retries_of_an_async_client_are_part_of_its_step(
    how: str, stream: bool, gov: Governor, endpoint: Any, steps: list[Event], pauses: list[Event]
) -> None:
    endpoint.refuse = [BROKEN, BUSY]
    client = async_client(how, gov, endpoint, max_retries=2)
    async with gov.agent("a") as agent:
        answer = await client.chat.completions.create(**ASK, stream=stream)
        if stream:
            assert agent.state == "reasoning"
            assert [chunk async for chunk in answer]
        assert agent.state == "acting"
    assert len(endpoint.requests) == 3
    assert [step.usage for step in steps] == [USED]
    assert [event.kind for event in pauses] == ["step_began"]


def test_a_call_that_fails_for_good_ends_its_step_once(
    gov: Governor, endpoint: Any, steps: list[Event]
) -> None:
    endpoint.refuse = [BROKEN, BROKEN, BROKEN]
    client = sync_client("subclass", gov, endpoint, max_retries=1)
    with gov.agent("a") as agent:
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(**ASK)
        assert agent.state == "acting"
    assert [step.usage for step in steps] == [None]


def test_a_connection_that_breaks_is_tried_again_in_the_same_step(
    gov: Governor, endpoint: Any, steps: list[Event]
) -> None:
    answer, broken = endpoint.answer, [True]

    def answer_the_second(request: Any) -> Any:
        if broken:
            broken.pop()
            raise endpoint.library.ConnectError("gone", request=request)
        return answer(request)

    http = endpoint.library.Client(transport=endpoint.library.MockTransport(answer_the_second))
    client = OpenAI(governor=gov, http_client=http, max_retries=1, **GIVEN)
    with gov.agent("a"):
        assert client.chat.completions.create(**ASK).choices
    assert [step.usage for step in steps] == [USED]


async def test_cancelled_between_two_tries_the_step_is_over(
    gov: Governor, endpoint: Any, steps: list[Event]
) -> None:
    endpoint.refuse = [(429, {"retry-after": "30"}, {"error": {"message": "busy"}})]
    client = async_client("wrap", gov, endpoint, max_retries=1)
    async with gov.agent("a") as agent:
        call = asyncio.create_task(client.chat.completions.create(**ASK))
        while not endpoint.requests:
            await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)
        assert agent.state == "reasoning", "it waits to try again, and keeps its place"
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert agent.state == "acting"
    assert len(steps) == 1


def test_a_call_without_an_agent_is_one_agent_with_all_its_tries(endpoint: Any) -> None:
    gov = Governor(limit=1, ungoverned="agent")
    endpoint.refuse = [BROKEN]
    assert sync_client("wrap", gov, endpoint).chat.completions.create(**ASK).choices
    assert gov.snapshot().done_total == 1
    assert gov.snapshot().active == 0


def test_a_field_that_is_refused_is_left_out_within_the_step(
    gov: Governor, endpoint: Any, steps: list[Event]
) -> None:
    """Our own second try; openai's retries go on around it."""
    endpoint.refuse = [BROKEN]
    endpoint.check = lambda body: "stream_options?" if "stream_options" in body else None
    client = sync_client("subclass", gov, endpoint)
    with gov.agent("a"):
        assert len(list(client.chat.completions.create(**ASK, stream=True))) == 2
    assert ["stream_options" in body for body in endpoint.bodies] == [True, True, False]
    assert len(steps) == 1


def test_a_retry_of_the_users_is_part_of_the_step_he_says_it_is(
    gov: Governor, endpoint: Any, steps: list[Event]
) -> None:
    """Only the user knows that two calls are one; `agent.step()` around them says so."""
    endpoint.refuse = [BROKEN, BROKEN]
    client = sync_client("subclass", gov, endpoint, max_retries=0)
    again = tenacity.retry(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_none())
    with gov.agent("a") as agent, agent.step():
        assert again(client.chat.completions.create)(**ASK).choices
    assert len(endpoint.requests) == 3
    assert [step.usage for step in steps] == [USED]


def test_an_http_client_alone_cannot_tell_a_retry_from_a_call(
    gov: Governor, endpoint: Any, steps: list[Event]
) -> None:
    """Who makes the tries is known in openai's client only, so there each try is a step."""
    endpoint.refuse = [BROKEN]
    http = http_client(gov, "sync", transport=endpoint.transport())
    with gov.agent("a"):
        assert openai.OpenAI(http_client=http, **GIVEN).chat.completions.create(**ASK).choices
    assert [step.usage for step in steps] == [None, USED]


class TestWhatTheLawIsTold:
    @pytest.fixture
    def calls(self, gov: Governor, tmp_path: Path) -> Any:
        path = tmp_path / "run.jsonl"
        stop = gov.record(path)

        def calls() -> list[Any]:
            stop()
            seen = [line for line in Recording(path) if isinstance(line, RecordedCall)]
            return [
                (line.name, line.options.get("overloaded", False), line.options.get("usage"))
                for line in seen
                if line.name in ("begin_step", "retry_step", "end_step")
            ]

        return calls

    def test_a_refusal_at_once_and_the_answer_in_the_same_step(
        self, gov: Governor, endpoint: Any, calls: Any
    ) -> None:
        """Reported at the end, it would be late by a Retry-After, and the usage would be lost."""
        endpoint.refuse = [BUSY]
        with gov.agent("a"):
            sync_client("subclass", gov, endpoint).chat.completions.create(**ASK)
        assert calls() == [
            ("begin_step", False, None),
            ("retry_step", True, None),
            ("retry_step", False, None),
            ("end_step", False, USED),
        ]

    def test_a_refusal_that_is_the_end_of_an_http_call(
        self, gov: Governor, endpoint: Any, calls: Any
    ) -> None:
        endpoint.refuse = [BUSY]
        http = http_client(gov, "sync", transport=endpoint.transport())
        with gov.agent("a"):
            http.post("http://engine/v1/chat/completions", json=ASK)
        assert calls() == [("begin_step", False, None), ("end_step", True, None)]

    def test_a_refusal_inside_a_step_of_the_users(
        self, gov: Governor, endpoint: Any, calls: Any
    ) -> None:
        """It was lost on its way through the enclosing step."""
        endpoint.refuse = [BUSY]
        client = sync_client("subclass", gov, endpoint)
        with gov.agent("a") as agent, agent.step():
            client.chat.completions.create(**ASK)
        assert [(name, overloaded) for name, overloaded, _ in calls()] == [
            ("begin_step", False),
            ("retry_step", True),
            ("retry_step", False),
            ("end_step", False),
        ]
