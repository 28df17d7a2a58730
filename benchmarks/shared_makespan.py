"""One batch on one engine: by one process, by eight that share, and by eight governors that do not.

    python benchmarks/shared_makespan.py
    python benchmarks/shared_makespan.py --agents 48 --rounds 5 --json makespan.json
    python benchmarks/shared_makespan.py --kv-blocks 80000     # everything fits

The engine is the simulated one behind its real API.  Its clock waits for the agents (see
`sim.client_clock`), which use a tool by asking the engine's server to answer that much later.  So a
busy machine makes this longer and changes no figure.  The eight that share are processes, with a
real daemon on a unix socket between them and the engine's clock; the one, and the eight that do
not share, are governors in the engine's process.  Each round has other agents.  A round of all arms
takes some minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx

from concur_agents import Governor
from concur_agents.daemon import Daemon, listen
from concur_agents.lab.demo.course import keep_time
from concur_agents.runtime.daemon_address import daemon_address
from concur_agents.sim.client_clock import ClientClock
from concur_agents.sim.profile import load_profile
from concur_agents.sim.server import EmbeddedServer

PROFILE = "h200-qwen3-32b"
KV_BLOCKS = 8_750
"""The pool: eight agents at their end."""
STEPS = 10
FIRST_TOKENS, MORE_TOKENS, OUTPUT_TOKENS = 4_000, 1_200, 150
TOOL_S = 2.0
"""Mean time of a tool [s]."""
POLL_S = 1.0
TURN_S = 0.25
"""The daemon's, in virtual time."""

ARMS = ("one process", "shared", "a governor each")


async def batch(governor: Governor, url: str, model: str, names: list[str]) -> None:
    """Runs these agents to their end, all at once."""

    def said(agent: str = "") -> dict[str, str]:
        """For the server: how much this process has told the daemon before this request."""
        regulator: Any = governor.monitor.sessions.regulator
        seq = getattr(regulator, "seq", None)
        return {} if seq is None else {"x-said": f"{regulator.session} {seq}", "x-agent": agent}

    async def solve(client: httpx.AsyncClient, plain: httpx.AsyncClient, name: str) -> None:
        dice = random.Random(name)
        words = [name] * FIRST_TOKENS
        async with governor.agent(name):
            for step in range(STEPS):
                body = {"model": model, "prompt": " ".join(words), "max_tokens": OUTPUT_TOKENS}
                path = f"{url}/v1/completions"
                reply = (await client.post(path, json=body, headers=said(name))).json()
                words += reply["choices"][0]["text"].split()
                words += [f"{name}s{step}"] * MORE_TOKENS
                rest_s = dice.expovariate(1 / TOOL_S)
                await plain.post(f"{url}/sleep/{rest_s}", headers=said())
        await plain.post(f"{url}/done", headers=said())

    limits = httpx.Limits(max_connections=None)
    http = governor.http_client("async", module="httpx", timeout=None, limits=limits)
    async with http as client, httpx.AsyncClient(timeout=None, limits=limits) as plain:
        await asyncio.gather(*(solve(client, plain, name) for name in names))


def client(url: str, model: str, shared: str, names: list[str]) -> None:
    """One of the processes."""
    with Governor(shared=shared) as governor:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        asyncio.run(batch(governor, url, model, names))


class Clockwork:
    """The engine's server, as the agents need it: the clock waits for each of them.

    Args:
        agents: so many.
    """

    def __init__(self, agents: int) -> None:
        self.clock = ClientClock()
        self.daemon: Daemon | None = None
        self.ended_s = 0.0
        """When the last agent was done so far [s]."""
        self._clients = [contextlib.ExitStack() for _ in range(agents)]
        for each in self._clients:
            each.enter_context(self.clock.client())

    def middleware(self, app: Any) -> Any:
        """Around the server: waits for what the daemon does not know yet, and answers tools."""

        async def around(scope: Any, receive: Any, send: Any) -> None:
            headers = dict(scope.get("headers", ()))
            path = scope.get("path", "")
            if b"x-said" in headers:
                session, seq = headers[b"x-said"].decode().split()
                agent = headers[b"x-agent"].decode()
                while not self._knows(session, int(seq), agent):  # noqa: ASYNC110 - no event
                    await asyncio.sleep(0.001)
            if path.startswith("/sleep/"):
                await self.clock.sleep(float(path.removeprefix("/sleep/")))
            elif path == "/done":
                self._clients.pop().close()
                self.ended_s = self.clock()
            else:
                await app(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        return around

    def _knows(self, session: str, seq: int, agent: str) -> bool:
        """Whether the daemon has heard so much, and that a call of the agent is in flight."""
        assert self.daemon is not None
        found = self.daemon.hub.sessions.get(session)
        if found is None or found.seq < seq:
            return False
        entry = found.book.find(agent) if agent else None
        return not agent or (entry is not None and entry.calls > 0)

    async def turn(self, act: Callable[[], object]) -> None:
        """Does what a daemon does by time."""
        with self.clock.client():
            while True:
                await self.clock.sleep(TURN_S)
                act()

    async def look(self) -> None:
        """Notices agents that have begun to wait."""
        while True:
            await asyncio.sleep(0.002)
            self.clock.look()


@contextlib.asynccontextmanager
async def together(*works: Any) -> AsyncIterator[None]:
    """Runs these beside a block."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def run(arm: str, names: list[str], processes: int, blocks: int) -> float:
    """One arm with an engine of its own; returns the makespan [s, by the engine's clock]."""
    work = Clockwork(len(names))
    clock = work.clock
    profile = load_profile(PROFILE).replace(kv_blocks=blocks)
    server = EmbeddedServer(profile, clock=clock, middleware=work.middleware)
    count = processes if arm == "a governor each" else 1
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(server)
        governors = [
            Governor(server.url, poll_interval_s=POLL_S, clock=clock, background=False)
            for _ in range(count)
        ]
        for each in governors:
            stack.enter_context(each)
        clock.held = lambda: sum(each.snapshot().waiters for each in governors)
        beats = [keep_time(each, clock) for each in governors]
        await stack.enter_async_context(together(work.look(), *beats))
        if arm != "shared":
            parts = [names[n::count] for n in range(count)]
            await asyncio.gather(
                *(batch(*each) for each in _jobs(governors, server.url, server.model, parts))
            )
            return work.ended_s
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="concur-", dir="/tmp"))
        where = f"unix:{folder}/d/s"
        address = daemon_address(where)
        listener, _ = listen(address, None)
        daemon = work.daemon = Daemon(governors[0], settle_s=0.0, ttl_s=1e6)
        clock.held = lambda: _waiting(governors[0])
        turns = work.turn(daemon.turn)
        await stack.enter_async_context(together(daemon.serve([(listener, address)]), turns))
        words = [sys.executable, __file__, "--client", server.url, server.model, where]
        parts = [names[n::processes] for n in range(processes)]
        await asyncio.gather(*await _started([[*words, *part] for part in parts]))
        return work.ended_s


def _waiting(governor: Governor) -> int:
    """So many agents of other processes wait."""
    found = governor.snapshot()
    return found.queued + found.paused


def _jobs(governors: list[Governor], url: str, model: str, parts: list[list[str]]) -> Any:
    return [(each, url, model, part) for each, part in zip(governors, parts, strict=True)]


async def _started(commands: list[list[str]]) -> list[Any]:
    """The processes, all of which have begun; what is returned waits for their ends."""
    pipe = subprocess.PIPE
    found = [
        await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe) for words in commands
    ]
    for process in found:
        assert process.stdout is not None
        await process.stdout.readline()

    async def end(process: asyncio.subprocess.Process) -> None:
        await process.communicate(b"go\n")
        if process.returncode:
            raise SystemExit("a process failed")

    return [end(process) for process in found]


def main() -> None:
    """Runs all rounds."""
    if sys.argv[1:2] == ["--client"]:
        client(*sys.argv[2:5], sys.argv[5:])
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--agents", type=int, default=64)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--kv-blocks", type=int, default=KV_BLOCKS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    arms = options.arms.split(",")
    ratios: dict[str, list[float]] = {arm: [] for arm in arms}
    for number in range(options.first, options.first + options.rounds):
        names = [f"r{number}a{agent}" for agent in range(options.agents)]
        found = {}
        for arm in arms:
            found[arm] = asyncio.run(run(arm, names, options.processes, options.kv_blocks))
            ratios[arm].append(found[arm] / found[arms[0]])
            sys.stdout.write(
                f"round {number}  {arm:16} {found[arm]:7.1f} s  {ratios[arm][-1]:.4f}\n"
            )
            sys.stdout.flush()
    for arm in arms:
        sys.stdout.write(f"median   {arm:16} {statistics.median(ratios[arm]):.4f}\n")
    if options.json:
        options.json.write_text(json.dumps(ratios, indent=1))


if __name__ == "__main__":
    main()
