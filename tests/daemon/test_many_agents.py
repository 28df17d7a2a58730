"""Ten thousand agents in eight processes, a third of them cancelled, and nothing is left."""

import json
import os
import subprocess
import sys

import pytest

from concur_agents.testing import assert_idle

CLIENT = """
import asyncio, gc, json, os, sys
import concur_agents as ca
from concur_agents.testing import assert_idle
from concur_agents.wire import remote_link

remote_link.AWAY_S = 60.0  # a busy machine may take long to answer
gov = ca.Governor(shared=sys.argv[1])

async def work(number):
    async with gov.agent(f"a{number}") as agent:
        async with agent.step() as step:
            step.record({"prompt_tokens": 100, "completion_tokens": 10})

async def main():
    async with gov.agent("first"):
        files = len(os.listdir("/proc/self/fd"))
    tasks = [asyncio.create_task(work(number)) for number in range(1250)]
    await asyncio.sleep(0)  # all have asked
    for number, task in enumerate(tasks):
        if number % 3 == 0:
            task.cancel()
        if number % 100 == 0:
            await asyncio.sleep(0.001)  # some are let in meanwhile
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert_idle(gov)
    book = gov.monitor.sessions.regulator.book
    print(json.dumps({
        "cancelled": sum(isinstance(each, asyncio.CancelledError) for each in ended),
        "failed": [repr(each) for each in ended if isinstance(each, Exception)][:3],
        "left": len(book) + len(book.roots) + len(gov.monitor.sessions.tickets),
        "files": len(os.listdir("/proc/self/fd")) - files,
    }), flush=True)
    await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
gov.close()
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ten_thousand_agents_of_which_a_third_is_cancelled_leave_nothing(folder, serve, until):
    where = f"unix:{folder}/d/s"
    daemon = serve(where, limit=100)
    files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CLIENT, where],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    try:
        found = [json.loads(process.stdout.readline()) for process in processes]
        assert [each["failed"] for each in found] == [[]] * 8
        assert [each["left"] for each in found] == [0] * 8
        assert [each["files"] for each in found] == [0] * 8
        cancelled = sum(each["cancelled"] for each in found)
        assert 0 < cancelled <= 8 * 417
        sessions = daemon.hub.sessions
        assert len(sessions) == 8
        until(lambda: not any(len(each.book) or each.book.roots for each in sessions.values()))
        assert_idle(daemon._governor)
        for process in processes:
            process.communicate("go\n", timeout=60)
            assert process.returncode == 0
    finally:
        for process in processes:
            process.kill()
            process.communicate(timeout=30)
    until(lambda: not daemon.hub.sessions)
    until(lambda: len(os.listdir("/proc/self/fd")) <= files)  # noqa: PTH208
    assert not daemon.hub._connected
    assert not daemon.hub._arriving
    assert not daemon._clients
