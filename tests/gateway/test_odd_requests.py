"""Requests in forms that few clients send: each is answered as the engine would, or refused."""

import asyncio
import json
import logging

import pytest
from aiohttp import web

from concur_agents.adapters.addresses import base
from concur_agents.gateway.engines import redirection

CHAT = "/v1/chat/completions"
SAY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode()
STREAM = SAY[:-1] + b', "stream": true}'


def request(method="POST", path=CHAT, *headers, body=SAY, close=True):
    lines = [f"{method} {path} HTTP/1.1", "Host: h", *headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    if close:
        lines.append("Connection: close")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")


async def say(url, *pieces):
    """What comes back up to the end of the connection."""
    host, _, port = url.partition("://")[2].rpartition(":")
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
    answer = await reader.read()
    writer.close()
    return answer


async def test_requests_that_are_sent_at_once_are_answered_in_their_order(engine, before):
    async with before() as front:
        parts = [request(path=f"/agent/a{CHAT}", body=STREAM, close=False)] * 3
        answer = await say(front.url, *parts, request("GET", "/v1/models", body=None))
        assert answer.count(b"HTTP/1.1 200 OK") == 4
        assert answer.count(b"data: [DONE]") == 3
        assert answer.endswith(b'{"object": "list", "data": []}')
        assert [event.agent for event in front.ended] == ["a"] * 3


@pytest.mark.parametrize("status", [400, 404, 500])
async def test_a_connection_goes_on_after_an_error(engine, before, status):
    async def errs_once(request, body):
        if len(engine.seen) == 1:
            return web.json_response({"error": "no"}, status=status)
        return await engine.usual(request, body)

    engine.answer = errs_once
    async with before() as front:
        answer = await say(front.url, request(close=False), request())
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert b"HTTP/1.1 200 OK" in answer


async def test_a_body_is_sent_once_its_client_is_told_to_go_on(before):
    async with before() as front:
        host, _, port = front.url.partition("://")[2].partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = request("POST", CHAT, "Expect: 100-continue").partition(SAY)[0]
        writer.write(head)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(SAY)
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
        writer.close()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("HEAD", CHAT),
        ("OPTIONS", CHAT),
        ("GET", "/v1/models?a=%20b"),
        ("POST", "/v1/embeddings"),
        ("POST", "/tokenize"),
        ("DELETE", "/v1/responses/resp_1"),
        ("PATCH", "/v1//x/../y"),
        ("GET", "/agent/a/v1/models"),
    ],
)
async def test_any_other_route_and_method_reaches_the_engine(engine, before, method, path):
    async with before(limit=1) as front, front.governor.agent("holder"):
        body = SAY if method in ("POST", "PATCH") else None
        assert b" 200 OK" in await say(front.url, request(method, path, body=body))
        (seen,) = engine.seen
        assert (seen.method, seen.path, seen.body) == (
            method,
            path.removeprefix("/agent/a"),
            body or b"",
        )


async def test_an_upgrade_is_answered_as_a_plain_request(engine, before):
    async def refuses(request, body):
        return web.Response(status=426, headers={"Connection": "close"})

    engine.answer = refuses
    upgrade = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
    async with before() as front:
        host, _, port = front.url.partition("://")[2].partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request("GET", "/v1/realtime", *upgrade, body=None, close=False))
        assert (await reader.readline()).startswith(b"HTTP/1.1 426 ")
        writer.close()
    assert engine.seen[0].header("upgrade") is None


async def test_it_is_no_forward_proxy(engine, before):
    async with before() as front:
        answer = await say(front.url, request("CONNECT", "example.org:443", body=None))
        assert answer.startswith(b"HTTP/1.1 405 ")
    assert engine.seen == []


@pytest.mark.parametrize(
    "text",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        request("POST", CHAT, "Authorization : Bearer s3cret"),
        request("POST", CHAT, "Content-Length: 5"),
        request("POST", CHAT, "Transfer-Encoding: chunked"),
    ],
)
async def test_what_is_no_http_is_refused_without_a_trace_in_the_log(before, caplog, text):
    """A port scanner would fill it otherwise."""
    caplog.set_level(logging.INFO)
    async with before() as front:
        assert b" 400 " in await say(front.url, text)
    assert "a request is no HTTP" in caplog.text
    assert "Traceback" not in caplog.text
    assert "s3cret" not in caplog.text


async def test_a_name_is_decoded_once_and_is_the_same_in_a_path_and_at_its_end(engine, before):
    async with before(limit=1) as front:
        await say(front.url, request(path=f"/agent/a%2Fb%20%C3%A4%2520{CHAT}"))
        (event,) = front.ended
        assert front.gateway.agents.find(event.agent) is not None
        ended = await say(front.url, request("DELETE", "/agent/a%2Fb%20%C3%A4%2520", body=None))
        assert ended.startswith(b"HTTP/1.1 204 ")
    assert engine.seen[0].path == CHAT


async def test_headers_may_be_large_and_come_twice(engine, before):
    async with before() as front:
        own = ["X-Big: " + "x" * 7000, "X-Twice: 1", "X-Twice: 2", "x-session-id: a"]
        assert b"200 OK" in await say(front.url, request("POST", CHAT, *own, "x-session-id: b"))
        assert b" 400 " in await say(front.url, request("POST", CHAT, "X-Big: " + "x" * 70_000))
    sent = [f"{name.decode()}: {value.decode()}" for name, value in engine.seen[0].headers]
    assert [text for text in sent if text.lower().startswith("x-")] == [*own, "x-session-id: b"]
    assert front.ended[0].agent == "a"


@pytest.mark.parametrize("indent", [b" ", b"\r\n\t "])
async def test_white_space_before_a_body_changes_nothing(engine, before, indent):
    """It would be taken for no stream, and held in silence."""
    async with before(limit=1) as front:
        async with front.governor.agent("holder"):
            answer = await front.post(data=indent + STREAM)
            assert await answer.content.readline() == b": held\n"
        assert b"hello" in await answer.content.read()
        assert front.ended[0].usage.prompt_tokens == 100, "it was asked for"
    assert engine.seen[0].body.startswith(indent + b'{"stream_options"')
    assert engine.seen[0].body.endswith(STREAM[1:])


@pytest.mark.parametrize("body", [b"", b"\xff\xfe\0", b"[1]", b'{"messages": 1}', b"null", b'"'])
async def test_a_body_that_is_no_request_is_for_the_engine_to_refuse(engine, before, body):
    async def refuses(request, body):
        return web.Response(status=400, body=b"not: " + body)

    engine.answer = refuses
    async with before() as front:
        answer = await say(front.url, request(body=body))
        assert answer.endswith(b"not: " + body)
        assert front.governor.snapshot().reasoning == 0


# --- where engines are ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "location", "before", "found"),
    [
        ("http://gpu1:8000", "http://gpu1:8000/v1/x?a=b", "", "/v1/x?a=b"),
        ("http://gpu1:8000", "http://gpu1:8000/v1/x", "/agent/a", "/agent/a/v1/x"),
        ("http://gpu1:8000", "/v1/x", "/agent/a/agent/c", "/agent/a/agent/c/v1/x"),
        ("http://gpu1:8000", "/v1/x", "", "/v1/x"),
        ("http://gpu1:8000", "x?y", "/agent/a", "x?y"),
        ("http://gpu1/llm", "http://gpu1:80/llm/v1/x", "/agent/a", "/agent/a/v1/x"),
        ("http://u:p@gpu1", "http://gpu1", "", "/"),
        ("http://gpu1:8000", "http://gpu2:8000/v1/x", "/agent/a", "http://gpu2:8000/v1/x"),
        ("http://gpu1:8000", "https://gpu1:8000/v1/x", "/agent/a", "https://gpu1:8000/v1/x"),
        ("http://gpu1:8000", "//gpu2/v1/x", "/agent/a", "//gpu2/v1/x"),
    ],
)
def test_where_an_engine_sends_its_client(engine, location, before, found):
    assert redirection(location, base(engine), before) == found


async def test_a_redirected_client_stays_the_same_agent(engine, before):
    """Starlette sends a path with a slash at its end to the engine's own address."""

    async def redirects(request, body):
        if request.path.endswith("/"):
            location = f"http://{request.headers['host']}{request.path.rstrip('/')}"
            return web.Response(status=307, headers={"Location": location})
        return await engine.usual(request, body)

    engine.answer = redirects
    async with before() as front:
        assert (await front.ask(f"{CHAT}/"))[0] == 200
        assert [event.agent for event in front.ended] == ["a", "a"]


async def test_both_sides_on_ipv6(engine, before):
    runner = web.ServerRunner(web.Server(engine.handle, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "::1", 0).start()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    port = runner.addresses[0][1]
    async with before(engines=f"http://[::1]:{port}/v1", host="::1") as front:
        assert front.url.startswith("http://[::1]:")
        assert (await front.ask())[0] == 200
    await runner.cleanup()
