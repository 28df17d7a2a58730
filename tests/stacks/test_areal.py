"""The hook of docs/frameworks/areal.md with AReaL's own code (`scripts/stacks areal`).

The workflows, the engine's client and what it says to SGLang are AReaL's; `/generate` is answered
by the embedded server.
"""

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

pytest.importorskip("areal", reason="scripts/stacks areal has it")

import httpx
from aiohttp import web
from areal.api.cli_args import GenerationHyperparameters, InferenceEngineConfig
from areal.engine.sglang_remote import SGLangBackend
from areal.infra import workflow_context
from areal.infra.remote_inf_engine import (
    GroupedRolloutWorkflow,
    RemoteInfEngine,
)
from areal.workflow.multi_turn import MultiTurnWorkflow

import concur_agents as ca
from concur_agents.testing import assert_idle

CALLS = 3


class Letters:
    """A tokenizer: each letter is a token."""

    eos_token_id = pad_token_id = 0

    def apply_chat_template(self, messages, *, add_generation_prompt=False, **options):
        text = "".join(f"<{message['content']}>" for message in messages)
        return {"input_ids": [ord(letter) for letter in text + "!" * add_generation_prompt]}

    def decode(self, ids, **options):
        return "".join(map(chr, ids))


class Workflow(MultiTurnWorkflow):
    """AReaL's, with a reward in this process: the answer is right at the third try."""

    def __init__(self):
        gconfig = GenerationHyperparameters(max_new_tokens=20, max_tokens=4_000)
        super().__init__(len, gconfig, Letters(), max_turns=CALLS, turn_discount=0.9)
        self.fails = 0
        self.async_reward_fn = self.reward

    async def reward(self, prompt, completion, prompt_ids, completion_ids, **data):
        if self.fails:
            self.fails -= 1
            raise OSError("try again")
        return 0.0


class Engine:
    """SGLang's `/generate` in front of the embedded server."""

    def __init__(self, url):
        self.client = httpx.AsyncClient(base_url=url, timeout=60)
        self.now = self.most = self.aborts = 0

    async def generate(self, request):
        asked = await request.json()
        self.now += 1
        self.most = max(self.most, self.now)
        body = {"prompt": asked["input_ids"], "max_tokens": 5}
        answer = (await self.client.post("/v1/completions", json=body)).json()
        self.now -= 1
        self.aborts -= 1
        meta = {
            "finish_reason": {"type": "abort" if self.aborts >= 0 else "stop"},
            "output_token_logprobs": [[0.0, ord("a"), None]] * answer["usage"]["completion_tokens"],
        }
        return web.json_response({"text": "", "meta_info": meta})


@asynccontextmanager
async def engine_for(server):
    """AReaL's client of an engine, and that engine."""
    engine = Engine(server.url)
    app = web.Application()
    app.router.add_post("/generate", engine.generate)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    client = RemoteInfEngine(
        InferenceEngineConfig(experiment_name="test", trial_name="test"), SGLangBackend()
    )
    client.addresses = [f"127.0.0.1:{port}"]
    client._workflow_executor = SimpleNamespace(is_paused=lambda: False)
    try:
        yield client, engine
    finally:
        await (await workflow_context.get_aiohttp_session()).close()
        await engine.client.aclose()
        await runner.cleanup()


def prompt(number):
    return {"query_id": f"q{number}", "messages": [{"role": "user", "content": "Find it." * 20}]}


@pytest.fixture
def hooked(page):
    """`hooked(gov)`: the hook of the page."""
    places = (RemoteInfEngine, "agenerate"), (MultiTurnWorkflow, "arun_episode")
    return lambda gov: page("areal", gov, *places)


def test_episodes_of_a_group_are_agents_and_their_calls_steps(server, hooked, watch, monkeypatch):
    grouped = "areal.infra.remote_inf_engine.concat_padded_tensors"
    monkeypatch.setattr(grouped, lambda results: results)

    async def main():
        async with engine_for(server) as (client, engine):
            group = GroupedRolloutWorkflow(Workflow(), 2, None)
            await asyncio.gather(*(group.arun_episode(client, prompt(n)) for n in range(3)))
            return engine

    with ca.Governor(limit=2, ungoverned="error") as gov:
        hooked(gov)
        seen = watch(gov)
        engine = asyncio.run(main())
        assert_idle(gov)
    assert sorted(seen.arrived) == ["q0", "q0#2", "q1", "q1#2", "q2", "q2#2"]
    assert len(seen.used) == 6 * CALLS
    assert {used.completion_tokens for used in seen.used} == {5}
    assert engine.most == 2


def test_an_episode_that_is_tried_again_keeps_its_name(server, hooked, watch):
    async def main():
        async with engine_for(server) as (client, _):
            workflow = Workflow()
            workflow.fails = 2
            for _ in range(2):
                with pytest.raises(OSError, match="try again"):
                    await workflow.arun_episode(client, prompt(1))
            await workflow.arun_episode(client, prompt(1))

    with ca.Governor(limit=1) as gov:
        hooked(gov)
        seen = watch(gov)
        asyncio.run(main())
        assert_idle(gov)
    assert seen.arrived == ["q1"] * 3


def test_a_call_that_an_update_interrupts_is_one_step(server, hooked, watch):
    async def main():
        async with engine_for(server) as (client, engine):
            engine.aborts = 2
            await Workflow().arun_episode(client, prompt(1))

    with ca.Governor(limit=1) as gov:
        hooked(gov)
        seen = watch(gov)
        asyncio.run(main())
        assert_idle(gov)
    assert [used.completion_tokens for used in seen.used] == [15, 5, 5]


def test_episodes_that_are_cancelled_leave(server, hooked):
    async def main(gov):
        async with engine_for(server) as (client, _):
            runs = (Workflow().arun_episode(client, prompt(n)) for n in range(3))
            tasks = [asyncio.ensure_future(run) for run in runs]
            while gov.snapshot().active == 0:
                await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

    with ca.Governor(limit=1) as gov:
        hooked(gov)
        ends = asyncio.run(main(gov))
        assert_idle(gov)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends)
