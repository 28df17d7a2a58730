"""`concur watch` against a server on loopback that says what each test wants it to say."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from concur_agents.cli.app import main
from concur_agents.cli.endpoint import EndpointFrame, EndpointWatcher
from concur_agents.probes import HttpProbe
from concur_agents.testing import ManualClock


class Endpoint:
    """A vLLM metrics page whose numbers can be set; `broken` makes it answer 500."""

    def __init__(self) -> None:
        self.hits = 0
        self.queries = 0
        self.kv_usage = 0.1
        self.broken = False
        self.url = ""

    def page(self) -> str:
        return (
            f"vllm:kv_cache_usage_perc {self.kv_usage}\n"
            f"vllm:prefix_cache_hits_total {self.hits}\n"
            f"vllm:prefix_cache_queries_total {self.queries}\n"
            "vllm:num_requests_running 3\n"
            "vllm:num_requests_waiting 1\n"
            'vllm:cache_config_info{block_size="16",num_gpu_blocks="600"} 1\n'
        )


@contextmanager
def serving() -> Iterator[Endpoint]:
    said = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(500 if said.broken else 200)
            self.send_header("Content-Type", "text/plain")
            self.end_headers()
            self.wfile.write(said.page().encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    said.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield said
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving() as said:
        yield said


@pytest.fixture
def second() -> Iterator[Endpoint]:
    with serving() as said:
        yield said


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["watch", *words])
    code = left.value.code
    return code if isinstance(code, int) else 0


def test_json_has_one_object_per_look_with_the_documented_keys(
    endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(endpoint.url, "--json", "--count", "2", "--interval", "0.05") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["at_s"] < 10 for line in lines] == [True, True]
    shown = {key: value for key, value in lines[0].items() if key != "at_s"}
    assert set(lines[0]) == set(EndpointFrame.__slots__)
    assert shown["engine"] == "vllm"
    assert shown["ok"] is True
    assert shown["capacity_tokens"] == 9600
    assert (shown["running"], shown["waiting"], shown["kv_usage"]) == (3, 1, 0.1)
    assert shown["law"] == "working_set"
    assert 0 < shown["limit_tokens"] <= 9600
    assert shown["limit_agents"] is None, "infinity is not JSON: no bound is null"


def test_the_screen_shows_the_endpoint_and_the_law(
    endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(endpoint.url + "/v1", "--count", "1", "--law", "cache_aimd") == 0
    screen = capsys.readouterr().out
    for piece in ("vllm", "9,600 tokens", "10.0%", "cache_aimd", "no bound"):
        assert piece in screen


def test_several_endpoints_have_a_line_each_in_json(
    endpoint: Endpoint, second: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    second.broken = True
    words = [endpoint.url, second.url, "--json", "--count", "2", "--interval", "0.05"]
    assert run(*words) == 0, "one that can be read is enough"
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["url"] for line in lines] == [endpoint.url, second.url] * 2
    assert [line["ok"] for line in lines] == [True, False] * 2
    assert run(second.url, second.url + "/v1", "--json", "--count", "1") == 1


def test_several_endpoints_are_rows_and_one_that_fails_says_why(
    endpoint: Endpoint,
    second: Endpoint,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "120")  # because a narrow terminal cuts cells
    second.broken = True
    assert run(endpoint.url, second.url, "--count", "2", "--interval", "0.05") == 0
    screen = capsys.readouterr().out
    assert "2 endpoints" in screen
    assert "working_set (dry run)" in screen
    (row,) = [line for line in screen.splitlines() if endpoint.url.removeprefix("http://") in line]
    for piece in ("vllm", "10.0%", "9,600", "9,120 tokens"):
        assert piece in row
    assert f"{second.url.removeprefix('http://')}: 2 failed: " in screen
    assert "500" in screen


def test_on_80_columns_no_number_of_several_endpoints_is_cut(
    endpoint: Endpoint,
    second: Endpoint,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(endpoint.url, second.url, "--count", "2", "--interval", "0.05") == 0
    screen = capsys.readouterr().out
    assert "9,120" in screen
    assert "…" not in screen


@pytest.mark.parametrize("other", ["run.jsonl", "gov.sock"])
def test_only_endpoints_are_watched_together(
    other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("http://127.0.0.1:1", other) == 2
    assert f"each is an endpoint, and {other} is none" in capsys.readouterr().err


def test_a_failed_look_is_shown_and_the_next_one_is_tried(endpoint: Endpoint) -> None:
    with HttpProbe(endpoint.url) as probe:
        watcher = EndpointWatcher(probe, "working_set")
        endpoint.broken = True
        failed = watcher.look()
        endpoint.broken = False
        after = watcher.look()
    assert (failed.ok, failed.kv_usage) == (False, None)
    assert "500" in (failed.error or "")
    assert (after.ok, after.error, after.kv_usage) == (True, None, 0.1)


def test_it_fails_when_not_one_look_succeeded(
    endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that a script can wait for an endpoint with it."""
    endpoint.broken = True
    assert run(endpoint.url, "--count", "2", "--interval", "0.05") == 1
    shown = capsys.readouterr().out
    assert "2 failed" in shown
    assert "of pressure" not in shown, "a law that has seen nothing has nothing to say"


def test_hit_rate_is_of_the_last_ten_seconds_and_survives_a_restart(endpoint: Endpoint) -> None:
    clock = ManualClock()

    def look(hits: int, queries: int) -> float | None:
        endpoint.hits, endpoint.queries = hits, queries
        rate = watcher.look().hit_rate
        clock.advance(5.0)
        return rate

    with HttpProbe(endpoint.url, clock=clock) as probe:
        watcher = EndpointWatcher(probe, "fixed", clock=clock)
        assert look(900, 1000) is None, "what was before we came says nothing of now"
        assert look(950, 1100) == 0.5
        assert look(950, 1100) == 0.5, "no traffic since the last look, but within the window"
        assert look(950, 1100) is None, "no traffic within the window: nothing to say"
        assert look(10, 20) is None, "the counters fell: the engine restarted"
        assert look(40, 60) == 0.75


def test_the_law_runs_dry_on_the_readings(endpoint: Endpoint) -> None:
    """cache_aimd has no limit until the first cut, which halves the 3 + 1 calls of the engine; then
    it adds two agents per interval of 5 s while KV usage is below 0.2.
    """
    clock = ManualClock()
    with HttpProbe(endpoint.url, clock=clock) as probe:
        watcher = EndpointWatcher(probe, "cache_aimd", clock=clock)
        limits = []
        for endpoint.kv_usage, endpoint.queries in [(0.9, 0), (0.9, 1_000), (0.1, 1_000)]:
            limits.append(watcher.look().limit_agents)
            clock.advance(5.0)
    assert limits == [None, 2, 4]


def test_an_unknown_law_is_one_line_that_names_the_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("http://127.0.0.1:1", "--law", "working_sett") == 2
    error = capsys.readouterr().err
    assert error.startswith("concur: ")
    assert "did you mean 'working_set'" in error
    assert error.count("\n") == 1


def test_debug_shows_where_an_error_comes_from() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        main(["watch", "http://127.0.0.1:1", "--law", "nonsense", "--debug"])


def test_control_c_ends_it_without_a_traceback(endpoint: Endpoint) -> None:
    code = "from concur_agents.cli.app import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "watch", endpoint.url, "--json", "--interval", "0.05"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert errors == ""
    assert json.loads(first)["law"] == "working_set"
    assert process.returncode == 0
