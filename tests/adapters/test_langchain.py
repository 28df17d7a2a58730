"""LangChain models inside agents wait for their turn, by hook, client, limiter or middleware."""

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("langchain_openai")

from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.language_models.fake import FakeListLLM
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

import concur_agents as ca
from concur_agents.core import Usage
from concur_agents.errors import GateError
from concur_agents.governor import Governor
from concur_agents.runtime.events import Event

USED = Usage(prompt_tokens=100, completion_tokens=7, cached_tokens=64)


@pytest.fixture(autouse=True)
def hook() -> None:
    ca.install("langchain")


def chat_model(gov: Governor | None, endpoint: Any, **options: Any) -> ChatOpenAI:
    """A model of LangChain's; with a governor, on its clients."""
    if gov is None:
        sync, asynchronous = endpoint.http("sync"), endpoint.http("async")
    else:
        sync = gov.http_client("sync", transport=endpoint.transport())
        asynchronous = gov.http_client("async", transport=endpoint.transport())
    return ChatOpenAI(
        model="m",
        base_url="http://engine/v1",
        api_key="-",  # type: ignore[arg-type]
        http_client=sync,
        http_async_client=asynchronous,
        **options,
    )


async def another_has_the_place(gov: Governor, mine: Any) -> asyncio.Event:
    entered, leave = asyncio.Event(), asyncio.Event()

    async def other() -> None:
        async with gov.agent("other", detached=True):
            entered.set()
            await leave.wait()

    async with mine.suspended():
        leave.task = asyncio.create_task(other())  # type: ignore[attr-defined]
        await entered.wait()
    return leave


@pytest.mark.parametrize("client", ["plain", "governed"])
class TestChatOpenAI:
    """With a governed client there are two seams; one call must still be one step."""

    def model(self, client: str, gov: Governor, endpoint: Any, **options: Any) -> ChatOpenAI:
        return chat_model(gov if client == "governed" else None, endpoint, **options)

    def test_sync(self, client: str, gov: Governor, endpoint: Any, steps: list[Event]) -> None:
        model = self.model(client, gov, endpoint)
        with gov.agent("a"):
            assert model.invoke("hi").content
            model.batch(["hi", "hi"])
        assert [step.usage for step in steps] == [USED] * 3

    async def test_async(
        self, client: str, gov: Governor, endpoint: Any, steps: list[Event]
    ) -> None:
        """LangChain makes the call in another task than the one that runs our hook."""
        model = self.model(client, gov, endpoint)
        async with gov.agent("a") as agent:
            assert (await model.ainvoke("hi")).content
            assert agent.state == "acting"
            await model.abatch(["hi", "hi"])
        assert [step.usage for step in steps] == [USED] * 3

    async def test_streams(
        self, client: str, gov: Governor, endpoint: Any, steps: list[Event]
    ) -> None:
        """LangChain asks for usage only on OpenAI's own address; our client asks everywhere."""
        model = self.model(client, gov, endpoint)
        async with gov.agent("a") as agent:
            chunks = [chunk async for chunk in model.astream("hi")]
            assert agent.state == "acting"
        assert "".join(str(chunk.content) for chunk in chunks).startswith("the")
        assert [step.usage for step in steps] == [USED if client == "governed" else None]

    def test_the_responses_api(
        self, client: str, gov: Governor, endpoint: Any, steps: list[Event]
    ) -> None:
        model = self.model(client, gov, endpoint, use_responses_api=True)
        with gov.agent("a"):
            model.invoke("hi")
        assert [step.usage for step in steps] == [USED]

    def test_errors(self, client: str, gov: Governor, endpoint: Any, steps: list[Event]) -> None:
        endpoint.refuse = [(500, {}, {"error": {"message": "no"}})]
        model = self.model(client, gov, endpoint, max_retries=0)
        with gov.agent("a") as agent:
            with pytest.raises(Exception, match="500"):
                model.invoke("hi")
            assert agent.state == "acting"
        assert [step.usage for step in steps] == [None]

    def test_retries_are_part_of_the_call(
        self, client: str, gov: Governor, endpoint: Any, steps: list[Event]
    ) -> None:
        """The usage of the try that worked was lost if one before it had been refused."""
        endpoint.refuse = [(429, {"retry-after-ms": "1"}, {"error": {"message": "busy"}})]
        model = self.model(client, gov, endpoint, max_retries=1)
        with gov.agent("a") as agent:
            assert model.invoke("hi").content
            assert agent.stats.prompt_tokens == 100
        assert [step.usage for step in steps] == [USED]

    async def test_a_cancelled_call_is_over(
        self, client: str, gov: Governor, endpoint: Any, steps: list[Event]
    ) -> None:
        """LangChain reports a cancelled run to no handler; the agent would look busy for ever."""
        started = asyncio.Event()

        async def hang(request: Any) -> Any:
            started.set()
            await asyncio.Event().wait()

        endpoint.answer = hang
        model = self.model(client, gov, endpoint)
        async with gov.agent("a") as agent:
            call = asyncio.create_task(model.ainvoke("hi"))
            await started.wait()
            assert agent.state == "reasoning"
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await asyncio.sleep(0)
            assert agent.state == "acting"

    async def test_a_cancelled_wait_takes_no_turn(self, client: str, endpoint: Any) -> None:
        gov = Governor(limit=1)
        model = self.model(client, gov, endpoint)
        async with gov.agent("mine") as mine:
            leave = await another_has_the_place(gov, mine)
            call = asyncio.create_task(model.ainvoke("hi"))
            await asyncio.sleep(0.01)
            assert not endpoint.requests
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            leave.set()
            assert (await model.ainvoke("hi")).content

    async def test_a_sync_call_that_must_wait_on_a_loop_thread_raises(
        self, client: str, endpoint: Any
    ) -> None:
        """A wait there would stop the very agents it waits for."""
        gov = Governor(limit=1)
        model = self.model(client, gov, endpoint)
        async with gov.agent("mine") as mine:
            leave = await another_has_the_place(gov, mine)
            with pytest.raises(GateError, match="to_thread"):
                model.invoke("hi")
            leave.set()


def test_the_hook_works_for_any_provider(gov: Governor, steps: list[Event]) -> None:
    with gov.agent("a"):
        FakeListChatModel(responses=["x"]).invoke("hi")
        FakeListLLM(responses=["x"]).invoke("hi")
        list(FakeListChatModel(responses=["x"]).stream("hi"))
    assert len(steps) == 3


async def test_nothing_is_remembered_of_calls_that_are_over(gov: Governor) -> None:
    """A task that lives for days makes millions of calls."""
    from concur_agents.adapters.langchain import _calls

    async with gov.agent("a"):
        for _ in range(5):
            await FakeListChatModel(responses=["x"]).ainvoke("hi")
        task = asyncio.current_task()
        assert task is not None
        assert not _calls._by_task[task]
    assert not _calls._calls


def test_outside_of_agents_the_hook_is_not_there(gov: Governor, steps: list[Event]) -> None:
    FakeListChatModel(responses=["x"]).invoke("hi")
    assert not steps


@pytest.mark.parametrize("model", [FakeListChatModel, FakeListLLM])
@pytest.mark.parametrize("base", [BaseCallbackHandler, AsyncCallbackHandler])
async def test_the_users_handlers_hear_what_they_always_did(
    model: Any, base: Any, gov: Governor
) -> None:
    seen: list[str] = []

    class Mine(BaseCallbackHandler):
        def on_chat_model_start(self, *_: Any, **__: Any) -> None:
            seen.append("start")

        on_llm_start = on_chat_model_start

        def on_llm_end(self, *_: Any, **__: Any) -> None:
            seen.append("end")

    class MineAsync(AsyncCallbackHandler):
        async def on_chat_model_start(self, *_: Any, **__: Any) -> None:
            seen.append("start")

        on_llm_start = on_chat_model_start

        async def on_llm_end(self, *_: Any, **__: Any) -> None:
            seen.append("end")

    mine = MineAsync() if base is AsyncCallbackHandler else Mine()
    async with gov.agent("a"):
        await model(responses=["x"], callbacks=[mine]).ainvoke("hi")
    assert seen == ["start", "end"]


@pytest.mark.parametrize("client", ["plain", "governed"])
async def test_a_rate_limiter_is_a_gate_and_no_second_step(
    client: str, gov: Governor, endpoint: Any, steps: list[Event]
) -> None:
    model = chat_model(
        gov if client == "governed" else None, endpoint, rate_limiter=gov.rate_limiter()
    )
    async with gov.agent("a"):
        await model.ainvoke("hi")
        await asyncio.to_thread(model.invoke, "hi")
    assert [step.usage for step in steps] == [USED, USED]


async def test_a_rate_limiter_waits_for_the_turn() -> None:
    gov = Governor(limit=1)
    limiter = gov.rate_limiter()
    async with gov.agent("mine") as mine:
        assert limiter.acquire(blocking=False)
        leave = await another_has_the_place(gov, mine)
        assert not await limiter.aacquire(blocking=False)
        wait = asyncio.create_task(limiter.aacquire())
        await asyncio.sleep(0.01)
        assert not wait.done()
        leave.set()
        assert await wait


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_the_middleware_makes_each_model_call_one_step(
    asynchronous: bool, gov: Governor, endpoint: Any, steps: list[Event]
) -> None:
    pytest.importorskip("langchain")
    from langchain.agents import create_agent

    agent = create_agent(chat_model(gov, endpoint), tools=[], middleware=[gov.middleware()])
    given: Any = {"messages": [{"role": "user", "content": "hi"}]}
    async with gov.agent("a"):
        if asynchronous:
            reply = await agent.ainvoke(given)
        else:
            reply = await asyncio.to_thread(agent.invoke, given)
    assert reply["messages"][-1].content
    assert [step.usage for step in steps] == [USED]


ENGLISH = "The agent reads a file, runs the tests and looks at what has failed. "
IMAGE = "data:image/png;base64," + base64.b64encode(bytes(range(256)) * 400).decode()


def counted(endpoint: Any) -> Callable[[Any], Any]:
    """A model that counts a token for 4.5 bytes of text, and 1,000 for an image."""

    def answer(request: Any) -> Any:
        body = json.loads(request.content)
        text = json.dumps([body["messages"], body.get("tools")], ensure_ascii=False)
        tokens = len(text.replace(IMAGE, "").encode()) / 4.5 + 1000 * text.count(IMAGE)
        message = {"role": "assistant", "content": ENGLISH}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        usage = {"prompt_tokens": round(tokens), "completion_tokens": 20, "total_tokens": 0}
        reply = {"id": "c", "object": "chat.completion", "created": 0, "model": "m"}
        return endpoint.library.Response(200, json={**reply, "choices": choices, "usage": usage})

    return answer


def edit(path: str, text: str) -> str:
    """Changes a file."""
    return path + text


edit.__doc__ = ENGLISH * 40


@pytest.mark.parametrize("by", ["hook", "client", "middleware"])
async def test_prompts_are_estimated_within_a_factor_of_two(
    by: str, gov: Governor, endpoint: Any
) -> None:
    endpoint.transport()
    endpoint.answer = counted(endpoint)
    said: list[list[int]] = []

    def note(event: Event) -> None:
        if event.kind == "step_began":
            said.append([event.prompt_tokens or 0])
        elif event.kind == "step_ended" and event.usage is not None:
            said[-1].append(event.usage.prompt_tokens)

    gov.on_event(note)
    model = chat_model(gov if by == "client" else None, endpoint)
    if by == "middleware":
        agents = pytest.importorskip("langchain.agents")
        agent = agents.create_agent(
            model, tools=[edit], system_prompt=ENGLISH * 10, middleware=[gov.middleware()]
        )
        invoke = agent.ainvoke
    else:
        invoke = model.bind_tools([edit]).ainvoke
    messages: list[Any] = [] if by == "middleware" else [SystemMessage(ENGLISH * 10)]
    async with gov.agent("a"):
        for turn in range(6):
            content: Any = ENGLISH * (10 + 40 * (turn % 3))
            if turn % 2:
                content = [
                    {"type": "text", "text": content},
                    {"type": "image_url", "image_url": {"url": IMAGE}},
                ]
            messages.append(HumanMessage(content))
            reply = await invoke({"messages": messages} if by == "middleware" else messages)
            messages.append(reply["messages"][-1] if by == "middleware" else reply)
    assert len(said) == 6
    for estimate, tokens in said:
        assert tokens / 2 <= estimate <= tokens * 2, said


def test_a_governed_client_sends_each_call_to_the_pool_of_its_agent(
    endpoint: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gov = Governor(["http://one/v1", "http://engine/v1"], limit=8, background=False)
    model = chat_model(gov, endpoint, rate_limiter=gov.rate_limiter())
    with gov.agent("a") as a, gov.agent("b", detached=True) as b:
        for agent in (a, b):
            with agent.active():
                model.invoke("hi")
    assert [request.url.host for request in endpoint.requests] == ["one", "engine"]
    assert not caplog.messages


async def test_a_call_that_only_a_hook_sees_is_said_not_to_go_to_its_pool(
    endpoint: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gov = Governor(["http://one/v1", "http://engine/v1"], limit=8, background=False)
    model = chat_model(None, endpoint, rate_limiter=gov.rate_limiter())
    async with gov.agent("a"):
        model.invoke("hi")
        await model.ainvoke("hi")
    assert [request.url.host for request in endpoint.requests] == ["engine", "engine"]
    assert ["not sent to its pool" in said for said in caplog.messages] == [True]
