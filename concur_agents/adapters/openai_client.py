"""openai's own clients: each call with all its retries is one step of the agent it is made in."""

from __future__ import annotations

import inspect
from functools import cache, wraps
from typing import Any

from concur_agents.adapters.call import Tries
from concur_agents.adapters.http import govern
from concur_agents.runtime.agent import Governing


def one_step(request: Any) -> Any:
    """The `request` of one of openai's clients, so changed that all tries it makes are one step."""
    if inspect.iscoroutinefunction(request):

        @wraps(request)
        async def request_async(self: Any, cast_to: Any, options: Any, **how: Any) -> Any:
            with Tries(_body(options)):
                return await request(self, cast_to, options, **how)

        return request_async

    @wraps(request)
    def request_sync(self: Any, cast_to: Any, options: Any, **how: Any) -> Any:
        with Tries(_body(options)):
            return request(self, cast_to, options, **how)

    return request_sync


def _body(options: Any) -> dict[str, object] | None:
    """What openai's client is about to serialise: a search through a long prompt that is spared."""
    said = getattr(options, "json_data", None)
    more = getattr(options, "extra_json", None) or {}
    return {**said, **more} if isinstance(said, dict) and isinstance(more, dict) else None


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
    # Of one base only, or the class of an object could not be changed to it.
    return type(base.__name__, (base,), members)
