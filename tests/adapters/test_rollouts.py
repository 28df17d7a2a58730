"""Rollouts of any stack, and the hook of each page, run as shown against the stack's signatures.

The classes below have the names, the places and the signatures of the versions that the pages
name; what they do is the least that a rollout needs.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import logging
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import concur_agents as ca
from concur_agents.adapters.rollouts import Rollouts, was_aborted
from concur_agents.core import Usage
from concur_agents.testing import assert_idle, run, virtual_governor

PAGES = Path(__file__).parents[2] / "docs" / "frameworks"


class Engine:
    """Answers a call after a second, and counts the agents whose calls overlap."""

    def __init__(self) -> None:
        self.now = self.most = self.calls = 0

    async def call(self) -> None:
        self.now += 1
        self.calls += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(1)
        self.now -= 1


@pytest.fixture
def engine() -> Engine:
    return Engine()


# The wrapper


def test_a_rollout_is_an_agent_and_its_calls_are_steps(engine: Engine) -> None:
    async def main() -> None:
        async with virtual_governor(limit=2) as gov:
            rollouts = Rollouts(gov)
            seen: list[str] = []

            async def generate(prompt_ids: list[int]) -> dict[str, Any]:
                await engine.call()
                return {"usage": {"prompt_tokens": len(prompt_ids), "completion_tokens": 5}}

            generate = rollouts.step(generate, prompt=lambda call: len(call["prompt_ids"]))

            @rollouts_agent(rollouts)
            async def rollout(sample: str) -> ca.AgentStats:
                agent = ca.current_agent()
                assert agent is not None
                seen.append(agent.id)
                for _ in range(3):
                    await generate([1, 2, 3])
                return agent.stats

            stats = await asyncio.gather(*(rollout(f"s{n}") for n in range(6)))
            assert sorted(seen) == [f"s{n}" for n in range(6)]
            assert {(one.steps, one.prompt_tokens, one.completion_tokens) for one in stats} == {
                (3, 9, 15)
            }
            assert engine.most == 2
            assert_idle(gov)

    run(main())


def rollouts_agent(rollouts: Rollouts) -> Any:
    return lambda fn: rollouts.agent(fn, id=lambda call: call["sample"])


def test_an_agent_ends_with_its_rollout_also_when_that_fails_or_is_cancelled() -> None:
    async def main() -> None:
        async with virtual_governor(limit=1) as gov:

            async def rollout(sample: str) -> None:
                if sample == "bad":
                    raise KeyError(sample)
                await asyncio.sleep(100)

            governed = Rollouts(gov).agent(rollout, id=lambda call: call["sample"])
            with pytest.raises(KeyError, match="bad"):
                await governed("bad")
            inside = asyncio.ensure_future(governed("a"))
            waiting = asyncio.ensure_future(governed("b"))
            await asyncio.sleep(1)
            for task in (inside, waiting):
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert_idle(gov)

    run(main())


def test_a_sample_that_is_tried_again_keeps_its_name() -> None:
    async def main() -> None:
        async with virtual_governor(limit=2) as gov:
            names: list[str] = []

            async def rollout(sample: str) -> None:
                agent = ca.current_agent()
                assert agent is not None
                names.append(agent.id)
                if len(names) < 3:
                    raise OSError("try again")

            governed = Rollouts(gov).agent(rollout, id=lambda call: call["sample"])
            for _ in range(2):
                with pytest.raises(OSError, match="try again"):
                    await governed("prompt-7/3")
            await governed("prompt-7/3")
            assert names == ["prompt-7/3"] * 3

    run(main())


def test_what_used_raises_fails_no_rollout(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with virtual_governor(limit=1) as gov, gov.agent("a") as agent:

            async def generate() -> str:
                return "answer"

            step = Rollouts(gov).step(generate, used=lambda call, answer: answer.usage)
            assert await step() == await step() == "answer"
            assert agent.stats.steps == 2

    with caplog.at_level(logging.WARNING, "concur_agents"):
        run(main())
    assert caplog.text.count("what a call used cannot be read") == 1


def test_the_wrapped_function_looks_as_before() -> None:
    """slime reads the signature of a custom generate function."""
    with ca.Governor(limit=1) as gov:

        async def generate(args: Any, sample: Any, *, evaluation: bool = False) -> None:
            """Says what it does."""

        governed = Rollouts(gov).agent(generate, id=lambda call: "a")
        assert inspect.signature(governed) == inspect.signature(generate)
        assert governed.__doc__ == generate.__doc__
        assert inspect.iscoroutinefunction(governed)


@pytest.mark.parametrize(
    ("answer", "aborted"),
    [
        (SimpleNamespace(stop_reason="aborted"), True),  # verl
        ({"stop_reasons": ["abort"]}, True),  # SkyRL
        ({"meta_info": {"finish_reason": {"type": "abort"}}}, True),  # slime
        ({"choices": [{"finish_reason": "abort"}]}, True),
        (SimpleNamespace(finish_reason="stop"), False),
        (None, False),
        ("abortion clinic", False),
        (17, False),
    ],
)
def test_an_aborted_answer_is_recognised_in_each_form(answer: Any, aborted: bool) -> None:
    assert was_aborted(answer) is aborted


# The stacks


def module(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> Any:
    """A module of this name, and its packages, as imports find them."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        path = ".".join(parts[:end])
        if path not in sys.modules:
            made = ModuleType(path)
            made.__path__ = []  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, path, made)
            if end > 1:
                monkeypatch.setattr(
                    sys.modules[path.rpartition(".")[0]], parts[end - 1], made, False
                )
    for member, value in members.items():
        monkeypatch.setattr(sys.modules[name], member, value, raising=False)
    return sys.modules[name]


def hook(page: str, gov: ca.Governor, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs the hook of a page, with this governor in place of the one from the environment."""
    code = re.findall(r"(?ms)^```python\n(.*?)^```", (PAGES / f"{page}.md").read_text("utf-8"))[0]
    lines = [
        statement
        for node in ast.parse(code).body
        for statement in (node.body if isinstance(node, ast.ClassDef) else [node])
        if not isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert len(lines) <= 5, "a hook has at most five lines"
    monkeypatch.setattr(ca.Governor, "from_env", classmethod(lambda cls: gov))
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def watch(gov: ca.Governor) -> tuple[list[str], list[Usage | None]]:
    """The ids of the agents that arrive, and what steps use."""
    arrived: list[str] = []
    used: list[Usage | None] = []

    def note(event: ca.Event) -> None:
        if event.kind == "arrived" and event.agent is not None:
            arrived.append(event.agent)
        if event.kind == "step_ended":
            used.append(event.usage)

    gov.on_event(note)
    return arrived, used


def test_verl(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    class LLMServerClient:
        async def generate(  # type: ignore[no-untyped-def]
            self, request_id, *, prompt_ids, sampling_params, image_data=None, video_data=None,
            audio_data=None, mm_processor_kwargs=None, **kwargs,
        ):  # fmt: skip
            await engine.call()
            return SimpleNamespace(token_ids=[1] * 5, stop_reason="completed")

    class ToolAgentLoop:
        server_manager = LLMServerClient()

        async def run(self, sampling_params, **kwargs):  # type: ignore[no-untyped-def]
            for turn in range(3):
                await self.server_manager.generate(
                    "session", prompt_ids=[1] * 10 * (turn + 1), sampling_params={}
                )

    module(monkeypatch, "verl.experimental.agent_loop", ToolAgentLoop=ToolAgentLoop)
    module(monkeypatch, "verl.workers.rollout.llm_server", LLMServerClient=LLMServerClient)

    async def main() -> None:
        async with virtual_governor(limit=2) as gov:
            arrived, used = watch(gov)
            loop = hook("verl", gov, monkeypatch)["GovernedLoop"]
            assert issubclass(loop, ToolAgentLoop)
            prompts = [{"uid": f"p{n // 2}", "raw_prompt": []} for n in range(4)]
            v1 = [{**prompt, "session_id": n % 2} for n, prompt in enumerate(prompts)]
            await asyncio.gather(*(loop().run({}, **sample) for sample in v1))
            assert sorted(arrived) == ["p0-0", "p0-1", "p1-0", "p1-1"]
            assert used.count(Usage(30, 5)) == 4
            assert (engine.calls, engine.most) == (12, 2)
            await asyncio.gather(*(loop().run({}, **sample) for sample in prompts))
            assert sorted(arrived[4:]) == ["p0-0", "p0-0#2", "p1-0", "p1-0#2"]
            assert_idle(gov)

    run(main())


def test_slime(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def post(url: str, payload: Any, max_retries: int = 60, headers: Any = None) -> Any:
        await engine.call()
        meta = {"prompt_tokens": 10, "completion_tokens": 5, "cached_tokens": 8}
        return {"text": "", "meta_info": {**meta, "finish_reason": {"type": "stop"}}}

    async def generate(args: Any, sample: Any, sampling_params: dict[str, Any]) -> Any:
        for _ in range(3):
            await sglang_rollout.post("http://router/generate", {"input_ids": [1] * 10})
        return sample

    state = SimpleNamespace(aborted=False)
    sglang_rollout = module(
        monkeypatch,
        "slime.rollout.sglang_rollout",
        post=post,
        generate=generate,
        GenerateState=lambda args: state,
    )

    async def main() -> None:
        async with virtual_governor(limit=2) as gov:
            arrived, used = watch(gov)
            governed = hook("slime", gov, monkeypatch)["generate"]
            samples = [SimpleNamespace(session_id=f"u{n}", group_index=n // 2) for n in range(4)]
            assert await asyncio.gather(*(governed(None, one, {}) for one in samples)) == samples
            assert sorted(arrived) == ["u0", "u1", "u2", "u3"]
            assert used == [Usage(10, 5, 8)] * 12
            assert (engine.calls, engine.most) == (12, 2)
            state.aborted = True
            await governed(None, SimpleNamespace(session_id="late", group_index=9), {})
            assert engine.calls == 12, "what waited while slime aborted makes no call"
            assert_idle(gov)

    run(main())


def test_skyrl(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    class RemoteInferenceClient:
        async def generate(self, input_batch, model=None):  # type: ignore[no-untyped-def]
            await engine.call()
            return {"responses": [""], "response_ids": [[1] * 5], "stop_reasons": ["stop"]}

    class SkyRLGymGenerator:
        async def agent_loop(  # type: ignore[no-untyped-def]
            self, prompt, env_class, env_extras, max_tokens, max_input_length,
            sampling_params=None, trajectory_id=None, cache_salt=None,
        ):  # fmt: skip
            for _ in range(3):
                await RemoteInferenceClient().generate({"prompt_token_ids": [[1] * 10]}, model="m")

    servers = "skyrl.backends.skyrl_train.inference_servers.remote_inference_client"
    module(monkeypatch, servers, RemoteInferenceClient=RemoteInferenceClient)
    module(
        monkeypatch,
        "skyrl.train.generators.skyrl_gym_generator",
        SkyRLGymGenerator=SkyRLGymGenerator,
    )

    async def main() -> None:
        async with virtual_governor(limit=2) as gov:
            arrived, used = watch(gov)
            hook("skyrl", gov, monkeypatch)
            loop = SkyRLGymGenerator().agent_loop
            ids = [
                SimpleNamespace(instance_id="i", to_string=lambda n=n: f"i_{n}") for n in range(4)
            ]
            await asyncio.gather(*(loop([], "e", {}, 9, 9, trajectory_id=one) for one in ids))
            await loop([], "e", {}, 9, 9)  # an id is optional there
            assert sorted(arrived)[-4:] == ["i_0", "i_1", "i_2", "i_3"]
            assert used == [Usage(10, 5)] * 15
            assert engine.most == 2
            assert_idle(gov)

    run(main())


def test_verifiers(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls come through a server: they are made in its task, and not in the rollout's."""

    class TrainClient:
        async def get_response(  # type: ignore[no-untyped-def]
            self, dialect, body, sampling, session_id=None, turn=None, headers=None
        ):
            await engine.call()
            return SimpleNamespace(
                usage=SimpleNamespace(prompt_tokens=10, completion_tokens=5), finish_reason="stop"
            )

    class Rollout:
        def __init__(self, number: int) -> None:
            self.trace = SimpleNamespace(id=f"trace-{number}")
            self.task = SimpleNamespace(key="task-1")

        async def open(self) -> bool:
            return True

        async def step(self, messages: Any = None) -> bool:
            for _ in range(3):
                await asks.put(self.trace.id)
                await answers[self.trace.id].get()
            return True

        async def close(self) -> Any:
            return self.trace

        async def abort(self) -> None: ...

    module(monkeypatch, "verifiers.v1.clients.train", TrainClient=TrainClient)
    module(monkeypatch, "verifiers.v1.rollout", Rollout=Rollout)
    asks: asyncio.Queue[str] = asyncio.Queue()
    answers: dict[str, asyncio.Queue[None]] = {}

    async def one_call(client: TrainClient, session_id: str) -> None:
        await client.get_response(None, {}, None, session_id=session_id)
        answers[session_id].put_nowait(None)

    async def serve() -> None:
        client, calls = TrainClient(), set()
        while True:
            calls.add(asyncio.ensure_future(one_call(client, await asks.get())))

    async def one(number: int) -> None:
        rollout = Rollout(number)
        answers[rollout.trace.id] = asyncio.Queue()
        if await rollout.open():
            await rollout.step()
        await rollout.close()

    async def main() -> None:
        server = asyncio.ensure_future(serve())
        async with virtual_governor(limit=2, ungoverned="error") as gov:
            arrived, used = watch(gov)
            hook("prime-rl", gov, monkeypatch)
            await asyncio.gather(*map(one, range(4)))
            assert sorted(arrived) == [f"trace-{n}" for n in range(4)]
            assert used == [Usage(10, 5)] * 12
            assert engine.most == 2
            assert_idle(gov)
            aborted = Rollout(9)
            await aborted.open()
            await aborted.abort()
            assert_idle(gov)
        server.cancel()

    run(main())


def test_areal(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    class RemoteInfEngine:
        async def agenerate(self, req):  # type: ignore[no-untyped-def]
            await engine.call()
            return SimpleNamespace(input_len=10, output_len=5, stop_reason="stop")

    class MultiTurnWorkflow:
        async def arun_episode(self, engine, data):  # type: ignore[no-untyped-def]
            for _ in range(3):
                await engine.agenerate(SimpleNamespace(input_ids=[1] * 10))
            return data

    module(monkeypatch, "areal.infra.remote_inf_engine", RemoteInfEngine=RemoteInfEngine)
    module(monkeypatch, "areal.workflow.multi_turn", MultiTurnWorkflow=MultiTurnWorkflow)

    async def main() -> None:
        async with virtual_governor(limit=2) as gov:
            arrived, used = watch(gov)
            hook("areal", gov, monkeypatch)
            workflow, server = MultiTurnWorkflow(), RemoteInfEngine()
            data = {"query_id": 1}
            await asyncio.gather(*(workflow.arun_episode(server, data) for _ in range(4)))
            assert sorted(arrived) == ["1", "1#2", "1#3", "1#4"]
            assert used == [Usage(10, 5)] * 12
            assert engine.most == 2
            assert_idle(gov)

    run(main())


def test_rllm(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    class OpenAIEngine:
        async def get_model_response(self, messages, **kwargs):  # type: ignore[no-untyped-def]
            await engine.call()
            return SimpleNamespace(prompt_length=10, completion_length=5, finish_reason="stop")

    class AgentFlowEngine:
        async def _run_flow_only(  # type: ignore[no-untyped-def]
            self, task_obj, uid, is_validation=False, _timings=None
        ):
            for _ in range(3):
                await OpenAIEngine().get_model_response([], model="m")
            return uid, None

    module(monkeypatch, "rllm.engine.agentflow_engine", AgentFlowEngine=AgentFlowEngine)
    module(monkeypatch, "rllm.engine.rollout.openai_engine", OpenAIEngine=OpenAIEngine)

    async def main() -> None:
        async with virtual_governor(limit=2) as gov:
            arrived, used = watch(gov)
            hook("rllm", gov, monkeypatch)
            flows = AgentFlowEngine()
            await asyncio.gather(
                *(flows._run_flow_only(task_obj=None, uid=f"t:{n}") for n in range(4))
            )
            assert sorted(arrived) == ["t:0", "t:1", "t:2", "t:3"]
            assert used == [Usage(10, 5)] * 12
            assert engine.most == 2
            assert_idle(gov)

    run(main())


def test_nemo_gym(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer:
        async def json(self) -> Any:
            return {"usage": {"input_tokens": 10, "output_tokens": 5}}

    class ServerClient:
        async def post(self, server_name: str, url_path: str, **kwargs: Any) -> Answer:
            if server_name == "policy_model":
                await engine.call()
            return Answer()

    class SimpleAgent:
        server_client = ServerClient()

        async def responses(self, request, response, body=None):  # type: ignore[no-untyped-def]
            for _ in range(3):
                await self.server_client.post("policy_model", "/v1/responses", json=body)
                await self.server_client.post(server_name="tools", url_path="/run", json={})

    module(monkeypatch, "nemo_gym.server_utils", ServerClient=ServerClient)
    module(monkeypatch, "responses_api_agents.simple_agent.app", SimpleAgent=SimpleAgent)

    async def main() -> None:
        async with virtual_governor(limit=2) as gov:
            arrived, used = watch(gov)
            hook("nemo-gym", gov, monkeypatch)
            answer = SimpleAgent().responses
            named = [SimpleNamespace(path_params={"rollout_id": f"r{n}"}) for n in range(3)]
            requests = [*named, SimpleNamespace()]  # 0.4 names none
            await asyncio.gather(*(answer(one, None) for one in requests))
            assert sorted(arrived)[1:] == ["r0", "r1", "r2"]
            assert used == [Usage(10, 5)] * 12
            assert engine.most == 2
            assert_idle(gov)

    run(main())


def test_harbor(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Trial:
        def __init__(self, number: int) -> None:
            self.task = SimpleNamespace(name="fix-git")
            self.config = SimpleNamespace(trial_name=f"fix-git__{number}")

        async def run(self) -> str:
            agent = ca.current_agent()
            assert agent is not None
            for _ in range(3):
                async with agent.step():  # LiteLLM's place
                    await engine.call()
            return self.config.trial_name

    module(monkeypatch, "harbor.trial.trial", Trial=Trial)
    monkeypatch.setattr(ca, "install", lambda name: None)

    async def main() -> None:
        async with virtual_governor(limit=2) as gov:
            arrived, _ = watch(gov)
            hook("harbor", gov, monkeypatch)
            await asyncio.gather(*(Trial(n).run() for n in range(4)))
            assert sorted(arrived) == [f"fix-git__{n}" for n in range(4)]
            assert engine.most == 2
            assert_idle(gov)

    run(main())
