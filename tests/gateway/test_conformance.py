"""What every framework must keep to, through the gateway: none of them knows that it is governed.

The frameworks are those of the adapters' suite, each as its users have it, with the address of the
gateway for that of the engine.
"""

import asyncio
import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")

from concur_agents.sim.server import EmbeddedServer


def _load():
    """The adapters' suite, which is no package."""
    path = Path(__file__).parents[1] / "adapters" / "test_conformance.py"
    spec = importlib.util.spec_from_file_location("concur_adapters_conformance", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


suite = _load()

FRAMEWORKS = [
    suite.OpenAI,
    suite.OpenAISync,
    suite.LangGraphStream,
    suite.OpenAIAgentsResponses,
    suite.PydanticAI,
    suite.Smolagents,
    suite.LiteLLM,
    suite.LiteLLMOwnClient,
    suite.MiniSweAgent,
]
"""Those whose requests differ where nothing of ours is in them."""


@pytest.fixture
def server():
    with EmbeddedServer("h100-qwen3-8b", time_scale=30, model="looker") as running:
        yield running


@pytest.fixture(params=[suite._parameter(kind) for kind in FRAMEWORKS])
async def framework(request, tmp_path, monkeypatch):
    chosen = request.param()
    for module in chosen.needs:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed in this environment")
    monkeypatch.setenv("MSWEA_GLOBAL_CONFIG_DIR", str(tmp_path))
    yield chosen
    await chosen.close()


def agent_of(framework, front, path):
    """One agent of a framework that calls the gateway by a path, and says when it has ended."""
    run = suite.as_agent(framework, None, framework.prepare(None, f"{front.url}{path}"))

    async def whole():
        try:
            return await run(path)
        finally:
            async with front.client.delete(f"{front.url}/agent/{path.rpartition('/')[2]}"):
                pass

    return whole


async def test_eight_agents_at_limit_two(framework, server, before):
    """The engine never sees more than two of them, all finish, and all they used is known."""
    async with before(limit=2, engines=server.url) as front:
        agents = [agent_of(framework, front, f"/agent/agent-{n}") for n in range(8)]
        answers = await asyncio.gather(*(agent() for agent in agents))
        assert all(framework.said(answer) for answer in answers)
        stats = server.stats
        assert stats.calls >= 24, "three calls each"
        assert stats.max_in_flight <= 2
        assert front.governor.snapshot().done_total == 8
        assert len(front.ended) == stats.calls
        assert {event.agent for event in front.ended} == {f"agent-{n}" for n in range(8)}
        used = [event.usage for event in front.ended]
        assert sum(usage.prompt_tokens for usage in used) == stats.prompt_tokens
        assert sum(usage.completion_tokens for usage in used) == stats.output_tokens


async def test_an_agent_in_an_agent_at_limit_one(server, before):
    """A child shares its parent's place, or the two would wait for each other."""
    framework = suite.OpenAI()
    async with before(limit=1, engines=server.url) as front:
        parent = framework.prepare(None, f"{front.url}/agent/p")
        child = framework.prepare(None, f"{front.url}/agent/p/agent/c")
        assert await parent("p")
        assert all(await asyncio.gather(child("c"), parent("p"), child("c")))
        assert {event.agent for event in front.ended} == {"p", "c"}
        assert front.governor.snapshot().active == 1
    await framework.close()


async def test_cancelled_anywhere_an_agent_leaves_no_place(server, before):
    framework = suite.OpenAI()
    async with before(limit=1, engines=server.url) as front:
        for turn in range(12):
            url = f"{front.url}/agent/a{turn}"
            asking = asyncio.create_task(framework.prepare(None, url)("a"))
            await asyncio.sleep(0.01 * turn)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            async with front.client.delete(url):
                pass
            await front.until(lambda: front.governor.snapshot().alive == 0)
        assert await framework.prepare(None, f"{front.url}/agent/last")("last")
    await framework.close()
