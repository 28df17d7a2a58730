"""A daemon and its clients over real sockets.  Governors of one process are clients like others."""

import asyncio
import contextlib
import pickle
import socket
import subprocess
import sys
import threading

from concur_agents import Governor


def test_clients_share_one_limit_and_no_agent_is_left(folder, serve, until):
    """The batch of three processes never has more inside than one would."""
    daemon = serve(f"unix:{folder}/d/s", limit=4)
    inside, peak = [], []

    async def work(governor, name):
        async with governor.agent(name) as agent:
            for _ in range(3):
                async with agent.step() as step:
                    inside.append(name)
                    peak.append(len(inside))
                    await asyncio.sleep(0.002)
                    inside.remove(name)
                    step.record({"prompt_tokens": 100, "completion_tokens": 10})

    async def batch(governor):
        await asyncio.gather(*(work(governor, f"a{n}") for n in range(20)))

    with contextlib.ExitStack() as stack:
        governors = [stack.enter_context(Governor(shared=f"unix:{folder}/d/s")) for _ in range(3)]
        threads = [threading.Thread(target=asyncio.run, args=(batch(g),)) for g in governors]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert 1 < max(peak) <= 4
        until(lambda: not daemon._governor.agents())
        assert [governor.snapshot().alive for governor in governors] == [0, 0, 0]
    until(lambda: not daemon.hub.sessions)


def test_a_forked_child_is_a_client_of_its_own_and_the_parent_stays(folder, serve, until):
    where = f"unix:{folder}/d/s"
    daemon = serve(where, limit=4)
    code = f"""
import os, concur_agents as ca
gov = ca.Governor(shared={where!r})
with gov.agent("a"):
    child = os.fork()
    if not child:
        with gov.agent("a"):
            os._exit(7 if gov.snapshot().reason == "shared" else 8)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    print(gov.snapshot().active, gov.snapshot().reason)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.stdout == "1 shared\n", ran.stderr
    until(lambda: not daemon.hub.sessions)


def test_a_pickled_governor_connects_to_the_same_daemon(folder, serve):
    where = f"unix:{folder}/d/s"
    daemon = serve(where, limit=4)
    with (
        Governor(shared=where, ungoverned="error") as governor,
        governor.agent("a"),
        pickle.loads(pickle.dumps(governor)) as other,
        other.agent("a"),
    ):
        assert other.ungoverned == "error"
        assert len(daemon.hub.sessions) == 2
        assert daemon._governor.snapshot().active == 2


def test_a_governor_without_an_agent_leaves_nothing_open(no_descriptor_left, folder):
    Governor(shared=f"unix:{folder}/d/s").close()


def test_a_client_that_connects_as_the_daemon_ends_is_hung_up_on(folder, serve):
    daemon = serve(f"unix:{folder}/d/s", limit=1)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(f"{folder}/d/s")
        daemon.end()
        with contextlib.suppress(ConnectionResetError):  # it was not accepted any more
            assert client.recv(1) == b""


def test_a_daemon_that_ends_hangs_up_on_a_client_that_does_not_read(folder, serve, until):
    """What is left to send would keep the connection open beyond the end of the loop."""
    daemon = serve(f"unix:{folder}/d/s", limit=1)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{folder}/d/s")
        until(lambda: daemon.connected)
        (one,) = daemon.connected
        daemon._loop.call_soon_threadsafe(one._transport.write, b" " * 2**22)
        until(lambda: one._transport.get_write_buffer_size() > 0)
        daemon.end()
        until(lambda: not daemon.connected)
