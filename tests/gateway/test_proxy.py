"""Calls are held until their agent may run; what passes, passes as it is."""

import asyncio
import gzip
import json
import resource

import aiohttp
import pytest
from aiohttp import web

from concur_agents.gateway import proxy
from concur_agents.gateway.holding import Times

CHAT = "/v1/chat/completions"
SAY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
COUNTED = {"x-stainless-retry-count": "0"}
AGAIN = {"x-stainless-retry-count": "1"}
USAGE = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}


async def raw(url, text):
    """The bytes of an answer, up to the end of the connection."""
    host, _, port = url.partition("://")[2].partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(text)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


def parts(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *headers = head.split(b"\r\n")
    if b"Transfer-Encoding: chunked" in headers:  # where chunks end is a matter of time
        body, rest = b"", body
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return status, sorted(h for h in headers if not h.lower().startswith(b"date:")), body


async def events(request, _):
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await answer.prepare(request)
    for piece in (b"data: {}\n", b"\n: own comment\n", b"data: [DO", b"NE]\n\n"):
        await answer.write(piece)
    return answer


def fixed(status=200, body=b"", **headers):
    async def answer(request, _):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, body=body, headers=named)

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        fixed(200, b'{"a": 1}', Content_Type="application/json", X_Own="1", Set_Cookie="a=b"),
        fixed(200, gzip.compress(b'{"usage":{}}'), Content_Encoding="gzip", Content_Type="a/b"),
        fixed(400, b'{"error": "no"}', Content_Type="application/json"),
        fixed(404),
        fixed(422, b"\xff\x00", Content_Type="application/octet-stream"),
        fixed(429, b"slow down", Retry_After="7", Content_Type="text/plain"),
        fixed(500, b"", X_Request_Id="r"),
        fixed(503, b"{}", Content_Type="application/json"),
        fixed(204),
        fixed(307, b"", Location="/elsewhere"),
        events,
    ],
)
@pytest.mark.parametrize("method", [b"POST", b"HEAD"])
async def test_an_answer_is_the_engines_byte_for_byte(engine, before, answer, method):
    if method == b"HEAD" and answer is events:
        pytest.skip("an answer to HEAD has no body")
    engine.answer = answer
    body = json.dumps(SAY).encode()
    text = b"%s %s HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
    text %= method, CHAT.encode(), len(body), body
    async with before() as front:
        assert parts(await raw(front.url, text)) == parts(await raw(engine.url, text))


async def test_a_request_is_the_clients_byte_for_byte(engine, before):
    body = b'{ "model":"m",\n"messages": [ {"role":"user","content":"\\u00e4 \xc3\xa4"} ] }'
    path = "/v1/chat/completions/?a=%2F%20b&c=d;e&&f=%E4"
    async with before() as front:
        headers = {"X-Own": "1", "content-TYPE": "application/json", "User-Agent": "mine"}
        url = front.url.encode()[7:]
        text = b"POST /agent/a%s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n" % (
            path.encode(),
            url,
        )
        text += b"".join(b"%s: %s\r\n" % (n.encode(), v.encode()) for n, v in headers.items())
        await raw(front.url, text + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    seen = engine.seen[0]
    assert seen.path == path
    assert seen.body == body
    own = [(n.decode(), v.decode()) for n, v in seen.headers]
    assert [pair for pair in own if pair[0] in headers] == list(headers.items())
    rest = {name.lower() for name, _ in own} - {name.lower() for name in headers}
    assert rest == {"host", "content-length"}


async def test_a_chunked_request_reaches_the_engine(engine, before):
    async def pieces():
        yield json.dumps(SAY).encode()[:9]
        yield json.dumps(SAY).encode()[9:]

    async with before() as front:
        assert (await front.ask(data=pieces()))[0] == 200
    assert engine.seen[0].json == SAY


async def test_a_client_that_asks_whether_to_go_on_is_told_so(engine, before):
    async with before() as front:
        assert (await front.ask(expect100=True))[0] == 200
    assert engine.seen[0].header("expect") is None


async def test_what_is_no_call_passes_without_an_agent(engine, before):
    engine.answer = fixed(200)
    async with before(limit=1) as front, front.governor.agent("holder"):
        async with front.client.get(f"{front.url}/v1/models?x=1") as answer:
            assert answer.status == 200
        async with front.client.post(f"{front.url}/tokenize", data=b"\0\1") as answer:
            assert answer.status == 200
        assert [(seen.method, seen.path, seen.body) for seen in engine.seen] == [
            ("GET", "/v1/models?x=1", b""),
            ("POST", "/tokenize", b"\0\1"),
        ]
        assert front.governor.snapshot().alive == 1


async def test_a_request_that_empties_the_cache_is_known_to_the_governor(engine, before):
    async with before(limit=1) as front:
        flushed = []
        front.governor.on_event(lambda e: flushed.append(e) if e.kind == "flushed" else None)
        for path, status in (("/sleep?level=1", 200), ("/v1/models", 200), ("/sleep", 400)):
            engine.answer = fixed(status)
            async with front.client.post(f"{front.url}{path}") as answer:
                assert answer.status == status
        assert len(flushed) == 1
        assert (await front.ask())[0] == 400  # the engine's answer: nothing is held any more


# --- holding -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "sign"),
    [(CHAT, b": held\n"), ("/v1/messages", b'event: ping\ndata: {"type": "ping"}\n\n')],
)
async def test_a_stream_is_kept_alive_while_it_is_held(engine, before, path, sign):
    async with before(limit=1) as front:
        async with front.governor.agent("holder"):
            answer = await front.post(path, json=SAY | {"stream": True})
            assert answer.status == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert await answer.content.readexactly(3 * len(sign)) == 3 * sign
            assert engine.seen == []
        rest = await answer.content.read()
        assert rest.startswith((sign, b"data: ", b"event: message_start"))
        assert b"hello" in rest
        assert engine.seen[0].header("accept-encoding") == "identity"


async def test_what_is_no_stream_is_held_in_silence_and_passes_in_time(engine, before):
    """Its client would hang up and try again, and the engine would do the work twice."""
    async with before(limit=1) as front, front.governor.agent("holder"):
        headers = {"x-stainless-read-timeout": "0.5"}
        assert (await front.ask(headers=headers))[0] == 200
        assert await front.metric("concur_gateway_passed_total") == 1
        assert front.ended == []
        assert front.governor.snapshot().queued == 0, "it waits no more, and has left"


async def test_a_held_call_is_sent_when_its_turn_comes(engine, before):
    async with before(limit=1) as front:
        async with front.governor.agent("holder"):
            asking = asyncio.create_task(front.ask())
            await front.waiting(1)
            assert engine.seen == []
        assert (await asking)[0] == 200
        assert front.ended[0].usage.prompt_tokens == 100


async def test_an_error_after_a_sign_of_life_is_an_event(engine, before):
    """Its status has been sent, so a client reads it where it reads the stream's own errors."""
    engine.answer = fixed(400, b'{"error": {"message": "too long"}}')
    async with before(limit=1) as front:
        for path, prefix in ((CHAT, b"data: "), ("/v1/messages", b"event: error\ndata: ")):
            async with front.governor.agent("holder"):
                answer = await front.post(path, json=SAY | {"stream": True})
                await answer.content.readline()
            text = await answer.content.read()
            event = text[text.index(prefix) :].removeprefix(prefix)
            assert json.loads(event)["error"]["message"] == "too long"
            async with front.client.delete(f"{front.url}/agent/a"):
                pass


async def test_an_answer_that_is_no_stream_after_a_sign_of_life_is_one_event(engine, before):
    engine.answer = fixed(200, b'{\n"usage": {"prompt_tokens": 5, "completion_tokens": 1}}')
    async with before(limit=1) as front:
        async with front.governor.agent("holder"):
            answer = await front.post(json=SAY | {"stream": True})
            await answer.content.readline()
        text = await answer.content.read()
        assert json.loads(text[text.index(b"data: ") + 6 :])["usage"]["prompt_tokens"] == 5
        assert front.ended[0].usage.prompt_tokens == 5


# --- hanging up, and trying again ----------------------------------------------------------------


async def test_a_client_that_hangs_up_while_it_is_held_leaves_no_place(engine, before):
    async with before(limit=1) as front:
        async with front.governor.agent("holder"):
            for stream in (False, True):
                asking = asyncio.create_task(front.ask(json=SAY | {"stream": stream}))
                await front.waiting(1)
                asking.cancel()
                await front.waiting(0)
        assert engine.seen == []
        assert front.ended == []


async def test_a_client_that_hangs_up_in_a_call_ends_it(engine, before):
    async def never(request, _):
        await asyncio.sleep(3600)

    engine.answer = never
    async with before(limit=1) as front:
        asking = asyncio.create_task(front.ask())
        await front.until(lambda: engine.seen)
        asking.cancel()
        await front.until(lambda: engine.hung_up)
        await front.until(lambda: front.governor.snapshot().reasoning == 0)
        assert len(front.ended) == 1


async def test_a_client_that_hangs_up_in_a_stream_ends_it(engine, before):
    async def endless(request, _):
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        while True:
            await answer.write(b"data: {}\n\n")
            await asyncio.sleep(0.01)

    engine.answer = endless
    async with before() as front:
        answer = await front.post(json=SAY | {"stream": True}, headers=COUNTED)
        await answer.content.readline()
        answer.close()
        await front.until(lambda: front.ended)


@pytest.mark.parametrize("is_held", [True, False])
async def test_a_retry_takes_its_call_over(engine, before, is_held, monkeypatch):
    """A hung-up try and its retry must not both be computed."""
    monkeypatch.setattr(proxy.retries, "linger_s", lambda count: 60.0)
    may_answer = asyncio.Event()

    async def late(request, body):
        await may_answer.wait()
        return await engine.usual(request, body)

    engine.answer = late
    async with before(limit=1) as front:
        holder = front.governor.agent("holder")
        if is_held:
            await holder.open()
        first = asyncio.create_task(front.ask(headers=COUNTED))
        await (front.waiting(1) if is_held else front.until(lambda: engine.seen))
        first.cancel()
        second = asyncio.create_task(front.ask(headers=AGAIN))
        await asyncio.sleep(0.05)
        holder.close()
        may_answer.set()
        assert (await second)[0] == 200
        assert await front.metric("concur_gateway_joined_total") == 1
        assert len(engine.seen) == len(front.ended) == 1


async def test_a_call_whose_retry_does_not_come_ends(engine, before, monkeypatch):
    monkeypatch.setattr(proxy.retries, "linger_s", lambda count: 0.05)
    async with before(limit=1) as front:
        async with front.governor.agent("holder"):
            asking = asyncio.create_task(front.ask(headers=COUNTED))
            await front.waiting(1)
            asking.cancel()
            await front.waiting(0)
            assert await front.ask(agent="holder-2", headers=AGAIN | {"x-stainless-timeout": "0"})
        assert len(engine.seen) == 1


async def test_a_gateway_that_ends_ends_calls_that_wait_for_their_retry(engine, before):
    async with before(limit=1) as front, front.governor.agent("holder"):
        asking = asyncio.create_task(front.ask(headers=COUNTED))
        await front.waiting(1)
        asking.cancel()
        await front.until(lambda: front.gateway._proxy._lingering)
        await front.gateway._proxy.close()
        assert front.governor.snapshot().queued == 0


async def test_two_samples_of_one_prompt_are_two_calls(engine, before):
    async with before() as front:
        await asyncio.gather(front.ask(headers=COUNTED), front.ask(headers=COUNTED))
        assert len(engine.seen) == len(front.ended) == 2


async def test_a_retry_of_an_answered_call_is_a_new_call(engine, before):
    engine.answer = fixed(500)
    async with before() as front:
        await front.ask(headers=COUNTED)
        engine.answer = engine.usual
        assert (await front.ask(headers=AGAIN))[0] == 200
        assert len(engine.seen) == 2


# --- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/models"])
async def test_an_engine_that_is_gone_is_a_502_that_clients_retry(engine, before, path):
    async with before() as front:
        front.gateway._engines.bases = [front.gateway._engines._base("http://127.0.0.1:9")]
        status, text = await front.ask(path)
        assert status == 502
        assert "cannot be reached" in json.loads(text)["error"]["message"]
        assert front.governor.snapshot().reasoning == 0


async def test_an_engine_that_dies_in_a_stream_ends_the_clients_connection(engine, before):
    has_arrived = asyncio.Event()

    async def dies(request, _):
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        await answer.write(b'data: {"usage": {"prompt_tokens": 9, "completion_tokens": 2}}\n\n')
        await has_arrived.wait()
        request.transport.close()
        return answer

    engine.answer = dies
    async with before() as front:
        answer = await front.post(json=SAY | {"stream": True})
        await answer.content.readline()
        has_arrived.set()
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
        await front.until(lambda: front.ended)
        assert front.ended[0].usage.prompt_tokens == 9
        assert front.governor.snapshot().reasoning == 0


async def test_a_refusal_for_lack_of_capacity_reaches_the_law(engine, before):
    engine.answer = fixed(429, b"{}", Retry_After="7")
    async with before() as front:
        assert (await front.ask())[0] == 429
        assert front.ended[0].usage is None


async def test_a_slow_reader_does_not_keep_the_place(engine, before):
    """Its call is over when the engine has answered, and not when the reader has read."""
    engine.answer = fixed(200, b"x" * 200_000 + b'"usage": {"prompt_tokens": 5}')
    async with before(limit=1) as front:
        host, _, port = front.url.partition("://")[2].partition(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1)
        body = json.dumps(SAY).encode()
        head = b"POST /agent/a%s HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % (CHAT.encode(), len(body)) + body)
        await front.until(lambda: front.ended)
        assert front.ended[0].usage.prompt_tokens == 5
        writer.close()


async def test_a_reader_that_takes_nothing_is_given_up(engine, before, monkeypatch):
    monkeypatch.setattr("concur_agents.gateway.relay.READER_S", 0.0)
    monkeypatch.setattr("concur_agents.gateway.app._LOOK_S", 0.01)
    engine.answer = fixed(200, b"x" * 30_000_000)
    async with before(limit=1) as front:
        host, _, port = front.url.partition("://")[2].partition(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1)
        body = json.dumps(SAY).encode()
        head = b"POST /agent/a%s HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % (CHAT.encode(), len(body)) + body)
        await front.until(lambda: front.ended)
        writer.close()


async def test_a_half_sent_request_takes_no_place(engine, before, monkeypatch):
    monkeypatch.setattr(proxy, "PATIENCE_S", 0.05)
    head = b"POST /agent/a%s HTTP/1.1\r\nHost: h\r\nContent-Length: 99\r\n\r\n{"
    async with before() as front:
        answer = await raw(front.url, head % CHAT.encode())
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert front.governor.snapshot().alive == 0


async def test_a_malformed_body_is_the_clients_error(engine, before):
    head = b"POST %s HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    async with before() as front:
        assert b" 400 " in await raw(front.url, head % CHAT.encode())
        assert front.governor.snapshot().alive == 0


async def test_a_hundred_megabytes_pass_in_bounded_memory(engine, before):
    """Neither while they are held nor while they pass may they all be in memory."""
    size, piece = 100, b"x" * (1024 * 1024)
    received = 0

    async def count(request):
        nonlocal received
        while part := await request.content.readany():
            received += len(part)
        return web.Response()

    async def pieces():
        for _ in range(size):
            yield piece

    engine.handle_large = count
    runner = web.ServerRunner(web.Server(count, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    async with before(limit=1, engines=f"http://127.0.0.1:{runner.addresses[0][1]}") as front:
        before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        async with front.governor.agent("holder"):
            asking = asyncio.create_task(front.ask(data=pieces()))
            await front.waiting(1)
        assert (await asking)[0] == 200
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb
    await runner.cleanup()
    assert received == size * len(piece)
    assert grown < 50 * 1024, "kilobytes"


async def test_a_closed_governor_lets_all_calls_pass(engine, before):
    async with before(limit=1) as front:
        front.governor.close()
        assert (await front.ask())[0] == 200


async def test_an_agent_of_the_same_name_elsewhere_does_not_stop_a_call(engine, before, caplog):
    async with before(limit=1) as front, front.governor.agent("a"):
        assert (await front.ask())[0] == 200
        assert "passes ungoverned" in caplog.text


# --- whose call it is, and what it used ----------------------------------------------------------


async def test_an_agent_is_named_by_path_key_or_header_and_else_guessed(engine, before):
    async with before(limit=4) as front:
        for headers in (
            {},
            {"Authorization": "Bearer sk-agent-k"},
            {"x-claude-code-session-id": "s", "x-claude-code-agent-id": "c"},
        ):
            await front.ask(agent=None, headers=headers)
        agents = {event.agent for event in front.ended}
        guess = next(name for name in agents if name.startswith("guess~"))
        assert agents == {guess, "k", "s/c"}
        assert front.gateway.agents.find("s/c").parent.agent.id == "s"
        async with front.client.get(f"{front.url}/healthz") as answer:
            assert await answer.json() == {
                "status": "ok",
                "agents": 4,
                "guesses": 1,
                "waiting": 0,
                "passing": False,
            }
        assert all(seen.header("authorization") is None for seen in engine.seen)


@pytest.mark.parametrize("ungoverned", ["pass", "agent", "error"])
async def test_a_call_without_an_agent_is_met_as_the_governor_says(engine, before, ungoverned):
    from concur_agents.governor import Governor

    governor = Governor(limit=1, ungoverned=ungoverned)
    async with before(governor=governor, may_guess=False) as front:
        status, _ = await front.ask(agent=None)
        assert status == (403 if ungoverned == "error" else 200)


@pytest.mark.parametrize(
    ("path", "stream", "tokens"),
    [
        (CHAT, False, (100, 7)),
        (CHAT, True, (100, 7)),
        ("/v1/messages", False, (100, 7)),
        ("/v1/messages", True, (100, 7)),
    ],
)
async def test_what_a_call_used_is_read_as_its_answer_passes(engine, before, path, stream, tokens):
    async with before() as front:
        _, text = await front.ask(path, json=SAY | {"stream": stream})
        usage = front.ended[0].usage
        assert (usage.prompt_tokens, usage.completion_tokens) == tokens
        assert b'"choices": []' not in text, "the client has not asked for that event"


async def test_a_client_that_asks_for_usage_gets_it(engine, before):
    asked = SAY | {"stream": True, "stream_options": {"include_usage": True}}
    async with before() as front:
        _, text = await front.ask(json=asked)
        assert b'"choices": []' in text
    assert engine.seen[0].json == asked


async def test_an_engine_that_refuses_to_report_usage_is_asked_once(engine, before):
    async def strict(request, body):
        if b"stream_options" in body:
            return web.json_response({"error": "unknown field stream_options"}, status=400)
        return await engine.usual(request, body)

    engine.answer = strict
    async with before() as front:
        for _ in range(2):
            assert (await front.ask(json=SAY | {"stream": True}))[0] == 200
    assert [b"stream_options" in seen.body for seen in engine.seen] == [True, False, False]


async def test_an_error_of_the_client_is_not_taken_for_a_refusal_of_usage(engine, before):
    engine.answer = fixed(400, b"the model does not exist")
    async with before() as front:
        answer = await front.ask(json=SAY | {"stream": True})
        assert answer == (400, b"the model does not exist")
    assert len(engine.seen) == 1


async def test_a_zipped_body_passes_unread(engine, before):
    """Whose call it is may then be said by a header only."""
    body = gzip.compress(json.dumps(SAY).encode())
    async with before() as front:
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        assert (await front.ask(data=body, headers=headers))[0] == 200
        assert front.ended[0].agent == "a"


async def test_a_hundred_requests_of_ten_agents_at_once(engine, before):
    async with before(limit=10, times=Times()) as front:
        found = await asyncio.gather(*(front.ask(agent=f"a{n % 10}") for n in range(100)))
        assert {status for status, _ in found} == {200}
        assert len(front.ended) == 100
        assert front.governor.snapshot().active == 10
