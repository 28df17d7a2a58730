"""Graphs that are governed stay what they were, and their model calls wait for their turn."""

import asyncio
import gc
import logging
import operator
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest

pytest.importorskip("langgraph")

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.pregel import Pregel
from langgraph.pregel.remote import RemoteGraph
from langgraph.types import Command, Send, TimeoutPolicy, interrupt
from langgraph_sdk.schema import StreamPart

import concur_agents as ca
from concur_agents.core import Usage
from concur_agents.governor import Governor
from concur_agents.recording import RecordedCall, Recording
from concur_agents.runtime.events import Event

HI: Any = {"messages": ["hi"]}


class Endless:
    """Replies for a fake model, never exhausted; counts how many are being given at once."""

    def __init__(self) -> None:
        self.given = 0

    def __iter__(self) -> "Endless":
        return self

    def __next__(self) -> AIMessage:
        self.given += 1
        usage = {"input_tokens": 100, "output_tokens": 7, "total_tokens": 107}
        details = {"cache_read": 64}
        return AIMessage("hello", usage_metadata={**usage, "input_token_details": details})  # type: ignore[typeddict-item]


def fake_model() -> GenericFakeChatModel:
    return GenericFakeChatModel(messages=Endless())


def plain_graph(node: Callable[..., Any] | None = None, **options: Any) -> Any:
    model = fake_model()

    def call(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    async def acall(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    from langgraph._internal._runnable import RunnableCallable

    builder = StateGraph(MessagesState)
    builder.add_node("call", node or RunnableCallable(call, acall))  # type: ignore[arg-type]
    builder.add_edge(START, "call")
    builder.add_edge("call", END)
    return builder.compile(**options)


def thread(name: str) -> Any:
    return {"configurable": {"thread_id": name}}


@pytest.fixture
def events(gov: Governor) -> list[Event]:
    seen: list[Event] = []
    gov.on_event(seen.append)
    return seen


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events]


class TestTypes:
    def test_the_same_type_comes_back(self, gov: Governor) -> None:
        graph = plain_graph(checkpointer=InMemorySaver())
        governed = gov.wrap(graph)
        assert isinstance(governed, CompiledStateGraph)
        assert isinstance(governed, Pregel)
        assert isinstance(governed, Runnable)
        assert type(governed).__name__ == "CompiledStateGraph"
        assert type(graph) is CompiledStateGraph, "the user's own graph is left alone"
        assert gov.wrap(governed) is governed

    def test_drawing_state_and_history_keep_working(self, gov: Governor) -> None:
        graph = gov.wrap(plain_graph(checkpointer=InMemorySaver()))
        assert "call" in graph.get_graph().draw_mermaid()
        graph.invoke(HI, thread("t"))
        assert len(graph.get_state(thread("t")).values["messages"]) == 2
        assert list(graph.get_state_history(thread("t")))

    def test_copies_and_configured_graphs_stay_governed(
        self, gov: Governor, steps: list[Event]
    ) -> None:
        """LangGraph's own server copies a graph to give it a checkpointer and a name."""
        graph = gov.wrap(plain_graph())
        graph.copy({"checkpointer": InMemorySaver(), "name": "other"}).invoke(HI, thread("t"))
        graph.with_config({"tags": ["x"]}).invoke(HI)
        graph.with_retry().invoke(HI)
        assert len(steps) == 3

    def test_a_graph_that_runs_elsewhere_waits_to_start(
        self, gov: Governor, events: list[Event]
    ) -> None:
        class Runs:
            def stream(self, **asked: Any) -> Any:
                yield StreamPart("values", {"messages": ["hello"]})

        class Client:
            runs = Runs()

        remote: Any = RemoteGraph("looker", sync_client=Client())  # type: ignore[arg-type]
        governed = gov.wrap(remote)
        assert isinstance(governed, RemoteGraph)
        assert governed.invoke(HI, thread("t")) == {"messages": ["hello"]}
        assert kinds(events) == ["arrived", "admitted", "left"]

    def test_another_governor_takes_over(self, gov: Governor, steps: list[Event]) -> None:
        other = Governor(limit=1)
        other.wrap(gov.wrap(plain_graph())).invoke(HI)
        assert not steps
        assert other.snapshot().done_total == 1


class TestRuns:
    @pytest.mark.parametrize("how", ["invoke", "stream", "batch"])
    def test_each_sync_run_is_an_agent_and_each_model_call_a_step(
        self, how: str, gov: Governor, events: list[Event]
    ) -> None:
        graph = gov.wrap(plain_graph())
        if how == "invoke":
            assert graph.invoke(HI)["messages"][-1].content == "hello"
        elif how == "stream":
            assert [list(part) for part in graph.stream(HI, stream_mode="updates")] == [["call"]]
        else:
            graph.batch([HI])
        assert kinds(events) == ["arrived", "admitted", "step_began", "step_ended", "left"]
        assert events[3].usage == Usage(prompt_tokens=100, completion_tokens=7, cached_tokens=64)

    @pytest.mark.filterwarnings("ignore:The v3 streaming protocol")
    @pytest.mark.parametrize("how", ["ainvoke", "astream", "abatch", "events2", "events3"])
    async def test_each_async_run_is_an_agent_and_each_model_call_a_step(
        self, how: str, gov: Governor, events: list[Event]
    ) -> None:
        graph = gov.wrap(plain_graph())
        if how == "ainvoke":
            assert (await graph.ainvoke(HI))["messages"][-1].content == "hello"
        elif how == "astream":
            assert [p async for p in graph.astream(HI, stream_mode="updates")]
        elif how == "abatch":
            await graph.abatch([HI])
        elif how == "events2":
            names = [e["event"] async for e in graph.astream_events(HI, version="v2")]
            assert "on_chat_model_end" in names
        else:
            async with await graph.astream_events(HI, version="v3") as run:
                assert [e async for e in run]
        assert kinds(events) == ["arrived", "admitted", "step_began", "step_ended", "left"]

    async def test_runs_wait_for_one_another(self, gov: Governor) -> None:
        most = 0

        async def node(state: MessagesState) -> dict[str, Any]:
            nonlocal most
            most = max(most, gov.snapshot().active)
            await asyncio.sleep(0.001)
            return {}

        graph = gov.wrap(plain_graph(node))
        await graph.abatch([HI] * 8)
        assert most == 2
        assert gov.snapshot().done_total == 8

    def test_a_run_without_a_thread_is_called_like_its_run(
        self, gov: Governor, events: list[Event]
    ) -> None:
        run_id = uuid.uuid4()
        graph = gov.wrap(plain_graph())
        graph.invoke(HI, {"run_id": run_id})
        graph.invoke(HI)
        names = [e.agent for e in events if e.kind == "arrived"]
        assert names[0] == str(run_id)
        assert len(set(names)) == 2, "a name is made up for the other"

    def test_threads_name_agents_and_namesakes_get_numbers(
        self, gov: Governor, events: list[Event]
    ) -> None:
        graph = gov.wrap(plain_graph(checkpointer=InMemorySaver()))
        with gov.agent("issue-17"):
            pass
        graph.invoke(HI, thread("issue-17"))
        other = gov.wrap(plain_graph(), key=lambda config: config["metadata"]["who"])
        other.invoke(HI, {"metadata": {"who": "me"}})
        first = graph.stream(HI, thread("same"))
        next(first)
        graph.invoke(HI, thread("same"))
        first.close()
        names = [e.agent for e in events if e.kind == "arrived"]
        assert names == ["issue-17", "issue-17", "me", "same", "same#2"]

    def test_the_users_own_callbacks_are_called_as_before(self, gov: Governor) -> None:
        class Mine(BaseCallbackHandler):
            def __init__(self) -> None:
                self.seen: list[str] = []

            def on_chat_model_start(self, *_: Any, **__: Any) -> None:
                self.seen.append("start")

            def on_llm_end(self, *_: Any, **__: Any) -> None:
                self.seen.append("end")

        mine = Mine()
        gov.wrap(plain_graph()).invoke(HI, {"callbacks": [mine]})
        assert mine.seen == ["start", "end"]

    def test_the_variable_never_leaks_into_the_consumer(self, gov: Governor) -> None:
        for _ in gov.wrap(plain_graph()).stream(HI, stream_mode=["updates", "values"]):
            assert ca.current_agent() is None

    async def test_breaking_off_frees_the_place(self, gov: Governor) -> None:
        graph = gov.wrap(plain_graph())
        stream = graph.astream(HI, stream_mode=["updates", "values"])
        async for _ in stream:
            assert ca.current_agent() is None
            break
        assert gov.snapshot().active == 1
        await stream.aclose()
        assert gov.snapshot().active == 0
        for _ in (sync := graph.stream(HI, stream_mode=["updates", "values"])):
            break
        del sync
        gc.collect()
        assert gov.snapshot().active == 0

    def test_an_error_in_a_node_is_the_users_and_frees_the_place(self, gov: Governor) -> None:
        def node(state: MessagesState) -> dict[str, Any]:
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            gov.wrap(plain_graph(node)).invoke(HI)
        assert gov.snapshot().active == 0


class TestSharing:
    """At limit 1, with anything of an agent waiting for its own place, these would never end."""

    @pytest.fixture
    def gov(self) -> Governor:
        return Governor(limit=1)

    @pytest.mark.parametrize("asynchronous", [False, True])
    async def test_a_fan_out_shares_one_place(
        self, asynchronous: bool, gov: Governor, steps: list[Event]
    ) -> None:
        class State(TypedDict):
            replies: Annotated[list[str], operator.add]

        model = fake_model()

        def branch(state: Any) -> Any:
            return {"replies": [model.invoke("hi").content]}

        async def abranch(state: Any) -> Any:
            return {"replies": [(await model.ainvoke("hi")).content]}

        builder = StateGraph(State)
        builder.add_node("branch", abranch if asynchronous else branch)  # type: ignore[call-overload]
        builder.add_conditional_edges(START, lambda _: [Send("branch", {"n": n}) for n in range(5)])
        graph = gov.wrap(builder.compile())
        given: Any = {"replies": []}
        reply = await graph.ainvoke(given) if asynchronous else graph.invoke(given)
        assert reply["replies"] == ["hello"] * 5
        assert len(steps) == 5

    @pytest.mark.parametrize("asynchronous", [False, True])
    async def test_a_sub_agent_in_a_tool_shares_its_parents_place(
        self, asynchronous: bool, gov: Governor, events: list[Event]
    ) -> None:
        inner = gov.wrap(plain_graph())

        @tool
        def ask(question: str) -> str:
            """Ask another agent."""
            return str(inner.invoke({"messages": [question]})["messages"][-1].content)

        @tool
        async def aask(question: str) -> str:
            """Ask another agent."""
            return str((await inner.ainvoke({"messages": [question]}))["messages"][-1].content)

        def node(state: MessagesState) -> dict[str, Any]:
            return {"messages": [AIMessage(ask.invoke("what?"))]}

        async def anode(state: MessagesState) -> dict[str, Any]:
            # A synchronous tool inside an asynchronous run goes to a thread.
            await ask.ainvoke("what?")
            return {"messages": [AIMessage(await aask.ainvoke("what?"))]}

        outer = gov.wrap(plain_graph(anode if asynchronous else node))
        config = thread("boss")
        reply = await outer.ainvoke(HI, config) if asynchronous else outer.invoke(HI, config)
        assert reply["messages"][-1].content == "hello"
        children = [e for e in events if e.kind == "arrived" and e.parent == "boss"]
        assert len(children) == (2 if asynchronous else 1)

    def test_a_governed_graph_as_a_node_of_another_shares_its_place(self, gov: Governor) -> None:
        inner = gov.wrap(plain_graph())
        outer = gov.wrap(plain_graph(inner, checkpointer=InMemorySaver()))
        assert outer.invoke(HI, thread("t"))["messages"][-1].content == "hello"

    def test_a_detached_graph_takes_a_place_of_its_own(self, gov: Governor) -> None:
        roomy = Governor(limit=2)
        seen: list[int] = []
        spy = lambda state: seen.append(roomy.snapshot().active) or {}  # noqa: E731
        inner = roomy.wrap(plain_graph(spy), detached=True)
        roomy.wrap(plain_graph(lambda state: inner.invoke(HI))).invoke(HI)
        assert seen == [2]


class TestInterrupts:
    def graph(self, gov: Governor) -> Any:
        def node(state: MessagesState) -> dict[str, Any]:
            fake_model().invoke("hi")
            return {"messages": [AIMessage(interrupt("go on?"))]}

        return gov.wrap(plain_graph(node, checkpointer=InMemorySaver()))

    def test_a_human_who_thinks_holds_no_place_and_resuming_takes_one_with_priority(
        self, gov: Governor, tmp_path: Path
    ) -> None:
        graph = self.graph(gov)
        path = tmp_path / "run.jsonl"
        stop = gov.record(path)
        assert graph.invoke(HI, thread("t"))["__interrupt__"]
        assert gov.snapshot().active == 0
        reply = graph.invoke(Command(resume="yes"), thread("t"))
        assert reply["messages"][-1].content == "yes"
        stop()
        asked = [
            (line.agent, line.options["priority"], line.options["prompt_tokens"])
            for line in Recording(path)
            if isinstance(line, RecordedCall) and line.name == "arrive"
        ]
        assert asked == [("t", 0, None), ("t", 1, 100)]

    def test_a_new_turn_of_a_thread_has_no_priority_over_others(self, gov: Governor) -> None:
        graph = gov.wrap(plain_graph(checkpointer=InMemorySaver()))
        graph.invoke(HI, thread("t"))
        policy = type(graph)._concur  # type: ignore[attr-defined]
        assert policy.agent_of(graph, HI, thread("t"))[1]["priority"] == 0


class TestTimeouts:
    async def test_an_idle_timeout_is_kept_alive_during_a_pause(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gov = Governor(limit=1)
        monkeypatch.setattr("concur_agents.adapters.heartbeat.INTERVAL_S", 0.02)
        model = fake_model()
        entered, leave = asyncio.Event(), asyncio.Event()

        async def other() -> None:
            async with gov.agent("other", detached=True):
                entered.set()
                await leave.wait()

        async def node(state: MessagesState) -> dict[str, Any]:
            agent = gov.current_agent()
            assert agent is not None
            async with agent.suspended():
                others.append(asyncio.create_task(other()))
                await entered.wait()
            return {"messages": [await model.ainvoke("hi")]}

        others: list[Any] = []
        builder = StateGraph(MessagesState)
        idle = TimeoutPolicy(idle_timeout=0.5, refresh_on="heartbeat")
        builder.add_node("call", node, timeout=idle)
        builder.add_edge(START, "call")
        run = asyncio.create_task(gov.wrap(builder.compile()).ainvoke(HI))
        began_s = time.monotonic()
        while time.monotonic() - began_s < 0.8 and not run.done():
            await asyncio.sleep(0.02)
        leave.set()
        assert (await run)["messages"][-1].content == "hello"

    def test_a_run_timeout_is_warned_of_once(
        self, gov: Governor, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def node(state: MessagesState) -> dict[str, Any]:
            return {}

        builder = StateGraph(MessagesState)
        builder.add_node("slow", node, timeout=TimeoutPolicy(run_timeout=5))
        builder.add_edge(START, "slow")
        with caplog.at_level(logging.WARNING, "concur_agents"):
            for _ in range(2):
                gov.wrap(builder.compile(name="with a run timeout"))
        (record,) = caplog.records
        assert "the run_timeout of node 'slow'" in record.getMessage()


class TestDecorator:
    def test_a_factory_returns_governed_graphs(self, gov: Governor, steps: list[Event]) -> None:
        @ca.governed(gov)
        def make_graph() -> CompiledStateGraph:  # type: ignore[type-arg]
            assert ca.current_agent() is None, "building a graph takes no place"
            return plain_graph()  # type: ignore[no-any-return]

        @ca.governed(gov)
        def make_unannotated():  # type: ignore[no-untyped-def]
            return plain_graph()

        make_graph().invoke(HI)
        make_unannotated().invoke(HI)
        assert len(steps) == 2

    def test_an_entrypoint_stays_one(self, gov: Governor, steps: list[Event]) -> None:
        @ca.governed(gov)
        @entrypoint()
        def workflow(question: str) -> str:
            return str(fake_model().invoke(question).content)

        assert workflow.invoke("hi") == "hello"
        assert isinstance(workflow, Pregel)
        assert len(steps) == 1

    def test_each_call_of_a_function_is_an_agent(self, gov: Governor, events: list[Event]) -> None:
        @ca.governed(gov, key=lambda issue: f"issue-{issue}")
        def solve(issue: int) -> Any:
            """Solves."""
            return fake_model().invoke("hi").content

        assert solve(17) == "hello"
        assert solve.__doc__ == "Solves."
        assert {e.agent for e in events} == {"issue-17"}
        assert kinds(events) == ["arrived", "admitted", "step_began", "step_ended", "left"]

    async def test_async_functions_and_generators_are_agents_too(
        self, gov: Governor, events: list[Event]
    ) -> None:
        @ca.governed(gov)
        async def solve() -> str:
            return str((await fake_model().ainvoke("hi")).content)

        @ca.governed(gov)
        async def talk() -> Any:
            yield (await fake_model().ainvoke("hi")).content
            yield ca.current_agent() is not None

        @ca.governed(gov)
        def talk_sync() -> Any:
            yield fake_model().invoke("hi").content
            return "end"

        assert await solve() == "hello"
        assert [item async for item in talk()] == ["hello", True]
        assert list(talk_sync()) == ["hello"]
        assert kinds(events).count("step_ended") == 3
        assert kinds(events).count("left") == 3
        assert gov.snapshot().active == 0

    def test_what_cannot_be_wrapped_says_so(self, gov: Governor, endpoint: Any) -> None:
        with pytest.raises(ca.ConfigError, match="wrap takes"):
            gov.wrap(object())
        with pytest.raises(ca.ConfigError, match="priority cannot be given"):
            gov.wrap(endpoint.http("sync"), priority=3)
        with pytest.raises(ca.ConfigError, match="langchain, litellm"):
            ca.install("lang")


class TestThreads:
    def test_graphs_in_threads_of_ones_own(self, gov: Governor, steps: list[Event]) -> None:
        graph = gov.wrap(plain_graph())
        threads = [threading.Thread(target=graph.invoke, args=(HI,)) for _ in range(6)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert len(steps) == 6
        assert gov.snapshot().done_total == 6
