"""What a boundary costs when a daemon decides: over a unix socket, from several processes.

    python benchmarks/shared_boundary.py                      # 8 processes x 200 agents
    python benchmarks/shared_boundary.py --seconds 60 --json shared.json

Three runs against one daemon, in this order:

  * paced: all agents together come to 200 boundaries a second.  Printed: how long one waits for its
    answer, with the daemon asked each time (`asked`) and with boundaries open (`open`);
  * saturated: each process asks as fast as it is answered, with so many agents at once.  Printed:
    boundaries a second.

All fits, so that no agent waits for a place: what is measured is the way there and back.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from concur_agents import Agent, Governor

SATURATING = 20
"""Agents of a process that ask as fast as they are answered."""


async def paced(governor: Governor, agents: int, every_s: float, seconds: float) -> list[float]:
    """Each agent comes to a boundary every so often; returns how long each waited [s]."""
    waits: list[float] = []

    async def work(agent: Agent, began: asyncio.Event) -> None:
        await began.wait()
        ends_s = time.monotonic() + seconds
        await asyncio.sleep(min(random.random() * every_s, seconds))
        while time.monotonic() < ends_s:
            began_s = time.perf_counter()
            async with agent.step() as step:
                waits.append(time.perf_counter() - began_s)
                step.record({"prompt_tokens": 1000, "completion_tokens": 10})
            rest_s = random.expovariate(1 / every_s)
            await asyncio.sleep(min(rest_s, ends_s - time.monotonic()))

    await together(governor, agents, work)
    return waits


async def saturated(governor: Governor, agents: int, seconds: float) -> int:
    """Each agent comes to the next boundary at once; returns how many there were."""
    count = 0

    async def work(agent: Agent, began: asyncio.Event) -> None:
        nonlocal count
        await began.wait()
        ends_s = time.monotonic() + seconds
        while time.monotonic() < ends_s:
            async with agent.step():
                count += 1

    await together(governor, agents, work)
    return count


async def together(
    governor: Governor, agents: int, work: Callable[[Agent, asyncio.Event], Awaitable[None]]
) -> None:
    """Each agent is one of its own, and none begins before those of all processes are in.

    Boundaries are asked for as soon as three quarters of the places are taken, and children of an
    agent ask for none.
    """
    began, all_in = asyncio.Event(), asyncio.Event()
    inside: list[Agent] = []

    async def one(name: str) -> None:
        async with governor.agent(name) as agent:
            inside.append(agent)
            if len(inside) == agents:
                all_in.set()
            await work(agent, began)

    tasks = [asyncio.ensure_future(one(f"a{n}")) for n in range(agents)]
    await all_in.wait()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.readline)
    began.set()
    await asyncio.gather(*tasks)


def client(where: str, agents: int, every_s: float, seconds: float) -> None:
    """One process: prints what it saw as a line of JSON."""
    with Governor(shared=where) as governor:
        if every_s:
            found: object = asyncio.run(paced(governor, agents, every_s, seconds))
        else:
            found = asyncio.run(saturated(governor, agents, seconds))
    sys.stdout.write(json.dumps(found) + "\n")


def run(where: str, processes: int, agents: int, every_s: float, seconds: float) -> list[Any]:
    """All processes at once; returns what each saw."""
    words = [where, str(agents), str(every_s), str(seconds)]
    started = [
        subprocess.Popen(
            [sys.executable, __file__, "--client", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(processes)
    ]
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    time.sleep(1.0)  # the daemon has told them whether boundaries are open
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return [json.loads(process.communicate()[0]) for process in started]


def quantiles(waits: list[float]) -> dict[str, float]:
    """In milliseconds."""
    waits = sorted(waits)
    return {
        name: 1000 * waits[min(len(waits) - 1, int(share * len(waits)))]
        for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99))
    }


def main() -> None:
    """Runs the three."""
    if sys.argv[1:2] == ["--client"]:
        where, agents, every_s, seconds = sys.argv[2:]
        client(where, int(agents), float(every_s), float(seconds))
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--agents", type=int, default=200, help="of each process")
    parser.add_argument("--rate", type=float, default=200.0, help="boundaries a second, of all")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="c", dir="/tmp") as folder:
        for name, agents, rate, places in (  # places of each agent; open below three fifths
            ("asked", options.agents, options.rate, 1.1),
            ("open", options.agents, options.rate, 10.0),
            ("saturated", SATURATING, 0.0, 1.1),
        ):
            total = options.processes * agents
            where = f"unix:{folder}/d/{name}"
            daemon = serve(where, int(places * total))
            every_s = total / rate if rate else 0.0
            seen = run(where, options.processes, agents, every_s, options.seconds)
            if rate:
                waits = [wait for found in seen for wait in found]
                results[name] = {"boundaries": len(waits), **quantiles(waits)}
            else:
                results[name] = {"decisions_per_s": sum(seen) / options.seconds}
            daemon.terminate()
            daemon.wait()
    for name, found in results.items():
        numbers = "  ".join(f"{key} {value:.3f}" for key, value in found.items())
        sys.stdout.write(f"{name:10} {numbers}\n")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


def serve(where: str, limit: int) -> subprocess.Popen[str]:
    """A daemon that listens."""
    command = [sys.executable, "-m", "concur_agents.cli.app", "serve", "--listen", where]
    daemon = subprocess.Popen([*command, "--limit", str(limit)], stderr=subprocess.PIPE, text=True)
    assert daemon.stderr is not None
    daemon.stderr.readline()
    return daemon


if __name__ == "__main__":
    main()
