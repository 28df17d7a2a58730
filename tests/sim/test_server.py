import asyncio
import gzip
import json
import math
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from concur_agents.errors import ConcurError, ConfigError
from concur_agents.probes import HttpProbe, parse_page
from concur_agents.sim.pages import Kind
from concur_agents.sim.profile import load_profile
from concur_agents.sim.serve import serve
from concur_agents.sim.server import EmbeddedServer
from concur_agents.sim.server_options import ServerOptions
from concur_agents.sim.text import Reply, text_of_tokens

H100 = load_profile("h100-qwen3-8b")
RECORDED = Path(__file__).parents[1] / "fixtures/metrics"
LOOK: dict[str, Any] = {"type": "function", "function": {"name": "look", "parameters": {}}}


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    """Answers at once."""
    with EmbeddedServer(H100, time_scale=math.inf) as server:
        yield server


@pytest.fixture
def http(server: EmbeddedServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url) as http:
        yield http


@pytest.fixture
def client(server: EmbeddedServer) -> Iterator[openai.OpenAI]:
    with connect(server) as client:
        yield client


def connect(server: EmbeddedServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def user(text: str) -> Any:
    return {"role": "user", "content": text}


def chat(client: openai.OpenAI, *messages: Any, **options: Any) -> Any:
    return client.chat.completions.create(model=H100.model, messages=list(messages), **options)


def cached(answer: Any) -> int:
    tokens: int = answer.usage.prompt_tokens_details.cached_tokens
    return tokens


def sse(response: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


# --- chat completions ----------------------------------------------------------------------------


def test_a_chat_that_goes_on_finds_its_history_and_the_reply_in_the_cache(
    client: openai.OpenAI,
) -> None:
    history = [{"role": "system", "content": text_of_tokens(996)}, user(text_of_tokens(4))]
    first = chat(client, *history, max_tokens=100, extra_body={"ignore_eos": True})
    assert (first.usage.prompt_tokens, first.usage.completion_tokens) == (1000, 100)
    assert first.usage.total_tokens == 1100
    assert cached(first) == 0
    history += [first.choices[0].message, user(text_of_tokens(50, "more"))]
    second = chat(client, *history)
    assert second.usage.prompt_tokens == 1150
    assert cached(second) == 1088  # whole blocks of 16 of the 1,099 tokens that have KV


def test_another_beginning_is_not_cached(client: openai.OpenAI) -> None:
    text = text_of_tokens(500)
    chat(client, user("a"), user(text))
    assert cached(chat(client, user("b"), user(text))) == 0


def test_the_same_prompt_has_the_same_reply_and_a_seed_changes_it() -> None:
    texts = []
    for seed in (1, 1, 2):
        with (
            EmbeddedServer(H100, time_scale=math.inf, seed=seed) as server,
            connect(server) as client,
        ):
            texts.append(chat(client, user("hello")).choices[0].message.content)
    assert texts[0] == texts[1] != texts[2]


def test_a_stream_says_the_same_and_tells_usage_only_when_asked(
    http: httpx.Client, client: openai.OpenAI
) -> None:
    plain = chat(client, user("hello")).choices[0]
    body = {"model": H100.model, "messages": [user("hello")], "stream": True}
    chunks = sse(http.post("/v1/chat/completions", json=body))
    assert chunks.pop() == "[DONE]"
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"}
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
    assert text == plain.message.content
    assert chunks[-1]["choices"][0]["finish_reason"] == plain.finish_reason == "stop"
    assert not any("usage" in c for c in chunks)
    body["stream_options"] = {"include_usage": True}
    chunks = sse(http.post("/v1/chat/completions", json=body))
    assert chunks[-2]["choices"] == []
    assert chunks[-2]["usage"]["completion_tokens"] * 4 == len(text)


def test_a_stream_is_paced_by_the_engine() -> None:
    """200 tokens at 7 ms each: chunks every 50 ms over 1.4 s, fewer on a busy machine."""
    with EmbeddedServer(H100, time_scale=1) as server, connect(server) as client:
        options: dict[str, Any] = {"max_tokens": 200, "extra_body": {"ignore_eos": True}}
        stream = chat(client, user("hi"), stream=True, **options)
        at = [time.monotonic() for chunk in stream if chunk.choices[0].delta.content]
    assert len(at) >= 5
    assert at[-1] - at[0] > 0.8


def test_limits_on_the_length_of_a_reply_are_kept(client: openai.OpenAI) -> None:
    def length(**options: Any) -> tuple[int, str]:
        answer = chat(client, user("hello"), **options)
        return answer.usage.completion_tokens, answer.choices[0].finish_reason

    assert length(max_tokens=3) == (3, "length")
    assert length(max_completion_tokens=3) == (3, "length")
    assert length(extra_body={"min_tokens": 777}) == (777, "stop")
    assert length(max_tokens=900, extra_body={"ignore_eos": True}) == (900, "length")
    natural, reason = length()
    assert natural > 3
    assert reason == "stop"


def test_a_tool_is_called_when_the_conversation_asks_for_it(client: openai.OpenAI) -> None:
    ask = user('CALL:look{"at": 1} please')
    first = chat(client, ask, tools=[LOOK]).choices[0]
    assert first.finish_reason == "tool_calls"
    (call,) = first.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("look", '{"at": 1}')
    result = {"role": "tool", "tool_call_id": call.id, "content": "seen"}
    second = chat(client, ask, first.message, result, tools=[LOOK])
    assert second.choices[0].message.content
    assert second.choices[0].message.tool_calls is None
    assert chat(client, ask, tools=[LOOK], tool_choice="none").choices[0].message.content
    assert chat(client, ask).choices[0].message.content


def test_a_tool_call_can_be_streamed(http: httpx.Client) -> None:
    body = {
        "model": H100.model,
        "messages": [user("CALL:look{}")],
        "tools": [LOOK],
        "stream": True,
    }
    chunks = sse(http.post("/v1/chat/completions", json=body))
    (call,) = [c for c in chunks[:-1] if c["choices"][0]["delta"].get("tool_calls")]
    assert call["choices"][0]["delta"]["tool_calls"][0]["function"]["name"] == "look"
    assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_script_can_stand_in_for_the_model() -> None:
    with (
        EmbeddedServer(H100, time_scale=math.inf, script=lambda _: Reply("done!")) as server,
        connect(server) as client,
    ):
        answer = chat(client, user("hi"))
    assert answer.choices[0].message.content == "done!"
    assert answer.usage.completion_tokens == 2


# --- completions and responses -------------------------------------------------------------------


def test_a_completion_that_continues_another_finds_it_cached(client: openai.OpenAI) -> None:
    prompt = text_of_tokens(400)
    first = client.completions.create(model=H100.model, prompt=prompt, max_tokens=40)
    longer = prompt + first.choices[0].text + text_of_tokens(9)
    second = client.completions.create(model=H100.model, prompt=longer)
    assert first.usage is not None
    assert second.usage is not None
    sent = 400 + first.usage.completion_tokens
    assert second.usage.prompt_tokens == sent + 9
    assert cached(second) == (sent - 1) // 16 * 16


def test_token_ids_go_in_and_come_out(http: httpx.Client) -> None:
    """As a load generator sends them: the next prompt is prompt + output ids + tool result."""
    body: dict[str, Any] = {
        "model": H100.model,
        "prompt": list(range(300)),
        "max_tokens": 33,
        "min_tokens": 33,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    first = http.post("/v1/completions", json=body).json()
    ids = first["choices"][0]["token_ids"]
    assert len(ids) == first["usage"]["completion_tokens"] == 33
    body["prompt"] = [*range(300), *ids, *range(20)]
    second = http.post("/v1/completions", json=body).json()
    assert second["usage"]["prompt_tokens"] == 353
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == 320
    body["prompt"] = [body["prompt"]]
    third = http.post("/v1/completions", json=body).json()
    assert third["usage"]["prompt_tokens_details"]["cached_tokens"] == 352


def test_a_completion_can_be_streamed(client: openai.OpenAI) -> None:
    options: Any = {"model": H100.model, "prompt": "hello"}
    plain = client.completions.create(**options).choices[0].text
    stream = client.completions.create(
        **options, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].text for c in chunks if c.choices) == plain
    assert chunks[-1].usage is not None


def test_a_response_is_the_same_agent_through_another_api(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": H100.model, "instructions": text_of_tokens(320)}
    tools: Any = [{"type": "function", "name": "look", "parameters": {}}]
    items: Any = [user('CALL:look{"at": 1}')]
    first = client.responses.create(**options, input=items, tools=tools)
    (call,) = first.output
    assert call.type == "function_call"
    assert (call.name, call.arguments) == ("look", '{"at": 1}')
    items += [call, {"type": "function_call_output", "call_id": call.call_id, "output": "seen"}]
    second = client.responses.create(**options, input=items, tools=tools)
    assert second.status == "completed"
    assert second.output_text
    assert second.usage is not None
    assert second.usage.input_tokens_details.cached_tokens >= 320
    cut = client.responses.create(**options, input="hi", max_output_tokens=2)
    assert cut.status == "incomplete"


@pytest.mark.parametrize("ask", ["hello", 'CALL:look{"at": 1}'])
def test_a_streamed_response_ends_as_the_plain_one(client: openai.OpenAI, ask: str) -> None:
    tools: Any = [{"type": "function", "name": "look", "parameters": {}}]
    plain = client.responses.create(model=H100.model, input=ask, tools=tools)
    with client.responses.stream(model=H100.model, input=ask, tools=tools) as stream:
        numbers = [event.sequence_number for event in stream]
        final = stream.get_final_response()
    assert numbers == list(range(len(numbers)))
    assert final.output_text == plain.output_text
    assert [item.type for item in final.output] == [item.type for item in plain.output]
    assert final.status == "completed"


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "change", "status", "complaint"),
    [
        ("chat/completions", {"model": "gpt-x"}, 404, "The model `gpt-x` does not exist"),
        ("chat/completions", {"messages": []}, 400, "messages must be a list"),
        ("chat/completions", {"max_tokens": 0}, 400, "max_tokens must be a whole number"),
        ("chat/completions", {"max_tokens": 10**6}, 400, "maximum context length is"),
        ("chat/completions", {"min_tokens": 9, "max_tokens": 8}, 400, "min_tokens must be at most"),
        ("chat/completions", {"n": 2}, 400, "n must be 1, got 2"),
        ("chat/completions", {"tools": {}, "messages": [user("x")]}, None, ""),
        ("chat/completions", {"tools": "look"}, 400, "tools must be a list"),
        ("completions", {"prompt": ["a", "b"]}, 400, "a list of token ids"),
        ("completions", {"prompt": ["a", 1]}, 400, "a list of token ids"),
        ("completions", {"prompt": [1, "a"]}, 400, "token ids"),
        ("completions", {"prompt": ""}, 400, "one text"),
        ("responses", {"input": []}, 400, "input must be"),
        ("responses", {"previous_response_id": "r"}, 400, "keeps no conversations"),
    ],
)
def test_what_cannot_be_answered_is_refused_as_openai_does(
    http: httpx.Client, path: str, change: dict[str, Any], status: int | None, complaint: str
) -> None:
    body = {"messages": [user("hi")], "prompt": "hi", "input": "hi", **change}
    answer = http.post(f"/v1/{path}", json=body)
    if status is None:
        assert answer.status_code == 200
        return
    assert answer.status_code == status
    error = answer.json()["error"]
    assert complaint in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


def test_a_prompt_that_is_too_long_is_the_error_that_clients_look_for(
    client: openai.OpenAI, http: httpx.Client
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, user("x" * 4 * (H100.max_model_len + 1)))
    assert caught.value.code == "context_length_exceeded"
    assert http.post("/v1/chat/completions", content="{torn").status_code == 400
    assert http.post("/v1/chat/completions", content="[]").status_code == 400


# --- what it says of itself ----------------------------------------------------------------------


def test_small_questions_have_answers(http: httpx.Client, client: openai.OpenAI) -> None:
    assert http.get("/health").status_code == http.get("/ping").status_code == 200
    assert http.get("/version").json()["version"]
    (model,) = client.models.list().data
    assert model.id == H100.model
    assert http.get("/v1/models").json()["data"][0]["max_model_len"] == H100.max_model_len
    assert http.post("/tokenize", json={"prompt": text_of_tokens(77)}).json()["count"] == 77
    messages = [user(text_of_tokens(30)), user("")]
    counted = http.post("/tokenize", json={"messages": messages, "tools": [LOOK]}).json()
    assert counted["count"] == len(counted["tokens"])
    assert counted["count"] == chat(client, *messages, tools=[LOOK]).usage.prompt_tokens


def test_the_cache_can_be_emptied(http: httpx.Client, client: openai.OpenAI) -> None:
    text = user(text_of_tokens(500))
    chat(client, text)
    assert cached(chat(client, text)) == 496
    assert http.post("/reset_prefix_cache").json() == {"success": True}
    assert cached(chat(client, text)) == 0


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_a_probe_reads_from_the_page_what_responses_said(kind: Kind) -> None:
    with (
        EmbeddedServer(H100, time_scale=math.inf, metrics=kind) as server,
        connect(server) as client,
        HttpProbe(server.url) as probe,
    ):
        before = probe.read()
        history = [user(text_of_tokens(800))]
        answers = []
        for _ in range(4):
            answers.append(chat(client, *history))
            history += [answers[-1].choices[0].message, user(text_of_tokens(60))]
        page = probe.read_page()
    after = page.reading
    assert page.engine == kind
    assert page.model == H100.model
    assert after.capacity_tokens == before.capacity_tokens == H100.capacity_tokens
    assert (after.kv_usage, after.running, after.waiting) == (0, 0, 0)
    assert not after.preemptions_total
    prompts = sum(a.usage.prompt_tokens for a in answers)
    hits = sum(cached(a) for a in answers)
    assert hits > 0
    assert (after.query_tokens_total, after.hit_tokens_total) == (prompts, hits)
    assert after.computed_tokens_total == prompts - hits
    assert after.generated_tokens_total == sum(a.usage.completion_tokens for a in answers)
    assert after.prefill_s_total
    assert after.decode_s_total


@pytest.mark.parametrize(
    ("kind", "recording"),
    [
        ("vllm", "vllm-0.32.0-cpu-sweep-cap3.prom.gz"),
        ("sglang", "sglang-0.5.23-cpu-sweep-cap3.prom.gz"),
    ],
)
def test_every_metric_is_one_of_the_real_engine_with_its_type_and_labels(
    kind: Kind, recording: str
) -> None:
    def families(text: str) -> dict[str, tuple[str, frozenset[str]]]:
        return {
            family.name: (family.type, frozenset(family.samples[0].labels) - {"pid", "le"})
            for family in text_string_to_metric_families(text)
        }

    with (
        EmbeddedServer(H100, time_scale=math.inf, metrics=kind) as server,
        connect(server) as client,
    ):
        chat(client, user("hi"))
        ours = families(httpx.get(f"{server.url}/metrics").text)
    real = families(gzip.decompress((RECORDED / recording).read_bytes()).decode())
    ours.pop("sglang:inter_token_latency_seconds", None)  # there only of streams, none recorded
    assert len(ours) > 20
    for name, (kind_of, labels) in ours.items():
        assert name in real, name
        assert kind_of == real[name][0], name
        if "cache_config_info" in name:
            assert labels <= real[name][1]
        elif "evicted_tokens" not in name:  # labelled by cache type there
            assert labels == real[name][1], name


def test_a_host_tier_is_emptied_with_the_cache_only_if_it_is_asked_for() -> None:
    """As in vLLM: what the tier holds outlives `/reset_prefix_cache` alone."""
    profile = H100.replace(kv_blocks=64, host_tier_tokens=6_400, restore_tokens_per_s=230_000.0)
    with EmbeddedServer(profile, time_scale=math.inf) as server, connect(server) as client:
        text = user(text_of_tokens(700))
        chat(client, text, max_tokens=1)
        httpx.post(f"{server.url}/reset_prefix_cache")
        assert cached(chat(client, text, max_tokens=1)) > 600
        httpx.post(f"{server.url}/reset_prefix_cache?reset_external=true")
        assert cached(chat(client, text, max_tokens=1)) == 0


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_a_probe_reads_the_host_tier_from_the_page(kind: Kind) -> None:
    """A pool of 1,000 tokens that two chats outgrow in turn, and a tier that holds both."""
    profile = H100.replace(kv_blocks=64, host_tier_tokens=6_400, restore_tokens_per_s=230_000.0)
    with (
        EmbeddedServer(profile, time_scale=math.inf, metrics=kind) as server,
        connect(server) as client,
        HttpProbe(server.url) as probe,
    ):
        texts = [text_of_tokens(700, seed=seed) for seed in "ab"]
        answers = [chat(client, user(text), max_tokens=1) for text in (*texts, texts[0])]
        after = probe.read()
    assert cached(answers[2]) > 600
    assert after.hit_tokens_total == cached(answers[2])
    assert after.host_hit_tokens_total
    assert after.host_hit_tokens_total > 300
    assert after.host_capacity_tokens == pytest.approx(6_400, rel=1e-6)
    if kind == "sglang":
        assert after.host_used_tokens
        assert after.host_used_tokens >= 1_376


def test_seconds_on_the_page_are_those_of_the_clients() -> None:
    """8,000 prompt tokens take this machine 0.22 s; at ten times its speed, 22 ms."""
    sums = {}
    for scale in (1.0, 10.0):
        with EmbeddedServer(H100, time_scale=scale) as server, connect(server) as client:
            chat(client, user(text_of_tokens(8000)), max_tokens=1)
            with HttpProbe(server.url) as probe:
                sums[scale] = probe.read().prefill_s_total
    assert sums[1.0] == pytest.approx(0.226, rel=0.05)
    assert sums[10.0] == pytest.approx(0.0226, rel=0.05)


def test_a_time_scale_divides_the_waiting() -> None:
    def seconds(scale: float) -> float:
        with EmbeddedServer(H100, time_scale=scale) as server, connect(server) as client:
            chat(client, user("warm"), max_tokens=1)
            start = time.monotonic()
            chat(client, user(text_of_tokens(20_000)), max_tokens=20)
            return time.monotonic() - start

    assert seconds(1.0) >= 0.66  # 20,000 tokens of prefill
    assert any(seconds(20.0) < 0.5 for _ in range(5))  # some may find the machine busy


# --- who is there --------------------------------------------------------------------------------


def test_calls_and_agents_in_flight_are_counted() -> None:
    with EmbeddedServer(H100, time_scale=1.0) as server, connect(server) as client:

        def call(i: int) -> None:
            extra = {"x-concur-agent": f"agent-{i % 3}"} if i < 6 else {}
            chat(client, user(f"{i}"), max_tokens=60, extra_headers=extra)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(call, range(8)))
        stats = server.stats
        seen = httpx.get(f"{server.url}/stats").json()
    assert (stats.calls, stats.in_flight) == (8, 0)
    assert 2 <= stats.max_in_flight <= 8
    assert 2 <= stats.max_agents_in_flight <= 3
    assert stats.calls_by_agent == {"agent-0": 2, "agent-1": 2, "agent-2": 2}
    assert not stats.in_flight_by_agent
    assert seen["calls_by_agent"] == stats.calls_by_agent
    assert seen["output_tokens"] == stats.output_tokens > 8
    assert "8 calls" in repr(stats)


@pytest.mark.parametrize("where", ["x-session-id", "session_id", "user"])
def test_an_agent_is_known_by_header_or_body(http: httpx.Client, where: str) -> None:
    server_side = {"messages": [user("hi")]} | ({where: "me"} if "-" not in where else {})
    headers = {where: "me"} if "-" in where else {}
    http.post("/v1/chat/completions", json=server_side, headers=headers)
    assert http.get("/stats").json()["calls_by_agent"] == {"me": 1}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_frees_the_engine(stream: bool) -> None:
    with EmbeddedServer(H100, time_scale=0.1) as server:
        async with httpx.AsyncClient(base_url=server.url) as http:
            body = {"messages": [user(text_of_tokens(8000))], "stream": stream}
            late = httpx.Timeout(30, read=0.5)
            with pytest.raises(httpx.ReadTimeout):
                await http.post("/v1/chat/completions", json=body, timeout=late)
            while not server.stats.aborted:
                await asyncio.sleep(0.02)
            assert (server.stats.calls, server.stats.in_flight) == (1, 0)
            running: float | None = 1.0
            while running:  # its step still ends
                await asyncio.sleep(0.1)
                page = (await http.get("/metrics")).text
                running = parse_page(page, time.monotonic()).reading.running
            assert 'finished_reason="abort",model_name="Qwen3-8B"} 1.0' in page


def test_calls_in_flight_get_an_answer_when_the_server_stops() -> None:
    server = EmbeddedServer(H100, time_scale=0.001).start()
    with ThreadPoolExecutor(2) as pool, httpx.Client(base_url=server.url, timeout=20) as http:
        body = {"messages": [user("hi")]}
        plain = pool.submit(http.post, "/v1/chat/completions", json=body)
        stream = pool.submit(http.post, "/v1/chat/completions", json={**body, "stream": True})
        while server.stats.in_flight < 2:
            time.sleep(0.01)
        server.stop()
        assert plain.result().status_code == 503
        assert "shutting down" in sse(stream.result())[-1]["error"]["message"]
    server.stop()  # a second time does nothing
    with pytest.raises(ConcurError, match="not running"):
        _ = server.url


# --- starting and stopping -----------------------------------------------------------------------


def test_a_server_can_have_a_process_of_its_own() -> None:
    small = H100.replace(kv_blocks=1000)
    with EmbeddedServer(small, time_scale=100, process=True, model="mine") as server:
        assert server._process is not None
        with HttpProbe(server.url) as probe:
            assert probe.read().capacity_tokens == 16_000
        answer = httpx.post(
            f"{server.url}/v1/chat/completions", json={"model": "mine", "messages": [user("hi")]}
        )
        assert answer.status_code == 200
        process = server._process
        with pytest.raises(ConcurError, match="has its own process"):
            _ = server.stats
        with pytest.raises(ConcurError, match="is running already"):
            server.start()
    assert process.returncode == 0
    assert "not running" in repr(server)


def test_a_server_in_a_process_of_its_own_says_why_it_cannot_start() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = EmbeddedServer(H100, process=True, port=taken.getsockname()[1])
        with pytest.raises(ConcurError, match=r"it said: cannot listen on 127\.0\.0\.1"):
            server.start()


def test_replicas_take_the_ports_that_follow() -> None:
    taken: list[socket.socket] = []
    try:
        for _ in range(50):  # until the port before a free one is free, too
            taken.append(socket.create_server(("127.0.0.1", 0)))
            after = taken[-1].getsockname()[1]
            with suppress(OSError), socket.create_server(("127.0.0.1", after - 1)):
                break
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{after} "):
            serve(ServerOptions(profile=H100, port=after - 1), replicas=2)
    finally:
        for each in taken:
            each.close()


def test_a_server_can_be_started_again() -> None:
    server = EmbeddedServer(H100, time_scale=math.inf)
    urls = []
    for _ in range(2):
        with server:
            assert httpx.get(f"{server.url}/health").status_code == 200
            assert server.url.startswith("http://127.0.0.1:")
            urls.append(server.url)
    assert len(urls) == 2


def test_wrong_options_and_a_taken_port_say_so() -> None:
    with pytest.raises(ConfigError, match="time_scale must be above 0, got 0"):
        EmbeddedServer(H100, time_scale=0)
    with pytest.raises(ConfigError, match="metrics must be one of vllm, sglang, got 'trt'"):
        EmbeddedServer(H100, metrics="trt")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cannot be sent to another process"):
        EmbeddedServer(H100, process=True, script=lambda _: None)
    with pytest.raises(ConfigError, match="port must be between 0 and 65535, got 65537"):
        EmbeddedServer(H100, port=65537)
    with pytest.raises(ConfigError, match="replicas must be at least 1, got 0"):
        serve(ServerOptions(profile=H100), replicas=0)
    with pytest.raises(ConfigError, match="no engine profile named 'h200'"):
        EmbeddedServer("h200")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            EmbeddedServer(H100, port=port).start()
        with pytest.raises(ConfigError, match="cannot listen"):
            serve(ServerOptions(profile=H100, port=port))


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "concur_agents.sim.app", raising=False)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    with pytest.raises(ImportError, match=r'pip install "concur-agents\[server\]"'):
        EmbeddedServer(H100).start()


# --- several engines behind one port -------------------------------------------------------------


def ask(server: EmbeddedServer, text: str = "hello", **headers: str) -> httpx.Response:
    body = {"messages": [user(text)], "max_tokens": 4}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=named)


def prompts_by_rank(server: EmbeddedServer) -> list[float]:
    return [engine.counters().prompt_tokens_total for engine in server.engines]


def test_without_a_header_calls_go_to_the_engines_in_turn() -> None:
    with EmbeddedServer(H100, time_scale=math.inf, engines=4) as server:
        for _ in range(8):
            ask(server, x_session_id="a")

        assert server.stats.ranks_by_agent == {"a": {0: 2, 1: 2, 2: 2, 3: 2}}
        assert len(set(prompts_by_rank(server))) == 1


def test_the_header_pins_a_call_to_its_engine_and_finds_its_history_there() -> None:
    text = text_of_tokens(1000)
    with EmbeddedServer(H100, time_scale=math.inf, engines=4, worker_header=True) as server:
        answers = [ask(server, text, x_data_parallel_rank="2") for _ in range(2)]

        hits = [answer.json()["usage"]["prompt_tokens_details"] for answer in answers]
        assert [each["cached_tokens"] for each in hits] == [0, 992]
        said = {answer.headers["x-smg-routed-worker-id"] for answer in answers}
        assert said == {f"{server.url}@2"}
        assert [tokens > 0 for tokens in prompts_by_rank(server)] == [False, False, True, False]


def test_a_rank_that_is_not_there_is_refused() -> None:
    with EmbeddedServer(H100, time_scale=math.inf, engines=4) as server:
        refused = [ask(server, x_data_parallel_rank=rank) for rank in ("4", "-1", "first")]

        assert [answer.status_code for answer in refused] == [400, 400, 400]
        assert "out of range [0, 4)" in refused[0].json()["error"]["message"]
        assert server.stats.calls == 0


def test_an_engine_behind_a_router_refuses_every_rank_but_its_own() -> None:
    with EmbeddedServer(H100, time_scale=math.inf, engines=4, rank_header="refuse") as server:
        assert ask(server, x_data_parallel_rank="0").status_code == 200
        assert "out of range [0, 1)" in ask(server, x_data_parallel_rank="1").text


def test_a_server_that_ignores_the_header_goes_on_in_turn() -> None:
    with EmbeddedServer(H100, time_scale=math.inf, engines=2, rank_header="ignore") as server:
        for _ in range(4):
            assert ask(server, x_data_parallel_rank="0", x_session_id="a").status_code == 200

        assert server.stats.ranks_by_agent == {"a": {0: 2, 1: 2}}


def test_sglang_takes_the_rank_from_the_body_too() -> None:
    body = {"messages": [user("hello")], "max_tokens": 4, "routed_dp_rank": 1}
    with EmbeddedServer(H100, time_scale=math.inf, engines=2, metrics="sglang") as server:
        httpx.post(f"{server.url}/v1/chat/completions", json=body)

        assert [tokens > 0 for tokens in prompts_by_rank(server)] == [False, True]


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_the_page_shows_each_engine(kind: Kind) -> None:
    with EmbeddedServer(H100, time_scale=math.inf, engines=4, metrics=kind) as server:
        for _ in range(2):
            ask(server, text_of_tokens(1000), x_data_parallel_rank="3")
        page = parse_page(httpx.get(f"{server.url}/metrics").text, 0.0)

    assert list(page.readings) == ["0", "1", "2", "3"]
    assert [reading.hit_tokens_total for reading in page.readings.values()] == [0, 0, 0, 992]
    assert page.smallest_capacity_tokens == H100.capacity_tokens
    assert page.reading.capacity_tokens == 4 * H100.capacity_tokens


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_no_series_of_the_page_is_there_twice(kind: Kind) -> None:
    with EmbeddedServer(H100, time_scale=math.inf, engines=2, metrics=kind) as server:
        ask(server)
        ask(server)
        text = httpx.get(f"{server.url}/metrics").text

    lines = [line.rpartition(" ")[0] for line in text.splitlines() if line[:1] != "#"]
    assert len(lines) == len(set(lines))


def test_several_engines_in_a_process_of_their_own() -> None:
    with EmbeddedServer(
        H100, time_scale=math.inf, engines=2, worker_header=True, process=True
    ) as server:
        said = [ask(server).headers["x-smg-routed-worker-id"] for _ in range(2)]

        assert [where[-2:] for where in said] == ["@0", "@1"]


@pytest.mark.parametrize("wrong", [{"engines": 0}, {"rank_header": "perhaps"}])
def test_wrong_options_for_several_engines_are_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        EmbeddedServer(H100, **wrong)


def test_resetting_the_cache_empties_every_engine() -> None:
    with EmbeddedServer(H100, time_scale=math.inf, engines=2) as server:
        for rank in "01":
            ask(server, text_of_tokens(1000), x_data_parallel_rank=rank)
        httpx.post(f"{server.url}/reset_prefix_cache")

        assert [engine.cache.evictable_blocks for engine in server.engines] == [0, 0]
