"""LangGraph: each run of a graph is an agent, each chat-model call in it a boundary.

All ways to run a graph (`invoke`, `stream`, `batch`, `astream_events`, ...) call `stream` or
`astream`. A governed graph is a copy whose class is a subclass of the graph's class that overrides
these two, so that `isinstance`, drawing, `get_state`, checkpointers, `with_config` and use as a
subgraph keep working. The governor is kept on that subclass, because LangGraph copies a graph by
passing its attributes to its class.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from copy import copy
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, TypeVar

from concur_agents._extras import missing_extra
from concur_agents.adapters import langchain, prompts
from concur_agents.adapters.agents import open_agent, open_agent_sync, run_in, run_in_async
from concur_agents.runtime.agent import Agent, Governing
from concur_agents.runtime.checks import read_name

try:
    from langgraph.pregel import Pregel
    from langgraph.pregel.remote import RemoteGraph
    from langgraph.types import Command
except ModuleNotFoundError as error:
    raise missing_extra(error) from error

logger = logging.getLogger("concur_agents")

G = TypeVar("G")

WARM_S = 120.0
"""A thread resumed within this time [s] of its interrupt goes first: its prefix may be cached."""

_MOST_THREADS = 10_000  # remembered


def is_graph(thing: object) -> bool:
    """Whether `wrap_graph` takes it."""
    return isinstance(thing, Pregel | RemoteGraph)


def wrap_graph(
    governor: Governing,
    graph: G,
    *,
    key: Callable[[Any], object] | None = None,
    priority: int = 0,
    detached: bool = False,
) -> G:
    """A governed copy of a graph, of the same type. See `Governor.wrap`.

    Args:
        governor: decides about its agents.
        graph: a compiled graph, an `@entrypoint` function, or a `RemoteGraph` (of which only the
            start can wait, because its calls are made elsewhere).
        key: the agent's id from the run's config; None: `thread_id`, else `run_id`, else made up.
        priority: of its agents; higher goes first.
        detached: a run takes a place of its own, also inside another agent.
    """
    base: Any = type(graph)
    if hasattr(base, "_concur"):
        if base._concur.governor is governor:
            return graph
        base = base._concur_base
    langchain.install()
    _warn_of_timeouts(graph)
    members = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "_concur_base": base,
        "_concur": _Policy(governor, key, priority, detached),
        "__doc__": base.__doc__,
        "stream": _stream_of(base),
        "astream": _astream_of(base),
    }
    # Not `graph.copy()`, because that builds another one, without what its compiler put on it.
    copied: Any = copy(graph)
    # One base only, because the class of an object can be changed only to one of the same layout.
    copied.__class__ = type(base.__name__, (base,), members)
    return copied  # type: ignore[no-any-return]


@dataclass(eq=False)
class _Policy:
    """How the runs of one governed graph become agents."""

    governor: Governing
    key: Callable[[Any], object] | None
    priority: int
    detached: bool
    ended: OrderedDict[str, tuple[float, int | None]] = field(default_factory=OrderedDict)
    """Thread -> the end of its last run [s], and the tokens of its last prompt."""

    def agent_of(self, graph: Any, given: Any, config: Any) -> tuple[str | None, dict[str, Any]]:
        """The name and the options of the agent for a run."""
        own = getattr(graph, "config", None) or {}
        merged = {**own, **(config or {})}
        configurable = {**own.get("configurable", {}), **merged.get("configurable", {})}
        name = None
        if self.key is not None:
            name = read_name(self.key({**merged, "configurable": configurable}))
        else:
            name = read_name(configurable.get("thread_id") or merged.get("run_id"))
        outer = self.governor.current_agent()
        if outer is not None and not self.detached:
            # A sub-agent needs a name of its own, because it inherits its parent's thread_id.
            name = f"{outer.id}/{getattr(graph, 'name', None) or 'graph'}"
        options: dict[str, Any] = {"priority": self.priority, "detached": self.detached}
        ended_s, tokens = self.ended.get(name or "", (None, None))
        if ended_s is not None:
            options["prompt_tokens"] = tokens
            is_resumed = isinstance(given, Command) and given.resume is not None
            if is_resumed and time.monotonic() - ended_s < WARM_S:
                options["priority"] += 1
        return name, options

    def note_end(self, name: str | None, agent: Agent) -> None:
        if name is not None:
            self.ended[name] = (time.monotonic(), prompts.last_tokens(agent))
            self.ended.move_to_end(name)
            while len(self.ended) > _MOST_THREADS:
                self.ended.popitem(last=False)


def _stream_of(base: Any) -> Any:
    """The `stream` of a graph's class, as one agent."""

    @wraps(base.stream)
    def stream(self: Any, input: Any, config: Any = None, **options: Any) -> Iterator[Any]:  # noqa: A002
        # A generator, as in the base, so the agent arrives when the caller reads the first item.
        policy: _Policy = self._concur
        name, asked = policy.agent_of(self, input, config)
        agent = open_agent_sync(policy.governor, name, **asked)
        try:
            items = base.stream(self, input, config, **options)
            yield from run_in(agent, iter(items))
        finally:
            agent.close()
            policy.note_end(name, agent)

    return stream


def _astream_of(base: Any) -> Any:
    """As `_stream_of`, for `astream`."""

    @wraps(base.astream)
    async def astream(
        self: Any,
        input: Any,  # noqa: A002
        config: Any = None,
        **options: Any,
    ) -> AsyncIterator[Any]:
        policy: _Policy = self._concur
        name, asked = policy.agent_of(self, input, config)
        agent = await open_agent(policy.governor, name, **asked)
        try:
            stream = base.astream(self, input, config, **options)
            items = run_in_async(agent, aiter(stream))
            try:
                async for item in items:
                    yield item
            finally:
                await items.aclose()
        finally:
            agent.close()
            policy.note_end(name, agent)

    return astream


_warned_of: set[str] = set()


def _warn_of_timeouts(graph: Any) -> None:
    """Warns of time limits that run during a pause; idle timeouts do not (see heartbeat.py)."""
    found = []
    if getattr(graph, "step_timeout", None) is not None:
        found.append("step_timeout")
    for name, node in getattr(graph, "nodes", {}).items():
        policy = getattr(node, "timeout", None)
        if policy is not None and policy.run_timeout is not None:
            found.append(f"the run_timeout of node {name!r}")
    label = str(getattr(graph, "name", "graph"))
    if found and label not in _warned_of:
        _warned_of.add(label)
        logger.warning(
            "%s counts the time in which an agent is paused: %s in graph %r. Use idle_timeout, "
            "which does not run during a pause, or a limit that allows for pauses (logged once)",
            "This time limit" if len(found) == 1 else "Each of these time limits",
            ", ".join(found),
            label,
        )
