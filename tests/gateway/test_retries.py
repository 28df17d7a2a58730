"""Which requests are tries of one call."""

import pytest

from concur_agents.gateway.retries import Tries, digest, linger_s, retry_count


@pytest.mark.parametrize(
    ("said", "count"),
    [("0", 0), ("2", 2), (" 1 ", 1), ("9999", 1000), ("-1", None), ("x", None), ("", None)],
)
def test_a_client_that_retries_counts(said, count):
    assert retry_count({"x-stainless-retry-count": said}) == count


def test_another_client_may_never_come_back():
    assert retry_count({}) is None


@pytest.mark.parametrize(("count", "sleep_s"), [(0, 0.5), (1, 1), (2, 2), (4, 8), (9, 8)])
def test_a_call_outlives_its_connection_for_as_long_as_its_client_sleeps(count, sleep_s):
    assert sleep_s < linger_s(count) <= sleep_s + 1


def test_tries_of_a_call_have_agent_path_and_body_in_common():
    key = digest("a", "/v1/responses", b"body")
    assert key == digest("a", "/v1/responses", b"body")
    assert key not in {
        digest("b", "/v1/responses", b"body"),
        digest("a", "/v1/messages", b"body"),
        digest("a", "/v1/responses", b"other"),
    }


def test_a_retry_finds_its_call_until_that_has_ended():
    tries = Tries()
    tries.add(b"k", "call")
    assert tries.find(b"k", 1) == "call"
    tries.remove(b"k", "another")
    assert tries.find(b"k", 1) == "call"
    tries.remove(b"k", "call")
    assert tries.find(b"k", 1) is None
    assert len(tries) == 0


def test_two_first_tries_are_two_calls():
    """Samples of one prompt must not become one."""
    tries = Tries()
    tries.add(b"k", "call")
    assert tries.find(b"k", 0) is None
