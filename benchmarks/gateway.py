"""What the gateway costs, beside the plain engine and beside LiteLLM's proxy.

    python benchmarks/gateway.py [--litellm PATH] [--requests 1920] [--firsts 200] [--agents 64]

Three parts, each of whose arms take turns within one run, so that whatever else the machine does
falls on all of them:

1. CPU time of the proxy's process for each request, with 64 at once and bodies of 40 KB, plain and
   streamed. `--litellm` is the command of LiteLLM's proxy (`pip install "litellm[proxy]"`, in an
   environment of its own).
2. How much later the first token comes, with one request at a time and with 64 at once.
3. The makespan of recorded agents, through the gateway and with a governor in their process (the
   drop-in client), on the engine's clock, which waits for clients: a busy machine changes nothing.

`--check` ends with an error if a goal is missed: 1.5 ms, 5 ms, 3 %.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import openai

from concur_agents.gateway.app import Gateway
from concur_agents.governor import Governor
from concur_agents.lab.demo import course
from concur_agents.lab.demo.chat import Texts
from concur_agents.lab.demo.scenario import POLL_INTERVAL_S, Scenario, make_scenario
from concur_agents.lab.replay.arms import Open
from concur_agents.lab.replay.batch import Batch
from concur_agents.openai import AsyncOpenAI
from concur_agents.sim.client_clock import ClientClock
from concur_agents.sim.server import EmbeddedServer

CPU_GOAL_S, FIRST_TOKEN_GOAL_S, MAKESPAN_GOAL = 1.5e-3, 5e-3, 0.03
AT_ONCE = 64
BODY_BYTES = 40_000
MODEL = "m"
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def body(number: int, stream: bool) -> dict[str, Any]:
    """A request of 40 KB, another one for each agent."""
    words = f"{number} " + "the quick brown fox jumps over the lazy dog " * 1000
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": words[:BODY_BYTES]}],
        "max_tokens": 20,
        "stream": stream,
    }


# --- the arms ------------------------------------------------------------------------------------


class Arm:
    """An address, and the process whose CPU time counts."""

    def __init__(self, name: str, url: str, pid: int, path: str = "") -> None:
        self.name = name
        self.url = url
        self.pid = pid
        self.path = path

    def cpu_s(self) -> float:
        """CPU time of its process so far [s]."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * TICK_S

    def address(self, number: int) -> str:
        """Where the calls of an agent go."""
        return f"{self.url}{self.path.format(number)}/v1/chat/completions"


@contextmanager
def gateway(engine: str) -> Iterator[Arm]:
    """The gateway in a process of its own, with a cap that holds no agent."""
    code = "from concur_agents.cli.app import main; main()"
    options = ["gateway", "--engine", engine, "--limit", "100000", "--port", "0", "--json"]
    with subprocess.Popen([sys.executable, "-c", code, *options], stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        url = json.loads(run.stdout.readline())["url"]
        try:
            yield Arm("gateway", url, run.pid, "/agent/{}")
        finally:
            run.terminate()


@contextmanager
def litellm(command: str, engine: str) -> Iterator[Arm]:
    """LiteLLM's proxy in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        parameters = {"model": f"openai/{MODEL}", "api_base": f"{engine}/v1", "api_key": "-"}
        models = [{"model_name": MODEL, "litellm_params": parameters}]
        config.write_text(json.dumps({"model_list": models}))  # which is YAML
        words = [command, "--config", str(config), "--port", str(port), "--host", "127.0.0.1"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        environ = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
        environ["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"] = "true"  # on loopback
        with subprocess.Popen(words, env=environ, **quiet) as run:  # type: ignore[call-overload]
            try:
                until = time.monotonic() + 180
                while time.monotonic() < until and run.poll() is None:
                    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                        break
                    time.sleep(0.5)
                yield Arm("LiteLLM", f"http://127.0.0.1:{port}", run.pid)
            finally:
                run.kill()


# --- CPU and the first token ---------------------------------------------------------------------


async def ask(client: aiohttp.ClientSession, arm: Arm, number: int, stream: bool) -> float:
    """One request; returns when its first byte came [s]."""
    began_s = time.perf_counter()
    async with client.post(arm.address(number), json=body(number, stream)) as answer:
        if answer.status != 200:
            raise SystemExit(f"{arm.name} answered {answer.status}: {await answer.text()}")
        await answer.content.readany()
        first_s = time.perf_counter() - began_s
        await answer.read()
    return first_s


async def load(arm: Arm, requests: int, stream: bool) -> float:
    """CPU time of its process for each of so many requests, 64 at once [s]."""

    async def agent(number: int) -> None:
        for _ in range(requests // AT_ONCE):
            await ask(client, arm, number, stream)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        await asyncio.gather(*(ask(client, arm, n, stream) for n in range(AT_ONCE)))
        before_s = arm.cpu_s()
        await asyncio.gather(*(agent(number) for number in range(AT_ONCE)))
        return (arm.cpu_s() - before_s) / (requests // AT_ONCE * AT_ONCE)


async def first_tokens(arms: list[Arm], rounds: int, at_once: int) -> dict[str, list[float]]:
    """When the first byte of a stream comes, with so many requests at once, arm by arm [s].

    The arms take turns, round by round: what else the machine does falls on all of them.
    """
    found: dict[str, list[float]] = {arm.name: [] for arm in arms}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        for number in range(-1, rounds):  # the first opens the connections, and does not count
            for arm in arms:
                asks = [ask(client, arm, (number + n) % AT_ONCE, True) for n in range(at_once)]
                times = await asyncio.gather(*asks)
                if number >= 0:
                    found[arm.name].append(statistics.median(times))
    return found


def later_s(found: dict[str, list[float]], name: str, plain: str) -> float:
    """How much later the first token comes than from the plain engine: the median of pairs [s]."""
    return statistics.median(a - b for a, b in zip(found[name], found[plain], strict=True))


def cost(requests: int, command: str | None, firsts: int) -> tuple[float, float]:
    """Prints parts 1 and 2; returns the gateway's CPU [s] and its delay of the first token [s]."""
    with ExitStack() as stack:
        server = EmbeddedServer("h100-qwen3-8b", time_scale=math.inf, model=MODEL, process=True)
        engine = stack.enter_context(server)
        assert engine._process is not None
        plain = Arm("plain engine", engine.url, engine._process.pid)
        arms = [plain, stack.enter_context(gateway(engine.url))]
        if command:
            arms.append(stack.enter_context(litellm(command, engine.url)))
        found: dict[tuple[str, bool], list[float]] = {}
        for _ in range(3):
            for stream in (False, True):
                for arm in arms:
                    cpu_s = asyncio.run(load(arm, requests // 3, stream))
                    found.setdefault((arm.name, stream), []).append(cpu_s)
        alone = asyncio.run(first_tokens(arms, firsts, 1))
        crowd = asyncio.run(first_tokens(arms, firsts // 10, AT_ONCE))
    print(f"CPU for each request, {AT_ONCE} at once, {BODY_BYTES // 1000} KB each [ms]")
    for arm in arms:
        medians = [statistics.median(found[arm.name, stream]) * 1e3 for stream in (False, True)]
        print(f"  {arm.name:14} {medians[0]:7.2f}   streamed {medians[1]:7.2f}")
    if not command:
        print("  LiteLLM's proxy was not run: no --litellm")
    for at_once, times in ((1, alone), (AT_ONCE, crowd)):
        print(f"First token, {at_once} at once [ms]: median, and how much later (median of pairs)")
        for name, each in times.items():
            middle_s, later = statistics.median(each), later_s(times, name, plain.name)
            shortest_s = min(each)
            print(
                f"  {name:14} {middle_s * 1e3:7.2f}   later by {later * 1e3:6.2f}   "
                f"shortest {shortest_s * 1e3:6.2f}"
            )
    worst_s = max(statistics.median(found["gateway", stream]) for stream in (False, True))
    return worst_s, later_s(alone, "gateway", plain.name)


# --- the makespan --------------------------------------------------------------------------------


class Inside(Open):
    """Agents of a governor in their process; their clients are governed."""

    def __init__(self, governor: Governor) -> None:
        super().__init__()
        self._governor = governor

    @asynccontextmanager
    async def agent(self, agent_id: str, **options: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        """One agent's life."""
        async with self._governor.agent(agent_id), super().agent(agent_id, **options) as agent:
            yield agent


class Through(Open):
    """Agents that know only an address, and say their end to it."""

    def __init__(self, url: str, client: aiohttp.ClientSession) -> None:
        super().__init__()
        self._url = url
        self._client = client

    @asynccontextmanager
    async def agent(self, agent_id: str, **options: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        """One agent's life."""
        async with super().agent(agent_id, **options) as agent:
            yield agent
        async with self._client.delete(f"{self._url}/agent/{agent_id}"):
            pass


async def makespan_s(scenario: Scenario, texts: Texts, *, through: bool) -> float:
    """The makespan of the agents [s on the engine's clock]."""
    clock = ClientClock()
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        server = await enter(EmbeddedServer(scenario.profile, seed=scenario.seed, clock=clock))
        governor = await enter(
            Governor(
                server.url,
                law=scenario.arms[0].law,
                poll_interval_s=POLL_INTERVAL_S,
                clock=clock,
                background=False,
            )
        )
        loop = asyncio.get_running_loop()
        governor.on_event(lambda event: loop.call_soon_threadsafe(clock.look))
        clock.held = lambda: governor.snapshot().waiters
        gate: Open = Inside(governor)
        clients: dict[str, openai.AsyncOpenAI] = {}
        if through:
            front = await enter(Gateway(governor, server.url))
            gate = Through(front.url, await enter(aiohttp.ClientSession()))
        else:
            inside = AsyncOpenAI(
                governor=governor, base_url=f"{server.url}/v1", api_key="-", timeout=3600
            )
            await enter(inside)
        for plan in scenario.plans:
            if through:
                url = f"{front.url}/agent/{plan.id}/v1"
                client = openai.AsyncOpenAI(base_url=url, api_key="-", timeout=3600)
                clients[plan.id] = await enter(client)
            else:
                clients[plan.id] = inside

        def converse(plan: Any) -> course._Conversation:
            client = partial(clients.__getitem__, plan.id)
            return course._Conversation(plan, texts, client, scenario.profile)

        beating = asyncio.create_task(course.keep_time(governor, clock))
        batch = Batch(gate, clock, converse, [], [])
        async with asyncio.TaskGroup() as group:
            for plan in scenario.plans:
                group.create_task(batch.live(plan))
        clock.held = lambda: 0
        beating.cancel()
        with suppress(asyncio.CancelledError):
            await beating
    return max(row.done_s for row in batch.rows) - min(row.at_gate_s for row in batch.rows)


def makespans(agents: int, steps: int, draws: int) -> float:
    """Prints part 3; returns the ratio, the mean of several draws."""
    ratios = []
    print(f"Makespan of {agents} recorded agents [s on the engine's clock]")
    for seed in range(draws):
        scenario = make_scenario(
            arms="working_set", agents=agents, max_steps=steps, profile="demo", seed=seed
        )
        texts = Texts(scenario.plans, seed)
        inside_s = asyncio.run(makespan_s(scenario, texts, through=False))
        through_s = asyncio.run(makespan_s(scenario, texts, through=True))
        ratios.append(through_s / inside_s)
        print(
            f"  {scenario.calls} calls, {scenario.oversubscription:.1f} times oversubscribed: "
            f"in process {inside_s:.1f}   through the gateway {through_s:.1f}   "
            f"ratio {ratios[-1]:.3f}",
            flush=True,
        )
    mean = statistics.geometric_mean(ratios)
    print(f"  mean ratio {mean:.3f}")
    return mean


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--litellm", help="the command of LiteLLM's proxy")
    parser.add_argument("--requests", type=int, default=1920)
    parser.add_argument("--firsts", type=int, default=200, help="rounds for the first token")
    parser.add_argument("--agents", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--only", choices=("cost", "makespan"))
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    cpu_s, first_s, ratio = 0.0, 0.0, 1.0
    if options.only != "makespan":
        cpu_s, first_s = cost(options.requests, options.litellm, options.firsts)
    if options.only != "cost":
        ratio = makespans(options.agents, options.steps, options.draws)
    if options.check:
        missed = []
        if cpu_s > CPU_GOAL_S:
            missed.append(f"{cpu_s * 1e3:.2f} ms of CPU")
        if first_s > FIRST_TOKEN_GOAL_S:
            missed.append(f"the first token {first_s * 1e3:.1f} ms later")
        if abs(ratio - 1) > MAKESPAN_GOAL:
            missed.append(f"a makespan ratio of {ratio:.3f}")
        if missed:
            raise SystemExit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
