"""Readings that hang: time passes all the same, and every reading ends."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager

import pytest

import concur_agents as ca
from concur_agents.core import Reading
from concur_agents.probes import HttpProbe, parse_page

TIMEOUT_S = 0.25


@contextmanager
def drip_server(first: bytes, again: bytes, *, every_s: float = 0.05):
    """A server that sends `first`, and then `again` for ever."""
    ended = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection):
        with connection:
            try:
                connection.recv(65_536)
                connection.sendall(first)
                while not ended.wait(every_s):
                    connection.sendall(again)
            except OSError:
                pass

    def accept():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        ended.set()
        listener.close()


def wait_until(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def is_within(bound_s, measure):
    """Whether `measure` takes at most that long [s] in one of three tries.

    A busy machine holds up a thread now and then; what waits for the wrong clock is late each time.
    """
    for _ in range(3):
        began_s = time.monotonic()
        if (measure() or time.monotonic()) - began_s < bound_s:
            return True
    return False


def readings_under_way():
    return [thread for thread in threading.enumerate() if thread.name == "concur-reading"]


DRIPS = {
    "header bytes": (b"HTTP/1.1 200 OK\r\nx-slow: ", b"a"),
    "1xx answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "chunk extensions": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5", b";a=b"),
    "a body": (b"HTTP/1.1 200 OK\r\ncontent-length: 999999\r\n\r\n", b"# "),
}


@pytest.mark.parametrize("drip", DRIPS.values(), ids=DRIPS)
def test_blindness_comes_in_time_while_a_server_drips(drip):
    """It came with the end of the reading, and so never."""

    def go_blind():
        with drip_server(*drip) as url:
            probe = HttpProbe(url, timeout_s=30)
            gov = ca.Governor(
                probe=probe,
                poll_interval_s=0.05,
                blind_after_s=0.1,
                blind_agents=1,
                law="cache_aimd",
            )
            with gov, gov.agent("a"):
                wait_until(lambda: gov.snapshot().reason == "blind")
                blind_s = time.monotonic()
                assert gov.snapshot().poll_failures_total == 0, "the reading goes on"
            probe.interrupt()
        wait_until(lambda: not readings_under_way())
        return blind_s

    assert is_within(0.5, go_blind)


@pytest.mark.parametrize("drip", DRIPS.values(), ids=DRIPS)
def test_a_reading_that_drips_ends_and_no_second_one_piles_up(drip):
    with drip_server(*drip) as url:
        probe = HttpProbe(url, timeout_s=TIMEOUT_S)
        gov = ca.Governor(probe=probe, poll_interval_s=0.05)
        most = []
        with gov, gov.agent("a"):
            began_s = time.monotonic()
            while gov.snapshot().poll_failures_total < 3:
                most.append(len(readings_under_way()))
                assert time.monotonic() - began_s < 60
                time.sleep(0.01)
            assert gov.snapshot().poll_error
        assert max(most) == 1
        wait_until(lambda: not readings_under_way())


@pytest.mark.parametrize("drip", DRIPS.values(), ids=DRIPS)
def test_a_check_ends_within_twice_the_timeout(drip):
    with drip_server(*drip) as url:
        gov = ca.Governor(probe=HttpProbe(url, timeout_s=TIMEOUT_S))

        def check():
            with pytest.raises(ca.ProbeError):
                gov.check()

        assert is_within(2 * TIMEOUT_S + 0.5, check)


@pytest.fixture
def dead_dns(monkeypatch):
    """A name server that says nothing for a minute: nothing can interrupt who asks it."""
    ended = threading.Event()

    def getaddrinfo(*args, **options):
        ended.wait(60)
        raise socket.gaierror("no answer")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield
    ended.set()
    wait_until(lambda: not readings_under_way())


def test_a_name_server_that_hangs_ends_no_clock(dead_dns):
    """Blindness comes in time, the reading is abandoned, and its thread stays the only one."""
    probe = HttpProbe("http://engine.example:8000", timeout_s=TIMEOUT_S)
    gov = ca.Governor(
        probe=probe, poll_interval_s=0.05, blind_after_s=0.2, blind_agents=1, law="cache_aimd"
    )
    most = 0
    with gov, gov.agent("a"):
        began_s = time.monotonic()
        wait_until(lambda: gov.snapshot().reason == "blind")
        assert time.monotonic() - began_s < 10, "the name server hangs for 60 s"
        wait_until(lambda: gov.snapshot().poll_failures_total >= 1)
        assert time.monotonic() - began_s < 10
        while gov.snapshot().poll_failures_total < 3:
            most = max(most, len(readings_under_way()))
            assert time.monotonic() - began_s < 20
            time.sleep(0.01)
        closing_s = time.monotonic()
    assert most == 1
    assert time.monotonic() - closing_s < 5


def test_agents_that_time_lets_in_are_let_in_while_a_name_server_hangs(dead_dns):
    gov = ca.Governor("http://engine.example:8000", limit=1, max_wait_s=0.1, poll_interval_s=0.05)
    ended = threading.Event()

    def hog():
        with gov.agent("hog") as agent:
            while not ended.is_set():
                with agent.step():
                    time.sleep(0.005)

    thread = threading.Thread(target=hog, daemon=True)
    with gov:
        thread.start()
        wait_until(lambda: gov.snapshot().active == 1)
        with gov.agent("late") as late:
            assert late.stats.queued_s < 5
        ended.set()
        thread.join(20)


def test_the_first_agents_do_not_wait_for_a_name_server(dead_dns):
    """Until the first reading one agent runs alone, and that ends by time."""
    with ca.Governor("http://engine.example:8000") as gov:
        began_s = time.monotonic()
        with gov.agent("a"), gov.agent("b", detached=True):
            assert time.monotonic() - began_s < 5


def test_checks_that_hang_do_not_pile_up(dead_dns):
    gov = ca.Governor(probe=HttpProbe("http://engine.example:8000", timeout_s=0.05))
    for _ in range(20):
        with pytest.raises(ca.ProbeError, match="no complete answer"):
            gov.check()
    assert len(readings_under_way()) <= 4


class HangingProbe:
    """An engine whose answers come when the test says so."""

    timeout_s = 0.05

    def __init__(self):
        self.answers = threading.Event()
        self.asked = 0

    def read(self):
        self.asked += 1
        assert self.answers.wait(20)
        return Reading(at_s=time.monotonic(), capacity_tokens=1e6)


def test_max_wait_lets_an_agent_in_while_a_reading_hangs():
    probe = HangingProbe()
    probe.timeout_s = 20.0
    gov = ca.Governor(
        probe=probe, law=ca.make_law("fixed", agents=1), max_wait_s=0.1, poll_interval_s=0.05
    )
    ended = threading.Event()

    def hog():
        with gov.agent("hog") as agent:
            while not ended.is_set():
                with agent.step():
                    time.sleep(0.005)

    thread = threading.Thread(target=hog, daemon=True)
    with gov:
        thread.start()
        wait_until(lambda: probe.asked == 1)
        with gov.agent("late") as late:
            assert late.stats.queued_s < 5
        ended.set()
        thread.join(20)
        assert probe.asked == 1
        probe.answers.set()


def test_an_engine_that_answers_again_is_read_again_after_a_reading_that_hung():
    probe = HangingProbe()
    gov = ca.Governor(probe=probe, poll_interval_s=0.02)
    with gov, gov.agent("a"):
        wait_until(lambda: gov.snapshot().poll_failures_total >= 2)
        assert probe.asked == 1
        probe.answers.set()
        wait_until(lambda: gov.snapshot().last_reading is not None)
        assert gov.snapshot().poll_error is None


def test_close_does_not_wait_for_a_reading_that_hangs():
    probe = HangingProbe()
    probe.timeout_s = 20.0
    gov = ca.Governor(probe=probe, poll_interval_s=0.02)
    with gov.agent("a"):
        wait_until(lambda: probe.asked == 1)
    began_s = time.monotonic()
    gov.close()
    assert time.monotonic() - began_s < 5
    wait_until(lambda: not gov._poll_thread.thread.is_alive())
    assert readings_under_way(), "the reading hangs still"
    probe.answers.set()
    wait_until(lambda: not readings_under_way())


def test_a_page_with_two_megabytes_of_escapes_is_read_at_once():
    """It took 47 s, in a regular expression that holds the interpreter's lock all the while."""
    good = 'vllm:kv_cache_usage_perc{model_name="m"} 0.5'
    bad = 'vllm:num_requests_running{model_name="' + '\\"' * 1_000_000 + '"} 1'
    began_s = time.thread_time()  # CPU time, whatever else the machine does
    assert parse_page(f"{bad}\n{good}\n", 0.0).reading.kv_usage == 0.5
    assert time.thread_time() - began_s < 2
