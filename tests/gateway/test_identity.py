"""Which agent makes a request, and that a guess is shown as one."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from concur_agents.gateway.identity import (
    BODY_FIELD,
    Identity,
    identify,
    read_keys,
    split_path,
)

CHAT = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "You fix issues."},
        {"role": "user", "content": "Fix issue 17."},
    ],
}


def said(headers=None, body=None, named=(), of_key=None, **options):
    return identify(list(named), of_key, headers or {}, CHAT if body is None else body, **options)


def longer(**last):
    """The same agent's next call."""
    return {**CHAT, "messages": [*CHAT["messages"], {"role": "assistant", "content": "ok"}, last]}


@pytest.mark.parametrize(
    ("path", "agents", "rest"),
    [
        ("/v1/chat/completions", [], "/v1/chat/completions"),
        ("/agent/a/v1/messages?beta=true", ["a"], "/v1/messages?beta=true"),
        ("/agent/issue%2017/v1/models", ["issue 17"], "/v1/models"),
        ("/agent/p/agent/c/v1/responses", ["p", "c"], "/v1/responses"),
        ("/agent/a", [], "/agent/a"),
        ("/agent//v1", [], "/agent//v1"),
        ("/agents/a/v1", [], "/agents/a/v1"),
        ("/agent/a?b/c", [], "/agent/a?b/c"),
    ],
)
def test_a_path_names_agents_and_the_rest_is_the_engines(path, agents, rest):
    assert split_path(path) == (agents, rest)


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer sk-agent-a"},
        {"authorization": "bearer  sk-agent-a "},
        {"authorization": "sk-agent-a"},
        {"x-api-key": "sk-agent-a"},
        {"api-key": "sk-agent-a"},
        {"authorization": "Bearer -", "x-api-key": "sk-agent-a"},
    ],
)
def test_a_key_stands_where_its_api_wants_it(headers):
    assert read_keys(headers, None) == (True, "a")


def test_of_two_keys_the_one_that_opens_counts():
    headers = {"authorization": "Bearer sk-agent-x:wrong", "x-api-key": "sk-agent-a:s3cret"}
    assert read_keys(headers, "s3cret") == (True, "a")


@pytest.mark.parametrize(
    ("key", "token", "found"),
    [
        ("sk-agent-a", None, (True, "a")),
        ("sk-proj-1", None, (True, None)),
        ("", None, (True, None)),
        ("sk-agent-a:with:colons", None, (True, "a:with:colons")),
        ("s3cret", "s3cret", (True, None)),
        ("sk-agent-a:s3cret", "s3cret", (True, "a")),
        ("sk-agent-a:b:s3cret", "s3cret", (True, "a:b")),
        ("sk-agent-a", "s3cret", (False, None)),
        ("sk-agent-s3cret", "s3cret", (True, None)),
        ("", "s3cret", (False, None)),
        ("s3cre", "s3cret", (False, None)),
        ("gro\u00df", "s3cret", (False, None)),
    ],
)
def test_a_key_opens_the_gateway_and_names_an_agent(key, token, found):
    assert read_keys({"authorization": f"Bearer {key}"}, token) == found
    assert read_keys({}, token) == (token is None, None)


def test_what_says_more_goes_first():
    """The order is a promise: a harness that names its agents must not be overruled by a header."""
    headers = {
        "x-session-id": "by-session",
        "x-claude-code-session-id": "by-claude",
        "thread-id": "by-thread",
        "session-id": "by-codex",
        "session_id": "by-old-codex",
        "x-session-affinity": "by-affinity",
    }
    body = CHAT | {BODY_FIELD: "by-field"}
    given = {"named": ["by-path"], "of_key": "by-key", "process": "by-process"}
    found = []
    while given:
        found.append(said(headers, body, **given).agent)
        del given[next(iter(given))]
    while headers:
        found.append(said(headers, body).agent)
        del headers[next(iter(headers))]
    found.append(said({}, body).agent)
    wanted = "path key process session claude thread codex old-codex affinity field"
    assert found == [f"by-{word}" for word in wanted.split()]
    assert said({}, CHAT).is_guess


@pytest.mark.parametrize(
    ("headers", "identity"),
    [
        (
            {"x-session-id": "c", "x-parent-session-id": "p"},
            Identity("c", "x-session-id", "p"),
        ),
        (
            {"x-claude-code-session-id": "s", "x-claude-code-agent-id": "a"},
            Identity("s/a", "x-claude-code-agent-id", "s"),
        ),
        (
            {
                "x-claude-code-session-id": "s",
                "x-claude-code-agent-id": "b",
                "x-claude-code-parent-agent-id": "a",
            },
            Identity("s/b", "x-claude-code-agent-id", "s/a"),
        ),
        (
            {"session-id": "s", "thread-id": "t", "x-codex-parent-thread-id": "s"},
            Identity("t", "thread-id", "s"),
        ),
        ({"session-id": "s", "thread-id": "s"}, Identity("s", "thread-id")),
        ({"x-session-id": "p", "x-parent-session-id": "p"}, Identity("p", "x-session-id")),
    ],
)
def test_a_child_names_its_parent(headers, identity):
    assert said(headers) == identity


def test_a_child_in_its_parents_path():
    assert said(named=["p", "c"]) == Identity("c", "path", "p")


def test_a_guess_says_so_wherever_its_id_is_shown():
    found = said()
    assert found.is_guess
    assert found.agent.startswith("guess~")


def test_a_guess_is_the_same_for_all_calls_of_an_agent():
    """Marks for the cache move on to the newest message; the texts stay."""
    marked = json.loads(json.dumps(CHAT))
    text = marked["messages"][1]["content"]
    marked["messages"][1]["content"] = [
        {"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}
    ]
    assert said() == said(body=longer(role="user", content="and now?")) == said(body=marked)


@pytest.mark.parametrize(
    "body",
    [
        {**CHAT, "messages": [CHAT["messages"][0], {"role": "user", "content": "Fix issue 18."}]},
        {**CHAT, "messages": [{"role": "system", "content": "no"}, CHAT["messages"][1]]},
        {"system": "You fix issues.", "messages": [{"role": "user", "content": "Fix issue 18."}]},
        {"input": "Fix issue 17."},
        {"prompt": "Fix issue 17. And more."},
    ],
)
def test_other_first_messages_are_another_agent(body):
    assert said(body=body).is_guess
    assert said(body=body) != said()


def test_the_guesses_of_all_apis_stay_the_same_as_the_prompt_grows():
    turn = {"role": "user", "content": [{"type": "input_text", "text": "a"}]}
    for body, more in (
        ({"instructions": "i", "input": [turn]}, {"input": [turn, turn, turn]}),
        ({"system": [{"type": "text", "text": "s"}], "messages": [turn]}, {"messages": [turn] * 3}),
        ({"prompt": "x" * 2048}, {"prompt": "x" * 2048 + "y"}),
        ({"prompt": ["a"]}, {"prompt": ["a", "b"]}),
    ):
        assert said(body=body) == said(body=body | more)


@pytest.mark.parametrize("body", [{}, {"messages": []}, {"messages": 3}, {"prompt": [1, 2, 3]}])
def test_nothing_is_guessed_of_nothing(body):
    assert said(body=body) is None


def test_a_guess_can_be_forbidden():
    assert said(may_guess=False) is None
    assert identify([], None, {}, None) is None


TEXTS = st.text(st.characters(codec=None), max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(["messages", "input", "prompt", "system", "instructions", BODY_FIELD])
NAMES = st.sampled_from(
    ["x-session-id", "x-parent-session-id", "x-claude-code-session-id", "x-claude-code-agent-id"]
)


@given(
    st.dictionaries(NAMES, TEXTS, max_size=4),
    st.dictionaries(FIELDS, JSON, max_size=4),
    st.lists(TEXTS, max_size=2),
)
def test_whatever_comes_an_id_is_fit_for_a_header(headers, body, path):
    """Ids go into headers, recordings and labels of metrics."""
    named, _ = split_path("/" + "".join(f"agent/{part}/" for part in path) + "v1")
    found = identify(named, None, headers, body)
    if found is not None:
        for name in filter(None, (found.agent, found.parent)):
            assert 0 < len(name) <= 64
            assert name.isascii()
            assert name.isprintable()
