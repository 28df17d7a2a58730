"""HttpProbe against small real servers on loopback."""

from __future__ import annotations

import gzip
import re
import socket
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from concur_agents.errors import ConfigError, ProbeError
from concur_agents.probes import HttpProbe
from concur_agents.probes import http as probe_http
from concur_agents.probes.replay import load_page

PAGES = Path(__file__).parents[1] / "fixtures" / "metrics"
VLLM = load_page(PAGES / "vllm-0.32.0-cpu-sweep-cap3.prom.gz")
LOADS = load_page(PAGES / "sglang-0.5.23-cpu-v1-loads-cap3.json")

Routes = Mapping[str, tuple[int, str]]


class Site:
    """A server that answers each path with a status and a body, and remembers what it was sent."""

    def __init__(self, routes: Routes, headers: Mapping[str, str]) -> None:
        seen = self.seen = []  # type: list[tuple[str, str | None]]
        encodings = self.encodings = []  # type: list[str | None]

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                seen.append((self.path, self.headers.get("authorization")))
                encodings.append(self.headers.get("accept-encoding"))
                status, body = routes.get(self.path, (404, "not here"))
                content = body.encode()
                self.send_response(status)
                if headers.get("content-encoding") == "gzip":
                    content = gzip.compress(content)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def site(routes: Routes, headers: Mapping[str, str] | None = None) -> Iterator[Site]:
    it = Site(routes, headers or {})
    thread = threading.Thread(target=it.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield it
    finally:
        it.server.shutdown()
        it.server.server_close()
        thread.join()


def refusal(url: str, **options: Any) -> str:
    """What the probe says about an address it cannot read."""
    with HttpProbe(url, **options) as probe, pytest.raises(ProbeError) as error:
        probe.read()
    return str(error.value)


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/", "/v1/chat/completions", "/metrics"])
def test_the_address_may_be_written_as_people_write_it(suffix: str) -> None:
    with site({"/metrics": (200, VLLM)}) as it, HttpProbe(it.url + suffix) as probe:
        assert probe.read().capacity_tokens == 9600
        assert probe.url == it.url


def test_an_address_of_a_page_elsewhere_is_taken_as_it_is() -> None:
    path = "/prometheus/metrics"
    with site({path: (200, VLLM)}) as it, HttpProbe(it.url + path) as probe:
        assert probe.read().capacity_tokens == 9600


def test_an_engine_below_a_path_is_found_there() -> None:
    with site({"/team/llm/metrics": (200, VLLM)}) as it, HttpProbe(it.url + "/team/llm/v1") as p:
        assert p.read().capacity_tokens == 9600


def test_a_reading_carries_the_hosts_clock_and_the_engine_is_known_afterwards() -> None:
    with site({"/metrics": (200, VLLM)}) as it, HttpProbe(it.url, clock=lambda: 42.0) as probe:
        assert probe.engine is None
        assert probe.read().at_s == 42.0
        assert probe.engine == "vllm"
        assert repr(probe) == f"<HttpProbe {it.url}: vllm>"


def test_sglang_without_enable_metrics_is_read_from_its_loads() -> None:
    with site({"/v1/loads": (200, LOADS)}) as it, HttpProbe(it.url) as probe:
        assert probe.read().computed_tokens_total == 31_131
        assert probe.engine == "sglang"


def test_plain_text_is_asked_for_and_an_encoded_page_is_refused() -> None:
    zipped = {"content-encoding": "gzip"}
    with site({"/metrics": (200, VLLM)}, zipped) as it:
        assert "encoded page (gzip)" in refusal(it.url)
        assert it.encodings == ["identity"]


def test_a_bomb_is_not_decoded() -> None:
    """274 bytes of nested gzip cost 2.9 GB; here 10 kB would cost 10 MB twice over."""
    bomb = gzip.compress(gzip.compress(bytes(10_000_000)))

    def talk(connection: socket.socket) -> None:
        head = "HTTP/1.1 200 OK\r\ncontent-encoding: gzip, gzip\r\ncontent-length: {}\r\n\r\n"
        connection.sendall(head.format(len(bomb)).encode() + bomb)

    tracemalloc.start()
    try:
        with raw_server(talk) as url:
            assert "encoded page (gzip, gzip)" in refusal(url)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_a_refusal_may_be_encoded() -> None:
    with site({}, {"content-encoding": "gzip"}) as it:
        assert "no metrics at" in refusal(it.url)


def test_what_a_server_sends_reaches_no_terminal_as_it_is() -> None:
    """A Location header and a page are quoted in messages, logs and `concur doctor`."""
    evil = "http://elsewhere/\x9b2J\x1b]0;gotcha\x07"

    def talk(connection: socket.socket) -> None:
        head = f"HTTP/1.1 302 Found\r\nlocation: {evil}\r\ncontent-length: 0\r\n\r\n"
        connection.sendall(head.encode("latin-1"))

    with raw_server(talk) as url:
        assert refusal(url).isprintable()
    for page in ("\x1b[2J{\x1b[2J", '{"\x1b[2J": 1}', 'vllm:x{a="\x1b[2J"} \x1b[2J\n'):
        with site({"/metrics": (200, page), "/v1/loads": (200, page)}) as it:
            assert refusal(it.url).isprintable()


def test_the_key_is_sent_as_a_bearer_token() -> None:
    with site({"/metrics": (200, VLLM)}) as it, HttpProbe(it.url, api_key="k-1") as probe:
        probe.read()
        assert it.seen == [("/metrics", "Bearer k-1")]


def test_a_redirect_is_not_followed_with_the_key_in_hand() -> None:
    with site({"/metrics": (200, VLLM)}) as other:
        away = {"location": f"{other.url}/metrics"}
        with site({"/metrics": (302, "")}, away) as it:
            message = refusal(it.url, api_key="k-1")
        assert f"redirects to {other.url}/metrics; redirects are not followed" in message
        assert other.seen == []


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        ({}, "no metrics at http://.*/metrics .HTTP 404.. SGLang needs --enable-metrics"),
        ({"/metrics": (401, "")}, "needs a key .HTTP 401.: give api_key="),
        ({"/metrics": (403, "")}, "needs a key .HTTP 403.: give api_key="),
        ({"/metrics": (503, "")}, "HTTP 503: is the engine still starting"),
        ({"/metrics": (200, "")}, "the page is empty"),
        ({"/metrics": (200, "<html>login")}, "got HTML instead of metrics"),
        ({"/metrics": (200, "app_up 1\n")}, "no engine recognised: looked for vllm:"),
        ({"/v1/loads": (200, "{}")}, "/v1/loads: the answer is JSON without a list 'loads'"),
    ],
)
def test_each_way_a_page_can_be_missing_has_its_own_message(routes: Routes, message: str) -> None:
    with site(routes) as it:
        assert re.search(message, refusal(it.url))


def test_a_key_that_is_refused_is_not_asked_for_again() -> None:
    with site({"/metrics": (401, "")}) as it:
        message = refusal(it.url, api_key="k-1")
    assert "/metrics refuses the key that was given (HTTP 401)" in message
    assert "k-1" not in message


def test_a_port_without_a_listener_is_reported() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    assert re.search("nothing answers at .* is the server running", refusal(url))


def test_https_at_a_port_that_speaks_http_is_reported_as_that() -> None:
    with site({}) as it:
        message = refusal(it.url.replace("http://", "https://"))
    assert re.search("/metrics does not speak https .* is it http://", message)


def test_a_host_that_does_not_exist_is_reported() -> None:
    assert "no-such-host.invalid" in refusal("http://no-such-host.invalid")


@contextmanager
def raw_server(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server of one connection that says whatever `talk` says."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                talk(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            thread.join()


def test_a_server_that_never_answers_is_given_up_after_the_timeout() -> None:
    enough = threading.Event()
    with raw_server(lambda _: bool(enough.wait(10)) and None) as url:
        message = refusal(url, timeout_s=0.05)
        enough.set()
    assert "did not answer within 0.05 s" in message


def test_a_server_that_drips_for_ever_is_given_up_too() -> None:
    """Each chunk comes in time, the page never ends: a per-chunk timeout alone would not see it."""
    given_up = threading.Event()

    def drip(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while not given_up.wait(0.01):
            connection.sendall(b"1\r\n#\r\n")

    with raw_server(drip) as url:
        message = refusal(url, timeout_s=0.1)
        given_up.set()
    assert "still sending after 0.1 s" in message


def test_a_page_without_end_is_not_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_http, "MAX_PAGE_BYTES", 1000)
    with site({"/metrics": (200, VLLM)}) as it:
        assert "sent more than 1000 bytes" in refusal(it.url)


@pytest.mark.parametrize("end", ["close", "interrupt"])
def test_a_connection_that_is_made_while_the_probe_is_closed_is_closed_too(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A governor that closes during a reading left an open socket behind."""
    made: list[socket.socket] = []
    connect = socket.create_connection
    over = threading.Event()

    def talk(connection: socket.socket) -> None:
        page = VLLM.encode()
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(page) + page)
        over.wait(60)  # the connection would stay open

    def connect_late(*args: Any, **options: Any) -> socket.socket:
        getattr(probe, end)()
        made.append(connect(*args, **options))
        return made[-1]

    with raw_server(talk) as url, HttpProbe(url) as probe:
        monkeypatch.setattr(socket, "create_connection", connect_late)
        assert probe.read().capacity_tokens == 9600
        over.set()
    assert [each.fileno() for each in made] == [-1]


def test_a_server_that_speaks_no_http_is_reported() -> None:
    with raw_server(lambda c: c.sendall(b"220 mail.example ESMTP\r\n\r\n")) as url:
        assert "could not be read" in refusal(url)


@pytest.mark.parametrize("url", ["localhost:8000", "", "ftp://x", "http://", "http://x:port"])
def test_what_is_no_address_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigError, match="url"):
        HttpProbe(url)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTP_PROXY", "http://[::1"),
        ("ALL_PROXY", "nonsense://proxy:1"),
        ("SSL_CERT_FILE", "/no/such/file"),
        ("SSLKEYLOGFILE", "/no/such/folder/file"),
    ],
)
def test_an_environment_that_allows_no_client_is_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """httpx raised an InvalidURL, an ImportError or a FileNotFoundError that named nothing."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"no client can be made for http://localhost.*_PROXY"):
        HttpProbe("http://localhost")


def test_a_timeout_of_nothing_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="timeout_s must be above 0 seconds, got 0"):
        HttpProbe("http://localhost", timeout_s=0)


def test_credentials_in_the_address_are_used_but_never_shown() -> None:
    with site({}) as it:
        secret = it.url.replace("http://", "http://user:hush@")
        with HttpProbe(secret) as probe, pytest.raises(ProbeError) as error:
            probe.read()
        assert it.seen[0][1] == "Basic dXNlcjpodXNo"
    assert "hush" not in str(error.value) + repr(probe) + probe.url


def test_an_ipv6_address_keeps_its_brackets() -> None:
    with HttpProbe("http://[::1]:8000/v1") as probe:
        assert probe.url == "http://[::1]:8000"


def test_httpx_is_used_where_openai_2_brings_no_httpx2(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("httpx")
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with site({"/metrics": (200, VLLM)}) as it, HttpProbe(it.url) as probe:
        assert probe.read().capacity_tokens == 9600
