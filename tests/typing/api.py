"""The public API as type checkers see it: mypy and pyright check this file, nothing runs it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, assert_type

import concur_agents as ca
import concur_agents.ray
from concur_agents.core import Law, LawState, Limit, Reading, Regulator, Snapshot, Usage, make_law
from concur_agents.observe.metrics import export, serve
from concur_agents.openai import AsyncOpenAI, OpenAI
from concur_agents.probes import HttpProbe, parse_page
from concur_agents.probes.pinning import PinProof
from concur_agents.recording import Recording, record, replay
from concur_agents.recording.inline import Report
from concur_agents.testing import ManualClock, ScriptedProbe, run, virtual_governor


def governors() -> None:
    """Made from a URL, a cap, a law, a probe or the environment."""
    assert_type(ca.Governor("http://localhost:8000"), ca.Governor)
    ca.Governor(limit=8, max_wait_s=600, max_open=100, ungoverned="error")
    ca.Governor("http://localhost:8000", law=ca.make_law("cache_aimd", interval_s=10.0))
    ca.Governor(probe=HttpProbe("http://localhost:8000"), shadow="fixed", record=Path("run.jsonl"))
    assert_type(ca.Governor.from_env(max_wait_s=600), ca.Governor)
    assert_type(concur_agents.ray.governor(["http://gpu1:8000"], max_wait_s=600), ca.Governor)
    ca.Governor(limit="8")  # type: ignore[arg-type]  # a cap is a number
    ca.Governor(limit=8, ungoverned="wait")  # type: ignore[arg-type]  # one of three words


def looking_at(gov: ca.Governor, agent: ca.Agent) -> None:
    """What a governor reports."""
    snapshot = gov.snapshot()
    assert_type(snapshot, ca.GovernorSnapshot)
    assert_type(snapshot.pressure_tokens, float)
    assert_type(gov.explain("issue-17"), str)
    assert_type(gov.explain(agent), str)
    assert_type(gov.agent_state("issue-17"), str | None)
    assert_type(gov.agent_state(agent), str | None)
    assert_type(gov.pool_of(agent), str | None)
    unsubscribe = gov.on_event(lambda event: print(event.kind, event.agent))
    assert_type(unsubscribe, Callable[[], None])
    for view in gov.agents():
        print(view.agent, view.state)
    for name, times in gov.tool_times().items():
        print(name, times.mean_s)
    assert_type(gov.check(), Reading)
    assert_type(gov.check_pinning(), dict[str, PinProof])


async def an_agent(gov: ca.Governor) -> None:
    """The bare form, asynchronous."""
    async with gov, gov.agent("issue-17", priority=1) as agent:
        assert_type(agent, ca.Agent)
        async with agent.step(prompt_tokens=9_000) as step:
            assert_type(step, ca.Step)
            step.record({"prompt_tokens": 9_000, "completion_tokens": 120})
        async with agent.suspended(), agent.tool("pytest"):
            await asyncio.sleep(60)
        assert_type(agent.stats, ca.AgentStats)
        assert_type((agent.pool, agent.base_url), tuple[str | None, str | None])
        assert_type(agent.headers, dict[str, str])
        agent.heard({"x-smg-routed-worker-id": "http://gpu1:8000"})
        assert_type(ca.current_agent(), ca.Agent | None)


def an_agent_in_a_thread(gov: ca.Governor) -> None:
    """The same, synchronous."""
    with gov, gov.agent("issue-17") as agent, agent.step() as step, agent.tool("bash"):
        step.record(Usage(prompt_tokens=9_000, completion_tokens=120, cached_tokens=8_700))
    assert_type(gov.executor(), ThreadPoolExecutor)


def wrapped(gov: ca.Governor) -> None:
    """What is wrapped keeps its type, and so does what is decorated."""
    client = AsyncOpenAI(governor=gov, base_url="http://localhost:8000/v1", api_key="-")
    assert_type(gov.wrap(client), AsyncOpenAI)
    assert_type(OpenAI(governor=gov).with_options(timeout=5), OpenAI)

    @ca.governed(gov, key=lambda issue: issue)
    async def solve(issue: str, tries: int = 1) -> int:
        return len(issue) * tries

    async def use() -> None:
        assert_type(await solve("issue-17", tries=2), int)

    print(use, ca.bind(len))


async def a_batch(gov: ca.Governor) -> None:
    """A pool yields outcomes of what its function returns."""

    def solve(issue: str) -> int:
        return len(issue)

    async def solve_and_wait(issue: str, agent: ca.Agent) -> str:
        return agent.id + issue

    async with ca.AgentPool(gov, journal="runs.jsonl", progress=True, timeout_s=3600) as pool:
        async for outcome in pool.as_completed(solve, ["issue-1"]):
            assert_type(outcome, ca.Outcome[str, int])
            assert_type(outcome.result(), int)
        assert_type(await pool.map(solve, ["issue-1"]), list[int])
        answers: list[str] = await pool.map(solve_and_wait, ["issue-1"])
        task: ca.AgentTask[int] = pool.submit(solve, "issue-2")
        print(answers, assert_type(await task, int))
    outcomes = ca.run_agents(solve, ["issue-1"], url="http://localhost:8000")
    assert_type(outcomes, list[ca.Outcome[str, int]])


@dataclass(frozen=True)
class Halve:
    """A law of your own is one by its shape."""

    name: ClassVar[str] = "halve"
    formula: ClassVar[str] = "pressure <= capacity / 2"
    needs_readings = True

    def initial(self) -> LawState:
        """Two agents."""
        return LawState(Limit(agents=2))

    def decide(self, state: LawState, snapshot: Snapshot) -> LawState:
        """Half of the pool."""
        if snapshot.capacity_tokens is None:
            return state
        return LawState(Limit(tokens=snapshot.capacity_tokens / 2), reason="reported")


def the_core() -> None:
    """The Regulator, its laws and its recordings."""
    law: Law = Halve()
    ca.Governor("http://localhost:8000", law=law)
    regulator = Regulator(make_law("working_set"), 0.0)
    print(regulator.arrive("a", 0.0, prompt_tokens=9_000, parent=None, priority=0))
    print(regulator.begin_step("a", 1.0, prompt_tokens=9_000))
    print(regulator.end_step("a", 2.0, Usage(prompt_tokens=9_000, completion_tokens=120)))
    print(regulator.tick(Reading(at_s=3.0, kv_usage=0.4), 3.0), regulator.leave("a", 4.0))
    assert_type(regulator.next_wake(4.0), float | None)
    print(parse_page("", 0.0).reading.capacity_tokens)
    recorded, recorder = record(regulator, "run.jsonl")
    with recorder:
        recorded.arrive("b", 5.0)
    print(list(replay(Recording("run.jsonl"))))
    assert_type(Report("run.jsonl", height=500).html, str)


def exported(gov: ca.Governor) -> None:
    """What leaves the process."""
    stop = export(gov)
    stop()
    serve(port=9464)


async def tested() -> None:
    """A clock that jumps, and an engine that follows a script."""
    clock = ManualClock()
    ca.Governor(limit=1, clock=clock, background=False)
    probe = ScriptedProbe([Reading(at_s=0.0), None], clock)
    async with virtual_governor(probe=probe, law="working_set") as gov:
        assert_type(gov, ca.Governor)


assert_type(run(tested()), None)
