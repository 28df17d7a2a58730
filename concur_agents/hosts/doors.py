"""The governor's doors to the frameworks: `gov.wrap(...)` and its kin.

Adapters know the governor and the governor knows no adapter. These methods are only here to be
found on it; each loads its adapter by name, when it is first used.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Literal, TypeVar

T = TypeVar("T")


class Doors:
    """What a `Governor` offers to frameworks."""

    def wrap(
        self,
        thing: T,
        *,
        key: Callable[..., str] | None = None,
        priority: int = 0,
        detached: bool = False,
    ) -> T:
        """A governed version of something, of the same type; what is given stays as it is.

        Args:
            thing: a client of `openai` or `httpx`, whose calls then wait for the agent they are
                made in; a compiled LangGraph graph, each of whose runs then is an agent; or an
                agent function, as `concur_agents.governed` does.
            key: graphs and functions: the agent's id, from the run's config or from the
                function's arguments. None: a graph's `thread_id`, else its `run_id`.
            priority: graphs and functions: higher goes first.
            detached: graphs and functions: takes a place of its own even inside of another agent.

        Raises:
            ConfigError: it is none of these.
        """
        options = {"key": key, "priority": priority, "detached": detached}
        wrapped: T = _adapter("wrap").wrap(self, thing, **options)
        return wrapped

    def http_client(
        self,
        kind: Literal["sync", "async"],
        *,
        module: Literal["httpx", "httpx2"] | None = None,
        **options: Any,
    ) -> Any:
        """A governed HTTP client for libraries that take one, such as `ChatOpenAI`.

        An async client belongs to the event loop that uses it first: make one per loop.

        Args:
            kind: "sync" or "async".
            module: the library it has to come from; None: the one that the installed openai uses.
            options: for the client: `timeout`, `proxy`, `verify`, ...

        Raises:
            ConfigError: `kind` is neither of the two.
        """
        return _adapter("http").http_client(self, kind, module=module, **options)

    def rate_limiter(self) -> Any:
        """For `rate_limiter=` of a LangChain model: waits until the current agent may run."""
        return _adapter("langchain").RateLimiter(self)

    def middleware(self) -> Any:
        """For `middleware=` of LangChain's `create_agent`: each model call is one step."""
        return _adapter("langchain").middleware(self)


def _adapter(name: str) -> Any:
    return importlib.import_module(f"concur_agents.adapters.{name}")
