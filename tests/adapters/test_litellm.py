"""LiteLLM and mini-swe-agent, on openai 2: an environment of their own runs these."""

import asyncio
import gc
import json
import os
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or importing it asks the network
pytest.importorskip("litellm", reason="run by scripts/test --env litellm")

import litellm

import concur_agents as ca
from concur_agents.core import Usage
from concur_agents.governor import Governor
from concur_agents.runtime.events import Event
from concur_agents.sim.server import EmbeddedServer
from concur_agents.sim.text import Reply, ToolCall

# LiteLLM and what it stands on warn of themselves, and leave sockets to the collector.
pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ASK: Any = [{"role": "user", "content": "hi"}]
ROUTES = ["openai/looker", "hosted_vllm/looker"]


@pytest.fixture(autouse=True)
def hook() -> Iterator[None]:
    ca.install("litellm")
    ca.install("litellm")
    yield
    litellm.in_memory_llm_clients_cache.flush_cache()
    gc.collect()  # while the filters above hold


def options(server: EmbeddedServer, route: str) -> dict[str, Any]:
    return {
        "model": route,
        "api_base": f"{server.url}/v1",
        "api_key": "-",
        "messages": ASK,
        "max_tokens": 20,
    }


def check(server: EmbeddedServer, steps: list[Event], calls: int) -> None:
    stats = server.stats
    assert stats.calls == calls
    assert stats.max_in_flight <= 2
    used = [step.usage or Usage(0, 0) for step in steps]
    assert len(used) == calls
    assert sum(usage.prompt_tokens for usage in used) == stats.prompt_tokens
    assert sum(usage.completion_tokens for usage in used) == stats.output_tokens


@pytest.mark.parametrize("route", ROUTES)
def test_eight_sync_agents_at_limit_two(
    route: str, gov: Governor, server: EmbeddedServer, steps: list[Event]
) -> None:
    answers: list[Any] = []

    def run(name: str) -> None:
        with gov.agent(name) as agent:
            for _ in range(3):
                answers.append(litellm.completion(**options(server, route)))
                assert agent.state == "acting"

    threads = [threading.Thread(target=run, args=(f"a{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 24
    check(server, steps, 24)


@pytest.mark.parametrize("route", ROUTES)
async def test_eight_async_agents_at_limit_two(
    route: str, gov: Governor, server: EmbeddedServer, steps: list[Event]
) -> None:
    async def run(name: str) -> None:
        async with gov.agent(name) as agent:
            for _ in range(3):
                await litellm.acompletion(**options(server, route))
                assert agent.state == "acting"

    await asyncio.gather(*(run(f"a{n}") for n in range(8)))
    check(server, steps, 24)


@pytest.mark.parametrize("route", ROUTES)
async def test_streams_tell_what_they_used(
    route: str, gov: Governor, server: EmbeddedServer, steps: list[Event]
) -> None:
    asked = {"stream": True, "stream_options": {"include_usage": True}}
    async with gov.agent("a") as agent:
        stream = await litellm.acompletion(**options(server, route), **asked)
        assert agent.state == "reasoning"
        async for _ in stream:
            pass
        for _ in range(200):
            if agent.state == "acting":
                break
            await asyncio.sleep(0.01)
    check(server, steps, 1)


@pytest.mark.parametrize("route", ROUTES)
async def test_a_failed_call_is_over(
    route: str, gov: Governor, server: EmbeddedServer, steps: list[Event]
) -> None:
    wrong = {**options(server, route), "model": route.replace("looker", "nobody")}
    async with gov.agent("a") as agent:
        with pytest.raises(litellm.NotFoundError):
            await litellm.acompletion(**wrong, num_retries=0)
        assert agent.state == "acting"
        assert (await litellm.acompletion(**options(server, route))).choices
    assert [step.usage is None for step in steps] == [True, False]


@pytest.mark.parametrize("route", ROUTES)
async def test_a_cancelled_call_is_over(route: str, gov: Governor, server: EmbeddedServer) -> None:
    async with gov.agent("a") as agent:
        slow = {**options(server, route), "max_tokens": 1000, "extra_body": {"ignore_eos": True}}
        call = asyncio.create_task(litellm.acompletion(**slow))
        while not server.stats.in_flight:
            await asyncio.sleep(0.001)
        assert agent.state == "reasoning"
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.sleep(0)
        assert agent.state == "acting"


async def test_governed_sessions_are_no_second_step(
    gov: Governor, server: EmbeddedServer, steps: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    http = gov.http_client("async")
    monkeypatch.setattr(litellm, "aclient_session", http)
    async with gov.agent("a"):
        await litellm.acompletion(**options(server, "openai/looker"))
    await http.aclose()
    check(server, steps, 1)


@pytest.mark.parametrize("route", ROUTES)
async def test_nested_agents_at_limit_one_finish(route: str, server: EmbeddedServer) -> None:
    gov = Governor(limit=1)

    async def child() -> Any:
        async with gov.agent():
            return await litellm.acompletion(**options(server, route))

    async with gov.agent("boss"):
        assert len(await asyncio.gather(child(), child(), child())) == 3


ENGLISH = "The agent reads a file, runs the tests and looks at what has failed. "
TOOL = {
    "type": "function",
    "function": {
        "name": "edit",
        "description": ENGLISH * 60,
        "parameters": {"type": "object", "properties": {"path": {"type": "string"}}},
    },
}


@pytest.mark.parametrize("tools", [[], [TOOL]], ids=["plain", "tools"])
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("route", ROUTES)
async def test_prompts_are_estimated_within_a_factor_of_two_of_what_the_engine_counts(
    route: str, kind: str, tools: list[Any], gov: Governor, server: EmbeddedServer
) -> None:
    said: list[tuple[int, int]] = []
    began: list[int] = []

    def note(event: Event) -> None:
        if event.kind == "step_began":
            began.append(event.prompt_tokens or 0)
        elif event.kind == "step_ended" and event.usage is not None:
            said.append((began[-1], event.usage.prompt_tokens))

    gov.on_event(note)
    messages: list[Any] = [{"role": "system", "content": ENGLISH * 20}]
    asked = {"tools": tools} if tools else {}

    def turns() -> Iterator[dict[str, Any]]:
        for turn in range(5):
            messages.append({"role": "user", "content": ENGLISH * (10 + 40 * (turn % 3))})
            yield {**options(server, route), **asked, "messages": list(messages)}

    def take(answer: Any) -> None:
        message = answer.choices[0].message
        messages.append(message)  # as an object, with its tool calls
        messages.extend(
            {"role": "tool", "tool_call_id": call.id, "content": ENGLISH * 5}
            for call in message.tool_calls or ()
        )

    if kind == "async":
        async with gov.agent("a"):
            for ask in turns():
                take(await litellm.acompletion(**ask))
    else:

        def run() -> None:
            with gov.agent("a"):
                for ask in turns():
                    take(litellm.completion(**ask))

        await asyncio.to_thread(run)
    assert len(said) == 5
    for estimate, tokens in said:
        assert tokens / 2 <= estimate <= tokens * 2, said


class TestMiniSweAgent:
    """mini-swe-agent: synchronous, through litellm, many in threads."""

    def run(self, server: EmbeddedServer, task: str) -> dict[str, Any]:
        from minisweagent.agents.default import DefaultAgent
        from minisweagent.environments.local import LocalEnvironment
        from minisweagent.models.litellm_model import LitellmModel

        model = LitellmModel(
            model_name="hosted_vllm/looker",
            model_kwargs={"api_base": f"{server.url}/v1", "api_key": "-", "max_tokens": 20},
            cost_tracking="ignore_errors",
        )
        agent = DefaultAgent(
            model,
            LocalEnvironment(),
            system_template="You do what you are told.",
            instance_template="{{task}}",
            step_limit=6,
        )
        return agent.run(task)

    def test_a_batch_in_the_governors_executor(self, gov: Governor, steps: list[Event]) -> None:
        def script(messages: Any) -> Reply:
            looked = any(message.role == "tool" for message in messages)
            command = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT" if looked else "echo hello"
            return Reply(calls=(ToolCall("c1", "bash", json.dumps({"command": command})),))

        with (
            EmbeddedServer("h100-qwen3-8b", time_scale=30, model="looker", script=script) as server,
            gov.executor() as pool,
        ):
            results = list(pool.map(lambda _: self.run(server, "look"), range(6)))
            check(server, steps, 12)
        assert [result["exit_status"] for result in results] == ["Submitted"] * 6


# Several pools


@pytest.fixture
def second() -> Iterator[EmbeddedServer]:
    with EmbeddedServer("h100-qwen3-8b", time_scale=30, model="looker") as running:
        yield running


@pytest.mark.parametrize("route", ROUTES)
async def test_an_asynchronous_call_goes_to_the_pool_of_its_agent(
    route: str, server: EmbeddedServer, second: EmbeddedServer
) -> None:
    with Governor([server.url, second.url], limit=4) as gov:
        async with gov.agent("a") as a, gov.agent("b", detached=True) as b:
            for agent in (a, b, b):
                with agent.active():
                    await litellm.acompletion(**options(server, route))
            assert (a.base_url, b.base_url) == (server.url, second.url)
    assert (server.stats.calls, second.stats.calls) == (1, 2)


def test_a_synchronous_call_goes_there_with_a_governed_session(
    server: EmbeddedServer, second: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Governor([server.url, second.url], limit=4) as gov:
        monkeypatch.setattr(litellm, "client_session", gov.http_client("sync"))
        with gov.agent("a") as a, gov.agent("b", detached=True) as b:
            for agent in (a, b, b):
                with agent.active():
                    litellm.completion(**options(server, "openai/looker"))
            with b.active():  # the other routes: by hand
                asked = options(server, "hosted_vllm/looker")
                asked |= {"api_base": f"{b.base_url}/v1", "extra_headers": b.headers}
                litellm.completion(**asked)
    assert (server.stats.calls, second.stats.calls) == (1, 3)


async def directed(gov: Governor, **kwargs: Any) -> Any:
    """What the hook makes of a call of an agent in the first pool."""
    (hook,) = (each for each in litellm.callbacks if type(each).__name__ == "_Callback")
    kwargs = {"litellm_call_id": str(uuid.uuid4()), "model": "m", "messages": ASK, **kwargs}
    async with gov.agent("a"):
        return await hook.async_pre_call_deployment_hook(kwargs, "acompletion")


async def test_keys_stay_with_their_host(caplog: pytest.LogCaptureFixture) -> None:
    gov = Governor(["http://one/a", "http://two/b"], ranks=2, limit=2, background=False)
    secret = {"api_key": "client", "extra_headers": {"x-api-key": "client", "v": "1"}}
    sent = await directed(gov, api_base="http://two/b/v1", **secret)
    assert (sent["api_base"], sent["api_key"]) == ("http://one/a/v1", "-")
    headers = {"x-session-id": "a", "X-data-parallel-rank": "0"}
    assert sent["extra_headers"] == {"v": "1", **headers}
    assert ["for two and is not sent to one" in said for said in caplog.messages] == [True]
    gov = Governor(["http://one/a", "http://two/b"], api_key="shared", limit=2, background=False)
    sent = await directed(gov, base_url="http://two/b", headers={"cookie": "client"})
    assert (sent["api_base"], sent["api_key"]) == ("http://one/a", "shared")
    assert (sent["headers"], "base_url" in sent) == ({}, False)
    gov = Governor(["http://one:1", "http://one:2"], limit=2, background=False)
    sent = await directed(gov, base_url="http://one:2/v1", **secret)
    assert (sent["api_base"], sent["api_key"]) == ("http://one:1/v1", "client")
    assert sent["extra_headers"]["x-api-key"] == "client"


async def test_a_call_to_another_address_passes(caplog: pytest.LogCaptureFixture) -> None:
    gov = Governor(["http://one", "http://two"], limit=2, background=False)
    assert await directed(gov) is None
    assert not caplog.messages
    assert await directed(gov, api_base="http://router/v1") is None
    assert ["http://router, which is no address" in said for said in caplog.messages] == [True]
    assert await directed(Governor(limit=2), api_base="http://router/v1") is None
