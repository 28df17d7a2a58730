"""Usage objects of real client libraries, as they are."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import MagicMock, Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion
from openai.types.responses import ResponseUsage

import concur_agents as ca
from concur_agents.core import Usage
from concur_agents.probes.usage import DIALECTS, read_usage

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
        SimpleNamespace(generations=[], llm_output={"token_usage": CHAT, "model_name": "m"}),
        SimpleNamespace(
            prompt_token_ids=[1] * 100,
            outputs=[SimpleNamespace(token_ids=(1,) * 12), SimpleNamespace(token_ids=[1] * 8)],
            num_cached_tokens=64,
        ),
        [{"usage": None}, {"usage": CHAT}],
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
        "langchain result",
        "vLLM's RequestOutput",
        "list of events",
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


class Hostile:
    """Raises at whatever is asked of it."""

    def __getattribute__(self, name):
        raise RuntimeError(name)

    def __repr__(self):
        raise RuntimeError("repr")


class Silent:
    """Raises at attributes that it does not have."""

    def __getattr__(self, name):
        raise RuntimeError(name)


def cyclic():
    usage = {}
    usage["usage"] = usage["message"] = usage["response"] = usage
    return usage


NONSENSE = [
    {"prompt_tokens": None, "completion_tokens": 5},
    {"prompt_tokens": -5},
    {"prompt_tokens": "12"},
    {"prompt_tokens": 1e18},
    {"prompt_tokens": 10**400},
    {"prompt_tokens": float("nan")},
    {"prompt_tokens": float("inf")},
    {"prompt_tokens": [1, 2]},
    {"prompt_tokens": True},
    [1, 2],
    "nonsense",
    b"nonsense",
    Mock(),
    MagicMock(),
    Mock,
    Hostile(),
    cyclic(),
    {1: 2},
    Usage(float("nan"), 5),
    Usage(10**400, 5),
]


@pytest.mark.parametrize("which", range(len(NONSENSE)))  # pytest looks at parameters itself
def test_nonsense_is_not_reported_and_never_fails_the_agent(which, caplog):
    """The README's own loop stopped an agent after a call that had succeeded."""
    nonsense = NONSENSE[which]
    assert read_usage(nonsense) is None
    gov = ca.Governor(limit=1)
    with gov.agent("a") as agent:
        with agent.step() as step:
            step.record(None)
            step.record(nonsense)
            assert step.usage is None
        agent.done(nonsense, agent.gate_sync())
        with agent.step() as step:
            step.record(CHAT)
    assert agent.stats.cached_tokens == 64
    assert gov.snapshot().unread_usages_total == 2
    assert caplog.text.count("no token counts in") == 1


class Endless:
    """Has whatever it is asked for, as a mock does."""

    asked = 0

    def __getattr__(self, name):
        Endless.asked += 1
        return Endless()


def test_a_mock_is_given_up_soon(monkeypatch):
    """It took seconds, because each of its places has all places again."""
    monkeypatch.setattr(Endless, "asked", 0)
    assert read_usage(Endless()) is None
    assert Endless.asked < 20_000


def test_what_a_mock_was_given_is_read():
    usage = Mock(prompt_tokens=5, completion_tokens=3)
    assert read_usage(Mock(usage=usage)).prompt_tokens == 5
    assert read_usage(Mock(message=Mock(usage=usage))).prompt_tokens == 5


def test_numbers_of_numpy_are_numbers():
    numpy = pytest.importorskip("numpy")
    said = {"prompt_tokens": numpy.int64(5), "completion_tokens": numpy.float32(1)}
    assert read_usage(said) == Usage(5, 1)
    assert type(read_usage(said).prompt_tokens) is int


def test_a_count_that_is_nonsense_leaves_the_others():
    said = {"prompt_tokens": 5, "completion_tokens": -1, "cached_tokens": "x"}
    assert read_usage(said) == Usage(5, 0, None)


FIELDS = sorted(
    {"usage", "message", "meta_info", "prompt_tokens_details", "input_token_details"}
    | {dialect.prompt.partition(".")[0] for dialect in DIALECTS}
    | {path.partition(".")[0] for dialect in DIALECTS for path in dialect.completion}
    | {path.partition(".")[0] for dialect in DIALECTS for path in dialect.cached + dialect.beside}
)
VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.just(10**400)
    | st.fractions()
    | st.decimals()
    | st.builds(object)
    | st.builds(Mock)
    | st.builds(Silent)
)
USAGES = st.recursive(
    VALUES,
    lambda inner: (
        st.dictionaries(st.sampled_from(FIELDS), inner)
        | st.dictionaries(st.sampled_from(FIELDS), inner).map(lambda d: SimpleNamespace(**d))
        | st.lists(inner, max_size=3)
    ),
    max_leaves=8,
)


@given(USAGES)
@settings(deadline=None, max_examples=100)
def test_whatever_is_recorded_the_agent_goes_on(usage):
    found = read_usage(usage)
    if found is not None:
        assert found.is_plausible
        assert (found.cached_tokens or 0) <= found.prompt_tokens
    gov = ca.Governor(limit=1)
    with gov.agent("a") as agent:
        with agent.step() as step:
            step.record(usage)
            assert step.usage == found
        agent.done(usage, agent.gate_sync())
        assert agent.state == "acting"
    assert not gov.snapshot().closed
