"""What passes without a change: signed requests, and chunks that are not the answer to us."""

import json
from typing import Any

import pytest

from concur_agents.adapters.answers import Answer
from concur_agents.adapters.http import govern
from concur_agents.core import Reading
from concur_agents.governor import Governor

URL = "http://engine/v1/chat/completions"
ASK: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "hi"}],
    "stream": True,
}
CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m"}


class Probe:
    url = URL
    engine = "vllm"

    def read(self) -> Reading:
        return Reading(at_s=0.0)


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "AWS4-HMAC-SHA256 Credential=x, SignedHeaders=host, Signature=y"},
        {"authorization": "AWS4-ECDSA-P256-SHA256 Credential=x", "X-Amz-Date": "20260101T000000Z"},
        {"Authorization": 'Signature keyId="x",signature="y"'},
        {"Authorization": "TC3-HMAC-SHA256 Credential=x"},
        {"Signature": "sig=:y:", "Signature-Input": "sig=()"},
        {"Content-Digest": "sha-256=:y:"},
        {"X-Amz-Content-SHA256": "y"},
        {"X-Hub-Signature-256": "sha256=y"},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_signed_request_waits_and_is_not_changed(
    kind: str, headers: dict[str, str], endpoint: Any
) -> None:
    """openai's Bedrock client signs before `send`; every stream was answered with 403."""
    gov = Governor(law="working_set", probe=Probe())  # type: ignore[arg-type]
    with gov:
        async with gov.agent("issue-17", priority=3) as agent:
            client = govern(gov, endpoint.http(kind))
            request = client.build_request("POST", URL, json=ASK, headers=headers)
            before = request.content, list(request.headers.raw)
            if kind == "sync":
                client.send(request, stream=True).read()
            else:
                await (await client.send(request, stream=True)).aread()
            (sent,) = endpoint.requests
            assert (sent.content, list(sent.headers.raw)) == before
            assert agent.stats.steps == 1


def test_a_request_with_a_key_is_none(endpoint: Any) -> None:
    gov = Governor(limit=1)
    with gov.agent("a"):
        client = govern(gov, endpoint.http("sync"))
        headers = {"Authorization": "Bearer AWS4-HMAC-SHA256"}
        client.send(client.build_request("POST", URL, json=ASK, headers=headers), stream=True)
    assert "stream_options" in endpoint.bodies[0]


@pytest.mark.parametrize(
    "more",
    [
        {"prompt_filter_results": []},
        {"citations": ["http://a"]},
        {"moderation": {"flagged": False}},
        {"x_groq": {"id": "x"}},
        {"error": {"message": "no"}},
    ],
    ids=str,
)
def test_a_last_chunk_that_says_anything_else_is_passed_on(more: dict[str, Any]) -> None:
    chunk = {**CHUNK, "choices": [], "usage": {"prompt_tokens": 5}, **more}
    text = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode()
    answer = Answer(hide_usage=True)
    assert answer.feed(text) + answer.finish() == text
    assert answer.usage() is not None


@pytest.mark.parametrize("more", [{}, {"system_fingerprint": "x"}, {"prompt_token_ids": None}])
def test_a_last_chunk_that_is_our_questions_answer_is_hidden(more: dict[str, Any]) -> None:
    chunk = {**CHUNK, "choices": [], "usage": {"prompt_tokens": 5}, **more}
    answer = Answer(hide_usage=True)
    text = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode()
    assert answer.feed(text) + answer.finish() == b"data: [DONE]\n\n"


def test_usage_that_is_sent_unasked_is_passed_on(endpoint: Any) -> None:
    """The user had asked a question of his own, so we asked none."""
    gov = Governor(limit=1)
    with gov.agent("a"):
        client = govern(gov, endpoint.http("sync"))
        asked = {**ASK, "stream_options": {"include_usage": True}}
        got = client.post(URL, json=asked)
    assert b'"choices": [], "usage": {' in got.content
