"""openai's own clients: each call with all its tries is one step of the agent that makes it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from functools import cache, cached_property, wraps
from typing import Any

import openai

from concur_agents.adapters import extras
from concur_agents.adapters.http import govern
from concur_agents.adapters.routes import is_llm_call
from concur_agents.runtime.agent import Agent, Governing
from concur_agents.runtime.waiter import running_loop

logger = logging.getLogger("concur_agents")


def one_step_of(base: type[Any]) -> Any:
    """The `request` of one of openai's clients, changed so that all its tries are one step.

    What it calls is looked up at each call, because an instrumentor may replace it at any time.
    """
    if issubclass(base, openai.AsyncOpenAI):

        @wraps(base.request)
        async def latest_async(self: Any, *args: Any, **how: Any) -> Any:
            return await base.request(self, *args, **how)

        return one_step(latest_async)

    @wraps(base.request)
    def latest(self: Any, *args: Any, **how: Any) -> Any:
        return base.request(self, *args, **how)

    return one_step(latest)


def one_step(request: Any) -> Any:
    """The same for one such `request`."""
    if inspect.iscoroutinefunction(request):

        @wraps(request)
        async def request_async(self: Any, cast_to: Any, options: Any, **how: Any) -> Any:
            agent, is_owner = _agent_of(self, options)
            # On trio the HTTP client says that the call passes.
            if agent is None or running_loop() is None:
                return await request(self, cast_to, options, **how)
            if is_owner:
                await agent.open()
            token = extras.fields.set(_fields(options))
            try:
                with _owned_step(agent) if is_owner else agent.step().around_tries():
                    return await request(self, cast_to, options, **how)
            finally:
                extras.fields.reset(token)

        return request_async

    @wraps(request)
    def request_sync(self: Any, cast_to: Any, options: Any, **how: Any) -> Any:
        agent, is_owner = _agent_of(self, options)
        if agent is None:
            return request(self, cast_to, options, **how)
        if is_owner:
            agent.open_sync()
        token = extras.fields.set(_fields(options))
        try:
            with _owned_step(agent) if is_owner else agent.step().around_tries():
                return request(self, cast_to, options, **how)
        finally:
            extras.fields.reset(token)

    return request_sync


def _agent_of(client: Any, options: Any) -> tuple[Agent | None, bool]:
    """The agent that makes a call, and whether it is made for this call only.

    None: the call is left to the HTTP client, because it is no LLM call or has no agent.
    """
    governor: Governing | None = getattr(client._client, "_concur_governor", None)
    if governor is None:
        if not hasattr(client._client, "_concur_inner"):  # else it has no agent, and says so itself
            _warn_replaced()
        return None, False
    if not is_llm_call(options.method, options.url.partition("?")[0], governor.routes):
        return None, False
    agent = governor.current_agent()
    if agent is None and governor.ungoverned == "agent":
        return governor.agent(), True
    return agent, False


@cache
def _warn_replaced() -> None:
    logger.warning(
        "a governed client's `_client` was replaced after wrapping, so that its calls pass "
        "ungoverned: wrap the client again after that (said once)"
    )


@contextmanager
def _owned_step(agent: Agent) -> Iterator[None]:
    """The only step of an agent that was opened for it."""
    with agent.active(), agent.step().around_tries(then=agent.close):
        yield


def _fields(options: Any) -> dict[str, object] | None:
    """The body that openai's client is about to serialise."""
    body = getattr(options, "json_data", None)
    if not isinstance(body, dict):
        return None
    more = getattr(options, "extra_json", None)
    if not more:
        return body
    return {**body, **more} if isinstance(more, dict) else None


def wrap_client(governor: Governing, client: Any) -> Any:
    """A governed copy of a client; one that others have patched, or put a proxy around, itself.

    The copy is shallow: class, options, attributes and connections are those of the client, and
    its constructor is not called. What others have put on a client or on its resources (tracing,
    structured answers) calls that very client, so a copy would lose it or pass ungoverned.
    """
    is_proxy = not issubclass(type(client), openai.OpenAI | openai.AsyncOpenAI)
    wrapped = client if is_proxy or _is_patched(client) else _shallow_copy(client)
    return _govern_in_place(governor, wrapped)


def _govern_in_place(governor: Governing, client: Any) -> Any:
    client._client = govern(governor, client._client)
    if hasattr(vars(client).get("governor"), "current_agent"):  # it is one of our drop-in clients
        client.governor = governor
    client.__class__ = _in_one_step(client.__class__)
    return client


def _shallow_copy(client: Any) -> Any:
    copied = copy(client)
    for name in _resources(client):
        del copied.__dict__[name]  # because it calls the client that it was made for
    return copied


def _resources(holder: Any) -> list[str]:
    """The resources that a client or a resource has made so far, such as `chat`."""
    kind = type(holder)
    return [name for name in vars(holder) if isinstance(getattr(kind, name, None), cached_property)]


def _is_patched(holder: Any) -> bool:
    """Whether something on a client, or on a resource of it, replaces what its class has."""
    kind = type(holder)
    made = _resources(holder)
    for name in made:
        resource = vars(holder)[name]
        of_openai = type(resource).__module__.startswith("openai.")
        if not of_openai or (hasattr(resource, "__dict__") and _is_patched(resource)):
            return True
    return any(
        callable(getattr(kind, name, None)) and callable(value)
        for name, value in vars(holder).items()
        if name not in made
    )


@cache
def _in_one_step(base: type[Any]) -> type[Any]:
    if hasattr(base, "_concur_one_step"):
        return base
    members = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "_concur_one_step": True,
        "request": one_step_of(base),
        "copy": _governed_copy(base, "copy"),
        "with_options": _governed_copy(base, "with_options"),
    }
    # One base only, because the class of an object can be changed only to one of the same layout.
    if not hasattr(base.__init_subclass__, "__func__"):  # nobody's own
        return type(base.__name__, (base,), members)
    # A subclass's `__init_subclass__` may need arguments, or keep a list; it has no new subclass.
    plain = openai.AsyncOpenAI if issubclass(base, openai.AsyncOpenAI) else openai.OpenAI
    kind: Any = type(base)
    made: type[Any] = kind(base.__name__, (plain,), members)
    made.__bases__ = (base,)
    return made


def _governed_copy(base: type[Any], name: str) -> Any:
    """The `copy` of a client, changed so that the copy stays governed, whatever its transport."""

    @wraps(getattr(base, name))
    def copy_governed(self: Any, *args: Any, **options: Any) -> Any:
        made = getattr(base, name)(self, *args, **options)
        governor: Governing | None = getattr(self._client, "_concur_governor", None)
        return made if governor is None else _govern_in_place(governor, made)

    return copy_governed
