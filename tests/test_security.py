"""What listens, which clients it accepts, and what is written down."""

import ast
import asyncio
import logging
import socket
import time
import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path

import httpx
import openai
import pytest
from prometheus_client import CollectorRegistry, generate_latest

import concur_agents
from concur_agents import AgentPool, ConfigError, Governor
from concur_agents._access import check_host, is_allowed, is_loopback
from concur_agents.cli.app import main
from concur_agents.errors import ProbeError
from concur_agents.observe import metrics_listener
from concur_agents.observe.frame import frame_of
from concur_agents.observe.metrics import export, serve
from concur_agents.observe.metrics_listener import MOST_CONNECTIONS
from concur_agents.probes import HttpProbe
from concur_agents.recording import Recording
from concur_agents.recording.page import page
from concur_agents.recording.timeline_builder import read_timeline

PACKAGE = Path(concur_agents.__file__).parent
KEY = "sk-SECRET-KEY"
SECRETS = ("SECRET-KEY", "SECRET-PROMPT", "SECRET-ANSWER", "SECRET-PASSWORD", "SECRET-QUERY")

MAY_LISTEN = {
    "_sockets.py",
    "daemon/server.py",
    "gateway/app.py",
    "observe/socket.py",
    "observe/metrics_listener.py",
    "sim/listener.py",
    "sim/serve.py",
    "sim/server.py",
}
"""Each of them is in a test below."""


def test_nothing_else_listens():
    """A listener that slips in somewhere would have no guard, and no test that it has one."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if ast.unparse(node.func) == "signature.bind":  # of `inspect`
                    continue
                if name in {
                    "listen", "bind", "start_server", "create_server", "create_unix_server",
                    "start_unix_server", "make_server", "start_http_server", "start_wsgi_server",
                    "HTTPServer", "ThreadingHTTPServer", "TCPServer", "UnixStreamServer", "serve",
                    "TCPSite", "SockSite", "UnixSite",
                }:  # fmt: skip
                    found.add(path.relative_to(PACKAGE).as_posix())
    # `concur serve-sim` calls the server's own door, and a governor the one of observe/socket.py.
    # So does `concur watch --web`, through the listener of that server.
    # The two commands of the daemon and the actor of Ray call that of daemon/server.py, whose tests
    # are with it.
    callers = {"cli/serve_sim.py", "cli/watch_web.py", "governor.py"}
    assert found - MAY_LISTEN == callers | {"cli/serve.py", "daemon/__main__.py", "ray.py"}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1"])
def test_this_machine_needs_no_token(host):
    assert is_loopback(host)
    check_host(host, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "192.168.0.7", "example.org"])
def test_elsewhere_nothing_listens_without_a_token(host, capsys):
    with pytest.raises(ConfigError, match="give a token"):
        check_host(host, "")
    with pytest.raises(ConfigError, match="give a token"):
        serve(CollectorRegistry(), host=host, port=0)
    check_host(host, "a token")
    pytest.importorskip("uvicorn")
    from concur_agents.sim.server import EmbeddedServer

    with pytest.raises(ConfigError, match="give a token"):
        EmbeddedServer("demo", host=host)
    with pytest.raises(SystemExit) as left:
        main(["serve-sim", "--host", host, "--port", "0"])
    assert left.value.code == 2
    assert "give a token" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        main(["watch", "--web", "--host", host, "gov.sock"])
    assert left.value.code == 2
    assert "give a token" in capsys.readouterr().err
    pytest.importorskip("aiohttp")
    with pytest.raises(SystemExit) as left:
        main(["gateway", "--engine", "http://127.0.0.1:9", "--host", host, "--port", "0"])
    assert left.value.code == 2
    assert "give a token" in capsys.readouterr().err


def test_a_token_is_compared_as_a_whole():
    assert is_allowed(None, None)
    assert is_allowed("Bearer abc", "abc")
    for given in (None, "", "abc", "Bearer ab", "Bearer abcd", "bearer abc", "Bearer \udcff"):
        assert not is_allowed(given, "abc")


def test_a_browser_sends_the_token_as_a_password():
    assert is_allowed("Basic " + b64encode(b"someone:ab:c").decode(), "ab:c")
    assert is_allowed("Basic " + b64encode(":ü".encode()).decode(), "ü")
    for given in ("Basic", "Basic ", "Basic !", "Basic YWJj", "Basic YTph", "Basic \udcff"):
        assert not is_allowed(given, "abc")


def test_the_exporter_listens_on_this_machine_and_asks_for_its_token():
    registry = CollectorRegistry()
    with Governor(limit=2) as governor:
        export(governor, registry)
        stop = serve(registry, port=0, token=KEY)
        assert stop.url.startswith("http://127.0.0.1:")
        request = urllib.request.Request(stop.url + "/metrics")
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            urllib.request.urlopen(request, timeout=10)
        refused.value.close()
        request.add_header("Authorization", f"Bearer {KEY}")
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert b"concur_limit_agents" in answer.read()
        with pytest.raises(ConfigError, match="cannot listen on"):
            serve(registry, port=int(stop.url.rpartition(":")[2]))
        stop()
        stop()
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(request, timeout=10)


def test_silent_connections_take_few_descriptors_and_no_scrape_waits_for_them():
    """The exporter shares its descriptors with the agents of the process."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    with Governor(limit=2) as governor:
        registry = CollectorRegistry()
        export(governor, registry)
        stop = serve(registry, port=0)
        port = int(stop.url.rpartition(":")[2])
        silent = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(260)]
        with urllib.request.urlopen(stop.url + "/metrics", timeout=10) as answer:
            assert b"concur_limit_agents" in answer.read()
        until_s = time.monotonic() + 10
        taken = 1000
        while taken > 2 * MOST_CONNECTIONS and time.monotonic() < until_s:
            taken = len(list(Path("/proc/self/fd").iterdir())) - before - len(silent)
            time.sleep(0.01)
        assert taken <= 2 * MOST_CONNECTIONS
        stop()
        for one in silent:
            assert one.recv(1) == b"", "the listener has closed it"
            one.close()


@pytest.mark.parametrize("slow", [b"", b"GET /metrics HTTP/1.1\r\nx-a: b\r\n"])
def test_a_slow_scraper_is_hung_up_on(slow, monkeypatch):
    monkeypatch.setattr(metrics_listener, "REQUEST_S", 0.2)
    stop = serve(CollectorRegistry(), port=0)
    with socket.create_connection(("127.0.0.1", int(stop.url.rpartition(":")[2]))) as one:
        one.settimeout(10)
        one.sendall(slow)
        assert one.recv(1) == b""
    stop()


@pytest.mark.parametrize("process", [False, True])
def test_the_simulated_engine_asks_for_its_token(process):
    pytest.importorskip("uvicorn")
    from concur_agents.sim.server import EmbeddedServer

    with EmbeddedServer("demo", time_scale=float("inf"), token=KEY, process=process) as server:
        with HttpProbe(server.url) as stranger, pytest.raises(ProbeError, match="401"):
            stranger.read()
        with HttpProbe(server.url, api_key=KEY) as probe:
            assert probe.read().capacity_tokens
        say = {"model": server.model, "messages": [{"role": "user", "content": "hi"}]}
        address = {"base_url": f"{server.url}/v1", "max_retries": 0}
        with (
            openai.OpenAI(api_key="another", **address) as stranger,
            pytest.raises(openai.AuthenticationError),
        ):
            stranger.chat.completions.create(**say)
        with openai.OpenAI(api_key=KEY, **address) as client:
            assert client.chat.completions.create(**say).usage


def test_what_is_written_shown_and_sent_holds_no_prompt_answer_or_key(tmp_path, caplog, capsys):
    """A whole run with everything switched on, at the most talkative level, read through.

    What is sent around to be looked at (recording, report, log, spans, numbers) must be safe to
    send. The journal is left out: it holds what the user's own agents returned.
    """
    caplog.set_level(logging.DEBUG, logger="concur_agents")
    polls = 0

    def answer(request):
        message = {"role": "assistant", "content": "SECRET-ANSWER"}
        usage = {"prompt_tokens": 900, "completion_tokens": 5}
        return httpx.Response(200, json={"choices": [{"message": message}], "usage": usage})

    class Probe:
        """Fails as a real one does, with the address in its words."""

        url = "http://me:SECRET-PASSWORD@host:8000/v1?token=SECRET-QUERY"

        def read(self):
            nonlocal polls
            polls += 1
            raise ProbeError(f"HTTP 401 from {self.url}, Authorization: Bearer {KEY}")

    path = tmp_path / "run.jsonl"
    registry = CollectorRegistry()
    shown = []

    async def solve(issue):
        plain = httpx.AsyncClient(transport=httpx.MockTransport(answer))
        async with governor.wrap(plain) as client:
            for _ in range(2):
                await client.post(
                    "http://me:SECRET-PASSWORD@host:8000/v1/chat/completions",
                    headers={"Authorization": f"Bearer {KEY}"},
                    json={"messages": [{"role": "user", "content": "SECRET-PROMPT " * 400}]},
                )
            shown.extend([repr(governor), str(governor.snapshot()), str(frame_of(governor))])
            shown.append(governor.explain(issue))

    async def batch():
        async with AgentPool(governor, progress=True) as pool:
            async for outcome in pool.as_completed(solve, ["issue-1", "issue-2"]):
                assert outcome.status == "ok"

    with Governor(probe=Probe(), law="working_set", record=path, poll_interval_s=0.01) as governor:
        export(governor, registry)
        governor.on_event(lambda event: shown.append(str(event)))
        spans = _traced(governor)
        asyncio.run(batch())
        while polls < 3:
            time.sleep(0.01)
        shown.append(generate_latest(registry).decode())
    recording = Recording(path)
    shown += [
        path.read_text("utf-8"),
        page(read_timeline(recording), title="run.jsonl"),
        caplog.text,
    ]
    shown += [str(span) for span in spans]
    for words in (["explain", path], ["explain", path, "--agent", "issue-1"], ["replay-law", path]):
        with pytest.raises(SystemExit):
            main([str(word) for word in words])
    out, err = capsys.readouterr()
    shown += [out, err]
    text = "\n".join(shown)
    assert [word for word in SECRETS if word in text] == []
    assert "issue-1" in text, "ids are kept as they were chosen"
    assert "cannot read the engine" in caplog.text
    assert '"prompt_tokens":900' in text


def _traced(governor):
    """Its spans, if the SDK is there; filled as they end."""
    try:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    except ModuleNotFoundError:
        return []
    from concur_agents.observe.otel import trace

    found = []

    class Exporter(InMemorySpanExporter):
        def export(self, ended):
            found.extend(span.to_json() for span in ended)
            return super().export(ended)

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Exporter()))
    trace(governor, provider)
    return found


def test_a_key_does_not_reach_the_arguments_of_another_process():
    """A user who may list processes may read their arguments."""
    pytest.importorskip("uvicorn")
    from concur_agents.sim.server import EmbeddedServer

    if not Path("/proc/self/cmdline").exists():
        pytest.skip("needs /proc")
    with EmbeddedServer("demo", token=KEY, process=True) as server:
        assert server._process is not None
        line = Path(f"/proc/{server._process.pid}/cmdline").read_bytes()
    assert b"SECRET" not in line


def test_a_governor_at_work_listens_nowhere():
    """It connects to its endpoint, and accepts no connection."""
    if not Path("/proc/self/net/tcp").exists():
        pytest.skip("needs /proc")
    with socket.create_server(("127.0.0.1", 0)) as endpoint:
        before = listening()
        url = f"http://127.0.0.1:{endpoint.getsockname()[1]}"
        with Governor(url, poll_interval_s=0.01) as governor, governor.agent("a"):
            time.sleep(0.1)
            assert listening() <= before
    assert len(before) >= 1, "the endpoint itself was seen"


def listening():
    """Inodes of the sockets on which this process accepts connections."""
    mine = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            mine.add(str(link.readlink()))
        except OSError:  # closed meanwhile
            continue
    found = set()
    for name in ("tcp", "tcp6"):
        table = Path("/proc/self/net") / name
        rows = table.read_text("utf-8").splitlines()[1:] if table.exists() else []
        cells = [row.split() for row in rows]
        found |= {cell[9] for cell in cells if cell[3] == "0A"}
    return {inode for inode in found if f"socket:[{inode}]" in mine}


def test_every_command_prints_through_what_makes_text_safe():
    """A bare `print` or console passes on what an id, a page or an error text holds."""
    for path in (PACKAGE / "cli").glob("*.py"):
        if path.name in ("terminal.py", "console.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "rich.console":
                assert "Console" not in {alias.name for alias in node.names}, path.name
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
                printed = ast.unparse(node.args[0])
                # JSON escapes all that is not ASCII.
                assert printed.startswith("json.dumps(") or "__version__" in printed, path.name
