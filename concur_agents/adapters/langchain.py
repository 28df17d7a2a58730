"""LangChain: each chat-model call inside of an agent is a boundary, whatever the provider.

LangChain lets a library add callback handlers to every run whose context asks for them (its
`register_configure_hook`; `get_usage_metadata_callback` works the same way). Ours are there when
an agent is current, and then wait before the model is called. The user's own callbacks, models
and configs are left alone.

There are two handlers, because LangChain awaits coroutines only in its asynchronous half: there a
synchronous handler would block the loop, and in the synchronous half errors of an asynchronous
one are swallowed. Each looks at who asks, and ignores the other half's runs.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar
from uuid import UUID
from weakref import WeakKeyDictionary

from concur_agents._extras import missing_extra
from concur_agents.adapters import call as calls
from concur_agents.adapters.call import Call
from concur_agents.adapters.prompts import Prompt
from concur_agents.context import current_agent
from concur_agents.governor import Governor
from concur_agents.hosts.usage import read_usage

try:
    from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import LLMResult
    from langchain_core.rate_limiters import BaseRateLimiter
    from langchain_core.tracers.context import register_configure_hook
except ModuleNotFoundError as error:
    raise missing_extra(error) from error

R = TypeVar("R")

_installing = threading.Lock()
_installed = False


def install() -> None:
    """Has every chat-model call inside of an agent wait for its turn. Calling it again is free.

    `gov.wrap(graph)`, `gov.rate_limiter()` and `gov.middleware()` do this by themselves.
    """
    global _installed  # noqa: PLW0603  (LangChain's registry is global, and has no way back)
    with _installing:
        if not _installed:
            _installed = True
            for handler in (_Handler(), _AsyncHandler()):
                register_configure_hook(_WhenGoverned(handler), inheritable=True)  # type: ignore[arg-type]


class _WhenGoverned:
    """Stands where LangChain expects a ContextVar: holds the handler when an agent is current."""

    def __init__(self, handler: BaseCallbackHandler) -> None:
        self._handler = handler

    def get(self) -> BaseCallbackHandler | None:
        return None if current_agent() is None else self._handler


class _Calls:
    """The calls in flight that LangChain knows by run id."""

    def __init__(self) -> None:
        self._by_run: dict[UUID, Call] = {}
        self._by_task: WeakKeyDictionary[asyncio.Task[Any], set[UUID]] = WeakKeyDictionary()

    def add(self, run_id: UUID, call: Call) -> None:
        self._by_run[run_id] = call
        call.enclose()

    def add_to_task(self, run_id: UUID) -> None:
        """LangChain tells nobody when a run is cancelled; the end of its task does."""
        task = asyncio.current_task()
        if task is None:
            return
        runs = self._by_task.get(task)
        if runs is None:
            runs = self._by_task[task] = set()
            task.add_done_callback(self._task_ended)
        runs.add(run_id)

    def end(self, run_id: UUID, usage: object = None) -> None:
        call = self._by_run.pop(run_id, None)
        if call is not None:
            call.end(usage)

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        for run_id in self._by_task.pop(task, ()):
            self.end(run_id)


_calls = _Calls()


def _is_asynchronous_half() -> bool:
    """Whether LangChain's asynchronous manager is asking, two frames up.

    A running loop would not tell: `model.invoke` can be called on a loop's thread, and has to get
    our error there instead of a wait.
    """
    return sys._getframe(2).f_code.co_name.startswith("_ahandle")


class _Handler(BaseCallbackHandler):
    """The boundary in synchronous runs."""

    raise_error = True

    @property
    def ignore_chat_model(self) -> bool:
        return _is_asynchronous_half()

    @property
    def ignore_llm(self) -> bool:
        return _is_asynchronous_half()

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        **_: Any,
    ) -> None:
        self._begin(run_id, _what(serialized), lambda: _size_of_messages(messages))

    def on_llm_start(
        self, serialized: dict[str, Any], prompts: list[str], *, run_id: UUID, **_: Any
    ) -> None:
        self._begin(run_id, _what(serialized), lambda: _size_of_texts(prompts))

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_: Any) -> None:
        _calls.end(run_id, _usage(response))

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        _calls.end(run_id)

    def _begin(self, run_id: UUID, what: str, read: Callable[[], Prompt]) -> None:
        agent = current_agent()
        if agent is not None:
            call = calls.begin_sync(
                agent.governor, what, source="langchain", read=read, agent=agent
            )
            if call is not None:
                _calls.add(run_id, call)


class _AsyncHandler(AsyncCallbackHandler):
    """The boundary in asynchronous runs."""

    raise_error = True
    run_inline = True  # in the task of the run, and before any tracer starts its clock

    @property
    def ignore_chat_model(self) -> bool:
        return not _is_asynchronous_half()

    @property
    def ignore_llm(self) -> bool:
        return not _is_asynchronous_half()

    async def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        **_: Any,
    ) -> None:
        await self._begin(run_id, _what(serialized), lambda: _size_of_messages(messages))

    async def on_llm_start(
        self, serialized: dict[str, Any], prompts: list[str], *, run_id: UUID, **_: Any
    ) -> None:
        await self._begin(run_id, _what(serialized), lambda: _size_of_texts(prompts))

    async def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_: Any) -> None:
        _calls.end(run_id, _usage(response))

    async def on_llm_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        _calls.end(run_id)

    async def _begin(self, run_id: UUID, what: str, read: Callable[[], Prompt]) -> None:
        agent = current_agent()
        if agent is not None:
            call = await calls.begin(
                agent.governor, what, source="langchain", read=read, agent=agent
            )
            if call is not None:
                _calls.add(run_id, call)
                _calls.add_to_task(run_id)


def _what(serialized: dict[str, Any] | None) -> str:
    return str((serialized or {}).get("name") or "a language model")


def _size_of_messages(messages: list[list[BaseMessage]]) -> Prompt:
    return Prompt("messages", sum(len(str(m.content)) for some in messages for m in some))


def _size_of_texts(texts: Sequence[str]) -> Prompt:
    return Prompt("messages", sum(len(text) for text in texts))


def _usage(response: LLMResult) -> object:
    for generations in response.generations:
        for generation in generations:
            told = getattr(getattr(generation, "message", None), "usage_metadata", None)
            if told:
                return told
    return read_usage((response.llm_output or {}).get("token_usage"))


class RateLimiter(BaseRateLimiter):
    """The boundary as LangChain's `rate_limiter=` of a model. Made by `Governor.rate_limiter`."""

    def __init__(self, governor: Governor) -> None:
        install()  # which tells when a call ends; a limiter alone only sees it begin
        self._governor = governor

    def acquire(self, *, blocking: bool = True) -> bool:
        """Waits until the current agent may run."""
        if not blocking:
            return self._may_run()
        call = calls.begin_sync(self._governor, "a rate-limited model", source="limiter")
        if call is not None:
            call.end()
        return True

    async def aacquire(self, *, blocking: bool = True) -> bool:
        """Waits until the current agent may run."""
        if not blocking:
            return self._may_run()
        call = await calls.begin(self._governor, "a rate-limited model", source="limiter")
        if call is not None:
            call.end()
        return True

    def _may_run(self) -> bool:
        agent = self._governor.current_agent()
        return agent is None or agent.state not in ("queued", "paused")


def middleware(governor: Governor) -> Any:
    """A middleware for `create_agent`; see `Governor.middleware`."""
    try:
        from langchain.agents.middleware import AgentMiddleware
    except ModuleNotFoundError as error:
        raise ImportError("langchain is not installed: pip install langchain") from error
    install()

    class ConcurMiddleware(AgentMiddleware):
        """Each model call of the agent, with what its other middleware does to it, is one step."""

        def wrap_model_call(self, request: Any, handler: Callable[[Any], R]) -> R:
            call = calls.begin_sync(
                governor, "a model call", source="middleware", read=lambda: _size(request)
            )
            if call is None:
                return handler(request)
            call.enclose()
            try:
                return handler(request)
            finally:
                call.end()

        async def awrap_model_call(self, request: Any, handler: Callable[[Any], Awaitable[R]]) -> R:
            call = await calls.begin(
                governor, "a model call", source="middleware", read=lambda: _size(request)
            )
            if call is None:
                return await handler(request)
            call.enclose()
            try:
                return await handler(request)
            finally:
                call.end()

    def _size(request: Any) -> Prompt:
        return _size_of_messages([request.messages])

    return ConcurMiddleware()
