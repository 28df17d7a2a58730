"""The hook of docs/frameworks/verl.md with verl's own code (`scripts/stacks verl`).

The worker, the agent loop, the tool parser, the client and the load balancer are verl's; the model
is the embedded server, and what verl would reach through ray lives in this process.
"""

import asyncio
from types import SimpleNamespace

import pytest

pytest.importorskip("verl", reason="scripts/stacks verl has it")

import httpx
from omegaconf import OmegaConf
from verl.experimental.agent_loop import agent_loop
from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
from verl.tools.function_tool import FunctionTool
from verl.workers.rollout.llm_server import (
    FullyAsyncLLMServerClient,
    GlobalRequestLoadBalancer,
    LLMServerClient,
)
from verl.workers.rollout.replica import TokenOutput

import concur_agents as ca
from concur_agents.testing import assert_idle

CALLS = 3
CALL = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
CONFIG = OmegaConf.create(
    {
        "actor_rollout_ref": {
            "model": {"path": "-", "tokenizer_path": "-"},
            "rollout": {
                "name": "vllm",
                "prompt_length": 4_000,
                "response_length": 4_000,
                "multi_turn": {
                    "max_user_turns": None,
                    "max_assistant_turns": CALLS,
                    "max_parallel_calls": 1,
                    "max_tool_response_length": 100,
                    "tool_response_truncate_side": "left",
                    "format": "hermes",
                },
            },
        },
        "data": {"continuous_token": {"enable": False}, "tool_config_path": None},
    }
)


class Letters:
    """A tokenizer: each letter is a token."""

    eos_token_id = 0

    def apply_chat_template(self, messages, **options):
        return [ord(letter) for message in messages for letter in f"<{message['content']}>"]

    def decode(self, ids, **options):
        return "".join(map(chr, ids))


class Remote:
    """The handle of an actor that lives here."""

    def __init__(self, actor):
        self._actor = actor

    def __getattr__(self, name):
        async def call(*args, **options):
            result = getattr(self._actor, name)(*args, **options)
            return await result if asyncio.iscoroutine(result) else result

        return SimpleNamespace(
            remote=lambda *args, **options: asyncio.ensure_future(call(*args, **options))
        )


class Replica:
    """verl's server actor: hands prompts to the engine. Each whole answer calls a tool."""

    def __init__(self, url, aborts=0):
        self.http = httpx.AsyncClient(base_url=url, timeout=60)
        self.aborts, self.now, self.most = aborts, 0, 0

    async def generate(self, request_id, *, prompt_ids, sampling_params, **options):
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            body = {"prompt": prompt_ids, "max_tokens": len(CALL)}
            answer = await self.http.post("/v1/completions", json=body)
        finally:
            self.now -= 1
        assert answer.status_code == 200, answer.text
        ids, stop = [ord(letter) for letter in CALL], "completed"
        if self.aborts:
            ids, stop, self.aborts = [ord("-")] * 5, "aborted", self.aborts - 1
        return TokenOutput(token_ids=ids, log_probs=[0.0] * len(ids), stop_reason=stop)


class Worker(AgentLoopWorker):
    """Without what needs torch: the tensors that a sample becomes."""

    def __init__(self, client):
        async def look():
            return "It is there."

        schema = SimpleNamespace(model_dump=lambda **options: {})
        self.config, self.llm_client, self.tokenizer = CONFIG, client, Letters()
        self.processor = self.dataset_cls = None
        self.tools = [FunctionTool(name="look", fn=look, tool_schema=schema, is_async=True)]

    async def _agent_loop_postprocess(self, output, validate, **kwargs):
        return output


@pytest.fixture
def governed(page, monkeypatch):
    """`governed(gov)`: the hook of the page, and its list in force."""

    def hook(gov):
        names = page("verl", gov, (LLMServerClient, "generate"))
        monkeypatch.setitem(
            agent_loop._agent_loop_registry,
            "tool_agent",
            OmegaConf.create({"name": "tool_agent", "_target_": "governed.GovernedLoop"}),
        )
        return names

    return hook


def worker_for(replica, kind=LLMServerClient):
    balancer = GlobalRequestLoadBalancer({"replica": Remote(replica)})
    return Worker(kind(CONFIG, Remote(balancer)))


def sample(worker, number):
    """One sample of two prompts, as verl's worker starts it."""
    trajectory = {"step": 7, "sample_index": number // 2, "rollout_n": number, "validate": False}
    return worker._run_agent_loop(
        {},
        trajectory,
        agent_name="tool_agent",
        trace=False,
        uid=f"prompt-{number // 2}",
        session_id=number % 2,
        raw_prompt=[{"role": "user", "content": "Find it." * 20}],
    )


def test_samples_are_agents_and_their_calls_steps(server, governed, watch):
    async def main():
        replica = Replica(server.url)
        worker = worker_for(replica)
        outputs = await asyncio.gather(*(sample(worker, n) for n in range(6)))
        await replica.http.aclose()
        return outputs, replica

    with ca.Governor(limit=2, ungoverned="error") as gov:
        governed(gov)
        seen = watch(gov)
        outputs, replica = asyncio.run(main())
        assert_idle(gov)
    assert sorted(seen.arrived) == [f"prompt-{p}-{n}" for p in range(3) for n in range(2)]
    assert len(seen.used) == 6 * CALLS
    assert replica.most == 2
    assert {len(output.prompt_ids) for output in outputs} == {162}
    first = [used for used in seen.used if used.prompt_tokens == 162]
    assert [used.completion_tokens for used in first] == [len(CALL)] * 6


def test_a_sample_that_is_cancelled_leaves(server, governed):
    async def main(gov):
        replica = Replica(server.url)
        worker = worker_for(replica)
        tasks = [asyncio.ensure_future(sample(worker, n)) for n in range(3)]
        while gov.snapshot().active == 0:
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        await replica.http.aclose()
        return ends

    with ca.Governor(limit=1) as gov:
        governed(gov)
        ends = asyncio.run(main(gov))
        assert_idle(gov)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends)


def test_a_sample_that_is_tried_again_keeps_its_name(server, governed, watch):
    async def main():
        replica = Replica(server.url)
        worker = worker_for(replica)
        client, worker.llm_client = worker.llm_client, None  # its first call fails
        for _ in range(2):
            with pytest.raises(AttributeError):
                await sample(worker, 3)
        worker.llm_client = client
        await sample(worker, 3)
        await replica.http.aclose()

    with ca.Governor(limit=1) as gov:
        governed(gov)
        seen = watch(gov)
        asyncio.run(main())
        assert_idle(gov)
    assert seen.arrived == ["prompt-1-1"] * 3


def test_a_call_that_an_update_aborts_goes_on_in_the_same_sample(server, governed, watch):
    """verl's fully asynchronous client sends what there is again, until it is whole."""

    async def main():
        replica = Replica(server.url, aborts=2)
        worker = worker_for(replica, FullyAsyncLLMServerClient)
        output = await sample(worker, 0)
        await replica.http.aclose()
        return output

    ended = []
    with ca.Governor(limit=1) as gov:
        governed(gov)
        gov.on_event(lambda event: ended.append(event) if event.kind == "step_ended" else None)
        output = asyncio.run(main())
        assert_idle(gov)
    assert [event.reason for event in ended][:3] == ["abort", "abort", ""]
    assert len([event for event in ended if not event.reason]) == CALLS
    assert output.num_turns == 2 * CALLS
