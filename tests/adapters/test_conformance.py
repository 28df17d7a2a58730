"""What every framework must keep to, run for real against the embedded server.

Each framework is a way to run one agent: it asks its model, is told to call the tool `look`, asks
again, calls it again, and gets an answer; at least three LLM calls. How the agent meets the
governor (a client, a hook, a wrapped graph) is what differs.
"""

import asyncio
import importlib.util
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import nullcontext
from typing import Any, TypeVar

import openai
import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

import concur_agents as ca
from concur_agents.core import Usage
from concur_agents.governor import Governor
from concur_agents.sim.server import EmbeddedServer

C = TypeVar("C")

TASK = 'Look twice, then say what you saw. CALL:look{"at": "1"}'
SYSTEM = "You look at things when you are told to."
LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks at something.",
        "parameters": {
            "type": "object",
            "properties": {"at": {"type": "string"}},
            "required": ["at"],
        },
    },
}


def look(at: str) -> str:
    """Looks at something.

    Args:
        at: what to look at.
    """
    return 'CALL:look{"at": "2"}' if at == "1" else "nothing more"


# --- the frameworks ------------------------------------------------------------------------------


class Framework:
    """One way to run an agent.

    Attributes:
        needs: modules without which it cannot run here.
        name_agents: whether its agents are opened inside, by the adapter.
    """

    needs: tuple[str, ...] = ()
    is_sync = False
    opens_agents = False

    def __init__(self) -> None:
        self.clients: list[Any] = []

    def prepare(self, gov: Governor, url: str) -> Callable[[str], Awaitable[Any] | Any]:
        """A function that runs one agent, given its id."""
        raise NotImplementedError

    def keep(self, client: C) -> C:
        """Has a client closed after the test."""
        self.clients.append(client)
        return client

    def plain_http(self, kind: str) -> Any:
        """A client that knows nothing of us."""
        sync = kind == "sync"
        return self.keep(openai.DefaultHttpxClient() if sync else openai.DefaultAsyncHttpxClient())

    async def close(self) -> None:
        while self.clients:
            client = self.clients.pop()
            closing = (getattr(client, "aclose", None) or client.close)()
            if closing is not None:
                await closing


def openai_loop(create: Callable[..., Any], model: str) -> Any:
    messages: list[Any] = [{"role": "system", "content": SYSTEM}]
    messages.append({"role": "user", "content": TASK})
    while True:
        reply = yield create(model=model, messages=messages, tools=[LOOK], max_tokens=20)
        message = reply.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        if not message.tool_calls:
            return message.content
        for call in message.tool_calls:
            at = "2" if '"2"' in call.function.arguments else "1"
            result = {"role": "tool", "tool_call_id": call.id, "content": look(at)}
            messages.append(result)


class OpenAI(Framework):
    """The drop-in client, asynchronous."""

    def client(self, gov: Governor, url: str) -> Any:
        from concur_agents.openai import AsyncOpenAI

        return self.keep(AsyncOpenAI(governor=gov, base_url=f"{url}/v1", api_key="-"))

    def prepare(self, gov: Governor, url: str) -> Any:
        client = self.client(gov, url)

        async def run(name: str) -> str:
            loop = openai_loop(client.chat.completions.create, MODEL)
            request = next(loop)
            while True:
                try:
                    request = loop.send(await request)
                except StopIteration as end:
                    return str(end.value)

        return run


class OpenAIWrapped(OpenAI):
    """A client that exists already."""

    def client(self, gov: Governor, url: str) -> Any:
        return self.keep(gov.wrap(openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-")))


class OpenAISync(Framework):
    """The drop-in client, in threads."""

    is_sync = True

    def prepare(self, gov: Governor, url: str) -> Any:
        from concur_agents.openai import OpenAI

        client = self.keep(OpenAI(governor=gov, base_url=f"{url}/v1", api_key="-"))

        def run(name: str) -> str:
            loop = openai_loop(client.chat.completions.create, MODEL)
            request = next(loop)
            while True:
                try:
                    request = loop.send(request)
                except StopIteration as end:
                    return str(end.value)

        return run


def chat_openai(url: str, **options: Any) -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(
        model=MODEL, base_url=f"{url}/v1", api_key="-", max_completion_tokens=20, **options
    )


class LangChainClient(Framework):
    """LangChain's model on our HTTP clients, in a loop made by hand."""

    needs = ("langchain_openai",)

    def prepare(self, gov: Governor, url: str) -> Any:
        clients = {
            "http_client": self.keep(gov.http_client("sync")),
            "http_async_client": self.keep(gov.http_client("async")),
        }
        model = chat_openai(url, **clients).bind_tools([look])

        async def run(name: str) -> str:
            messages: list[Any] = [("system", SYSTEM), ("user", TASK)]
            while True:
                reply = await model.ainvoke(messages)
                messages.append(reply)
                if not reply.tool_calls:
                    return str(reply.content)
                for call in reply.tool_calls:
                    said = look(**call["args"])
                    messages.append({"role": "tool", "tool_call_id": call["id"], "content": said})

        return run


class LangGraph(Framework):
    """A graph that is wrapped; its model knows nothing of us."""

    needs = ("langchain", "langchain_openai", "langgraph")
    opens_agents = True

    def model(self, url: str) -> Any:
        clients = (self.plain_http("sync"), self.plain_http("async"))
        return chat_openai(url, http_client=clients[0], http_async_client=clients[1])

    def make(self, url: str) -> Any:
        from langchain.agents import create_agent

        return create_agent(self.model(url), tools=[look], system_prompt=SYSTEM)

    def prepare(self, gov: Governor, url: str) -> Any:
        graph = gov.wrap(self.make(url))

        async def run(name: str) -> str:
            told: Any = {"messages": [("user", TASK)]}
            reply = await graph.ainvoke(told, {"configurable": {"thread_id": name}})
            return str(reply["messages"][-1].content)

        return run


class LangGraphSync(LangGraph):
    """The same in threads."""

    is_sync = True

    def prepare(self, gov: Governor, url: str) -> Any:
        graph = gov.wrap(self.make(url))

        def run(name: str) -> str:
            told: Any = {"messages": [("user", TASK)]}
            reply = graph.invoke(told, {"configurable": {"thread_id": name}})
            return str(reply["messages"][-1].content)

        return run


class LangGraphStream(LangGraph):
    """Streamed, token by token; our clients have the server tell what streams use."""

    def model(self, url: str) -> Any:
        return chat_openai(url, http_async_client=self.keep(self.gov.http_client("async")))

    def prepare(self, gov: Governor, url: str) -> Any:
        self.gov = gov
        graph = gov.wrap(self.make(url))

        async def run(name: str) -> str:
            told: Any = {"messages": [("user", TASK)]}
            text = ""
            async for message, _ in graph.astream(told, stream_mode="messages"):
                text += str(message.content)
            return text

        return run


class DeepAgents(LangGraph):
    """deepagents builds LangGraph graphs."""

    needs = ("deepagents", "langchain_openai")

    def make(self, url: str) -> Any:
        from deepagents import create_deep_agent

        return create_deep_agent(model=self.model(url), tools=[look], system_prompt=SYSTEM)


class OpenAIAgents(Framework):
    """OpenAI's agents SDK with a governed client."""

    needs = ("agents",)

    def model(self, gov: Governor, url: str) -> Any:
        from agents import OpenAIChatCompletionsModel

        return OpenAIChatCompletionsModel(model=MODEL, openai_client=self.client(gov, url))

    def client(self, gov: Governor, url: str) -> Any:
        from concur_agents.openai import AsyncOpenAI

        return self.keep(AsyncOpenAI(governor=gov, base_url=f"{url}/v1", api_key="-"))

    def prepare(self, gov: Governor, url: str) -> Any:
        from agents import Agent, Runner, function_tool, set_tracing_disabled

        set_tracing_disabled(True)
        agent = Agent(
            name="looker",
            instructions=SYSTEM,
            tools=[function_tool(look)],
            model=self.model(gov, url),
        )

        async def run(name: str) -> str:
            return str((await Runner.run(agent, TASK)).final_output)

        return run


class OpenAIAgentsResponses(OpenAIAgents):
    """The same over the Responses API."""

    def model(self, gov: Governor, url: str) -> Any:
        from agents import OpenAIResponsesModel

        return OpenAIResponsesModel(model=MODEL, openai_client=self.client(gov, url))


class PydanticAI(Framework):
    """pydantic-ai with a governed client."""

    needs = ("pydantic_ai",)

    def agent(self, gov: Governor, url: str, **options: Any) -> Any:
        from pydantic_ai import Agent
        from pydantic_ai.models.openai import OpenAIChatModel
        from pydantic_ai.providers.openai import OpenAIProvider

        from concur_agents.openai import AsyncOpenAI

        client = self.keep(AsyncOpenAI(governor=gov, base_url=f"{url}/v1", api_key="-"))
        model = OpenAIChatModel(MODEL, provider=OpenAIProvider(openai_client=client))
        return Agent(model, tools=[look], instructions=SYSTEM, **options)

    def prepare(self, gov: Governor, url: str) -> Any:
        agent = self.agent(gov, url)

        async def run(name: str) -> str:
            return str((await agent.run(TASK)).output)

        return run


class PydanticAILimiter(PydanticAI):
    """The limiter opens an agent for each run by itself."""

    opens_agents = True

    def prepare(self, gov: Governor, url: str) -> Any:
        from concur_agents.adapters.pydantic_ai import limiter

        agent = self.agent(gov, url, max_concurrency=limiter(gov))

        async def run(name: str) -> str:
            return str((await agent.run(TASK)).output)

        return run


class Smolagents(Framework):
    """smolagents is synchronous; its agents run in threads."""

    needs = ("smolagents",)
    is_sync = True

    def prepare(self, gov: Governor, url: str) -> Any:
        import smolagents

        http = self.keep(gov.http_client("sync"))
        tool = smolagents.tool(look)

        def run(name: str) -> str:
            model = smolagents.OpenAIModel(
                MODEL, api_base=f"{url}/v1", api_key="-", client_kwargs={"http_client": http}
            )
            agent = smolagents.ToolCallingAgent(
                tools=[tool], model=model, max_steps=3, verbosity_level=smolagents.LogLevel.OFF
            )
            return str(agent.run(TASK))

        return run


FRAMEWORKS: list[type[Framework]] = [
    OpenAI,
    OpenAIWrapped,
    OpenAISync,
    LangChainClient,
    LangGraph,
    LangGraphSync,
    LangGraphStream,
    DeepAgents,
    OpenAIAgents,
    OpenAIAgentsResponses,
    PydanticAI,
    PydanticAILimiter,
    Smolagents,
]

# --- the suite -----------------------------------------------------------------------------------

MODEL = "looker"


@pytest.fixture(params=FRAMEWORKS, ids=lambda kind: kind.__name__)
async def framework(request: pytest.FixtureRequest) -> AsyncIterator[Framework]:
    chosen: Framework = request.param()
    for module in chosen.needs:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed in this environment")
    yield chosen
    await chosen.close()


def as_agent(framework: Framework, gov: Governor, run: Any) -> Callable[[str], Awaitable[Any]]:
    """One agent of a framework as a coroutine, in a thread where the framework is synchronous."""

    def block(name: str) -> Any:
        return nullcontext() if framework.opens_agents else gov.agent(name)

    async def asynchronous(name: str) -> Any:
        async with block(name):
            return await run(name)

    def synchronous(name: str) -> Any:
        with block(name):
            return run(name)

    async def threaded(name: str) -> Any:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()

        def settle(error: BaseException | None, value: Any) -> None:
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(value)

        def work() -> None:
            try:
                value, error = ca.bind(synchronous)(name), None
            except BaseException as caught:
                value, error = None, caught
            loop.call_soon_threadsafe(settle, error, value)

        threading.Thread(target=ca.bind(work), daemon=True).start()
        return await done

    return threaded if framework.is_sync else asynchronous


async def run_eight(framework: Framework, gov: Governor, server: EmbeddedServer) -> list[Any]:
    agent = as_agent(framework, gov, framework.prepare(gov, server.url))
    return await asyncio.gather(*(agent(f"agent-{n}") for n in range(8)))


async def test_eight_agents_at_limit_two(framework: Framework, server: EmbeddedServer) -> None:
    """The server never sees more than two of them, all finish, and all they used is known."""
    gov = Governor(limit=2)
    ended: list[Usage | None] = []
    gov.on_event(lambda e: ended.append(e.usage) if e.kind == "step_ended" else None)
    answers = await run_eight(framework, gov, server)
    stats = server.stats
    assert len(answers) == 8
    assert all(answers)
    assert stats.calls >= 24, "three calls each"
    assert stats.max_in_flight <= 2
    assert gov.snapshot().done_total == 8
    assert gov.snapshot().active == 0
    assert len(ended) == stats.calls, "each call is one step, whatever seams it went through"
    known = [usage for usage in ended if usage is not None]
    assert len(known) == stats.calls
    assert sum(usage.prompt_tokens for usage in known) == stats.prompt_tokens
    assert sum(usage.completion_tokens for usage in known) == stats.output_tokens
    assert sum(usage.cached_tokens or 0 for usage in known) == stats.cached_tokens


async def test_without_a_limit_more_than_two_are_in_flight(server: EmbeddedServer) -> None:
    """Or the test above could not fail."""
    framework = OpenAI()
    await run_eight(framework, Governor(limit=1000), server)
    await framework.close()
    assert server.stats.max_in_flight > 2


async def test_nested_agents_at_limit_one_finish(
    framework: Framework, server: EmbeddedServer
) -> None:
    gov = Governor(limit=1)
    agent = as_agent(framework, gov, framework.prepare(gov, server.url))
    async with gov.agent("boss"):
        answers = await asyncio.gather(*(agent(f"child-{n}") for n in range(3)))
    assert all(answers)
    assert gov.snapshot().active == 0


async def test_cancelling_anywhere_frees_the_place(
    framework: Framework, server: EmbeddedServer
) -> None:
    """An agent is cancelled somewhere in its life; the one behind it must get its place."""
    if framework.is_sync:
        pytest.skip("a thread cannot be cancelled")
    gov = Governor(limit=1)
    agent = as_agent(framework, gov, framework.prepare(gov, server.url))
    await agent("warm-up")  # imports and connections
    for turns in [*range(0, 20, 2), 30, 50, 80, 120, 150, 180]:
        first = asyncio.create_task(agent(f"first-{turns}"))
        second = asyncio.create_task(agent(f"second-{turns}"))
        for _ in range(turns):
            await asyncio.sleep(0)
        if turns > 100:
            await asyncio.sleep(0.01)
        first.cancel()
        if turns % 3 == 0:
            second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert second.cancelled() or second.result()
        snapshot = gov.snapshot()
        assert (snapshot.active, snapshot.paused, snapshot.queued) == (0, 0, 0)
    await asyncio.wait_for(agent("last"), timeout=10)
