"""How long a request is held, and what its client gets meanwhile."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from concur_agents.gateway.holding import (
    COMMENT,
    PING,
    Hold,
    client_timeout_s,
    dialect_of,
    plan,
)


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/chat/completions", "openai"),
        ("/v1/completions/", "openai"),
        ("/v1/responses?a=b", "openai"),
        ("/v1/messages", "anthropic"),
        ("/v1/messages/count_tokens", "anthropic"),
        ("/generate", "other"),
        ("/v1beta/models/gemini:streamGenerateContent", "other"),
        ("/", "other"),
    ],
)
def test_a_path_tells_the_api(path, dialect):
    assert dialect_of(path) == dialect


@pytest.mark.parametrize(
    ("headers", "timeout_s"),
    [
        ({"x-stainless-read-timeout": "600.0"}, 600),
        ({"x-stainless-timeout": "20"}, 20),
        ({"x-stainless-read-timeout": "2", "x-stainless-timeout": "600"}, 2),
        ({"x-stainless-timeout": "0"}, 0.5),
        ({"x-stainless-timeout": "None"}, math.inf),
        ({"x-stainless-read-timeout": "inf"}, math.inf),
        ({"x-stainless-read-timeout": "nan"}, None),
        ({"x-stainless-read-timeout": "-1"}, None),
        ({"x-stainless-read-timeout": "NOT_GIVEN", "x-stainless-timeout": "3"}, 3),
        ({}, None),
    ],
)
def test_a_client_says_how_long_it_waits(headers, timeout_s):
    assert client_timeout_s(headers) == timeout_s


@pytest.mark.parametrize(
    ("dialect", "stream", "timeout_s", "hold"),
    [
        ("openai", True, 600, Hold(2, 3, None, COMMENT)),
        ("anthropic", True, 600, Hold(2, 3, None, PING)),
        ("openai", True, 2, Hold(0.8, 0.8, None, COMMENT)),
        ("openai", True, None, Hold(1, 1, None, COMMENT)),
        ("openai", True, math.inf, Hold(2, 3, None, COMMENT)),
        ("openai", False, 600, Hold(None, None, 480)),
        ("anthropic", False, 2, Hold(None, None, 1)),
        ("openai", False, 1, Hold(None, None, 0.25)),
        ("openai", False, None, Hold(None, None, 60)),
        ("openai", False, math.inf, Hold(None, None, None)),
        ("other", True, None, Hold(None, None, 60)),
    ],
)
def test_a_stream_is_kept_alive_and_all_else_is_held_in_silence(dialect, stream, timeout_s, hold):
    assert plan(dialect, stream=stream, timeout_s=timeout_s) == hold


@given(st.floats(0.5, 1e6), st.booleans(), st.sampled_from(["openai", "anthropic", "other"]))
def test_no_client_that_says_how_long_it_waits_waits_in_vain(timeout_s, stream, dialect):
    hold = plan(dialect, stream=stream, timeout_s=timeout_s)
    if hold.first_s is None:
        assert hold.most_s < timeout_s
    else:
        assert max(hold.first_s, hold.every_s) < timeout_s


def test_a_comment_is_no_event():
    """Some clients decode an empty event: a blank line after a comment would be one."""
    assert COMMENT.startswith(b":")
    assert COMMENT.count(b"\n") == 1
