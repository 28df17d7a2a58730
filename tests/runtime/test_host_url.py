"""The governor over HTTP: a page recorded from a real engine, and what people type wrong."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import concur_agents as ca

PAGES = Path(__file__).parents[1] / "fixtures" / "metrics"


class Pages(BaseHTTPRequestHandler):
    def do_GET(self):
        answer = self.server.pages.get(self.path)
        self.send_response(404 if answer is None else 200)
        self.end_headers()
        self.wfile.write(answer or b"not found")

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        server.pages = {}
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        server.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield server
        server.shutdown()
        thread.join()


def wait_until(condition, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def test_an_engine_is_recognised_read_lost_and_found_again_while_agents_go_on(server):
    page = gzip.decompress((PAGES / "vllm-0.32.0-cpu-sweep-cap16.prom.gz").read_bytes())
    server.pages["/metrics"] = page
    with ca.Governor(f"{server.url}/v1", poll_interval_s=0.02) as gov, gov.agent("a") as agent:
        wait_until(lambda: gov.snapshot().last_reading)
        snapshot = gov.snapshot()
        assert (snapshot.engine, snapshot.law) == ("vllm", "working_set")
        assert snapshot.capacity_tokens > 0
        assert snapshot.blind_s < 10

        server.pages["/metrics"] = b"<html><body>Welcome</body></html>"
        wait_until(lambda: gov.snapshot().poll_error)
        assert "/metrics" in gov.snapshot().poll_error
        with agent.step():
            pass

        server.pages["/metrics"] = page
        wait_until(lambda: gov.snapshot().poll_error is None)
        assert not gov.snapshot().closed


def test_check_says_what_is_wrong_with_an_address(server):
    with (
        ca.Governor(server.url) as gov,
        pytest.raises(ca.ProbeError, match=r"no metrics at .*/metrics \(HTTP 404\)"),
    ):
        gov.check()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    with (
        ca.Governor(nobody) as gov,
        pytest.raises(ca.ProbeError, match="is the server running"),
    ):
        gov.check()


def test_nobody_answers_and_the_agents_run_all_the_same(caplog):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    with ca.Governor(nobody, poll_interval_s=0.02) as gov:
        with gov.agent("a") as agent:
            wait_until(lambda: gov.snapshot().poll_failures_total >= 2)
            with agent.step():
                pass
        assert gov.snapshot().engine is None
    assert caplog.text.count("cannot read the engine") == 1
