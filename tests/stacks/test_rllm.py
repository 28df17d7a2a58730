"""The hook of docs/frameworks/rllm.md with rLLM's own engine (`scripts/stacks rllm --source ...`).

The engine, its retries and its model client are rLLM's; the gateway, which only keeps traces, is
one that keeps none, and the model is the embedded server.
"""

import asyncio
from types import SimpleNamespace

import pytest

pytest.importorskip("rllm.engine", reason="scripts/stacks rllm --source FOLDER has it")

from rllm.engine.agentflow_engine import AgentFlowEngine
from rllm.engine.rollout.openai_engine import OpenAIEngine

import concur_agents as ca
from concur_agents.openai import AsyncOpenAI
from concur_agents.testing import assert_idle

CALLS = 3


class Gateway:
    """Sends each session to the engine, and keeps no traces."""

    def __init__(self, url):
        self.url = url

    def get_session_url(self, uid, public=False):
        return f"{self.url}/v1"

    async def aget_traces(self, uid):
        return []

    async def adelete_session(self, uid): ...

    async def adelete_sessions(self, uids): ...


class Flow:
    """Makes three calls with a client of its own; the first tries fail."""

    name = "flow"
    governor = None

    def __init__(self, fails=0):
        self.fails, self.now, self.most, self.names = fails, 0, 0, []

    async def arun(self, task, config):
        self.names.append(ca.current_agent().id)
        if self.fails:
            self.fails -= 1
            raise OSError("try again")
        options = {"base_url": config.base_url, "api_key": "-"}
        async with AsyncOpenAI(governor=self.governor, **options) as client:
            for _ in range(CALLS):
                self.now += 1
                self.most = max(self.most, self.now)
                messages = [{"role": "user", "content": task.instruction or "Find it."}]
                await client.chat.completions.create(model=config.model, messages=messages)
                self.now -= 1


@pytest.fixture
def hooked(page):
    """`hooked(gov)`: the hook of the page."""
    places = (AgentFlowEngine, "_run_flow_only"), (OpenAIEngine, "get_model_response")
    return lambda gov: page("rllm", gov, *places)


def engine_for(server, flow):
    evaluator = SimpleNamespace(
        evaluate=lambda task, episode: SimpleNamespace(
            reward=1.0, is_correct=True, signals=[], metadata={}
        )
    )
    return AgentFlowEngine(flow, evaluator, Gateway(server.url), server.model, retry_limit=3)


async def execute(engine, count=4):
    try:
        tasks = [{"question": "Find it."} for _ in range(count)]
        ids = [f"task-{number // 2}" for number in range(count)]
        return await engine.execute_tasks(tasks, ids, is_validation=True)
    finally:
        engine.shutdown()


def test_flows_are_agents_and_their_calls_steps(server, hooked, watch):
    flow = Flow()
    with ca.Governor(limit=2, ungoverned="error") as gov:
        Flow.governor = gov
        hooked(gov)
        seen = watch(gov)
        episodes = asyncio.run(execute(engine_for(server, flow)))
        assert_idle(gov)
    assert [episode.is_correct for episode in episodes] == [True] * 4
    assert sorted(seen.arrived) == ["task-0:0", "task-0:1", "task-1:0", "task-1:1"]
    assert len(seen.used) == 4 * CALLS
    assert all(used.completion_tokens for used in seen.used)


def test_a_flow_that_rllm_tries_again_keeps_its_name(server, hooked, watch):
    flow = Flow(fails=2)
    with ca.Governor(limit=1) as gov:
        Flow.governor = gov
        hooked(gov)
        seen = watch(gov)
        asyncio.run(execute(engine_for(server, flow), 1))
        assert_idle(gov)
    assert seen.arrived == flow.names == ["task-0:0"] * 3


def test_calls_of_rllms_own_client_are_steps(server, hooked, watch):
    """As its older workflows make them."""

    async def main(gov):
        model = OpenAIEngine(model=server.model, base_url=f"{server.url}/v1", api_key="-")
        async with gov.agent("a"):
            for _ in range(CALLS):
                await model.get_model_response([{"role": "user", "content": "Find it."}])

    with ca.Governor(limit=1) as gov:
        Flow.governor = gov
        hooked(gov)
        seen = watch(gov)
        asyncio.run(main(gov))
        assert_idle(gov)
    assert len(seen.used) == CALLS
    assert all(used is not None and used.completion_tokens for used in seen.used)


def test_flows_that_are_cancelled_leave(server, hooked):
    async def main(gov):
        engine = engine_for(server, Flow())
        task = asyncio.ensure_future(execute(engine))
        while gov.snapshot().active == 0:
            await asyncio.sleep(0.01)
        waiting = [one for one in asyncio.all_tasks() if one is not asyncio.current_task()]
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert task.cancelled()

    with ca.Governor(limit=1) as gov:
        Flow.governor = gov
        hooked(gov)
        asyncio.run(main(gov))
        assert_idle(gov)
