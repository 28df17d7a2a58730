"""What a boundary costs in a Ray cluster: by the governor's socket, and by a call of an actor.

    python benchmarks/ray_boundary.py                     # 8 actors x 200 agents, 200 a second
    python benchmarks/ray_boundary.py --rounds 5 --json ray.json

Both in the same run, in turns: agents in several actors come to boundaries, and each waits for the
daemon's answer (`socket`), or for that of an actor that decides nothing (`actor call`).  Printed:
how long one waits, and the CPU time of one, of all processes that take part: those with the agents,
and the one that answers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import ray

import concur_agents.ray

SOCKET, CALL = "socket", "actor call"


@ray.remote(num_cpus=0)
class Decider:
    """Answers at once: what is measured is the way there and back."""

    async def boundary(self, agent: str) -> bool:
        """The event of an agent."""
        return bool(agent)

    async def cpu_s(self) -> float:
        """CPU time of this process [s]."""
        return time.process_time()


@ray.remote(num_cpus=0)
class Worker:
    """A process with agents."""

    def __init__(self, agents: int, limit: int, decider: Any) -> None:
        self.governor = concur_agents.ray.governor(limit=limit)
        self.agents = [self.governor.agent(f"a{n}", detached=True) for n in range(agents)]
        self.decider = decider

    async def enter(self) -> None:
        """All agents of this process are in."""
        await asyncio.gather(*(agent.open() for agent in self.agents))

    async def run(self, way: str, every_s: float, seconds: float) -> tuple[list[float], float]:
        """Each agent comes to a boundary every so often: how long each waited, and the CPU [s]."""
        waits: list[float] = []

        async def work(agent: concur_agents.Agent) -> None:
            await asyncio.sleep(min(random.random() * every_s, seconds))
            while time.monotonic() < ends_s:
                began_s = time.perf_counter()
                if way == SOCKET:
                    async with agent.step():
                        waits.append(time.perf_counter() - began_s)
                else:
                    await self.decider.boundary.remote(agent.id)
                    waits.append(time.perf_counter() - began_s)
                rest_s = random.expovariate(1 / every_s)
                await asyncio.sleep(min(rest_s, ends_s - time.monotonic()))

        used_s, ends_s = time.process_time(), time.monotonic() + seconds
        await asyncio.gather(*(work(agent) for agent in self.agents))
        return waits, time.process_time() - used_s


def host_cpu_s() -> float:
    """CPU time of the process with the daemon [s]."""
    (found,) = [
        each["name"]
        for each in ray.util.list_named_actors(all_namespaces=True)
        if each["namespace"] == concur_agents.ray.NAMESPACE
    ]
    host = ray.get_actor(found, namespace=concur_agents.ray.NAMESPACE)
    used_s: float = ray.get(host.__ray_call__.remote(lambda _: time.process_time()))
    return used_s


def main() -> None:
    """Runs both ways in turns."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--agents", type=int, default=200, help="of each process")
    parser.add_argument("--rate", type=float, default=200.0, help="boundaries a second, of all")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    total = options.processes * options.agents
    decider = Decider.remote()
    limit = int(1.1 * total)  # all fit, and so closely that boundaries are asked for
    workers = [Worker.remote(options.agents, limit, decider) for _ in range(options.processes)]
    ray.get([worker.enter.remote() for worker in workers])
    time.sleep(1.0)  # the daemon has told them so
    waits: dict[str, list[float]] = {SOCKET: [], CALL: []}
    used_s = dict.fromkeys(waits, 0.0)
    for _ in range(options.rounds):
        for way in waits:
            before_s = host_cpu_s() + ray.get(decider.cpu_s.remote())
            every_s = total / options.rate
            seen = ray.get([w.run.remote(way, every_s, options.seconds) for w in workers])
            used_s[way] += host_cpu_s() + ray.get(decider.cpu_s.remote()) - before_s
            for found, own_s in seen:
                waits[way] += found
                used_s[way] += own_s
    results = {}
    for way, found in waits.items():
        found.sort()
        results[way] = {
            "boundaries": len(found),
            "p50_ms": 1000 * found[len(found) // 2],
            "p99_ms": 1000 * found[int(0.99 * len(found))],
            "cpu_ms": 1000 * used_s[way] / len(found),
        }
        numbers = "  ".join(f"{key} {value:.3f}" for key, value in results[way].items())
        sys.stdout.write(f"{way:10} {numbers}\n")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
