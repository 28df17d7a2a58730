"""Whatever a client sends, it gets an answer, the engine gets its bytes, and no place is left."""

import asyncio
import json
import socket

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from concur_agents.gateway.holding import TIMEOUT_HEADERS
from concur_agents.gateway.retries import COUNT_HEADER
from concur_agents.testing import assert_idle

NAMES = st.sampled_from(
    [
        *TIMEOUT_HEADERS,
        COUNT_HEADER,
        "x-session-id",
        "x-parent-session-id",
        "x-claude-code-agent-id",
        "Authorization",
        "Connection",
        "Content-Type",
        "X-Any",
    ]
)
VALUES = st.binary(max_size=30).map(
    lambda value: bytes(byte for byte in value if byte >= 32 and byte != 127)
)
PATHS = st.sampled_from(
    ["/v1/chat/completions", "/agent/a/v1/messages", "/agent/%00%ff/v1/responses?a=%zz", "/x"]
)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)
KEYS = st.sampled_from(["messages", "stream", "model", "input", "prompt", "prompt_cache_key"])
BODIES = st.binary(max_size=60) | st.dictionaries(KEYS, VALUE, max_size=4).map(
    lambda value: json.dumps(value).encode()
)


def ask(url, path, headers, body):
    host, _, port = url.partition("://")[2].partition(":")
    head = f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n".encode()
    head += b"".join(name.encode() + b": " + value + b"\r\n" for name, value in headers)
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head + b"Connection: close\r\n\r\n" + body)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


async def test_any_headers_and_any_body(engine, before):
    async def echo(request, body):
        from aiohttp import web

        return web.Response(body=body, content_type="application/octet-stream")

    engine.answer = echo
    async with before(limit=100_000) as front:

        @settings(max_examples=40, suppress_health_check=list(HealthCheck))
        @given(PATHS, st.lists(st.tuples(NAMES, VALUES), max_size=4), BODIES)
        @example("/x", [("Connection", b"content-length, X-Any"), ("X-Any", b"\xff\xe4")], b"\0")
        @example("/v1/responses", [("x-session-id", b"\xff"), (COUNT_HEADER, b"0")], b"{}")
        def check(path, headers, body):
            answer = ask(front.url, path, headers, body)
            status = answer[9:12]
            assert status in (b"200", b"400"), answer
            if status == b"200":
                assert answer.endswith(b"\r\n\r\n" + body)
                assert engine.seen[-1].body == body

        await asyncio.to_thread(check)
        assert front.governor.snapshot().reasoning == 0
        front.gateway.agents.end_all()
        assert_idle(front.governor)
