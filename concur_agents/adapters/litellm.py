"""LiteLLM: each completion of an agent waits for its turn, whatever the provider.

Some of LiteLLM's providers use openai's client and others LiteLLM's own, so the HTTP client is not
a seam that they share; the callbacks are. Ours is added to `litellm.callbacks`, beside the user's.

LiteLLM logs the end of a call late, in a thread of its own. So the call ends in the hook that runs
as the answer arrives, and the late log event counts for streams only.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from concur_agents.adapters import call as calls
from concur_agents.adapters.addresses import base
from concur_agents.adapters.answers import usage_in
from concur_agents.adapters.prompts import Prompt, of_messages
from concur_agents.adapters.routing import router_of
from concur_agents.adapters.secrets import is_placeholder, is_secret
from concur_agents.runtime.agent import Agent, current_agent

try:
    import litellm
    from litellm.integrations.custom_logger import CustomLogger
except ModuleNotFoundError as error:
    raise ImportError(
        f"{error.name} is not installed: pip install litellm mcp", name=error.name
    ) from error

_installing = threading.Lock()


def install() -> None:
    """Makes every completion of an agent wait for its turn. Calling it again does nothing."""
    with _installing:
        if not any(isinstance(known, _Callback) for known in litellm.callbacks):
            litellm.callbacks.append(_Callback())


class _Callback(CustomLogger):  # type: ignore[misc]
    """Begins and ends calls as LiteLLM reports them."""

    def __init__(self) -> None:
        super().__init__()
        self._calls = calls.InFlight()

    # Asynchronous completions: LiteLLM awaits these hooks.

    async def async_pre_call_deployment_hook(
        self, kwargs: dict[str, Any], call_type: Any
    ) -> dict[str, Any] | None:
        agent, name = current_agent(), _id(kwargs)
        if agent is None or name in self._calls or not _is_completion(call_type):
            return None
        call = await calls.begin(agent.governor, _what(kwargs), read=_reader(kwargs))
        if call is None:
            return None
        self._calls.add(name, call, in_task=True)
        return _directed(call.agent, kwargs)

    async def async_post_call_success_deployment_hook(
        self, request_data: dict[str, Any], response: Any, call_type: Any
    ) -> None:
        if not request_data.get("stream"):
            self._end(request_data, response)

    async def async_post_call_failure_deployment_hook(
        self, request_data: Any, exception: Exception, call_type: Any, fallback_depth: Any = None
    ) -> None:
        self._fail(request_data, exception)

    async def async_log_success_event(
        self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        self._end(kwargs, response_obj)

    async def async_log_failure_event(
        self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        self._fail(kwargs, kwargs.get("exception"))

    # Synchronous completions: LiteLLM calls these in the caller's thread, before and after.

    def log_pre_api_call(self, model: str, messages: Any, kwargs: dict[str, Any]) -> None:
        agent, name = current_agent(), _id(kwargs)
        if agent is None or name in self._calls:
            return
        call = calls.begin_sync(agent.governor, _what(kwargs), read=_reader(kwargs))
        if call is not None:
            self._calls.add(name, call)

    def log_post_api_call(
        self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        text = kwargs.get("original_response")
        if isinstance(text, str) and not kwargs.get("stream"):
            self._end(kwargs, usage_in(text.encode()))

    def log_success_event(
        self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        self._end(kwargs, response_obj)

    def log_failure_event(
        self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        self._fail(kwargs, kwargs.get("exception"))

    # Both

    def _end(self, kwargs: Any, usage: object) -> None:
        self._calls.end(_id(kwargs), usage)

    def _fail(self, kwargs: Any, error: object) -> None:
        self._calls.end(_id(kwargs), overloaded=getattr(error, "status_code", None) in (429, 503))


def _directed(agent: Agent, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """The arguments of a call that goes to the pool of its agent; None: it goes where it would.

    LiteLLM takes the arguments from an asynchronous hook. Its synchronous ones come too late.
    """
    governor = agent.governor
    given = kwargs.get("api_base") or kwargs.get("base_url") or litellm.api_base
    asked = base(given) if isinstance(given, str) else None
    router = router_of(governor)
    target = None if asked is None else router.target(governor, agent, asked)
    if target is None:
        if asked is not None:
            router.meet_elsewhere(governor, agent, asked)
        return None
    directed = {**kwargs, "api_base": target.base.below(target.former, given)}
    directed.pop("base_url", None)
    if not target.keeps_keys:
        keys = [kwargs.get("api_key"), litellm.api_key, *map(os.environ.get, _KEYS)]
        is_lost = any(isinstance(key, str) and not is_placeholder(key) for key in keys)
        directed["api_key"] = governor.api_key or "-"  # or LiteLLM takes the one of the environment
        for name in ("headers", "extra_headers"):
            sent = kwargs.get(name) or {}
            if isinstance(sent, dict):
                directed[name] = {each: sent[each] for each in sent if not is_secret(each)}
                is_lost = is_lost or len(directed[name]) < len(sent)
        if is_lost and governor.api_key is None:
            router.meet_lost_key(target)
    directed["extra_headers"] = {**(directed.get("extra_headers") or {}), **agent.headers}
    return directed


_KEYS = ("OPENAI_API_KEY", "HOSTED_VLLM_API_KEY", "LITELLM_API_KEY")


def _id(kwargs: Any) -> str:
    return str(kwargs.get("litellm_call_id", ""))


def _is_completion(call_type: Any) -> bool:
    return str(getattr(call_type, "value", call_type)) in (
        "acompletion",
        "atext_completion",
        "aresponses",
        "anthropic_messages",
    )


def _what(kwargs: Any) -> str:
    return f"litellm model {kwargs.get('model', '')}"


def _reader(kwargs: Any) -> Callable[[], Prompt | None]:
    def read() -> Prompt | None:
        options = {**(kwargs.get("optional_params") or {}), **kwargs}
        said = options.get("messages") or options.get("input") or options.get("prompt")
        beside = [options.get(name) for name in ("tools", "functions", "system", "instructions")]
        continues = bool(options.get("previous_response_id"))
        return of_messages("litellm", [beside, said], continues=continues)

    return read
