"""The hook of docs/frameworks/prime-rl.md with the real classes of verifiers (`scripts/stacks`).

Its agents, rollouts, interception server and client are verifiers' own; only the program that a
harness would start in a sandbox is a loop of this file, and the model is the embedded server.
"""

import asyncio
import math
import re
from pathlib import Path

import pytest

vf = pytest.importorskip("verifiers.v1", reason="scripts/stacks verifiers has it")

import openai  # noqa: E402
from verifiers.v1.agent import Agent  # noqa: E402
from verifiers.v1.clients.eval import EvalClient  # noqa: E402
from verifiers.v1.configs.agent import AgentConfig  # noqa: E402
from verifiers.v1.configs.client import EvalClientConfig  # noqa: E402
from verifiers.v1.rollout import Rollout  # noqa: E402
from verifiers.v1.runtimes import SubprocessConfig  # noqa: E402

import concur_agents as ca  # noqa: E402
from concur_agents.sim.server import EmbeddedServer  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs" / "frameworks" / "prime-rl.md"
CALLS = 3


class Program(vf.Harness[vf.HarnessConfig]):
    """Makes three calls through the interception server, as a program in a sandbox would."""

    NEEDS_CONTAINER = False

    async def launch(self, ctx, trace, runtime, endpoint, secret, mcp_urls, data):
        client = openai.AsyncOpenAI(base_url=endpoint, api_key=secret, max_retries=0)
        messages = [{"role": "user", "content": data.prompt}]
        async with client:
            for _ in range(CALLS):
                reply = await client.chat.completions.create(model=ctx.model, messages=messages)
                messages += [
                    {"role": "assistant", "content": reply.choices[0].message.content or "-"},
                    {"role": "user", "content": "Go on."},
                ]
        return vf.ProgramResult(exit_code=0, stdout="", stderr="")


@pytest.fixture
def hooked(monkeypatch):
    """`hooked(gov)`: the hook as the page shows it, for evaluations, and taken back at the end."""

    def hook(gov):
        for name in ("open", "close", "abort"):
            monkeypatch.setattr(Rollout, name, getattr(Rollout, name))
        monkeypatch.setattr(EvalClient, "get_response", EvalClient.get_response)
        monkeypatch.setattr(ca.Governor, "from_env", classmethod(lambda cls: gov))
        code = re.findall(r"(?ms)^```python\n(.*?)^```", PAGE.read_text("utf-8"))[0]
        code = code.replace("TrainClient", "EvalClient").replace("clients.train", "clients.eval")
        exec(code, {})

    return hook


def agent_of(url, model):
    client = EvalClientConfig(base_url=f"{url}/v1")
    agent = Agent(AgentConfig(model=model, client=client, runtime=SubprocessConfig()))
    agent.harness = Program(vf.HarnessConfig(id="null"))
    return agent


def task(number):
    return vf.Task(vf.TaskData(idx=number, prompt=f"Say {number}."))


def test_rollouts_are_agents_and_their_calls_steps(hooked, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "-")
    events = []

    async def main(server, gov):
        agent = agent_of(server.url, server.model)
        return await asyncio.gather(*(agent.run(task(n)) for n in range(4)))

    with (
        EmbeddedServer("h100-qwen3-8b", time_scale=math.inf) as server,
        ca.Governor(limit=2, ungoverned="error") as gov,
    ):
        hooked(gov)
        gov.on_event(events.append)
        traces = asyncio.run(main(server, gov))
        left = gov.snapshot()
    assert [trace.num_turns for trace in traces] == [CALLS] * 4, [trace.errors for trace in traces]
    arrived = {event.agent for event in events if event.kind == "arrived"}
    assert arrived == {trace.id for trace in traces}
    ended = [event for event in events if event.kind == "step_ended"]
    assert len(ended) == 4 * CALLS
    assert all(event.usage is not None for event in ended)
    assert (left.active, left.queued, left.alive) == (0, 0, 0)


def test_a_rollout_that_is_cancelled_leaves(hooked, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "-")

    async def main(server, gov):
        agent = agent_of(server.url, server.model)
        tasks = [asyncio.ensure_future(agent.run(task(n))) for n in range(3)]
        while gov.snapshot().active == 0:
            await asyncio.sleep(0.01)
        for one in tasks:
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return gov.snapshot()

    with EmbeddedServer("h100-qwen3-8b") as server, ca.Governor(limit=1) as gov:
        hooked(gov)
        left = asyncio.run(main(server, gov))
    assert (left.active, left.queued, left.alive) == (0, 0, 0)
