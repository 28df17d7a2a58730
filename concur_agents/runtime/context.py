"""Who is running here: the current agent, carried by a context variable.

Each asyncio task and each `asyncio.to_thread` inherits it. Bare threads and executors do not:
wrap what they run in `bind`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import ContextVar, Token, copy_context
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

from concur_agents._outside import is_from_handler

P = ParamSpec("P")
R = TypeVar("R")


current: ContextVar[Any] = ContextVar("concur_agents_current", default=None)
"""A weak reference to the innermost agent that was opened here; see `agent.innermost`.

Weak, because an exception of a signal handler can end a `with` block before the first line of its
`__exit__` runs. The agent is then dropped without leaving: it leaves when it is collected, which a
reference in here would prevent.
"""


def restore(variable: ContextVar[Any], token: Token[Any]) -> None:
    """Sets a variable as it was, if this is still possible."""
    try:
        variable.reset(token)
    except (ValueError, RuntimeError) as error:
        # ValueError: left in another context, as generators are by the collector. RuntimeError:
        # done before, and then cut off by an exception from outside.
        if is_from_handler(error):
            raise


def bind(fn: Callable[P, R]) -> Callable[P, R]:
    """Carries the caller's agent, and the rest of the context, into another thread or executor.

        pool.submit(ca.bind(search), query)      # its LLM calls now count for this agent

    Each call runs in a copy of the context in which `bind` was called. For an `async def` only the
    agent is carried, since its task has a context of its own.
    """
    if inspect.iscoroutinefunction(fn):
        agent = current.get()

        @wraps(fn)
        async def bound_async(*args: Any, **kwargs: Any) -> Any:
            token = current.set(agent)
            try:
                return await fn(*args, **kwargs)
            finally:
                current.reset(token)

        return cast("Callable[P, R]", bound_async)

    context = copy_context()

    @wraps(fn)
    def bound(*args: P.args, **kwargs: P.kwargs) -> R:
        # A context can be entered only once at a time; a copy per call lets `fn` run in parallel.
        return context.copy().run(fn, *args, **kwargs)

    return bound
