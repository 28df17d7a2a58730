"""What the governed HTTP clients do around a call: wait, end, report, hint; and what they leave."""

import asyncio
import gc
import gzip
import json
import logging
import threading
import warnings
from typing import Any

import openai
import pytest

from concur_agents.adapters.answers import Answer, usage_in
from concur_agents.adapters.extras import _asks_for_stream_alone
from concur_agents.adapters.http import govern, http_client
from concur_agents.core import Reading, Usage
from concur_agents.errors import ConfigError, GateError, UngovernedError
from concur_agents.governor import Governor
from concur_agents.openai import AsyncOpenAI, OpenAI
from concur_agents.runtime.events import Event

ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
URL = "http://engine/v1"


def sync(gov: Governor, endpoint: Any, **options: Any) -> OpenAI:
    http = endpoint.http("sync")
    return OpenAI(governor=gov, base_url=URL, api_key="-", http_client=http, **options)


def asynchronous(gov: Governor, endpoint: Any, **options: Any) -> AsyncOpenAI:
    http = endpoint.http("async")
    return AsyncOpenAI(governor=gov, base_url=URL, api_key="-", http_client=http, **options)


async def paused_behind_another(gov: Governor, mine: Any) -> asyncio.Event:
    """Has `mine`, at limit 1, stand behind an agent that keeps its place until the event is set.

    `mine` gives its place back first, so that the other gets it.
    """
    entered, leave = asyncio.Event(), asyncio.Event()

    async def other() -> None:
        async with gov.agent("other", detached=True):
            entered.set()
            await leave.wait()

    async with mine.suspended():
        task = asyncio.create_task(other())
        await entered.wait()
    leave.task = task  # type: ignore[attr-defined]  (kept alive)
    return leave


async def test_no_client_timeout_runs_while_an_agent_waits(endpoint: Any) -> None:
    """A pause of minutes under a timeout of seconds would otherwise kill every waiting agent."""
    gov = Governor(limit=1)
    client = asynchronous(gov, endpoint, timeout=0.05, max_retries=0)
    async with gov.agent("mine") as mine:
        leave = await paused_behind_another(gov, mine)
        call = asyncio.create_task(client.chat.completions.create(**ASK))
        await asyncio.sleep(0.15)
        assert mine.state in ("queued", "paused")
        assert not endpoint.requests, "nothing left before its turn"
        leave.set()
        assert (await call).choices


async def test_cancelling_a_waiting_call_frees_its_turn(endpoint: Any) -> None:
    gov = Governor(limit=1)
    client = asynchronous(gov, endpoint)
    async with gov.agent("mine") as mine:
        leave = await paused_behind_another(gov, mine)
        call = asyncio.create_task(client.chat.completions.create(**ASK))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        leave.set()
        assert (await client.chat.completions.create(**ASK)).choices
    assert gov.snapshot().active == 0
    assert not endpoint.refuse


async def test_a_sync_call_that_must_wait_on_a_loop_thread_raises(endpoint: Any) -> None:
    gov = Governor(limit=1)
    client = sync(gov, endpoint)
    async with gov.agent("mine") as mine:
        leave = await paused_behind_another(gov, mine)
        with pytest.raises(GateError, match="to_thread"):
            client.chat.completions.create(**ASK)
        leave.set()


@pytest.mark.parametrize("status", [400, 401, 500])
def test_other_errors_end_the_step_and_say_nothing(
    status: int, gov: Governor, endpoint: Any, steps: list[Event]
) -> None:
    endpoint.refuse = [(status, {}, {"error": {"message": "no"}})]
    client = sync(gov, endpoint, max_retries=0)
    with gov.agent("a") as agent:
        with pytest.raises(openai.APIStatusError):
            client.chat.completions.create(**ASK)
        assert agent.state == "acting"
    assert [step.usage for step in steps] == [None]


def test_an_abandoned_stream_ends_with_the_next_call(
    gov: Governor, endpoint: Any, steps: list[Event]
) -> None:
    """A reader that stops early and keeps the stream must not look as if it reasoned for ever."""
    client = sync(gov, endpoint)
    with gov.agent("a") as agent:
        kept = client.chat.completions.create(**ASK, stream=True)
        next(iter(kept))
        assert agent.state == "reasoning"
        client.chat.completions.create(**ASK)
        assert agent.state == "acting"
    assert len(steps) == 2
    kept.close()
    assert len(steps) == 2


def test_a_dropped_stream_ends_its_call(gov: Governor, endpoint: Any) -> None:
    client = sync(gov, endpoint)
    with gov.agent("a") as agent:
        stream = client.chat.completions.create(**ASK, stream=True)
        assert agent.state == "reasoning"
        del stream
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # what other tests have left behind
            gc.collect()  # it refers to itself
        assert agent.state == "acting"


def test_a_stream_that_has_been_read_already_is_understood(
    gov: Governor, endpoint: Any, steps: list[Event]
) -> None:
    """Mock transports, in the tests of our users, answer with the whole body at once."""
    endpoint._pieces = lambda text: None
    respond = endpoint.library.Response

    def whole(status: int, **how: Any) -> Any:
        if "stream" in how:
            del how["stream"]
            how["content"] = endpoint.text
        return respond(status, **how)

    class Library:
        Response = staticmethod(whole)

    client = sync(gov, endpoint)
    usage = {"prompt_tokens": 100, "completion_tokens": 7}
    endpoint.text = (
        b'data: {"id":"c","object":"chat.completion.chunk","created":0,"model":"m",'
        b'"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
        + f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n".encode()
        + b"data: [DONE]\n\n"
    )
    endpoint.library = Library
    with gov.agent("a"):
        (chunk,) = client.chat.completions.create(**ASK, stream=True)
    assert chunk.choices[0].delta.content == "hi"
    assert [step.usage for step in steps] == [Usage(prompt_tokens=100, completion_tokens=7)]


async def test_parallel_calls_of_one_agent_are_in_flight_together(
    gov: Governor, endpoint: Any, steps: list[Event]
) -> None:
    client = asynchronous(gov, endpoint)
    async with gov.agent("a"):
        await asyncio.gather(*(client.chat.completions.create(**ASK) for _ in range(5)))
    assert len(steps) == 5


def test_what_is_no_llm_call_is_not_gated(gov: Governor, endpoint: Any, steps: list[Event]) -> None:
    client = sync(gov, endpoint)
    with gov.agent("a"):
        client.models.list()
    assert not steps


class TestCallsWithoutAnAgent:
    def test_pass_with_one_warning(self, endpoint: Any, caplog: pytest.LogCaptureFixture) -> None:
        client = sync(Governor(limit=1), endpoint)
        with caplog.at_level(logging.WARNING, "concur_agents"):
            client.chat.completions.create(**ASK)
            client.chat.completions.create(**ASK)
        (record,) = caplog.records
        assert "/v1/chat/completions" in record.getMessage()

    def test_can_be_an_error(self, endpoint: Any) -> None:
        client = sync(Governor(limit=1, ungoverned="error"), endpoint)
        with pytest.raises(UngovernedError):
            client.chat.completions.create(**ASK)
        assert not endpoint.requests

    @pytest.mark.parametrize("stream", [False, True])
    def test_can_be_agents_of_one_call(self, stream: bool, endpoint: Any) -> None:
        gov = Governor(limit=1, ungoverned="agent")
        client = sync(gov, endpoint)
        for _ in range(3):
            answer = client.chat.completions.create(**ASK, stream=stream)
            if stream:
                assert gov.snapshot().active == 1
                list(answer)
        assert gov.snapshot().done_total == 3
        assert gov.snapshot().active == 0


class TestWhatIsAdded:
    def gov(self, engine: str) -> Governor:
        class Probe:
            url = URL

            def __init__(self) -> None:
                self.engine = engine

            def read(self) -> Reading:
                return Reading(at_s=0.0)

        return Governor(law="working_set", probe=Probe())  # type: ignore[arg-type]

    def test_vllm_gets_the_agent_in_a_header_and_its_priority(self, endpoint: Any) -> None:
        with self.gov("vllm") as gov, gov.agent("issue-17", priority=3):
            sync(gov, endpoint).chat.completions.create(**ASK)
        assert endpoint.bodies[0] == {**ASK, "priority": -3}
        assert endpoint.requests[0].headers["x-session-id"] == "issue-17"

    def test_a_call_of_an_agent_without_priority_has_no_field_of_ours(self, endpoint: Any) -> None:
        """Some versions of vLLM log a warning for each request with a field unknown to them."""
        with self.gov("vllm") as gov, gov.agent("issue-17"):
            sync(gov, endpoint).chat.completions.create(**ASK)
        assert endpoint.bodies[0] == ASK

    def test_sglang_serves_the_highest_priority_first(self, endpoint: Any) -> None:
        with self.gov("sglang") as gov, gov.agent("issue-17", priority=3):
            sync(gov, endpoint).chat.completions.create(**ASK)
        assert endpoint.bodies[0] == {**ASK, "priority": 3}

    def test_an_engine_that_is_not_known_is_told_nothing(
        self, gov: Governor, endpoint: Any
    ) -> None:
        with gov.agent("issue-17", priority=3):
            sync(gov, endpoint).chat.completions.create(**ASK)
        assert endpoint.bodies == [ASK]

    def test_what_the_user_says_himself_stays(self, endpoint: Any) -> None:
        with self.gov("vllm") as gov, gov.agent("issue-17", priority=3):
            sync(gov, endpoint).chat.completions.create(**ASK, extra_body={"priority": 7})
        assert endpoint.bodies[0]["priority"] == 7

    @pytest.mark.parametrize("kind", ["sync", "async"])
    async def test_a_refused_field_is_left_out_and_not_tried_again(
        self, kind: str, endpoint: Any
    ) -> None:
        endpoint.check = lambda body: "unknown field priority" if "priority" in body else None
        with self.gov("vllm") as gov:
            async with gov.agent("issue-17", priority=3) as agent:
                for _ in range(2):
                    if kind == "sync":
                        assert sync(gov, endpoint).chat.completions.create(**ASK).choices
                    else:
                        client = asynchronous(gov, endpoint)
                        assert (await client.chat.completions.create(**ASK)).choices
                assert agent.stats.steps == 2
        assert ["priority" in body for body in endpoint.bodies] == [True, False, False]

    def test_an_endpoint_that_cannot_count_streams_is_streamed_from_all_the_same(
        self, gov: Governor, endpoint: Any
    ) -> None:
        endpoint.check = lambda body: "stream_options?" if "stream_options" in body else None
        client = sync(gov, endpoint)
        with gov.agent("a"):
            for _ in range(2):
                assert len(list(client.chat.completions.create(**ASK, stream=True))) == 2
        assert ["stream_options" in body for body in endpoint.bodies] == [True, False, False]

    def test_the_users_own_mistake_is_his_to_see(self, endpoint: Any) -> None:
        endpoint.check = lambda body: "prompt too long"
        client = sync(gov := self.gov("vllm"), endpoint, max_retries=0)
        with gov, gov.agent("a"), pytest.raises(openai.BadRequestError, match="too long"):
            client.chat.completions.create(**ASK)
        assert len(endpoint.requests) == 1


class TestPromptSizes:
    def test_the_estimate_is_corrected_by_what_prompts_really_took(
        self, gov: Governor, endpoint: Any
    ) -> None:
        """Unknown growth would let a full house overflow at each boundary."""
        announced: list[int | None] = []
        gov.on_event(
            lambda e: announced.append(e.prompt_tokens) if e.kind == "step_began" else None
        )
        client = sync(gov, endpoint)
        messages = [{"role": "user", "content": "x" * 1000}]
        with gov.agent("a"):
            client.chat.completions.create(model="m", messages=messages)
            size = len(endpoint.requests[-1].content)
            client.chat.completions.create(model="m", messages=messages)
            messages = [*messages, {"role": "user", "content": "y" * 1000}]
            client.chat.completions.create(model="m", messages=messages)
            grown = len(endpoint.requests[-1].content)
        assert announced == [
            round(size / 4),
            100,  # the same prompt again: as the server said
            round(100 + (grown - size) * 100 / size),
        ]

    def test_agents_with_the_same_system_prompt_name_the_same_part(
        self, gov: Governor, endpoint: Any
    ) -> None:
        chains: list[Any] = []
        begin_step = gov._monitor.sessions.regulator.begin_step

        def spy(agent: str, now: float, **options: Any) -> Any:
            chains.append(options["prefix"])
            return begin_step(agent, now, **options)

        gov._monitor.sessions.regulator.begin_step = spy  # type: ignore[method-assign]
        client = sync(gov, endpoint)
        for task in ("one", "two"):
            with gov.agent(task):
                client.chat.completions.create(
                    model="m",
                    messages=[
                        {"role": "system", "content": "be brief"},
                        {"role": "user", "content": task},
                    ],
                )
        (system_1, task_1), (system_2, task_2) = ([name for name, _ in chain] for chain in chains)
        assert system_1 == system_2
        assert task_1 != task_2


class TestClients:
    @pytest.mark.parametrize("kind", ["sync", "async"])
    @pytest.mark.parametrize("how", ["http_client", "drop-in", "wrap"])
    def test_proxies_of_the_environment_keep_working(
        self, how: str, kind: str, gov: Governor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A custom transport would have switched them off."""
        monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
        http: Any
        if how == "http_client":
            http = http_client(gov, kind)  # type: ignore[arg-type]
        elif how == "drop-in":
            http = (OpenAI if kind == "sync" else AsyncOpenAI)(governor=gov, api_key="-")._client
        else:
            plain = openai.OpenAI if kind == "sync" else openai.AsyncOpenAI
            http = gov.wrap(plain(api_key="-"))._client
        transport = http._transport_for_url(http.build_request("GET", "http://engine/").url)
        assert "Proxy" in type(transport._pool).__name__

    def test_a_view_is_of_the_same_type_and_shares_everything(
        self, gov: Governor, endpoint: Any
    ) -> None:
        http = endpoint.http("sync")
        view = govern(gov, http)
        assert isinstance(view, type(http))
        view.headers["x-mine"] = "1"
        assert http.headers["x-mine"] == "1"
        assert govern(gov, view) is view
        view.close()
        assert http.is_closed

    def test_a_second_governor_takes_over(self, gov: Governor, endpoint: Any) -> None:
        other = Governor(limit=1, ungoverned="error")
        view = govern(other, govern(gov, endpoint.http("sync")))
        with pytest.raises(UngovernedError):
            view.post("http://engine/v1/chat/completions", json=ASK)

    def test_wrong_arguments_say_what_is_wanted(self, gov: Governor) -> None:
        with pytest.raises(ConfigError, match="'sync' or 'async'"):
            http_client(gov, "both")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="not a client of httpx"):
            govern(gov, object())
        with pytest.raises(ConfigError, match="must be a Governor"):
            OpenAI(governor="gov", api_key="-")  # type: ignore[arg-type]

    def test_a_client_that_openai_made_lives_as_long_as_its_view(self, gov: Governor) -> None:
        """openai closes its own HTTP client when that is collected."""
        view = govern(gov, openai.OpenAI(api_key="-")._client)
        assert not view.is_closed

    def test_one_client_serves_many_threads(
        self, gov: Governor, endpoint: Any, steps: list[Event]
    ) -> None:
        client = sync(gov, endpoint)

        def run(name: str) -> None:
            with gov.agent(name):
                for _ in range(3):
                    client.chat.completions.create(**ASK)

        threads = [threading.Thread(target=run, args=(f"a{n}",)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(steps) == 18


class TestAnswers:
    def test_usage_is_found_from_the_end(self) -> None:
        text = b'{"usage": {"prompt_tokens": 1}, "x": [0], "usage":{"prompt_tokens":5}, "z": 1}'
        assert usage_in(text) == Usage(prompt_tokens=5, completion_tokens=0)

    def test_words_about_usage_are_not_usage(self) -> None:
        text = json.dumps({"content": '"usage": {"prompt_tokens": 9}', "usage": None}).encode()
        assert usage_in(text) is None

    def test_a_compressed_stream_is_read_but_passed_on_as_it_is(self) -> None:
        packed = gzip.compress(b'data: {"usage": {"prompt_tokens": 5}}\n\n')
        answer = Answer("gzip", hide_usage=True)
        assert answer.feed(packed[:10]) + answer.feed(packed[10:]) == packed
        assert answer.usage() == Usage(prompt_tokens=5, completion_tokens=0)

    def test_a_stream_of_any_length_is_remembered_by_its_end_only(self) -> None:
        answer = Answer()
        for _ in range(50):
            answer.feed(b"x" * 10_000)
        answer.feed(b'data: {"usage": {"prompt_tokens": 5}}\n\n')
        assert answer.usage() is not None
        assert answer._tail_bytes < 200_000

    @pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
    @pytest.mark.parametrize("size", [1, 7, 1000])
    def test_only_the_event_that_we_asked_for_is_hidden(self, size: int, end: bytes) -> None:
        first = b'data: {"choices": [{"delta": {}}], "usage": null}' + end
        filtered = b'data: {"choices": [], "prompt_filter_results": []}' + end
        ours = b'data: {"choices": [], "usage": {"prompt_tokens": 5}}' + end
        last = b"data: [DONE]" + end
        text = first + filtered + ours + last + b": cut"
        answer = Answer(hide_usage=True)
        passed = [answer.feed(text[at : at + size]) for at in range(0, len(text), size)]
        assert b"".join(passed) + answer.finish() == first + filtered + last + b": cut"


class TestWhetherABodyAsksForAStream:
    LONG = "x" * 5000

    @pytest.mark.parametrize(
        "body",
        [
            {"stream": True, "messages": LONG},
            {"messages": LONG, "stream": True},
            {"a": [1, {"b": "]}"}], "stream": True, "messages": LONG},
            {"messages": '"stream": false', "stream": True},
        ],
    )
    @pytest.mark.parametrize("gap", [None, (",", ":")])
    def test_it_does(self, body: dict[str, Any], gap: Any) -> None:
        assert _asks_for_stream_alone(json.dumps(body, separators=gap).encode())

    @pytest.mark.parametrize(
        "body",
        [
            {"messages": LONG},
            {"stream": False, "messages": LONG},
            {"messages": '"stream": true'},
            {"tool": {"stream": True}, "messages": LONG},
            {"messages": LONG, "tool": {"stream": True}},
            {"messages": LONG, "tools": [{"default": {"stream": True}}], "x": LONG},
            {"stream": True, "stream_options": {"include_usage": False}},
            {"stream_options": {"include_usage": True}, "messages": LONG, "stream": True},
            {"streams": True},
        ],
    )
    @pytest.mark.parametrize("gap", [None, (",", ":")])
    def test_it_does_not(self, body: dict[str, Any], gap: Any) -> None:
        assert not _asks_for_stream_alone(json.dumps(body, separators=gap).encode())
