"""LangChain: each chat-model call of an agent is a boundary, whatever the provider.

A library can add callback handlers to every LangChain run whose context asks for them (with
`register_configure_hook`, as `get_usage_metadata_callback` does). Our handler is added when an
agent is current, and waits before the model is called. The user's callbacks, models and configs
stay unchanged.

LangChain has an asynchronous half, where only a coroutine may wait, and a synchronous half, where
the errors of a coroutine are lost. So the handler finds out which half asks for a method, and
returns a coroutine function or a plain one.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

from concur_agents._extras import missing_extra
from concur_agents.adapters import call as calls
from concur_agents.adapters.prompts import Prompt, of_messages
from concur_agents.core import Usage
from concur_agents.probes.usage import read_usage
from concur_agents.runtime.agent import Governing, current_agent

try:
    from langchain_core.callbacks import BaseCallbackHandler
    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import LLMResult
    from langchain_core.rate_limiters import BaseRateLimiter
    from langchain_core.tracers.context import register_configure_hook
except ModuleNotFoundError as error:
    raise missing_extra(error) from error

R = TypeVar("R")

Said = Sequence[Sequence[BaseMessage] | str]

_installing = threading.Lock()
_installed = False


def install() -> None:
    """Makes every chat-model call of an agent wait for its turn. Calling it again does nothing.

    `gov.wrap(graph)`, `gov.rate_limiter()` and `gov.middleware()` call it.
    """
    global _installed  # noqa: PLW0603  (LangChain's registry is global, and nothing can be removed from it)
    with _installing:
        if not _installed:
            _installed = True
            register_configure_hook(_WhenGoverned(_Handler()), inheritable=True)  # type: ignore[arg-type]


class _WhenGoverned:
    """Takes the place of a ContextVar: holds the handler when an agent is current."""

    def __init__(self, handler: BaseCallbackHandler) -> None:
        self._handler = handler

    def get(self) -> BaseCallbackHandler | None:
        return None if current_agent() is None else self._handler


_calls = calls.InFlight()


class _Handler(BaseCallbackHandler):
    """The boundary: waits before a model is called, and learns what the call used."""

    raise_error = True

    @property
    def run_inline(self) -> bool:  # type: ignore[override]
        """Whether it runs in the task of the run, before any tracer starts its clock.

        Not for models without chat, because LangChain would then leave out the other handlers.
        """
        return _asked_by() != "on_llm_start"

    @property
    def on_chat_model_start(self) -> Any:
        """A chat model is about to be called."""
        return self._begin_async if _asked_by() in _ASYNCHRONOUS else self._begin

    @property
    def on_llm_start(self) -> Any:
        """A model without chat is about to be called."""
        return self._begin_async if _asked_by() in _ASYNCHRONOUS else self._begin

    @property
    def on_llm_end(self) -> Any:
        """The call is over."""
        return self._end_async if _asked_by() in _ASYNCHRONOUS else self._end

    @property
    def on_llm_error(self) -> Any:
        """The call has failed."""
        return self._end_async if _asked_by() in _ASYNCHRONOUS else self._end

    def _begin(self, serialized: Any, said: Said, *, run_id: UUID, **more: Any) -> None:
        agent = current_agent()
        if agent is not None:
            read = _reader(said, more.get("invocation_params"))
            call = calls.begin_sync(agent.governor, _what(serialized), read=read)
            if call is not None:
                _calls.add(run_id, call)

    async def _begin_async(self, serialized: Any, said: Said, *, run_id: UUID, **more: Any) -> None:
        agent = current_agent()
        if agent is not None:
            read = _reader(said, more.get("invocation_params"))
            call = await calls.begin(agent.governor, _what(serialized), read=read)
            if call is not None:
                _calls.add(run_id, call, in_task=True)

    def _end(self, result: object, /, *, run_id: UUID, **_: Any) -> None:
        _calls.end(run_id, _usage(result) if isinstance(result, LLMResult) else None)

    async def _end_async(self, result: object, /, *, run_id: UUID, **_: Any) -> None:
        self._end(result, run_id=run_id)


_ASYNCHRONOUS = ("ahandle_event", "_ahandle_event_for_handler")


def _asked_by() -> str:
    """The function of LangChain that reads an attribute of the handler.

    A running loop does not tell the two halves apart: `model.invoke` can be called on a loop's
    thread, and has to raise our error there.
    """
    frame = sys._getframe(2)
    while frame.f_code.co_name == "<listcomp>" and frame.f_back is not None:  # up to Python 3.11
        frame = frame.f_back
    return frame.f_code.co_name


def _what(serialized: dict[str, Any] | None) -> str:
    return str((serialized or {}).get("name") or "a language model")


def _reader(said: Said, params: Mapping[str, Any] | None = None) -> Callable[[], Prompt | None]:
    """Measures a prompt: batches of messages, or texts, and the tools beside them."""

    def read() -> Prompt | None:
        options = params or {}
        beside = [options.get("tools"), options.get("functions")]
        continues = bool(options.get("previous_response_id"))
        return of_messages("messages", [beside, said], continues=continues)

    return read


def _usage(response: LLMResult) -> object:
    for generations in response.generations:
        for generation in generations:
            usage = getattr(getattr(generation, "message", None), "usage_metadata", None)
            if usage:
                return usage
    return read_usage((response.llm_output or {}).get("token_usage"))


class RateLimiter(BaseRateLimiter):
    """The boundary as LangChain's `rate_limiter=` of a model. Made by `Governor.rate_limiter`."""

    def __init__(self, governor: Governing) -> None:
        install()  # because a limiter sees a call begin but not end
        self._governor = governor

    def acquire(self, *, blocking: bool = True) -> bool:
        """Waits until the current agent may run."""
        if not blocking:
            return self._may_run()
        call = calls.begin_sync(self._governor, "a rate-limited model")
        if call is not None:
            call.withdraw()
        return True

    async def aacquire(self, *, blocking: bool = True) -> bool:
        """Waits until the current agent may run."""
        if not blocking:
            return self._may_run()
        call = await calls.begin(self._governor, "a rate-limited model")
        if call is not None:
            call.withdraw()
        return True

    def _may_run(self) -> bool:
        agent = self._governor.current_agent()
        return agent is None or agent.state not in ("queued", "paused")


def middleware(governor: Governing) -> Any:
    """A middleware for `create_agent`; see `Governor.middleware`."""
    try:
        from langchain.agents.middleware import AgentMiddleware
    except ModuleNotFoundError as error:
        raise ImportError("langchain is not installed: pip install langchain") from error
    install()

    class ConcurMiddleware(AgentMiddleware):
        """Each model call of the agent, with the other middleware around it, is one step."""

        def wrap_model_call(self, request: Any, handler: Callable[[Any], R]) -> R:
            call = calls.begin_sync(governor, "a model call", read=lambda: _prompt_of(request))
            if call is None:
                return handler(request)
            call.enclose()
            used = None
            try:
                response = handler(request)
                used = _usage_of(response)
                return response
            finally:
                call.end(used)

        async def awrap_model_call(self, request: Any, handler: Callable[[Any], Awaitable[R]]) -> R:
            call = await calls.begin(governor, "a model call", read=lambda: _prompt_of(request))
            if call is None:
                return await handler(request)
            call.enclose()
            used = None
            try:
                response = await handler(request)
                used = _usage_of(response)
                return response
            finally:
                call.end(used)

    return ConcurMiddleware()


def _prompt_of(request: Any) -> Prompt | None:
    """Measures the request of a middleware. Another unit, because tools are objects here."""
    tools = [
        tool if isinstance(tool, dict) else [tool.name, tool.description] for tool in request.tools
    ]
    return of_messages("request", [tools, request.system_message, request.messages])


def _usage_of(response: object) -> Usage | None:
    """The usage of the answer that a middleware gets."""
    for message in getattr(response, "result", None) or [response]:
        used = read_usage(getattr(message, "usage_metadata", None))
        if used is not None:
            return used
    return None
