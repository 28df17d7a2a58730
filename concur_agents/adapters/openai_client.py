"""openai's own clients: each call with all its tries is one step of the agent that makes it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

from concur_agents.adapters import extras
from concur_agents.adapters.http import govern
from concur_agents.adapters.routes import is_llm_call
from concur_agents.runtime.agent import Agent, Governing


def one_step(request: Any) -> Any:
    """The `request` of one of openai's clients, changed so that all its tries are one step."""
    if inspect.iscoroutinefunction(request):

        @wraps(request)
        async def request_async(self: Any, cast_to: Any, options: Any, **how: Any) -> Any:
            agent, is_owner = _agent_of(self, options)
            if agent is None:
                return await request(self, cast_to, options, **how)
            if is_owner:
                await agent.open()
            with _step(agent, options, is_owner=is_owner):
                return await request(self, cast_to, options, **how)

        return request_async

    @wraps(request)
    def request_sync(self: Any, cast_to: Any, options: Any, **how: Any) -> Any:
        agent, is_owner = _agent_of(self, options)
        if agent is None:
            return request(self, cast_to, options, **how)
        if is_owner:
            agent.open_sync()
        with _step(agent, options, is_owner=is_owner):
            return request(self, cast_to, options, **how)

    return request_sync


def _agent_of(client: Any, options: Any) -> tuple[Agent | None, bool]:
    """The agent that makes a call, and whether it is made for this call only.

    None: the call is left to the HTTP client, because it is no LLM call or has no agent.
    """
    governor: Governing | None = getattr(client._client, "_concur_governor", None)
    if governor is None or not is_llm_call(
        options.method, options.url.partition("?")[0], governor.routes
    ):
        return None, False
    agent = governor.current_agent()
    if agent is None and governor.ungoverned == "agent":
        return governor.agent(), True
    return agent, False


@contextmanager
def _step(agent: Agent, options: Any, *, is_owner: bool) -> Iterator[None]:
    token = extras.fields.set(_fields(options))
    try:
        if is_owner:
            with agent.active(), agent.step().around_tries(then=agent.close):
                yield
        else:
            with agent.step().around_tries():
                yield
    finally:
        extras.fields.reset(token)


def _fields(options: Any) -> dict[str, object] | None:
    """The body that openai's client is about to serialise."""
    body = getattr(options, "json_data", None)
    more = getattr(options, "extra_json", None) or {}
    return {**body, **more} if isinstance(body, dict) and isinstance(more, dict) else None


def wrap_client(governor: Governing, client: Any) -> Any:
    """A governed copy of a client: same class, options and connections. See `Governor.wrap`."""
    copied = client.with_options(http_client=govern(governor, client._client))
    copied.__class__ = _in_one_step(type(client))  # type: ignore[arg-type]
    return copied


@cache
def _in_one_step(base: type[Any]) -> type[Any]:
    if hasattr(base, "_concur_one_step"):
        return base
    members = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "_concur_one_step": True,
        "request": one_step(base.request),
    }
    # One base only, because the class of an object can be changed only to one of the same layout.
    return type(base.__name__, (base,), members)
