"""Each call goes to its agent's pool, and keys stay with their host."""

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from concur_agents.adapters.addresses import base
from concur_agents.adapters.http import govern, http_client
from concur_agents.adapters.secrets import is_placeholder, is_secret
from concur_agents.core import Reading
from concur_agents.errors import ProbeError
from concur_agents.governor import Governor
from concur_agents.openai import AsyncOpenAI, OpenAI

ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
ONE, TWO = "http://gpu1:8000/v1", "http://gpu2:9000/v1"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Page:
    """Stands for the page of an engine, and can be out of reach."""

    engine, timeout_s = "vllm", 1.0

    def __init__(self, clock: Clock) -> None:
        self.clock, self.is_down = clock, False

    def read(self) -> Reading:
        if self.is_down:
            raise ProbeError("nothing answers")
        return Reading(at_s=self.clock())

    def close(self) -> None: ...


class Fleet:
    """A governor of several addresses whose pages are read only when a test says so."""

    def __init__(self, *urls: str, **options: Any) -> None:
        self.clock = Clock()
        self.gov = Governor(urls, limit=8, background=False, clock=self.clock, **options)
        self.pages = {}
        for url, endpoint in zip(urls, self.gov._endpoints.all, strict=True):
            self.pages[url] = endpoint.poller.probe = Page(self.clock)

    def pass_time(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.now += 1
            self.gov.beat()


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    made = Fleet(ONE, TWO)
    with made.gov:
        yield made


def client_of(gov: Governor, endpoint: Any, url: str = ONE, **options: Any) -> OpenAI:
    given = {"base_url": url, "api_key": "-", "max_retries": 0, **options}
    http = given.pop("http", None) or endpoint.http("sync")
    return OpenAI(governor=gov, http_client=http, **given)


def urls(endpoint: Any) -> list[str]:
    return [str(request.url) for request in endpoint.requests]


def test_each_call_goes_to_the_pool_of_its_agent(fleet: Fleet, endpoint: Any) -> None:
    client = client_of(fleet.gov, endpoint)
    with fleet.gov.agent("a") as a, fleet.gov.agent("b", detached=True) as b:
        for agent in (a, b, a):
            with agent.active():
                client.chat.completions.create(**ASK)
        assert (a.base_url, b.base_url) == (ONE, TWO)
    assert urls(endpoint) == [
        f"{ONE}/chat/completions",
        f"{TWO}/chat/completions",
        f"{ONE}/chat/completions",
    ]
    hosts = [request.headers["host"] for request in endpoint.requests]
    assert hosts == ["gpu1:8000", "gpu2:9000", "gpu1:8000"]
    assert [request.headers["x-session-id"] for request in endpoint.requests] == ["a", "b", "a"]


async def test_asynchronous_calls_and_streams_go_there_as_well(fleet: Fleet, endpoint: Any) -> None:
    http = endpoint.http("async")
    client = AsyncOpenAI(governor=fleet.gov, base_url=TWO, api_key="-", http_client=http)
    async with fleet.gov.agent("a"):
        await client.chat.completions.create(**ASK)
        stream = await client.chat.completions.create(**ASK, stream=True)
        assert [chunk async for chunk in stream]
    assert urls(endpoint) == [f"{ONE}/chat/completions"] * 2


def test_a_sub_agent_goes_where_its_parent_is(fleet: Fleet, endpoint: Any) -> None:
    client = client_of(fleet.gov, endpoint, TWO)
    with fleet.gov.agent("a"), fleet.gov.agent("child") as child:
        client.chat.completions.create(**ASK)
        assert child.base_url == ONE
    assert urls(endpoint) == [f"{ONE}/chat/completions"]


def test_other_requests_of_an_agent_go_to_its_pool_too(fleet: Fleet, endpoint: Any) -> None:
    """A stored answer, for one, is only there."""
    client = client_of(fleet.gov, endpoint, TWO)
    with fleet.gov.agent("a"):
        client.models.list()
    client.models.list()
    assert urls(endpoint) == [f"{ONE}/models", f"{TWO}/models"]


def test_a_call_without_an_agent_is_not_touched(fleet: Fleet, endpoint: Any) -> None:
    client = client_of(fleet.gov, endpoint, TWO)
    client.chat.completions.create(**ASK)
    assert urls(endpoint) == [f"{TWO}/chat/completions"]


@pytest.mark.parametrize(
    ("asked", "goes"),
    [
        ("http://gpu1:8000/v1/chat/completions?a=1&b=%2F", "/b/v1/chat/completions?a=1&b=%2F"),
        ("http://GPU1:8000/generate", "/b/generate"),
        ("http://gpu1:8000/model/a%2Fb/invoke", "/b/model/a%2Fb/invoke"),
    ],
)
def test_path_and_query_stay(asked: str, goes: str, endpoint: Any) -> None:
    fleet = Fleet("https://[::1]/b/v1/", "http://gpu1:8000")
    client = govern(fleet.gov, endpoint.http("sync"))
    with fleet.gov.agent("a"):
        client.post(asked, json=ASK)
    assert urls(endpoint) == [f"https://[::1]{goes}"]
    assert endpoint.requests[0].headers["host"] == "[::1]"


def test_pools_below_one_address_differ_by_their_paths(endpoint: Any) -> None:
    fleet = Fleet("http://gate/a/v1", "http://gate/a/b/v1", "http://gate/v1")
    client = govern(fleet.gov, endpoint.http("sync"))
    with fleet.gov.agent("a"):
        client.post("http://gate/a/b/v1/completions", json=ASK)
        client.post("http://gate/a/v1/completions", json=ASK)
        client.post("http://gate/ab/v1/completions", json=ASK)
    assert urls(endpoint) == [
        "http://gate/a/v1/completions",
        "http://gate/a/v1/completions",
        "http://gate/a/ab/v1/completions",
    ]


def test_a_request_to_another_address_passes_and_is_said_once(
    fleet: Fleet, endpoint: Any, caplog: Any
) -> None:
    client = client_of(fleet.gov, endpoint, "http://router:8000/v1", api_key="secret")
    with fleet.gov.agent("a"):
        client.models.list()
        assert not caplog.messages
        client.chat.completions.create(**ASK)
        client.chat.completions.create(**ASK)
    assert urls(endpoint)[1:] == ["http://router:8000/v1/chat/completions"] * 2
    assert endpoint.requests[0].headers["authorization"] == "Bearer secret"
    (said,) = caplog.messages
    assert "http://router:8000, which is no address" in said
    assert "http://gpu1:8000, http://gpu2:9000" in said


def test_one_pool_changes_nothing(endpoint: Any) -> None:
    gov = Governor("http://gpu1:8000/v1", limit=2, background=False)
    client = client_of(gov, endpoint, "http://router:8000/v1", api_key="secret")
    with gov.agent("a") as agent:
        client.chat.completions.create(**ASK)
        assert agent.base_url is None
        assert agent.headers == {"x-session-id": "a"}
    assert urls(endpoint) == ["http://router:8000/v1/chat/completions"]
    with Governor(limit=2) as alone, alone.agent("a") as agent:
        assert (agent.base_url, agent.headers) == (None, {})


def test_an_agent_that_waits_has_no_address(endpoint: Any) -> None:
    fleet = Fleet(ONE, TWO, ranks=2)
    agent = fleet.gov.agent("a")
    assert agent.base_url is None
    assert agent.headers == {"x-session-id": "a"}


# Ranks


def test_a_rank_is_a_header(endpoint: Any) -> None:
    fleet = Fleet(ONE, ranks=2)
    client = client_of(fleet.gov, endpoint)
    with fleet.gov.agent("a") as a, fleet.gov.agent("b\n", detached=True) as b:
        for agent in (a, b):
            with agent.active():
                client.chat.completions.create(**ASK, extra_headers={"x-data-parallel-rank": "7"})
        assert a.headers == {"x-session-id": "a", "X-data-parallel-rank": "0"}
        assert b.headers["X-data-parallel-rank"] == "1"
        assert b.headers["x-session-id"] == endpoint.requests[1].headers["x-session-id"]
        assert (a.base_url, b.base_url) == (ONE, ONE)
    sent = [request.headers["X-data-parallel-rank"] for request in endpoint.requests]
    assert sent == ["0", "1"]
    assert urls(endpoint) == [f"{ONE}/chat/completions"] * 2


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_refused_rank_is_left_out_and_said_once(
    kind: str, endpoint: Any, caplog: Any
) -> None:
    fleet = Fleet(ONE, ranks=2)
    refusal = (400, {}, {"error": {"message": "data_parallel_rank 0 is out of range [0, 1)"}})
    endpoint.refuse = [refusal]
    async with fleet.gov.agent("a") as agent:
        for _ in range(2):
            if kind == "sync":
                client_of(fleet.gov, endpoint).chat.completions.create(**ASK)
            else:
                http = endpoint.http("async")
                given: dict[str, Any] = {"base_url": ONE, "api_key": "-", "http_client": http}
                await AsyncOpenAI(governor=fleet.gov, **given).chat.completions.create(**ASK)
        assert agent.stats.steps == 2
    sent = [request.headers.get("X-data-parallel-rank") for request in endpoint.requests]
    assert sent == [None, None, None], "the object of the first request is sent twice"
    assert len([said for said in caplog.messages if "out of range" in said]) == 1


def test_another_refusal_reaches_the_caller(endpoint: Any) -> None:
    fleet = Fleet(ONE, ranks=2)
    endpoint.refuse = [(400, {}, {"error": {"message": "no such model"}})]
    with fleet.gov.agent("a"), pytest.raises(openai.BadRequestError, match="no such model"):
        client_of(fleet.gov, endpoint).chat.completions.create(**ASK)
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    ("ranks", "worker", "is_said"),
    [
        (1, "http://gpu1:8000", False),
        (1, "http://gpu2:9000", True),
        (1, "worker-17", False),
        (2, "http://inner:1@0", False),
        (2, "http://inner:1@1", True),
    ],
)
def test_an_answer_that_says_it_was_served_elsewhere_is_noticed(
    ranks: int, worker: str, is_said: bool, endpoint: Any, caplog: Any
) -> None:
    fleet = Fleet(ONE, TWO, ranks=ranks)
    http = endpoint.library.Client(
        transport=endpoint.library.MockTransport(
            lambda request: endpoint.library.Response(
                200, headers={"x-smg-routed-worker-id": worker}, json={"usage": None}
            )
        )
    )
    with fleet.gov.agent("a") as agent:
        for _ in range(2):
            govern(fleet.gov, http).post(f"{ONE}/completions", json=ASK)
        is_there = worker == TWO.removesuffix("/v1")
        assert agent.base_url == (TWO if is_there else ONE), "it is where it was served"
    assert len([said for said in caplog.messages if f"served by {worker}" in said]) == is_said


@pytest.mark.parametrize("rank_header", ["honour", "refuse", "ignore"])
def test_an_engine_of_two_ranks(rank_header: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A real one that honours the header, refuses it, or spreads calls whatever it says."""
    pytest.importorskip("uvicorn")
    from concur_agents.sim.server import EmbeddedServer

    options: dict[str, Any] = {"engines": 2, "rank_header": rank_header, "worker_header": True}
    options |= {"time_scale": 1000, "model": "m"}
    served: dict[int, list[str]] = {}
    with (
        EmbeddedServer("h100-qwen3-8b", **options) as server,
        Governor(server.url, ranks=2, limit=8, poll_interval_s=60) as gov,
    ):
        client = OpenAI(governor=gov, base_url=f"{server.url}/v1", api_key="-")
        for agent in (gov.agent("a"), gov.agent("b")):
            with agent:
                rank = int(agent.headers.get("X-data-parallel-rank", -1))
                for _ in range(4):
                    raw = client.chat.completions.with_raw_response.create(**ASK, max_tokens=2)
                    worker = raw.headers["x-smg-routed-worker-id"]
                    served.setdefault(rank, []).append(worker.rpartition("@")[2])
        client.close()
    if rank_header == "honour":
        assert served == {0: ["0"] * 4, 1: ["1"] * 4}
    counts = [
        sum(word in text for text in caplog.messages) for word in ("out of range", "served by")
    ]
    assert counts == {"honour": [0, 0], "refuse": [1, 0], "ignore": [0, 1]}[rank_header]


# Keys

SECRETS = {
    "authorization": "Bearer client",
    "api-key": "client",
    "x-api-key": "client",
    "x-goog-api-key": "client",
    "x-gateway-token": "client",
    "cookie": "session=client",
}


def headers_at(endpoint: Any, *names: str) -> dict[str, str]:
    headers = endpoint.requests[-1].headers
    return {name: headers[name] for name in names or SECRETS if name in headers}


def post_from(url: str, to: Fleet, endpoint: Any, **options: Any) -> None:
    """One agent, in the first pool, makes calls with a client that is made for `url`."""
    client = govern(to.gov, endpoint.http("sync"))
    client.headers.update(options.pop("headers", SECRETS))
    client.cookies.set("more", "client", domain="gpu2")
    with to.gov.agent("a"):
        for _ in range(2):
            client.post(f"{url}/completions", json=ASK, **options)


def test_keys_and_cookies_stay_with_their_host(fleet: Fleet, endpoint: Any, caplog: Any) -> None:
    post_from(TWO, fleet, endpoint)
    assert urls(endpoint) == [f"{ONE}/completions"] * 2
    assert headers_at(endpoint) == {}
    assert "client" not in str(endpoint.requests[-1].headers)
    (said,) = [said for said in caplog.messages if "key" in said]
    assert "for gpu2 and is not sent to gpu1" in said
    assert "api_key=" in said


def test_keys_go_to_another_port_of_their_host(endpoint: Any, caplog: Any) -> None:
    fleet = Fleet("http://gpu2:8001/v1", TWO)
    post_from(TWO, fleet, endpoint)
    assert urls(endpoint) == ["http://gpu2:8001/v1/completions"] * 2
    assert headers_at(endpoint, "authorization", "x-api-key") == {
        "authorization": "Bearer client",
        "x-api-key": "client",
    }
    assert not caplog.messages


def test_keys_do_not_leave_tls(endpoint: Any) -> None:
    fleet = Fleet("http://gpu2/v1", "https://gpu2/v1")
    post_from("https://gpu2/v1", fleet, endpoint)
    assert urls(endpoint) == ["http://gpu2/v1/completions"] * 2
    assert headers_at(endpoint) == {}


def test_the_key_of_the_governor_is_the_key_of_all_addresses(endpoint: Any, caplog: Any) -> None:
    fleet = Fleet(ONE, TWO, api_key="shared")
    post_from(TWO, fleet, endpoint)
    assert headers_at(endpoint) == {"authorization": "Bearer shared"}
    assert not caplog.messages


def test_a_placeholder_is_left_behind_without_a_word(
    fleet: Fleet, endpoint: Any, caplog: Any
) -> None:
    client = client_of(fleet.gov, endpoint, TWO, api_key="EMPTY")
    with fleet.gov.agent("a"):
        client.chat.completions.create(**ASK)
    assert headers_at(endpoint) == {}
    assert not caplog.messages


def test_the_auth_of_a_client_stays_with_its_host(fleet: Fleet, endpoint: Any, caplog: Any) -> None:
    http = endpoint.library.Client(transport=endpoint.transport(), auth=("user", "client"))
    with fleet.gov.agent("a"):
        govern(fleet.gov, http).post(f"{TWO}/completions", json=ASK)
        assert headers_at(endpoint) == {}
        govern(fleet.gov, http).post(f"{TWO}/completions", json=ASK, auth=("you", "client"))
        assert headers_at(endpoint) == {}
        govern(fleet.gov, http).post(f"{ONE}/completions", json=ASK)
        assert headers_at(endpoint)["authorization"].startswith("Basic ")
    assert len(caplog.messages) == 1


def test_user_and_password_of_an_address_belong_to_it(endpoint: Any) -> None:
    fleet = Fleet("http://u:one@gpu1:8000/v1", "http://u:two@gpu2:9000/v1")
    with fleet.gov.agent("a"):
        client_of(fleet.gov, endpoint, "http://u:two@gpu2:9000/v1").chat.completions.create(**ASK)
    assert endpoint.requests[0].url.userinfo == b"u:one"
    assert headers_at(endpoint) == {"authorization": "Basic dTpvbmU="}


def test_keys_in_the_query_stay_with_their_host(fleet: Fleet, endpoint: Any) -> None:
    post_from(TWO, fleet, endpoint, headers={}, params={"api_key": "client", "v": "1"})
    assert urls(endpoint) == [f"{ONE}/completions?v=1"] * 2


def test_a_request_that_is_sent_twice_has_its_key_again(fleet: Fleet, endpoint: Any) -> None:
    client = govern(fleet.gov, endpoint.http("sync"))
    request = client.build_request("POST", f"{TWO}/completions", json=ASK, headers=SECRETS)
    with fleet.gov.agent("a") as a, fleet.gov.agent("b", detached=True) as b:
        for agent, has in ((a, {}), (b, SECRETS), (a, {})):
            with agent.active():
                client.send(request)
            assert headers_at(endpoint) == has
            assert str(request.url) == f"{agent.base_url}/completions"


def test_a_signed_request_is_not_touched(fleet: Fleet, endpoint: Any, caplog: Any) -> None:
    signature = {"authorization": "AWS4-HMAC-SHA256 Credential=x", "x-amz-date": "20260101"}
    post_from(TWO, fleet, endpoint, headers=signature)
    assert urls(endpoint) == [f"{TWO}/completions"] * 2
    assert headers_at(endpoint, *signature) == signature
    assert ["signed request" in said for said in caplog.messages] == [True]


def test_what_may_be_a_secret() -> None:
    assert all(map(is_secret, SECRETS))
    assert is_secret("CF-Access-Client-Secret")
    assert is_secret("api_key")
    for name in ("content-type", "openai-organization", "x-session-id", "idempotency-key", "v"):
        assert not is_secret(name)
    assert is_placeholder("Bearer EMPTY")
    assert not is_placeholder("Bearer sk-1")


def test_an_address_that_is_none_has_no_base() -> None:
    assert base("nonsense") is None
    assert str(base("https://u:p@Gpu1:443/v1")) == "https://gpu1"


# A pool that is down


def test_the_next_call_of_an_agent_goes_to_its_new_pool(fleet: Fleet, endpoint: Any) -> None:
    client = client_of(fleet.gov, endpoint)
    with fleet.gov.agent("a") as agent:
        client.chat.completions.create(**ASK)
        fleet.pages[ONE].is_down = True
        fleet.pass_time(10)
        client.chat.completions.create(**ASK)
        assert agent.base_url == TWO
    assert urls(endpoint) == [f"{ONE}/chat/completions", f"{TWO}/chat/completions"]


def breaking(endpoint: Any, fleet: Fleet, url: str, seconds: int) -> Any:
    """A transport on which `url` cannot be reached, while each try takes so many seconds."""

    def answer(request: Any) -> Any:
        if str(request.url).startswith(url):
            endpoint.requests.append(request)
            fleet.pages[url].is_down = True
            fleet.pass_time(seconds)
            raise endpoint.library.ConnectError("refused", request=request)
        return endpoint.answer(request)

    return endpoint.library.MockTransport(answer)


def test_a_connection_error_reaches_the_caller(fleet: Fleet, endpoint: Any) -> None:
    http = endpoint.library.Client(transport=breaking(endpoint, fleet, ONE, 0))
    with fleet.gov.agent("a") as agent:
        with pytest.raises(endpoint.library.ConnectError, match="refused"):
            govern(fleet.gov, http).post(f"{ONE}/completions", json=ASK)
        with pytest.raises(openai.APIConnectionError):
            client_of(fleet.gov, endpoint, http=http).chat.completions.create(**ASK)
        assert agent.state == "acting"


@pytest.mark.parametrize("how", ["drop-in", "http client", "step"])
def test_a_retry_goes_to_the_new_pool(
    how: str, fleet: Fleet, endpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    http = endpoint.library.Client(transport=breaking(endpoint, fleet, ONE, 3))
    given: dict[str, Any] = {"base_url": ONE, "api_key": "-", "max_retries": 5}
    if how == "http client":
        client: Any = openai.OpenAI(http_client=govern(fleet.gov, http), **given)
    else:
        client = client_of(fleet.gov, endpoint, http=http, max_retries=5)
    with fleet.gov.agent("a") as agent:
        if how == "step":
            with agent.step():
                client.chat.completions.create(**ASK)
        else:
            client.chat.completions.create(**ASK)
        assert agent.base_url == TWO
        assert agent.stats.steps == (1 if how != "http client" else len(endpoint.requests))
        assert agent.stats.prompt_tokens == 100
        assert agent.state == "acting"
    assert urls(endpoint)[0] == f"{ONE}/chat/completions"
    assert urls(endpoint)[-1] == f"{TWO}/chat/completions"
    assert fleet.gov.snapshot().active == 0


async def test_a_retry_that_waits_for_the_new_pool_can_be_cancelled(endpoint: Any) -> None:
    fleet = Fleet(ONE, TWO)
    library = endpoint.library
    transport = breaking(endpoint, fleet, ONE, 7)
    http = library.AsyncClient(transport=transport)
    client = AsyncOpenAI(
        governor=fleet.gov, base_url=ONE, api_key="-", http_client=http, max_retries=9
    )
    others = [fleet.gov.agent(f"o{n}") for n in range(16)]
    async with fleet.gov.agent("a") as agent:
        let_in: list[str] = []
        for other in others:
            other.arrive(lambda: let_in.append(""))
        call = asyncio.create_task(client.chat.completions.create(**ASK))
        while agent.state != "paused":
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert agent.stats.steps == 0
    for other in others:
        other.close()
    assert fleet.gov.snapshot().active == 0


def test_a_client_made_by_the_governor_is_directed(fleet: Fleet, endpoint: Any) -> None:
    client = http_client(fleet.gov, "sync", transport=endpoint.transport())
    with fleet.gov.agent("a"):
        client.post(f"{TWO}/completions", json=ASK)
    assert urls(endpoint) == [f"{ONE}/completions"]
