"""Which requests are governed, and what becomes of those on routes that nobody listed."""

import json
import logging
from typing import Any

import pytest

from concur_agents.adapters.routes import is_llm_call
from concur_agents.core import Usage
from concur_agents.errors import ConfigError, UngovernedError
from concur_agents.governor import Governor
from concur_agents.openai import AsyncOpenAI, OpenAI
from concur_agents.runtime.events import Event

URL = "http://engine/v1"
ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
USAGE = {"prompt_tokens": 100, "completion_tokens": 7}


def sync(gov: Governor, endpoint: Any) -> OpenAI:
    http = endpoint.http("sync")
    return OpenAI(governor=gov, base_url=URL, api_key="-", http_client=http, max_retries=0)


def asynchronous(gov: Governor, endpoint: Any) -> AsyncOpenAI:
    http = endpoint.http("async")
    return AsyncOpenAI(governor=gov, base_url=URL, api_key="-", http_client=http, max_retries=0)


def answering(endpoint: Any, usage: dict[str, int]) -> Any:
    """The endpoint, answering every route with this usage, streamed if asked to."""

    def answer(request: Any) -> Any:
        endpoint.requests.append(request)
        body = {"choices": [], "usage": usage}
        if b'"stream"' in request.content:
            text = f"data: {json.dumps(body)}\n\ndata: [DONE]\n\n".encode()
            headers = {"content-type": "text/event-stream"}
            return endpoint.library.Response(200, headers=headers, stream=endpoint._pieces(text))
        return endpoint.library.Response(200, json=body)

    endpoint.answer = answer
    return endpoint


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/v1/chat/completions/",
        "//v1//chat/completions",
        "/v1/chat/completions/tokens",
        "/gateway/eu/v1/completions",
        "/openai/deployments/gpt/chat/completions",
        "/v1/responses",
        "/v1/responses/compact",
        "/v1/messages",
        "/generate",
        "/generate/",
        "/inference/v1/generate",
        "/api/chat",
        "/v1beta/models/gemini:streamGenerateContent",
        "/model/us.anthropic.claude-v1:0/invoke",
        "/model/us.anthropic.claude-v1:0/converse-stream",
    ],
)
def test_calls_of_a_model_are_known_by_a_segment_of_their_path(path: str) -> None:
    assert is_llm_call("POST", path)
    assert is_llm_call("post", path)
    assert not is_llm_call("GET", path)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        "/v1/embeddings",
        "/v1/models",
        "/v1/my-completions-archive",
        "/v1/responses/resp_123/cancel",
        "/v1/chat/completions/chatcmpl-123",
        "/v1/chat/completions/render",
        "/v1/messages/count_tokens",
        "/v1/messages/batches",
        "/v1/threads/t/messages",
        "/tokenize",
        "/chain/invoke",
    ],
)
def test_requests_that_generate_nothing_are_not(path: str) -> None:
    assert not is_llm_call("POST", path)


@pytest.mark.parametrize("route", ["/rollout/step", "rollout/step/"])
def test_users_add_routes(route: str) -> None:
    assert is_llm_call("POST", "/v1/rollout/step/3", (route,))
    assert not is_llm_call("POST", "/v1/rollout/other", (route,))
    assert Governor(limit=1, routes=[route]).routes == (route,)
    assert Governor(limit=1, routes=route).routes == (route,)


@pytest.mark.parametrize("routes", [["/"], [""], [3]])
def test_a_route_that_is_none_says_what_is_wanted(routes: Any) -> None:
    with pytest.raises(ConfigError, match="routes must be paths"):
        Governor(limit=1, routes=routes)


@pytest.mark.parametrize(
    "path", ["/chat/completions/tokens", "/chat/completions/", "/rollout/step"]
)
async def test_the_calls_are_steps(path: str, endpoint: Any) -> None:
    """prime-rl's default route was never governed, even with `ungoverned="error"`."""
    gov = Governor(limit=2, ungoverned="error", routes=["/rollout/step"])
    steps: list[Event] = []
    gov.on_event(lambda event: steps.append(event) if event.kind == "step_ended" else None)
    client = sync(gov, answering(endpoint, USAGE))
    with pytest.raises(UngovernedError):
        client.post(path, cast_to=object, body=ASK)
    assert not endpoint.requests
    with gov.agent("a") as agent:
        client.post(path, cast_to=object, body=ASK)
    assert agent.stats.prompt_tokens == 100
    async with gov.agent("b"):
        await asynchronous(gov, endpoint).post(path, cast_to=object, body=ASK)
    assert len(steps) == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_an_unknown_route_that_generates_tokens_is_named_once(
    stream: bool, endpoint: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gov = Governor(limit=2)
    answering(endpoint, USAGE)
    body = {**ASK, "stream": True} if stream else ASK
    with caplog.at_level(logging.WARNING, "concur_agents"):
        with gov.agent("a"):
            for _ in range(2):
                with sync(gov, endpoint)._client.stream("POST", f"{URL}/sample", json=body) as got:
                    assert b"usage" in got.read()
            sync(gov, endpoint).post("/sample", cast_to=object, body=ASK)
        await asynchronous(gov, endpoint).post("/sample", cast_to=object, body=ASK)
    (record,) = caplog.records
    assert "routes=['/v1/sample']" in record.getMessage()


async def test_it_raises_where_ungoverned_calls_are_errors(endpoint: Any) -> None:
    gov = Governor(limit=2, ungoverned="error")
    answering(endpoint, USAGE)
    with gov.agent("a"), pytest.raises(UngovernedError, match="/v1/sample generated 7 tokens"):
        sync(gov, endpoint).post("/sample", cast_to=object, body=ASK)
    with pytest.raises(UngovernedError, match="/v1/sample generated 7 tokens"):
        await asynchronous(gov, endpoint).post("/sample", cast_to=object, body=ASK)


def test_embeddings_generate_nothing_and_are_not_named(
    endpoint: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gov = Governor(limit=2, ungoverned="error")
    answering(endpoint, {"prompt_tokens": 8, "total_tokens": 8})
    sync(gov, endpoint).post("/embeddings", cast_to=object, body=ASK)
    assert not caplog.records


@pytest.mark.parametrize(
    ("path", "sent", "answer", "usage"),
    [
        (
            "/generate",
            {"input_ids": [1, 2, 3]},
            {
                "text": "a",
                "meta_info": {
                    "finish_reason": {"type": "abort", "message": "paused"},
                    "prompt_tokens": 3,
                    "completion_tokens": 1,
                    "cached_tokens": 2,
                },
            },
            Usage(3, 1, 2),
        ),
        (
            "/v1/chat/completions/tokens",
            {"messages": [], "tokens": [1, 2, 3]},
            {"choices": [{"finish_reason": "abort"}], "usage": USAGE},
            Usage(100, 7),
        ),
        (
            "/inference/v1/generate",
            {"token_ids": [1, 2, 3]},
            {"choices": [{"finish_reason": "abort", "token_ids": [4, 5]}]},
            Usage(3, 2),
        ),
    ],
)
def test_an_aborted_answer_of_a_token_route_is_no_step_and_its_tokens_count(
    gov, endpoint, path, sent, answer, usage
):
    """A partial rollout: the trainer goes on with it after its weight update."""
    events: list[Event] = []
    gov.on_event(events.append)
    endpoint.answer = lambda request: endpoint.library.Response(200, json=answer)
    client = gov.wrap(endpoint.http("sync"))
    with gov.agent("sample-1") as agent:
        client.post(f"http://engine{path}", json=sent)
        assert agent.stats.steps == 0
        assert agent.stats.completion_tokens == usage.completion_tokens
    (ended,) = [event for event in events if event.kind == "step_ended"]
    assert (ended.reason, ended.usage) == ("abort", usage)
