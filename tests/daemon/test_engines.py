"""Four engines, several processes and a daemon, of which one process and the daemon are killed."""

import asyncio
import contextlib
import json
import subprocess
import sys
import time

import httpx
import pytest

from concur_agents import Governor
from concur_agents.sim.server import EmbeddedServer

CLIENT = """
import asyncio, json, sys
import concur_agents as ca
from concur_agents.wire import remote_link

remote_link.AWAY_S = 60.0  # a busy machine may take long to start a daemon
where, url, model = sys.argv[1:]
gov = ca.Governor(shared=where)
pools = set()

async def solve(client, name):
    async with gov.agent(name) as agent:
        text = name + " a b c d e f g h " * 20
        for step in range(4):
            body = {"model": model, "prompt": text, "max_tokens": 5}
            reply = (await client.post(url + "/v1/completions", json=body)).json()
            pools.add(agent.pool)
            text += reply["choices"][0]["text"]
            if step == 1:
                print("half", flush=True)
                await asyncio.to_thread(sys.stdin.readline)
    return reply["usage"]["completion_tokens"]

async def main():
    async with gov.http_client("async", module="httpx") as client:
        done = await asyncio.gather(*(solve(client, f"a{n}") for n in range(6)))
    print(json.dumps([done, sorted(pools)]), flush=True)

asyncio.run(main())
"""


@pytest.fixture
def engines():
    """Four simulated engines that answer at once."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(EmbeddedServer("h100-qwen3-8b", time_scale=float("inf")))
            for _ in range(4)
        ]


@pytest.fixture
def start(engines):
    """Starts a client process."""
    started = []

    def start(where):
        process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, where, engines[0].url, engines[0].model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=30)


def test_agents_of_an_engine_that_is_down_move_at_their_next_call(
    engines, folder, serve, until, patient
):
    where = f"unix:{folder}/d/s"
    urls = [engine.url for engine in engines[:2]]
    daemon = serve(where, url=urls, limit=8, poll_interval_s=0.1, blind_after_s=0.5)

    async def main():
        async with (
            Governor(shared=where) as governor,
            governor.http_client("async", module="httpx") as client,
            governor.agent("a") as agent,
        ):

            async def call():
                body = {"model": engines[0].model, "prompt": "a b", "max_tokens": 2}
                reply = await client.post(f"{urls[0]}/v1/completions", json=body)
                return reply.raise_for_status().json()["usage"]["completion_tokens"]

            assert await call() == 2
            first = agent.pool
            down = engines[urls.index(first)]
            await asyncio.to_thread(down.stop)
            ends_s = time.monotonic() + 60
            while not governor.monitor.sessions.regulator.is_down(first):
                with contextlib.suppress(httpx.TransportError):
                    await call()  # fails as any call to an engine that is down
                assert time.monotonic() < ends_s
                await asyncio.sleep(0.1)
            assert await call() == 2
            assert agent.pool == next(url for url in urls if url != first)

    asyncio.run(main())
    until(lambda: not daemon.hub.sessions)


@pytest.mark.timeout(180)
def test_no_agent_of_the_others_fails_if_a_process_and_the_daemon_are_killed(
    folder, engines, serve_process, start
):
    where = f"unix:{folder}/d/s"
    words = [word for engine in engines for word in ("--engine", engine.url)]
    daemon = serve_process(where, *words)
    processes = [start(where) for _ in range(4)]
    for process in processes:
        for _ in range(6):
            assert process.stdout.readline() == "half\n"
    processes[0].kill()
    daemon.kill()
    daemon.wait(30)
    for process in processes[1:]:  # while there is no daemon
        process.stdin.write("go\n" * 3)
        process.stdin.flush()
    serve_process(where, *words)
    for process in processes[1:]:
        out, _ = process.communicate("go\n" * 3, timeout=120)
        done, pools = json.loads(out)
        assert done == [5] * 6
        assert set(pools) <= {engine.url for engine in engines}
        assert len(pools) > 1
