"""`gov.wrap(thing)` and `@ca.governed(gov)`: finds the adapter for a thing."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from concur_agents.adapters import http
from concur_agents.adapters.agents import open_agent, open_agent_sync, run_in, run_in_async
from concur_agents.errors import ConfigError
from concur_agents.runtime.agent import Governing
from concur_agents.runtime.checks import read_name

T = TypeVar("T")


def wrap(governor: Governing, thing: T, **options: Any) -> T:
    """A governed version of a client, a graph or an agent function. See `Governor.wrap`."""
    import openai

    client: Any = thing
    # A mock says that it is a client, and has none of httpx inside.
    is_client = isinstance(client, openai.OpenAI | openai.AsyncOpenAI)
    if is_client and http.http_library(getattr(client, "_client", None)) is not None:
        _no_options(options, client)
        from concur_agents.adapters.openai_client import wrap_client

        return wrap_client(governor, client)  # type: ignore[no-any-return]
    if http.http_library(client) is not None:
        _no_options(options, client)
        return http.govern(governor, thing)
    if _is_graph(client):
        from concur_agents.adapters.langgraph import wrap_graph

        return wrap_graph(governor, thing, **options)
    if inspect.isroutine(thing):
        return governed(governor, **options)(thing)
    if isinstance(getattr(thing, "client", None), openai.OpenAI | openai.AsyncOpenAI):
        raise ConfigError(
            f"cannot wrap {thing!r:.200}: wrap the client that it is made from, as in "
            f"`{type(thing).__name__}(governor.wrap(client))`"
        )
    raise ConfigError(
        f"cannot wrap {thing!r:.200}: wrap takes an openai client, an httpx client, a compiled "
        "LangGraph graph or an agent function; for other frameworks open an agent around the run "
        "(`async with governor.agent(...)`) and give them a governed client"
    )


def governed(
    governor: Governing,
    *,
    key: Callable[..., object] | None = None,
    priority: int = 0,
    detached: bool = False,
) -> Callable[[T], T]:
    """Makes each call of a function, or each run of a graph, an agent.

        @ca.governed(gov)
        async def solve(issue): ...          # each call is an agent, and waits to be let in

        @ca.governed(gov)
        def make_graph() -> CompiledStateGraph: ...      # the graph it returns is governed

    It takes a function (plain, `async`, or a generator of either kind), an `@entrypoint`, or a
    function that returns a graph. A plain function that returns a graph should have a return
    annotation, because otherwise building the graph takes a place for a moment.

    Args:
        governor: decides about the agents.
        key: the agent's id, from the arguments of the function (from the config, for a graph).
        priority: higher goes first.
        detached: takes a place of its own, also inside another agent.
    """
    options: dict[str, Any] = {"key": key, "priority": priority, "detached": detached}

    def decorate(target: T) -> T:
        if not inspect.isroutine(target):
            return wrap(governor, target, **options)
        return cast("T", _govern_function(governor, target, options))

    return decorate


def install(*names: str) -> None:
    """Puts hooks into frameworks, so that their calls inside an agent wait for their turn.

    Needed only if the code opens agents itself and gives the framework no governed client. Calling
    it again does nothing. It cannot be undone, but outside agents a hook does nothing.

    Args:
        names: "langchain", "litellm".

    Raises:
        ConfigError: there is no hook for a name.
        ImportError: the framework is not installed.
    """
    for name in names:
        if name not in _HOOKS:
            raise ConfigError(f"no hook for {name!r}; there are {', '.join(_HOOKS)}")
        _HOOKS[name]()


def _install_langchain() -> None:
    from concur_agents.adapters import langchain

    langchain.install()


def _install_litellm() -> None:
    from concur_agents.adapters import litellm

    litellm.install()


_HOOKS = {"langchain": _install_langchain, "litellm": _install_litellm}


def _govern_function(governor: Governing, fn: Callable[..., Any], options: dict[str, Any]) -> Any:
    key = options["key"]
    how = {"priority": options["priority"], "detached": options["detached"]}

    def name(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        _install_hooks()
        return None if key is None else read_name(key(*args, **kwargs))

    def finish(result: Any) -> Any:
        # Without the key, because that takes the factory's arguments and not a graph's config.
        return wrap(governor, result, **how) if _is_graph(result) else result

    if inspect.isasyncgenfunction(fn):

        @wraps(fn)
        async def run_async_generator(*args: Any, **kwargs: Any) -> Any:
            agent = await open_agent(governor, name(args, kwargs), **how)
            items = run_in_async(agent, fn(*args, **kwargs))
            try:
                async for item in items:
                    yield item
            finally:
                await items.aclose()

        return run_async_generator

    if inspect.isgeneratorfunction(fn):

        @wraps(fn)
        def run_generator(*args: Any, **kwargs: Any) -> Any:
            agent = open_agent_sync(governor, name(args, kwargs), **how)
            return (yield from run_in(agent, fn(*args, **kwargs)))

        return run_generator

    if inspect.iscoroutinefunction(fn):

        @wraps(fn)
        async def run_async(*args: Any, **kwargs: Any) -> Any:
            agent = await open_agent(governor, name(args, kwargs), **how)
            try:
                with agent.active():
                    return finish(await fn(*args, **kwargs))
            finally:
                agent.close()

        return run_async

    if _says_graph(fn):

        @wraps(fn)
        def make(*args: Any, **kwargs: Any) -> Any:
            return finish(fn(*args, **kwargs))

        return make

    @wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        agent = open_agent_sync(governor, name(args, kwargs), **how)
        try:
            with agent.active():
                return finish(fn(*args, **kwargs))
        finally:
            agent.close()

    return run


def _is_graph(thing: object) -> bool:
    if "langgraph.pregel" not in sys.modules:  # then it is none
        return False
    from concur_agents.adapters.langgraph import is_graph

    return is_graph(thing)


def _says_graph(fn: Callable[..., Any]) -> bool:
    """Whether a function's annotation says that it returns a graph."""
    said = getattr(fn, "__annotations__", {}).get("return")
    if said is None:
        return False
    text = said if isinstance(said, str) else getattr(said, "__qualname__", repr(said))
    name = text.partition("[")[0].rpartition(".")[2]
    return name in ("CompiledStateGraph", "CompiledGraph", "Pregel", "RemoteGraph")


def _install_hooks() -> None:
    """Puts hooks into the frameworks that are loaded, and loads no others."""
    if "langchain_core" in sys.modules:
        from concur_agents.adapters import langchain

        langchain.install()


def _no_options(options: dict[str, Any], thing: object) -> None:
    given = [name for name, value in options.items() if value]
    if given:
        raise ConfigError(
            f"{', '.join(given)} cannot be given for {type(thing).__name__}: a client has no "
            "agents of its own; give it where the agent is opened"
        )
