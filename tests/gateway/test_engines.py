"""Where requests go, and what they carry."""

import pytest

from concur_agents.errors import ConfigError
from concur_agents.gateway.engines import Engines, answer_headers
from concur_agents.governor import Governor

URL = "http://gpu1:8000"


def carried(headers, *, key=None, url=URL):
    with Governor(limit=1) as governor:
        engines = Engines(governor, url, key)
        return engines.request_headers(headers, engines.destination(None))


def test_headers_pass_as_they_are_in_their_order():
    sent = [("X-B", "1"), ("x-a", "2"), ("X-B", "3"), ("Content-Type", "application/json")]
    assert carried(sent) == sent


@pytest.mark.parametrize("name", ["Authorization", "x-api-key", "API-Key", "Cookie"])
def test_an_agents_key_is_for_the_gateway_alone(name):
    assert carried([(name, "sk-agent-a"), ("x-a", "1")]) == [("x-a", "1")]


def test_the_engines_key_is_the_gateways_own():
    assert carried([("Authorization", "Bearer sk-agent-a")], key="k") == [
        ("Authorization", "Bearer k")
    ]
    assert carried([("x-api-key", "sk-agent-a")], key="k") == [
        ("Authorization", "Bearer k"),
        ("x-api-key", "k"),
    ]


def test_a_user_in_the_address_goes_before_the_key():
    assert carried([], key="k", url="http://user:pw@gpu1:8000") == []


def test_headers_of_a_connection_end_with_it():
    sent = [
        ("Host", "gateway"),
        ("Connection", "close, X-Mine"),
        ("X-Mine", "1"),
        ("Keep-Alive", "timeout=5"),
        ("TE", "trailers"),
        ("Transfer-Encoding", "chunked"),
        ("Upgrade", "h2c"),
        ("Expect", "100-continue"),
        ("X-Kept", "1"),
    ]
    assert carried(sent) == [("X-Kept", "1")]
    assert answer_headers(sent[1:5]) == []


def test_a_connection_cannot_name_what_frames_a_message():
    sent = [("Connection", "content-length"), ("Content-Length", "3")]
    assert carried(sent) == [("Content-Length", "3")]


@pytest.mark.parametrize(
    ("url", "path", "there"),
    [
        (URL, "/v1/models", "http://gpu1:8000/v1/models"),
        (f"{URL}/v1", "/v1/models", "http://gpu1:8000/v1/models"),
        (
            "https://host/llm/v1/",
            "/v1/messages?beta=true",
            "https://host/llm/v1/messages?beta=true",
        ),
        ("http://u:p@host", "/generate", "http://u:p@host/generate"),
    ],
)
def test_the_path_is_put_below_the_address(url, path, there):
    with Governor(limit=1) as governor:
        assert Engines(governor, url).destination(None).url(path) == there


def test_requests_of_no_agent_go_to_the_engines_in_turn():
    with Governor(limit=1) as governor:
        engines = Engines(governor, [URL, "http://gpu2:8000"])
        found = [str(engines.destination(None).base) for _ in range(3)]
    assert found == [URL, "http://gpu2:8000", URL]


def test_an_agents_calls_go_to_its_pool_and_name_it(scripted_engines):
    urls = scripted_engines({url: lambda s: None for url in (URL, "http://gpu2:8000")})
    with Governor(urls, limit=2) as governor:
        engines = Engines(governor, urls)
        with governor.agent("a") as agent:
            found = engines.destination(agent)
            assert str(found.base) == agent.pool
            assert engines.request_headers([], found) == [("x-session-id", "a")]
            own = [("X-Session-Id", "mine")]
            assert engines.request_headers(own, found) == own


def test_a_rank_is_pinned_until_it_is_refused():
    with Governor(URL, ranks=2, limit=2) as governor:
        engines = Engines(governor, URL)
        with governor.agent("a") as agent:
            first = engines.destination(agent)
            assert first.headers["X-data-parallel-rank"] == governor.pool_of("a")[-1]
            assert first.route.may_be_refused(400)
            assert first.route.was_refused(b"data_parallel_rank 1 is out of range [0, 1).")
            assert "X-data-parallel-rank" not in first.headers
            assert "X-data-parallel-rank" not in engines.destination(agent).headers


@pytest.mark.parametrize("url", ["", (), "ftp://host", "gpu1:8000"])
def test_an_engine_has_an_address(url):
    with Governor(limit=1) as governor, pytest.raises(ConfigError):
        Engines(governor, url)


def test_behind_a_router_the_first_answer_says_which_pool_an_agent_is_in(scripted_engines):
    urls = scripted_engines({url: lambda s: None for url in (URL, "http://gpu2:8000")})
    with Governor("http://router:8000", pools=urls, limit=2, background=False) as governor:
        engines = Engines(governor, "http://router:8000")
        with governor.agent("a") as agent:
            first = engines.destination(agent)
            assert str(first.base) == "http://router:8000"
            assert first.headers["x-session-id"] == "a"
            with agent.step():
                first.route.meet(200, {"x-smg-routed-worker-id": urls[1]})
            assert agent.pool == urls[1]
            assert str(engines.destination(agent).base) == "http://router:8000"
