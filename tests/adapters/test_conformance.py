"""What every framework must keep to, run for real against the embedded server.

Each framework is a way to run one agent: it asks its model, is told to call a tool, asks again,
calls it again, and gets an answer; at least three LLM calls. How the agent meets the governor (a
client, a hook, a wrapped graph) is what differs. Without a governor it runs as its users have it
before they come to us, so that what they see can be compared.
"""

import asyncio
import gc
import importlib.util
import os
import threading
import types
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

import openai
import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

import concur_agents as ca
from concur_agents.core import Usage
from concur_agents.governor import Governor
from concur_agents.runtime.events import Event
from concur_agents.sim.server import EmbeddedServer

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or importing it asks the network

C = TypeVar("C")
R = TypeVar("R")

MODEL = "looker"
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
        is_sync: it runs in a thread.
        opens_agents: its agents are opened inside, by the adapter.
        is_routed: with several pools, each call goes to the pool of its agent.
        heard: what the user's own callbacks were told.
    """

    is_routed = True
    needs: tuple[str, ...] = ()
    is_sync = False
    opens_agents = False

    def __init__(self) -> None:
        self.clients: list[Any] = []
        self.heard: list[str] = []

    def prepare(self, gov: Governor | None, url: str) -> Callable[[str], Any]:
        """A function that runs one agent, given its id, and returns what the framework returns."""
        raise NotImplementedError

    def said(self, result: Any) -> str:
        """The last words in a result."""
        return str(result)

    def keep(self, client: C) -> C:
        """Has a client closed after the test."""
        self.clients.append(client)
        return client

    def http(self, kind: str) -> Any:
        """A client of the user's, which knows nothing of us but has hooks of his."""

        def hear(message: Any) -> None:
            self.heard.append(type(message).__name__)

        async def hear_async(message: Any) -> None:
            hear(message)

        hook = hear if kind == "sync" else hear_async
        make = openai.DefaultHttpxClient if kind == "sync" else openai.DefaultAsyncHttpxClient
        return self.keep(make(event_hooks={"request": [hook], "response": [hook]}))

    def openai(self, gov: Governor | None, url: str) -> Any:
        """openai's own client, or the drop-in for it."""
        from concur_agents.openai import AsyncOpenAI

        given: dict[str, Any] = {"base_url": f"{url}/v1", "api_key": "-"}
        given["http_client"] = self.http("async")
        if gov is None:
            return self.keep(openai.AsyncOpenAI(**given))
        return self.keep(AsyncOpenAI(governor=gov, **given))

    async def close(self) -> None:
        while self.clients:
            client = self.clients.pop()
            closing = (getattr(client, "aclose", None) or client.close)()
            if closing is not None:
                await closing


def openai_loop(create: Callable[..., Any]) -> Any:
    """An agent as people write it; yields requests and gets the replies."""
    messages: list[Any] = [{"role": "system", "content": SYSTEM}]
    messages.append({"role": "user", "content": TASK})
    while True:
        reply = yield create(model=MODEL, messages=messages, tools=[LOOK], max_tokens=20)
        message = reply.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        if not message.tool_calls:
            return message.content
        for call in message.tool_calls:
            at = "2" if '"2"' in call.function.arguments else "1"
            result = {"role": "tool", "tool_call_id": call.id, "content": look(at)}
            messages.append(result)


async def run_loop(create: Callable[..., Any]) -> str:
    loop = openai_loop(create)
    request = next(loop)
    while True:
        try:
            request = loop.send(await request)
        except StopIteration as end:
            return str(end.value)


def run_loop_sync(create: Callable[..., Any]) -> str:
    loop = openai_loop(create)
    request = next(loop)
    while True:
        try:
            request = loop.send(request)
        except StopIteration as end:
            return str(end.value)


class OpenAI(Framework):
    """The drop-in client, asynchronous."""

    def prepare(self, gov: Governor | None, url: str) -> Any:
        client = self.openai(gov, url)
        return lambda name: run_loop(client.chat.completions.create)


class OpenAIWrapped(OpenAI):
    """A client that exists already."""

    def openai(self, gov: Governor | None, url: str) -> Any:
        client = super().openai(None, url)
        return client if gov is None else gov.wrap(client)


class OpenAISync(Framework):
    """The drop-in client, in threads."""

    is_sync = True

    def prepare(self, gov: Governor | None, url: str) -> Any:
        from concur_agents.openai import OpenAI

        given: dict[str, Any] = {"base_url": f"{url}/v1", "api_key": "-"}
        given["http_client"] = self.http("sync")
        client = openai.OpenAI(**given) if gov is None else OpenAI(governor=gov, **given)
        self.keep(client)
        return lambda name: run_loop_sync(client.chat.completions.create)


class Decorated(OpenAI):
    """A function that is decorated; its client is ours, too."""

    opens_agents = True

    def prepare(self, gov: Governor | None, url: str) -> Any:
        run = super().prepare(gov, url)

        async def solve(name: str) -> str:
            return str(await run(name))

        return solve if gov is None else ca.governed(gov, key=lambda name: name)(solve)


class LangChain(Framework):
    """LangChain's model, in a loop made by hand, with our hook."""

    is_routed = False
    needs = ("langchain_openai",)

    def model(self, gov: Governor | None, url: str, **options: Any) -> Any:
        from langchain_openai import ChatOpenAI

        clients = {"http_client": self.http("sync"), "http_async_client": self.http("async")}
        return ChatOpenAI(
            model=MODEL,
            base_url=f"{url}/v1",
            api_key="-",  # type: ignore[arg-type]
            max_completion_tokens=20,
            **(clients | options),
        )

    def callbacks(self) -> Any:
        from langchain_core.callbacks import BaseCallbackHandler

        heard = self.heard

        class Mine(BaseCallbackHandler):
            def on_chat_model_start(self, *_: Any, **__: Any) -> None:
                heard.append("model starts")

            def on_llm_end(self, *_: Any, **__: Any) -> None:
                heard.append("model ends")

            def on_tool_end(self, *_: Any, **__: Any) -> None:
                heard.append("tool ends")

        return [Mine()]

    def prepare(self, gov: Governor | None, url: str) -> Any:
        if gov is not None:
            ca.install("langchain")
        model = self.model(gov, url).bind_tools([look])

        async def run(name: str) -> Any:
            messages: list[Any] = [("system", SYSTEM), ("user", TASK)]
            while True:
                reply = await model.ainvoke(messages, {"callbacks": self.callbacks()})
                messages.append(reply)
                if not reply.tool_calls:
                    return reply
                for call in reply.tool_calls:
                    said = look(**call["args"])
                    messages.append({"role": "tool", "tool_call_id": call["id"], "content": said})

        return run

    def said(self, result: Any) -> str:
        return str(result.content)


class LangChainClient(LangChain):
    """The same on our HTTP clients."""

    is_routed = True

    def model(self, gov: Governor | None, url: str, **options: Any) -> Any:
        clients = {}
        if gov is not None:
            clients["http_client"] = self.keep(gov.wrap(self.http("sync")))
            clients["http_async_client"] = self.keep(gov.wrap(self.http("async")))
        return super().model(gov, url, **clients, **options)


class LangChainLimiter(LangChain):
    """The same with our rate limiter."""

    def model(self, gov: Governor | None, url: str, **options: Any) -> Any:
        limiter = None if gov is None else gov.rate_limiter()
        return super().model(gov, url, rate_limiter=limiter, **options)


class LangGraph(LangChain):
    """A graph that is wrapped; its model knows nothing of us."""

    needs = ("langchain", "langchain_openai", "langgraph")
    opens_agents = True

    def make(self, gov: Governor | None, url: str) -> Any:
        from langchain.agents import create_agent

        return create_agent(self.model(gov, url), tools=[look], system_prompt=SYSTEM)

    def graph(self, gov: Governor | None, url: str) -> Any:
        graph = self.make(gov, url)
        return graph if gov is None else gov.wrap(graph)

    def config(self, name: str) -> Any:
        return {"configurable": {"thread_id": name}, "callbacks": self.callbacks()}

    def prepare(self, gov: Governor | None, url: str) -> Any:
        graph = self.graph(gov, url)
        told: Any = {"messages": [("user", TASK)]}
        return lambda name: graph.ainvoke(told, self.config(name))

    def said(self, result: Any) -> str:
        return str(result["messages"][-1].content)


class LangGraphSync(LangGraph):
    """The same in threads."""

    is_sync = True

    def prepare(self, gov: Governor | None, url: str) -> Any:
        graph = self.graph(gov, url)
        told: Any = {"messages": [("user", TASK)]}
        return lambda name: graph.invoke(told, self.config(name))


class LangGraphStream(LangGraph, LangChainClient):
    """Streamed, token by token; our clients have the server tell what streams use."""

    def prepare(self, gov: Governor | None, url: str) -> Any:
        graph = self.graph(gov, url)

        async def run(name: str) -> str:
            told: Any = {"messages": [("user", TASK)]}
            text = ""
            async for message, _ in graph.astream(told, self.config(name), stream_mode="messages"):
                text += str(message.content)
            return text

        return run

    def said(self, result: Any) -> str:
        return str(result)


class LangGraphDecorated(LangGraph):
    """A graph made by a decorated factory."""

    def graph(self, gov: Governor | None, url: str) -> Any:
        from langgraph.graph.state import CompiledStateGraph

        def make() -> CompiledStateGraph:  # type: ignore[type-arg]
            return self.make(gov, url)  # type: ignore[no-any-return]

        return make() if gov is None else ca.governed(gov)(make)()


class LangGraphEntrypoint(LangChain):
    """An `@entrypoint` of LangGraph's functional API."""

    needs = ("langchain_openai", "langgraph")
    opens_agents = True

    def prepare(self, gov: Governor | None, url: str) -> Any:
        from langgraph.func import entrypoint

        run = super().prepare(gov, url)

        @entrypoint()
        async def workflow(name: str) -> Any:
            return await run(name)

        governed = workflow if gov is None else ca.governed(gov)(workflow)
        return governed.ainvoke


class LangChainMiddleware(LangGraph):
    """`create_agent` with our middleware; the agent is opened by hand."""

    opens_agents = False

    def make(self, gov: Governor | None, url: str) -> Any:
        from langchain.agents import create_agent

        middleware = [] if gov is None else [gov.middleware()]
        model = self.model(gov, url)
        return create_agent(model, tools=[look], system_prompt=SYSTEM, middleware=middleware)

    def graph(self, gov: Governor | None, url: str) -> Any:
        return self.make(gov, url)


class DeepAgents(LangGraph):
    """deepagents builds LangGraph graphs."""

    needs = ("deepagents", "langchain_openai")

    def make(self, gov: Governor | None, url: str) -> Any:
        from deepagents import create_deep_agent

        return create_deep_agent(model=self.model(gov, url), tools=[look], system_prompt=SYSTEM)


class OpenAIAgents(Framework):
    """OpenAI's agents SDK with a governed client."""

    needs = ("agents",)

    def model(self, gov: Governor | None, url: str) -> Any:
        from agents import OpenAIChatCompletionsModel

        return OpenAIChatCompletionsModel(model=MODEL, openai_client=self.openai(gov, url))

    def prepare(self, gov: Governor | None, url: str) -> Any:
        from agents import Agent, RunHooks, Runner, function_tool, set_tracing_disabled

        set_tracing_disabled(True)
        agent = Agent(
            name="looker",
            instructions=SYSTEM,
            tools=[function_tool(look)],
            model=self.model(gov, url),
        )
        heard = self.heard

        class Mine(RunHooks):  # type: ignore[type-arg]
            async def on_llm_start(self, *_: Any, **__: Any) -> None:
                heard.append("model starts")

            async def on_llm_end(self, *_: Any, **__: Any) -> None:
                heard.append("model ends")

            async def on_tool_end(self, *_: Any, **__: Any) -> None:
                heard.append("tool ends")

        return lambda name: Runner.run(agent, TASK, hooks=Mine())

    def said(self, result: Any) -> str:
        return str(result.final_output)

    async def close(self) -> None:
        await super().close()
        gc.collect()  # while the filter for what it leaves behind holds


class OpenAIAgentsResponses(OpenAIAgents):
    """The same over the Responses API."""

    def model(self, gov: Governor | None, url: str) -> Any:
        from agents import OpenAIResponsesModel

        return OpenAIResponsesModel(model=MODEL, openai_client=self.openai(gov, url))


class PydanticAI(Framework):
    """pydantic-ai with a governed client."""

    needs = ("pydantic_ai",)

    def limiter(self, gov: Governor | None) -> Any:
        return None

    def prepare(self, gov: Governor | None, url: str) -> Any:
        from pydantic_ai import Agent
        from pydantic_ai.models.openai import OpenAIChatModel
        from pydantic_ai.providers.openai import OpenAIProvider

        client = self.openai(gov, url)
        agent = Agent(
            OpenAIChatModel(MODEL, provider=OpenAIProvider(openai_client=client)),
            tools=[look],
            instructions=SYSTEM,
            max_concurrency=self.limiter(gov),
        )
        return lambda name: agent.run(TASK)

    def said(self, result: Any) -> str:
        return str(result.output)


class PydanticAILimiter(PydanticAI):
    """The limiter opens an agent for each run by itself."""

    opens_agents = True

    def limiter(self, gov: Governor | None) -> Any:
        from concur_agents.adapters.pydantic_ai import limiter

        return None if gov is None else limiter(gov)


class Smolagents(Framework):
    """smolagents is synchronous; its agents run in threads."""

    needs = ("smolagents",)
    is_sync = True

    def prepare(self, gov: Governor | None, url: str) -> Any:
        import smolagents

        http = self.http("sync")
        if gov is not None:
            http = self.keep(gov.wrap(http))
        tool = smolagents.tool(look)

        def run(name: str) -> Any:
            model = smolagents.OpenAIModel(
                MODEL, api_base=f"{url}/v1", api_key="-", client_kwargs={"http_client": http}
            )
            agent = smolagents.ToolCallingAgent(
                tools=[tool],
                model=model,
                max_steps=3,
                verbosity_level=smolagents.LogLevel.OFF,
                step_callbacks=[lambda step, agent=None: self.heard.append(type(step).__name__)],
            )
            return agent.run(TASK)

        return run


class LiteLLM(Framework):
    """LiteLLM over openai's client."""

    needs = ("litellm",)
    route = "openai/looker"

    def prepare(self, gov: Governor | None, url: str) -> Any:
        import litellm
        from litellm.integrations.custom_logger import CustomLogger

        if gov is not None:
            ca.install("litellm")
        heard = self.heard

        class Mine(CustomLogger):  # type: ignore[misc]
            def log_pre_api_call(self, *_: Any, **__: Any) -> None:
                heard.append("model starts")

        self.mine = Mine()
        litellm.callbacks.append(self.mine)
        return self.runner({"api_base": f"{url}/v1", "api_key": "-"})

    def runner(self, given: dict[str, Any]) -> Any:
        import litellm

        def create(**asked: Any) -> Any:
            return litellm.acompletion(**{**asked, **given, "model": self.route})

        return lambda name: run_loop(create)

    async def close(self) -> None:
        import litellm

        await super().close()
        with suppress(ValueError, AttributeError):
            litellm.callbacks.remove(self.mine)
        litellm.in_memory_llm_clients_cache.flush_cache()
        gc.collect()  # while the filters for what it leaves behind hold


class LiteLLMOwnClient(LiteLLM):
    """The same over LiteLLM's own client."""

    route = "hosted_vllm/looker"


class LiteLLMSync(LiteLLM):
    """The same in threads."""

    is_routed = False
    is_sync = True

    def runner(self, given: dict[str, Any]) -> Any:
        import litellm

        def create(**asked: Any) -> Any:
            return litellm.completion(**{**asked, **given, "model": self.route})

        return lambda name: run_loop_sync(create)


class MiniSweAgent(LiteLLM):
    """mini-swe-agent: synchronous, through litellm; its tool is a shell."""

    is_routed = False
    needs = ("litellm", "minisweagent")
    is_sync = True
    route = "hosted_vllm/looker"

    def runner(self, given: dict[str, Any]) -> Any:
        from minisweagent.agents.default import DefaultAgent
        from minisweagent.environments.local import LocalEnvironment
        from minisweagent.models.litellm_model import LitellmModel

        heard = self.heard

        class Mine(DefaultAgent):  # type: ignore[misc]
            def query(self) -> Any:
                heard.append("query")
                return super().query()

        def bash(command: str) -> str:
            return f'CALL:bash{{"command": "{command}"}}'

        folder = Path(os.environ["MSWEA_GLOBAL_CONFIG_DIR"])
        (folder / "first").write_text(bash(f"cat {folder}/second"))
        (folder / "second").write_text(bash("echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"))

        def run(name: str) -> Any:
            model = LitellmModel(
                model_name=self.route,
                model_kwargs={**given, "max_tokens": 20},
                cost_tracking="ignore_errors",
            )
            agent = Mine(
                model, LocalEnvironment(), system_template=SYSTEM, instance_template="{{task}}"
            )
            return agent.run(bash(f"cat {folder}/first"))

        return run

    def said(self, result: Any) -> str:
        return str(result["exit_status"])


FRAMEWORKS: list[type[Framework]] = [
    OpenAI,
    OpenAIWrapped,
    OpenAISync,
    Decorated,
    LangChain,
    LangChainClient,
    LangChainLimiter,
    LangChainMiddleware,
    LangGraph,
    LangGraphSync,
    LangGraphStream,
    LangGraphDecorated,
    LangGraphEntrypoint,
    DeepAgents,
    OpenAIAgents,
    OpenAIAgentsResponses,
    PydanticAI,
    PydanticAILimiter,
    Smolagents,
    LiteLLM,
    LiteLLMOwnClient,
    LiteLLMSync,
    MiniSweAgent,
]
"""Inspect AI, whose evaluations are one per process, has a suite of its own."""

# --- the suite -----------------------------------------------------------------------------------

UNTIDY = [LiteLLM, LiteLLMOwnClient, LiteLLMSync, MiniSweAgent]
"""They, or what they stand on, warn of themselves and leave sockets to the collector."""


def _parameter(kind: type[Framework]) -> Any:
    marks = []
    if issubclass(kind, OpenAIAgents):  # with or without us, if it is cancelled at the right await
        unawaited = "ignore:coroutine 'run_single_turn' was never awaited:RuntimeWarning"
        marks = [pytest.mark.filterwarnings(unawaited)]
    if kind in UNTIDY:
        marks = [
            pytest.mark.filterwarnings("default"),
            pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
        ]
    return pytest.param(kind, id=kind.__name__, marks=marks)


@pytest.fixture(params=[_parameter(kind) for kind in FRAMEWORKS])
async def framework(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Framework]:
    chosen: Framework = request.param()
    for module in chosen.needs:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed in this environment")
    monkeypatch.setenv("MSWEA_GLOBAL_CONFIG_DIR", str(tmp_path))
    yield chosen
    await chosen.close()


def as_agent(
    framework: Framework, gov: Governor | None, run: Any
) -> Callable[[str], Coroutine[Any, Any, Any]]:
    """One agent of a framework as a coroutine, in a thread where the framework is synchronous."""

    def block(name: str) -> Any:
        return nullcontext() if gov is None or framework.opens_agents else gov.agent(name)

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
    ended: list[Event] = []
    gov.on_event(lambda e: ended.append(e) if e.kind == "step_ended" else None)
    answers = await run_eight(framework, gov, server)
    stats = server.stats
    assert len(answers) == 8
    assert all(framework.said(answer) for answer in answers)
    assert stats.calls >= 24, "three calls each"
    assert stats.max_in_flight <= 2
    assert gov.snapshot().done_total == 8
    assert gov.snapshot().active == 0
    assert len(ended) == stats.calls, "each call is one step, whatever seams it went through"
    assert len({event.agent for event in ended}) == 8, "each of its own agent"
    used = [event.usage or Usage(0, 0) for event in ended]
    assert sum(usage.prompt_tokens for usage in used) == stats.prompt_tokens
    assert sum(usage.completion_tokens for usage in used) == stats.output_tokens
    assert sum(usage.cached_tokens or 0 for usage in used) == stats.cached_tokens


@pytest.fixture
def second() -> Iterator[EmbeddedServer]:
    with EmbeddedServer("h100-qwen3-8b", time_scale=30, model=MODEL) as running:
        yield running


async def test_eight_agents_of_two_pools_at_limit_two_each(
    framework: Framework,
    server: EmbeddedServer,
    second: EmbeddedServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """All calls of an agent go to its pool; where they cannot, this is said."""
    servers = {server.url: server, second.url: second}
    used = dict.fromkeys(servers, 0)
    with Governor(list(servers), limit=2, poll_interval_s=60) as gov:

        def count(event: Event) -> None:
            if event.kind == "step_ended":
                assert event.usage is not None
                used[event.pool or ""] += event.usage.prompt_tokens

        gov.on_event(count)
        answers = await run_eight(framework, gov, server)
    assert len(answers) == 8
    assert all(used.values())
    if framework.is_routed:
        assert used == {url: each.stats.prompt_tokens for url, each in servers.items()}
        assert max(each.stats.max_in_flight for each in servers.values()) <= 2
    else:
        assert second.stats.calls == 0
    said = [text for text in caplog.messages if "not sent to its pool" in text]
    assert len(said) == (not framework.is_routed)


async def test_without_a_limit_more_than_two_are_in_flight(server: EmbeddedServer) -> None:
    """Or the test above could not fail."""
    framework = OpenAI()
    await run_eight(framework, Governor(limit=1000), server)
    await framework.close()
    assert server.stats.max_in_flight > 2


async def test_nested_agents_at_limit_one_finish(
    framework: Framework, server: EmbeddedServer
) -> None:
    """A fan-out to children, each of which would wait for the place that its parent holds."""
    gov = Governor(limit=1)
    agent = as_agent(framework, gov, framework.prepare(gov, server.url))
    async with gov.agent("boss"):
        answers = await asyncio.gather(*(agent(f"child-{n}") for n in range(3)))
    assert all(framework.said(answer) for answer in answers)
    assert gov.snapshot().active == 0


async def test_what_the_user_sees_is_what_he_saw_without_us(
    framework: Framework, server: EmbeddedServer
) -> None:
    """The same answer, of the same type, and his own callbacks hear as much as they did."""
    plain = type(framework)()
    before = await as_agent(plain, None, plain.prepare(None, server.url))("one")
    await plain.close()
    gov = Governor(limit=1)
    heard = Counter(plain.heard)
    after = await as_agent(framework, gov, framework.prepare(gov, server.url))("one")
    assert type(after) is type(before)
    assert framework.said(after) == plain.said(before)
    assert heard
    assert Counter(framework.heard) == heard


@types.coroutine
def cut_at(turn: int, coroutine: Coroutine[Any, Any, R]) -> Generator[Any, Any, R]:
    """Runs it as its task would, and cancels the task at its `turn`th await."""
    turns, sent = 0, None
    throw: BaseException | None = None
    while True:
        try:
            awaited = coroutine.send(sent) if throw is None else coroutine.throw(throw)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        turns += 1
        if turns == turn:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        try:
            sent, throw = (yield awaited), None
        except BaseException as error:
            sent, throw = None, error


async def test_cancelling_at_each_await_frees_the_place(
    framework: Framework, server: EmbeddedServer
) -> None:
    """It is cancelled at its first await, its second, ...; the agent behind it gets the place."""
    if framework.is_sync:
        pytest.skip("a thread cannot be cancelled from outside; see the next test")
    gov = Governor(limit=1)
    agent = as_agent(framework, gov, framework.prepare(gov, server.url))
    await agent("warm-up")  # imports and connections

    async def first(turn: int) -> Any:
        return await cut_at(turn, agent(f"first-{turn}"))

    turn, was_cut = 0, True
    while was_cut:
        # All of the first, where the adapters are; later they only repeat themselves.
        turn += 1 if turn < 40 else 7
        cut = asyncio.create_task(first(turn))
        behind = asyncio.create_task(agent(f"behind-{turn}")) if turn % 4 == 1 else None
        was_cut = isinstance((await asyncio.gather(cut, return_exceptions=True))[0], BaseException)
        if behind is not None:
            assert framework.said(await asyncio.wait_for(behind, timeout=10))
        for _ in range(5):  # what is told of an end by the loop
            await asyncio.sleep(0)
        snapshot = gov.snapshot()
        assert (snapshot.active, snapshot.paused, snapshot.queued) == (0, 0, 0), turn
    assert turn > 3, "it was cut in the middle of calls, too"
    assert framework.said(await asyncio.wait_for(agent("last"), timeout=10))


async def test_cancelled_in_a_thread_it_ends_at_its_next_boundary(
    framework: Framework, server: EmbeddedServer
) -> None:
    if not framework.is_sync:
        pytest.skip("the test before cancels it anywhere")
    gov = Governor(limit=1)
    begun: list[str] = []
    has_called, is_cancelled = threading.Event(), threading.Event()

    def watch(event: Event) -> None:
        if event.kind == "step_began":
            begun.append(str(event.agent))
        elif event.kind == "step_ended" and "first" in str(event.agent) and not has_called.is_set():
            has_called.set()
            is_cancelled.wait(10)  # in the agent's thread: it goes on when it has been cancelled

    gov.on_event(watch)
    run = framework.prepare(gov, server.url)
    async with ca.AgentPool(gov) as pool:
        assert framework.said(await pool.submit(run, "warm-up", key="warm-up"))
        first = pool.submit(run, "first", key="first")
        queued = pool.submit(run, "queued", key="queued")
        behind = pool.submit(run, "behind", key="behind")
        while not has_called.is_set():
            await asyncio.sleep(0.001)
        first.cancel()
        queued.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        is_cancelled.set()
        assert (await first.outcome()).status == "cancelled"
        assert framework.said(await behind)
    assert sum("first" in name for name in begun) == 1, "its first call was its last"
    assert not any("queued" in name for name in begun)
    snapshot = gov.snapshot()
    assert (snapshot.active, snapshot.paused, snapshot.queued) == (0, 0, 0)
