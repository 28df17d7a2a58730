"""A daemon in a thread, or in a process of its own."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from concur_agents import Governor
from concur_agents.daemon import Daemon, listen
from concur_agents.runtime.daemon_address import daemon_address
from concur_agents.wire import remote_link

COMMAND = [sys.executable, "-c", "from concur_agents.cli.app import main; main()"]

CLIENT = """
import sys, time
import concur_agents as ca
gov = ca.Governor(shared=sys.argv[1])
agents = [gov.agent(f"a{n}") for n in range(int(sys.argv[2]))]
for agent in agents:
    agent.__enter__()
print("in", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(monkeypatch):
    """A folder of one's own with a short name: the path of a socket has about 100 characters."""
    with tempfile.TemporaryDirectory(prefix="c", dir="/tmp") as name:
        monkeypatch.setenv("XDG_RUNTIME_DIR", name)
        yield Path(name)


@pytest.fixture
def serve():
    """`serve(address, limit=4)`: a daemon in a thread, which ends with the test."""
    with contextlib.ExitStack() as stack:

        def start(where, *, token=None, settle_s=0.0, **options):
            governor = stack.enter_context(Governor(**options))
            address = daemon_address(where)
            listener, _ = listen(address, token)
            daemon = Daemon(governor, settle_s=settle_s, token=token)
            thread = threading.Thread(
                target=lambda: asyncio.run(daemon.serve([(listener, address)])), daemon=True
            )
            thread.start()
            until(lambda: daemon._ended is not None)

            def end():
                daemon.end()
                thread.join(10)

            stack.callback(end)
            return daemon

        yield start


@pytest.fixture
def serve_process():
    """`serve_process(address, "--limit", "4")`: a `concur serve`, which ends with the test."""
    started = []

    def start(where, *words):
        process = subprocess.Popen(
            [*COMMAND, "serve", "--listen", where, *words], stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        assert "serving" in process.stderr.readline()
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)


@pytest.fixture
def patient(monkeypatch):
    """A busy machine may take long to start a daemon: clients wait for it."""
    monkeypatch.setattr(remote_link, "AWAY_S", 60.0)


def until(holds, most_s=45.0):
    """Waits until `holds()`."""
    ends_s = time.monotonic() + most_s
    while not holds():
        assert time.monotonic() < ends_s, "it did not come to be in time"
        time.sleep(0.005)


@pytest.fixture(name="until")
def until_fixture():
    """`until(lambda: ...)`: waits until it holds."""
    return until


@pytest.fixture
def no_descriptor_left():
    """The test leaves no open file or socket behind."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    yield
    until(lambda: len(os.listdir("/proc/self/fd")) <= before)  # noqa: PTH208


@pytest.fixture
def client_process():
    """`client_process(address, 3)`: a process with so many agents inside."""
    started = []

    def start(where, agents):
        process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, where, str(agents)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        started.append(process)
        assert process.stdout.readline() == b"in\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=30)


@pytest.fixture
def free_port():
    """`free_port()`: a port of this machine that is free."""

    def find():
        with socket.create_server(("127.0.0.1", 0)) as found:
            return found.getsockname()[1]

    return find
