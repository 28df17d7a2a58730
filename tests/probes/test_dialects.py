"""Each API's way to report usage: one answer as its documentation has it, and its stream."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from concur_agents.adapters.answers import Answer, usage_in
from concur_agents.core import Usage
from concur_agents.probes.usage import read_usage

CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m"}
DELTA = {**CHUNK, "choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": None}]}


WATSONX = {
    "generated_text": "hi",
    "generated_token_count": 5,
    "input_token_count": 10_000,
    "stop_reason": "eos_token",
}


@dataclass(frozen=True)
class Case:
    name: str
    answer: dict[str, Any]
    usage: Usage
    events: tuple[dict[str, Any], ...] = ()
    lines: bool = False  # events are lines of JSON, not server-sent


def chat(name: str, usage: dict[str, Any], cached: int | None) -> Case:
    message = {"role": "assistant", "content": 'not "usage": {"prompt_tokens": 1}'}
    answer = {**CHUNK, "choices": [{"index": 0, "message": message}], "usage": usage}
    last = {**CHUNK, "choices": [], "usage": usage}
    return Case(name, answer, Usage(10_000, 5, cached), ({**DELTA, "usage": None}, last))


COUNTS = {"prompt_tokens": 10_000, "completion_tokens": 5, "total_tokens": 10_005}
RESPONSE = {
    "id": "r",
    "object": "response",
    "output": [],
    "usage": {
        "input_tokens": 10_000,
        "input_tokens_details": {"cached_tokens": 9_900},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 10_005,
    },
    "user": None,
    "metadata": {},
}
CLAUDE = {
    "input_tokens": 100,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 9_900,
    "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
    "output_tokens": 5,
    "service_tier": "standard",
}
MESSAGE = {"id": "msg", "type": "message", "role": "assistant", "model": "m", "content": []}


def claude_stream(start: dict[str, Any], end: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    delta = {"type": "text_delta", "text": "x"}
    block = {"type": "content_block_delta", "index": 0, "delta": delta}
    return (
        {"type": "message_start", "message": {**MESSAGE, "usage": start}},
        *[block] * 2_000,  # more than is kept of a stream's end
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": end},
        {"type": "message_stop"},
    )


META = {
    "id": "1",
    "finish_reason": {"type": "stop", "matched": 2},
    "prompt_tokens": 10_000,
    "weight_version": "default",
    "output_token_logprobs": [[-0.1, 7, "hi"]] * 5_000,
    "completion_tokens": 5,
    "cached_tokens": 9_900,
    "e2e_latency": 0.1,
}
GEMINI = {
    "promptTokenCount": 10_000,
    "candidatesTokenCount": 2,
    "thoughtsTokenCount": 3,
    "cachedContentTokenCount": 9_900,
    "totalTokenCount": 10_005,
}
CANDIDATES = {"candidates": [{"content": {"parts": [{"text": "hi"}], "role": "model"}}]}
BEDROCK = {
    "inputTokens": 60,
    "outputTokens": 5,
    "cacheReadInputTokens": 9_900,
    "cacheWriteInputTokens": 40,
    "totalTokens": 10_005,
}
COHERE = {
    "billed_units": {"input_tokens": 100, "output_tokens": 5},
    "tokens": {"input_tokens": 10_000, "output_tokens": 5},
    "cached_tokens": 9_900,
}
LLAMA = {
    "content": "",
    "stop": True,
    "tokens_predicted": 5,
    "tokens_evaluated": 10_000,
    "timings": {"cache_n": 9_900, "prompt_n": 100, "predicted_n": 5},
}
NOVA = {
    "inputTokens": 60,
    "outputTokens": 5,
    "totalTokens": 65,
    "cacheReadInputTokenCount": 9_900,
    "cacheWriteInputTokenCount": 40,
}
INVOCATION = {
    "inputTokenCount": 60,
    "outputTokenCount": 5,
    "invocationLatency": 3037,
    "firstByteLatency": 2635,
    "cacheReadInputTokenCount": 9_900,
    "cacheWriteInputTokenCount": 40,
}
INTERACTION = {
    "total_tokens": 10_005,
    "total_input_tokens": 10_000,
    "input_tokens_by_modality": [{"modality": "text", "tokens": 10_000}],
    "total_cached_tokens": 9_900,
    "total_output_tokens": 2,
    "total_tool_use_tokens": 0,
    "total_thought_tokens": 3,
}
TGI = {"finish_reason": "eos_token", "generated_tokens": 5, "input_length": 10_000, "seed": None}
TOKEN = {"id": 7, "text": "hi", "logprob": -0.1, "special": False}
REALTIME = {
    "total_tokens": 10_005,
    "input_tokens": 10_000,
    "output_tokens": 5,
    "input_token_details": {
        "text_tokens": 10_000,
        "audio_tokens": 0,
        "image_tokens": 0,
        "cached_tokens": 9_900,
        "cached_tokens_details": {"text_tokens": 9_900, "audio_tokens": 0, "image_tokens": 0},
    },
    "output_token_details": {"text_tokens": 5, "audio_tokens": 0},
}
OLLAMA = {"model": "m", "response": "", "done": True, "prompt_eval_count": 10_000, "eval_count": 5}

CASES = [
    chat("chat", {**COUNTS, "prompt_tokens_details": {"cached_tokens": 9_900}}, 9_900),
    chat("chat, cache not reported", {**COUNTS, "prompt_tokens_details": None}, None),
    Case(
        "completions",
        {"object": "text_completion", "choices": [{"text": "hi"}], "usage": COUNTS},
        Usage(10_000, 5),
        ({"choices": [{"text": "hi"}]}, {"choices": [], "usage": COUNTS}),
    ),
    Case(
        "responses",
        RESPONSE,
        Usage(10_000, 5, 9_900),
        (
            {"type": "response.created", "response": {**RESPONSE, "usage": None}},
            {"type": "response.completed", "response": RESPONSE},
        ),
    ),
    Case(
        "Anthropic",
        {**MESSAGE, "usage": CLAUDE},
        Usage(10_000, 5, 9_900),
        claude_stream({**CLAUDE, "output_tokens": 1}, {"output_tokens": 5}),
    ),
    Case(
        "Anthropic, all counts in both events",
        {**MESSAGE, "usage": CLAUDE},
        Usage(10_000, 5, 9_900),
        claude_stream({**CLAUDE, "output_tokens": 1}, CLAUDE),
    ),
    Case(
        "Anthropic, as a proxy that knows the prompt at the end",
        {**MESSAGE, "usage": CLAUDE},
        Usage(10_000, 5, 9_900),
        claude_stream({"input_tokens": 0, "output_tokens": 0}, CLAUDE),
    ),
    Case(
        "Anthropic, as vLLM without a cache",
        {**MESSAGE, "usage": {"input_tokens": 10_000, "output_tokens": 5}},
        Usage(10_000, 5),
        claude_stream(
            {"input_tokens": 10_000, "output_tokens": 0, "cache_read_input_tokens": None},
            {"input_tokens": 10_000, "output_tokens": 5},
        ),
    ),
    Case(
        "SGLang /generate",
        {"text": "hi", "output_ids": [7], "meta_info": META},
        Usage(10_000, 5, 9_900),
        tuple(
            {"text": "hi"[:n], "meta_info": {**META, "completion_tokens": tokens}}
            for n, tokens in ((1, 1), (2, 5))
        ),
    ),
    chat(
        "DeepSeek",
        {**COUNTS, "prompt_cache_hit_tokens": 9_900, "prompt_cache_miss_tokens": 100},
        9_900,
    ),
    chat(
        "DeepSeek without a sum",
        {"completion_tokens": 5, "prompt_cache_hit_tokens": 9_900, "prompt_cache_miss_tokens": 100},
        9_900,
    ),
    chat("Moonshot, Together", {**COUNTS, "cached_tokens": 9_900}, 9_900),
    chat(
        "xAI",
        {
            **COUNTS,
            "prompt_tokens_details": {
                "text_tokens": 10_000,
                "audio_tokens": 0,
                "image_tokens": 0,
                "cached_tokens": 9_900,
            },
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
            "num_sources_used": 0,
        },
        9_900,
    ),
    chat(
        "xAI's own client",
        {**COUNTS, "prompt_text_tokens": 10_000, "cached_prompt_text_tokens": 9_900},
        9_900,
    ),
    chat("Mistral", {**COUNTS, "num_cached_tokens": 9_900, "prompt_audio_seconds": 0}, 9_900),
    chat("CrewAI", {**COUNTS, "cached_prompt_tokens": 9_900, "successful_requests": 1}, 9_900),
    chat(
        "LiteLLM in front of Anthropic",
        {**COUNTS, "cache_read_input_tokens": 9_900, "cache_creation_input_tokens": 0},
        9_900,
    ),
    Case(
        "Gemini",
        {**CANDIDATES, "usageMetadata": GEMINI},
        Usage(10_000, 5, 9_900),
        (
            {**CANDIDATES, "usageMetadata": {"promptTokenCount": 10_000}},
            {**CANDIDATES, "usageMetadata": GEMINI},
        ),
    ),
    Case(
        "google-genai",
        {
            "usage_metadata": {
                "prompt_token_count": 10_000,
                "candidates_token_count": 2,
                "thoughts_token_count": 3,
                "cached_content_token_count": 9_900,
            }
        },
        Usage(10_000, 5, 9_900),
    ),
    Case(
        "Bedrock",
        {"output": {}, "usage": BEDROCK},
        Usage(10_000, 5, 9_900),
        (
            {"messageStop": {"stopReason": "end_turn"}},
            {"metadata": {"usage": BEDROCK, "metrics": {"latencyMs": 350}}},
        ),
    ),
    Case("Bedrock, Nova", {"output": {}, "usage": NOVA}, Usage(10_000, 5, 9_900)),
    Case(
        "Bedrock, metrics of an invocation",
        {"type": "message_stop", "amazon-bedrock-invocationMetrics": INVOCATION},
        Usage(10_000, 5, 9_900),
    ),
    Case(
        "Bedrock, metrics without a cache",
        {
            "type": "message_stop",
            "amazon-bedrock-invocationMetrics": {"inputTokenCount": 10_000, "outputTokenCount": 5},
        },
        Usage(10_000, 5),
    ),
    Case(
        "Bedrock, Llama",
        {
            "generation": "hi",
            "prompt_token_count": 10_000,
            "generation_token_count": 5,
            "stop_reason": "stop",
        },
        Usage(10_000, 5),
    ),
    Case(
        "Gemini interactions",
        {"id": "v1", "status": "completed", "usage": INTERACTION},
        Usage(10_000, 5, 9_900),
    ),
    Case(
        "OpenAI realtime",
        {"type": "response.done", "response": {"object": "response", "usage": REALTIME}},
        Usage(10_000, 5, 9_900),
    ),
    Case(
        "DashScope",
        {
            "output": {"choices": []},
            "usage": {
                "input_tokens": 10_000,
                "output_tokens": 5,
                "total_tokens": 10_005,
                "prompt_tokens_details": {"cached_tokens": 9_900},
            },
            "request_id": "x",
        },
        Usage(10_000, 5, 9_900),
    ),
    Case(
        "Inspect AI",
        {
            "usage": {
                "input_tokens": 60,
                "output_tokens": 5,
                "total_tokens": 10_005,
                "input_tokens_cache_write": 40,
                "input_tokens_cache_read": 9_900,
            }
        },
        Usage(10_000, 5, 9_900),
    ),
    Case(
        "Vercel AI SDK 4",
        {"usage": {"promptTokens": 10_000, "completionTokens": 5, "totalTokens": 10_005}},
        Usage(10_000, 5),
    ),
    Case(
        "Groq",
        {"choices": [], "x_groq": {"id": "req_1", "usage": {**COUNTS, "queue_time": 0.1}}},
        Usage(10_000, 5),
    ),
    Case(
        "Text Generation Inference",
        {"index": 5, "token": TOKEN, "generated_text": "hi", "details": TGI},
        Usage(10_000, 5),
        (
            {"index": 1, "token": TOKEN, "generated_text": None, "details": None},
            {"index": 5, "token": TOKEN, "generated_text": "hi", "details": TGI},
        ),
    ),
    Case(
        "Vercel AI SDK",
        {"usage": {"inputTokens": 10_000, "outputTokens": 5, "cachedInputTokens": 9_900}},
        Usage(10_000, 5, 9_900),
    ),
    Case(
        "Pydantic AI",
        {"usage": {"input_tokens": 10_000, "cache_read_tokens": 9_900, "output_tokens": 5}},
        Usage(10_000, 5, 9_900),
    ),
    Case(
        "Cohere",
        {"id": "x", "usage": COHERE},
        Usage(10_000, 5, 9_900),
        ({"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": COHERE}},),
    ),
    Case(
        "Cohere, first API",
        {
            "response_id": "x",
            "text": "hi",
            "meta": {
                "api_version": {"version": "1"},
                "billed_units": {"input_tokens": 100, "output_tokens": 5},
                "tokens": {"input_tokens": 10_000, "output_tokens": 5},
            },
        },
        Usage(10_000, 5),
    ),
    Case(
        "watsonx",
        {"model_id": "m", "created_at": "now", "results": [WATSONX]},
        Usage(10_000, 5),
        ({"model_id": "m", "results": [{"generated_text": "h"}]}, {"results": [WATSONX]}),
    ),
    Case("llama.cpp", LLAMA, Usage(10_000, 5, 9_900), ({"content": "hi", "stop": False}, LLAMA)),
    Case(
        "Ollama",
        OLLAMA,
        Usage(10_000, 5),
        ({"model": "m", "response": "hi", "done": False}, OLLAMA),
        lines=True,
    ),
]


def names(case: Case) -> str:
    return case.name


@pytest.mark.parametrize("case", CASES, ids=names)
def test_an_answer_is_read_as_an_object(case: Case) -> None:
    assert read_usage(case.answer) == case.usage


@pytest.mark.parametrize("case", CASES, ids=names)
@pytest.mark.parametrize("indent", [None, 1])
def test_an_answer_is_read_as_text(case: Case, indent: int | None) -> None:
    assert usage_in(json.dumps(case.answer, indent=indent).encode()) == case.usage


@pytest.mark.parametrize("case", [case for case in CASES if case.events], ids=names)
@pytest.mark.parametrize("size", [37, 100_000])
def test_a_stream_is_read_as_it_passes(case: Case, size: int) -> None:
    """Ten agents held 265,000 tokens on a pool of 100,000, because none of theirs were counted."""
    if case.lines:
        text = b"".join(json.dumps(event).encode() + b"\n" for event in case.events)
    else:
        text = b"".join(
            f"event: {event.get('type')}\ndata: {json.dumps(event)}\n\n".encode()
            for event in case.events
        )
        if case.name not in ("llama.cpp", "watsonx"):
            text += b"data: [DONE]\n\n"
    answer = Answer()
    passed = [answer.feed(text[at : at + size]) for at in range(0, len(text), size)]
    assert b"".join(passed) + answer.finish() == text
    assert answer.usage() == case.usage


def test_cached_tokens_beside_the_input_are_part_of_the_prompt() -> None:
    said = {
        "input_tokens": 100,
        "output_tokens": 5,
        "cache_read_input_tokens": 9900,
        "cache_creation_input_tokens": 0,
    }
    assert read_usage(said) == Usage(10_000, 5, 9_900)


def test_a_proxy_that_reports_zeros_in_one_dialect_is_read_in_the_other() -> None:
    both = {"prompt_tokens": 0, "completion_tokens": 0, "input_tokens": 100, "output_tokens": 5}
    assert read_usage(both) == Usage(100, 5)
