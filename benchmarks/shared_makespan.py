"""One batch on one engine: by one process, by eight that share, and by eight that do not.

    python benchmarks/shared_makespan.py
    python benchmarks/shared_makespan.py --agents 96 --rounds 3 --json makespan.json

The engine is the simulated one behind its real API, in a process of its own.  Its pool holds about
a third of the batch's contexts.  Each round runs the arms one after the other; printed is the
makespan of each, and its ratio to that of one process in the same round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import httpx

from concur_agents import Governor
from concur_agents.sim.profile import load_profile
from concur_agents.sim.server import EmbeddedServer

STEPS = 6
FIRST_TOKENS, MORE_TOKENS, OUTPUT_TOKENS = 1500, 500, 60
TOOL_S = 2.0
"""Mean time of a tool, in the engine's time [s]."""

ARMS = ("one process", "shared", "a governor each")


async def batch(governor: Governor, url: str, model: str, agents: list[int], scale: float) -> None:
    """Runs these agents to their end, once the word has come."""

    async def solve(client: httpx.AsyncClient, number: int) -> None:
        dice = random.Random(number)
        words = [f"a{number}"] * FIRST_TOKENS
        async with governor.agent(f"agent-{number}"):
            for step in range(STEPS):
                body = {"model": model, "prompt": " ".join(words), "max_tokens": OUTPUT_TOKENS}
                reply = (await client.post(f"{url}/v1/completions", json=body)).json()
                words += reply["choices"][0]["text"].split()
                words += [f"a{number}s{step}"] * MORE_TOKENS
                await asyncio.sleep(dice.expovariate(1 / TOOL_S) / scale)

    http = governor.http_client("async", module="httpx", timeout=None)
    async with http as client, governor.agent(f"warm-up-{agents[0]}"):
        body = {"model": model, "prompt": "a", "max_tokens": 1}
        await client.post(f"{url}/v1/completions", json=body)  # imports, connects
    http = governor.http_client("async", module="httpx", timeout=None)
    async with http as client:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)
        await asyncio.gather(*(solve(client, number) for number in agents))


def client(words: list[str]) -> None:
    """One process: runs its part."""
    url, model, shared, scale, first, count, every = words
    governor = Governor(url, shared=shared or None)
    numbers = list(range(int(first), int(count), int(every)))
    with governor:
        asyncio.run(batch(governor, url, model, numbers, float(scale)))


def run(arm: str, agents: int, processes: int, scale: float, blocks: int) -> float:
    """One arm with an engine of its own; returns the makespan [s, in the engine's time]."""
    profile = load_profile("h100-qwen3-8b").replace(kv_blocks=blocks)
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedServer(profile, time_scale=scale, process=True))
        shared = ""
        if arm == "shared":
            shared = stack.enter_context(_Daemon(server.url)).where
        count = 1 if arm == "one process" else processes
        started = [
            subprocess.Popen(
                [sys.executable, __file__, "--client", server.url, server.model, shared]
                + [str(each) for each in (scale, first, agents, count)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for first in range(count)
        ]
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()
        began_s = time.monotonic()
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in started:
            if process.wait():
                raise SystemExit("a process failed")
        return (time.monotonic() - began_s) * scale


class _Daemon:
    """A `concur serve` for a block."""

    def __init__(self, url: str) -> None:
        self._url, self.where = url, f"unix:/tmp/concur-makespan-{time.monotonic_ns()}/s"

    def __enter__(self) -> Self:
        words = ["serve", "--listen", self.where, "--engine", self._url]
        command = [sys.executable, "-m", "concur_agents.cli.app", *words]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        self._process.stderr.readline()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate()
        Path(self.where.removeprefix("unix:")).parent.rmdir()


def main() -> None:
    """Runs all rounds."""
    if sys.argv[1:2] == ["--client"]:
        client(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--agents", type=int, default=64)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--time-scale", type=float, default=3.0)
    parser.add_argument("--kv-blocks", type=int, default=5000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    ratios: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for number in range(options.rounds):
        found = {
            arm: run(arm, options.agents, options.processes, options.time_scale, options.kv_blocks)
            for arm in ARMS
        }
        for arm, makespan_s in found.items():
            ratios[arm].append(makespan_s / found["one process"])
            sys.stdout.write(
                f"round {number}  {arm:16} {makespan_s:7.1f} s  {ratios[arm][-1]:.3f}\n"
            )
            sys.stdout.flush()
    for arm in ARMS:
        sys.stdout.write(f"median   {arm:16} {statistics.median(ratios[arm]):.3f}\n")
    if options.json:
        options.json.write_text(json.dumps(ratios, indent=1))


if __name__ == "__main__":
    main()
