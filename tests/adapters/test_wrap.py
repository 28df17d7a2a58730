"""A wrapped thing is the same thing: what others have put on it still works, and is governed."""

import functools
import inspect
from typing import Any
from unittest.mock import Mock, create_autospec

import openai
import pytest
from pydantic import BaseModel

import concur_agents as ca
from concur_agents.adapters import openai_client
from concur_agents.adapters.http import govern
from concur_agents.errors import ConfigError
from concur_agents.governor import Governor
from concur_agents.openai import OpenAI
from concur_agents.runtime.events import Event

ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
URL = "http://engine/v1"


def plain(endpoint: Any, kind: type[Any] = openai.OpenAI, **options: Any) -> Any:
    how = "async" if issubclass(kind, openai.AsyncOpenAI) else "sync"
    return kind(base_url=URL, api_key="-", http_client=endpoint.http(how), **options)


def patch(resource: Any) -> list[str]:
    """As tracing and structured-answer libraries do: replaces `create` on the instance."""
    seen: list[str] = []
    create = resource.create

    @functools.wraps(create)
    def traced(*args: Any, **options: Any) -> Any:
        seen.append("call")
        options.pop("response_model", None)
        return create(*args, **options)

    resource.create = traced
    return seen


class Tagged(openai.OpenAI):
    """A subclass with a constructor of its own."""

    def __init__(self, tag: str, endpoint: Any) -> None:
        super().__init__(base_url=URL, api_key="-", http_client=endpoint.http("sync"))
        self.tag = tag


class TestClients:
    def test_patches_on_the_instance_work_and_are_governed(
        self, gov: Governor, endpoint: Any, steps: list[Event]
    ) -> None:
        client = plain(endpoint)
        seen = patch(client.chat.completions)
        wrapped = gov.wrap(client)
        with gov.agent("a"):
            wrapped.chat.completions.create(**ASK, response_model=object)
        assert seen == ["call"]
        assert len(steps) == 1

    async def test_patches_on_an_async_client_too(
        self, gov: Governor, endpoint: Any, steps: list[Event]
    ) -> None:
        client = plain(endpoint, openai.AsyncOpenAI)
        seen = patch(client.responses)
        async with gov.agent("a"):
            await gov.wrap(client).responses.create(model="m", input="hi")
        assert seen == ["call"]
        assert len(steps) == 1

    def test_patches_on_the_client_itself(
        self, gov: Governor, endpoint: Any, steps: list[Event]
    ) -> None:
        client = plain(endpoint)
        seen: list[str] = []
        request = client.request

        def traced(*args: Any, **options: Any) -> Any:
            seen.append("call")
            return request(*args, **options)

        client.request = traced
        with gov.agent("a"):
            gov.wrap(client).chat.completions.create(**ASK)
        assert seen == ["call"]
        assert len(steps) == 1

    def test_a_resource_that_is_replaced_stays(self, gov: Governor, endpoint: Any) -> None:
        client = plain(endpoint)
        client.chat = mine = object()
        assert gov.wrap(client).chat is mine

    def test_langsmith_keeps_its_traces(
        self, gov: Governor, endpoint: Any, steps: list[Event], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wrappers = pytest.importorskip("langsmith.wrappers")
        monkeypatch.setenv("LANGSMITH_TRACING", "false")
        client = wrappers.wrap_openai(plain(endpoint))
        create = client.chat.completions.create
        wrapped = gov.wrap(client)
        assert wrapped.chat.completions.create is create
        with gov.agent("a"):
            wrapped.chat.completions.create(**ASK)
        assert len(steps) == 1

    def test_an_unpatched_client_stays_ungoverned_itself(
        self, gov: Governor, endpoint: Any, steps: list[Event]
    ) -> None:
        client = plain(endpoint)
        assert client.chat.completions  # made, and kept by the client
        wrapped = gov.wrap(client)
        assert wrapped is not client
        with gov.agent("a"):
            client.chat.completions.create(**ASK)
            assert not steps
            wrapped.chat.completions.create(**ASK)
        assert len(steps) == 1

    @pytest.mark.parametrize("kind", [openai.OpenAI, OpenAI])
    def test_an_instrumentor_may_replace_request_at_any_time(
        self, kind: Any, gov: Governor, endpoint: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """OpenInference does. What it put on the class after our import was never called."""
        options = {"governor": gov} if kind is OpenAI else {}
        gov.wrap(plain(endpoint))
        client = plain(endpoint, kind, **options)
        client = client if options else gov.wrap(client)
        seen: list[str] = []
        request = openai.OpenAI.request

        def traced(self: Any, *args: Any, **options: Any) -> Any:
            seen.append("call")
            return request(self, *args, **options)

        monkeypatch.setattr(openai.OpenAI, "request", traced)
        with gov.agent("a"):
            client.chat.completions.create(**ASK)
        assert seen == ["call"]

    async def test_an_instrumentor_may_replace_async_request_at_any_time(
        self, gov: Governor, endpoint: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = gov.wrap(plain(endpoint, openai.AsyncOpenAI))
        seen: list[str] = []
        request = openai.AsyncOpenAI.request

        async def traced(self: Any, *args: Any, **options: Any) -> Any:
            seen.append("call")
            return await request(self, *args, **options)

        monkeypatch.setattr(openai.AsyncOpenAI, "request", traced)
        async with gov.agent("a"):
            await client.chat.completions.create(**ASK)
        assert seen == ["call"]

    def test_a_call_that_is_an_agent_of_its_own_passes_on_trio(self, endpoint: Any) -> None:
        """It raised a GateError."""
        trio = pytest.importorskip("trio")
        client = Governor(limit=1, ungoverned="agent").wrap(plain(endpoint, openai.AsyncOpenAI))

        async def main() -> Any:
            return await client.chat.completions.create(**ASK)

        assert trio.run(main).usage is not None

    def test_a_proxy_around_a_client_is_governed(
        self, gov: Governor, endpoint: Any, steps: list[Event]
    ) -> None:
        """As of tracing libraries; it could not be copied."""
        wrapt = pytest.importorskip("wrapt")
        wrapped = gov.wrap(wrapt.ObjectProxy(plain(endpoint)))
        assert isinstance(wrapped, openai.OpenAI)
        with gov.agent("a"):
            wrapped.chat.completions.create(**ASK)
        assert len(steps) == 1

    def test_a_mock_of_a_client_names_the_wish(self, gov: Governor) -> None:
        for mock in (Mock(spec=openai.OpenAI), create_autospec(openai.AsyncOpenAI, instance=True)):
            with pytest.raises(ConfigError, match="wrap takes an openai client"):
                gov.wrap(mock)

    def test_attributes_survive(self, gov: Governor, endpoint: Any) -> None:
        client = plain(endpoint, _strict_response_validation=True, max_retries=7)
        client.mine = [1]
        wrapped = gov.wrap(client)
        assert wrapped.mine is client.mine
        assert wrapped._strict_response_validation
        assert wrapped.max_retries == 7
        assert type(wrapped).__name__ == "OpenAI"
        assert isinstance(wrapped, openai.OpenAI)

    @pytest.mark.parametrize("base", [openai.OpenAI, openai.AsyncOpenAI])
    def test_a_subclass_whose_subclasses_need_arguments_is_wrapped(
        self, gov: Governor, endpoint: Any, base: Any
    ) -> None:
        """It raised a TypeError, and lists of subclasses had one more."""
        made: list[Any] = []

        class Listed(base):  # type: ignore[misc]
            def __init_subclass__(cls, *, tag: str, **options: Any) -> None:
                super().__init_subclass__(**options)
                made.append(tag)

        class Mine(Listed, tag="mine"):
            pass

        wrapped = gov.wrap(plain(endpoint, Mine))
        assert isinstance(wrapped, Mine)
        assert made == ["mine"]
        assert isinstance(gov.wrap(wrapped.with_options(timeout=3)), Mine)

    def test_a_client_whose_transport_is_replaced_says_so_once(
        self, gov: Governor, endpoint: Any, steps: list[Event], caplog: Any
    ) -> None:
        openai_client._warn_replaced.cache_clear()
        wrapped = gov.wrap(plain(endpoint))
        wrapped._client = endpoint.http("sync")
        with gov.agent("a"):
            wrapped.chat.completions.create(**ASK)
            wrapped.chat.completions.create(**ASK)
            assert sum("replaced after wrapping" in said for said in caplog.messages) == 1
            assert not steps
            gov.wrap(wrapped).chat.completions.create(**ASK)
        assert len(steps) == 1

    def test_calls_of_the_module_are_governed_by_its_http_client(
        self, gov: Governor, endpoint: Any, steps: list[Event], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`openai.chat.completions.create(...)`, as in scripts and older programs."""
        monkeypatch.setattr(openai, "_client", None)
        monkeypatch.setattr(openai, "api_key", "k")
        monkeypatch.setattr(openai, "base_url", "http://e/v1/")
        monkeypatch.setattr(openai, "http_client", gov.wrap(endpoint.http("sync")))
        with gov.agent("a"):
            openai.chat.completions.create(**ASK)
        assert len(steps) == 1
        monkeypatch.setattr(openai, "_client", None)

    def test_subclasses_with_their_own_constructor_survive(
        self, gov: Governor, endpoint: Any, steps: list[Event]
    ) -> None:
        wrapped = gov.wrap(Tagged("x", endpoint))
        assert isinstance(wrapped, Tagged)
        assert wrapped.tag == "x"
        with gov.agent("a"):
            wrapped.chat.completions.create(**ASK)
        assert len(steps) == 1

    @pytest.mark.parametrize("method", ["with_options", "copy"])
    @pytest.mark.parametrize("how", ["wrap", "drop-in"])
    def test_another_http_client_stays_governed(
        self, how: str, method: str, gov: Governor, endpoint: Any, steps: list[Event]
    ) -> None:
        if how == "wrap":
            client = gov.wrap(plain(endpoint))
        else:
            from concur_agents.openai import OpenAI

            client = OpenAI(
                governor=gov, base_url=URL, api_key="-", http_client=endpoint.http("sync")
            )
        other = getattr(client, method)(http_client=endpoint.http("sync"), max_retries=0)
        again = other.with_options(timeout=5)
        with gov.agent("a"):
            other.chat.completions.create(**ASK)
            again.chat.completions.create(**ASK)
        assert len(steps) == 2

    def test_a_second_governor_takes_over(
        self, gov: Governor, endpoint: Any, steps: list[Event]
    ) -> None:
        with Governor(limit=1) as other:
            wrapped = gov.wrap(other.wrap(plain(endpoint)))
            with gov.agent("a"):
                wrapped.chat.completions.create(**ASK)
        assert len(steps) == 1

    def test_a_governed_client_changes_its_governor(self, gov: Governor, endpoint: Any) -> None:
        from concur_agents.openai import OpenAI

        with Governor(limit=1) as other:
            http = endpoint.http("sync")
            client = OpenAI(governor=other, base_url=URL, api_key="-", http_client=http)
            wrapped = gov.wrap(client)
            assert wrapped.with_options(timeout=5).governor is gov
            assert client.governor is other

    @pytest.mark.parametrize("kind", ["sync", "async"])
    async def test_a_patched_send_of_an_http_client_is_still_called(
        self, kind: str, gov: Governor, endpoint: Any, steps: list[Event]
    ) -> None:
        http = endpoint.http(kind)
        seen: list[str] = []
        send = http.send

        def patched(*args: Any, **options: Any) -> Any:
            seen.append("call")
            return send(*args, **options)

        http.send = patched
        view = gov.wrap(http)
        async with gov.agent("a"):
            answer = view.post(f"{URL}/chat/completions", json=ASK)
            if kind == "async":
                await answer
        assert seen == ["call"]
        assert len(steps) == 1

    def test_what_is_made_from_a_client_names_the_wish(self, gov: Governor, endpoint: Any) -> None:
        class Instructor:
            def __init__(self, client: Any) -> None:
                self.client = client

        with pytest.raises(ConfigError, match=r"Instructor\(governor.wrap\(client\)\)"):
            gov.wrap(Instructor(plain(endpoint)))


class TestSignatures:
    @pytest.mark.parametrize("name", ["request", "copy", "with_options", "post"])
    @pytest.mark.parametrize("kind", [openai.OpenAI, openai.AsyncOpenAI])
    def test_of_clients(self, kind: Any, name: str, gov: Governor, endpoint: Any) -> None:
        client = plain(endpoint, kind)
        ours, theirs = getattr(gov.wrap(client), name), getattr(client, name)
        assert inspect.signature(ours) == inspect.signature(theirs)
        assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(theirs)
        assert inspect.signature(gov.wrap(client).chat.completions.create) == inspect.signature(
            client.chat.completions.create
        )

    @pytest.mark.parametrize("kind", ["sync", "async"])
    def test_of_http_clients(self, kind: str, gov: Governor, endpoint: Any) -> None:
        client = endpoint.http(kind)
        view = govern(gov, client)
        assert inspect.signature(view.send) == inspect.signature(client.send)
        assert inspect.iscoroutinefunction(view.send) == (kind == "async")
        assert inspect.signature(type(view)) == inspect.signature(type(client))

    def test_of_functions(self, gov: Governor) -> None:
        async def solve(issue: str, *, tries: int = 3) -> str:
            return issue

        assert inspect.signature(ca.governed(gov)(solve)) == inspect.signature(solve)


class State(BaseModel):
    count: int = 0


class TestGraphs:
    def graph(self) -> Any:
        graph_module = pytest.importorskip("langgraph.graph")
        builder = graph_module.StateGraph(State)
        builder.add_node("add", lambda state: {"count": state.count + 1})
        builder.add_edge(graph_module.START, "add")
        builder.add_edge("add", graph_module.END)
        return builder.compile()

    @pytest.mark.parametrize("version", ["v1", "v2"])
    async def test_a_pydantic_state_comes_back_as_it_did(self, version: str, gov: Governor) -> None:
        """`copy` of LangGraph loses the mapper that its compiler puts on a graph."""
        graph = self.graph()
        wrapped = gov.wrap(graph)
        given = State(count=1)
        assert wrapped.invoke(given, version=version) == graph.invoke(given, version=version)
        theirs = await graph.ainvoke(given, version=version)
        assert await wrapped.ainvoke(given, version=version) == theirs
        values = list(wrapped.stream(given, stream_mode="values", version=version))
        assert values == list(graph.stream(given, stream_mode="values", version=version))

    def test_attributes_and_signatures_survive(self, gov: Governor) -> None:
        graph = self.graph()
        graph.mine = [1]
        wrapped = gov.wrap(graph)
        assert wrapped.mine is graph.mine
        assert vars(wrapped) == vars(graph)
        for name in ("invoke", "ainvoke", "stream", "astream"):
            ours, theirs = getattr(wrapped, name), getattr(graph, name)
            assert inspect.signature(ours) == inspect.signature(theirs)
            assert inspect.isasyncgenfunction(ours) == inspect.isasyncgenfunction(theirs)


def test_clients_that_share_an_http_client_share_its_governed_view(endpoint: Any) -> None:
    with Governor(limit=2) as governor, Governor(limit=2) as other:
        inner = endpoint.http("sync")
        one, two = (openai.OpenAI(base_url=URL, api_key="-", http_client=inner) for _ in range(2))
        assert governor.wrap(one)._client is governor.wrap(two)._client
        assert other.wrap(one)._client is not governor.wrap(two)._client
