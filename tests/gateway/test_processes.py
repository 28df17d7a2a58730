"""Which process sent a request."""

import asyncio
import subprocess
import sys
from types import SimpleNamespace

import pytest

from concur_agents.gateway.processes import Processes, is_alive

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it is found in /proc")

CONNECT = """
import socket, sys
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
print("connected", flush=True)
sys.stdin.read()
"""


async def test_the_process_at_the_other_end_is_found():
    accepted = asyncio.Queue()
    server = await asyncio.start_server(lambda _, writer: accepted.put_nowait(writer), "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    command = [sys.executable, "-c", CONNECT, str(port)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes, found = Processes(), []
    programs = [subprocess.Popen(command, **pipes) for _ in range(2)]
    try:
        for _ in programs:
            writer = await accepted.get()
            request = SimpleNamespace(transport=writer.transport)
            found.append(await processes.of(request))
            assert await processes.of(request) == found[-1]
            writer.close()
        assert sorted(found) == sorted(program.pid for program in programs)
        assert all(is_alive(program.pid) for program in programs)
    finally:
        for program in programs:
            program.communicate()
    assert not any(is_alive(program.pid) for program in programs)
    server.close()


class Transport(asyncio.Transport):
    """One that can be referred to weakly, as those of connections can."""


async def test_a_sender_elsewhere_is_not_found_and_this_is_said_once(caplog):
    processes = Processes()
    for port in (1, 2):
        transport = Transport({"peername": ("10.0.0.1", port), "sockname": ("h", 3)})
        assert await processes.of(SimpleNamespace(transport=transport)) is None
    assert caplog.text.count("cannot be found here") == 1
