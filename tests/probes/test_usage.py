"""Usage objects of real client libraries, as they are."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion
from openai.types.responses import ResponseUsage

import concur_agents as ca
from concur_agents.core import Usage
from concur_agents.probes.usage import read_usage

CHAT = {
    "prompt_tokens": 100,
    "completion_tokens": 20,
    "total_tokens": 120,
    "prompt_tokens_details": {"cached_tokens": 64},
}
RESPONSES = {
    "input_tokens": 100,
    "output_tokens": 20,
    "total_tokens": 120,
    "input_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 0},
    "output_tokens_details": {"reasoning_tokens": 3},
}
LANGCHAIN = {
    "input_tokens": 100,
    "output_tokens": 20,
    "total_tokens": 120,
    "input_token_details": {"cache_read": 64},
}


def chat_completion():
    return ChatCompletion.model_validate(
        {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [],
            "usage": CHAT,
        }
    )


@pytest.mark.parametrize(
    "source",
    [
        CompletionUsage.model_validate(CHAT),
        ResponseUsage.model_validate(RESPONSES),
        chat_completion(),
        CHAT,
        RESPONSES,
        LANGCHAIN,
        {"usage": CHAT},
        SimpleNamespace(usage_metadata=LANGCHAIN),
        Usage(100, 20, 64),
    ],
    ids=[
        "chat",
        "responses",
        "whole response",
        "chat dict",
        "responses dict",
        "langchain",
        "response dict",
        "langchain message",
        "ours",
    ],
)
def test_every_form_of_usage_gives_the_same(source):
    assert read_usage(source) == Usage(100, 20, 64)


def test_cached_tokens_that_are_not_reported_stay_unknown_and_are_not_zero():
    assert read_usage({"prompt_tokens": 5, "completion_tokens": 1}) == Usage(5, 1, None)
    told_nothing = {"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": None}
    assert read_usage(told_nothing) == Usage(5, 1, None)


@pytest.mark.parametrize(
    "source",
    [
        None,
        {},
        "12 tokens",
        object(),
        {"prompt_tokens": None},
        {"prompt_tokens": -1},
        {"prompt_tokens": float("nan")},
        {"usage": None},
        SimpleNamespace(usage=None),
    ],
)
def test_an_object_without_usage_gives_none_and_raises_nothing(source):
    assert read_usage(source) is None


def test_more_cached_than_sent_is_cut_to_what_was_sent():
    assert read_usage({"prompt_tokens": 5, "input_token_details": {"cache_read": 9}}) == Usage(
        5, 0, 5
    )


def test_recording_nonsense_says_what_is_wanted_and_none_is_ignored():
    gov = ca.Governor(limit=1)
    with gov.agent("a") as agent, agent.step() as step:
        step.record(None)
        assert step.usage is None
        with pytest.raises(ca.ConfigError, match="no token counts in 'nonsense': record"):
            step.record("nonsense")
        step.record(CHAT)
    assert agent.stats.cached_tokens == 64
