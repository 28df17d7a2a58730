"""Congestion control for LLM agents: admits, pauses and resumes whole agents at step boundaries.

    import concur_agents as ca

    gov = ca.Governor("http://localhost:8000")
    async with gov.agent("issue-17") as agent:
        async with agent.step() as step:
            reply = await client.chat.completions.create(...)
            step.record(reply.usage)

Importing this loads next to nothing; each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from concur_agents import _moved
from concur_agents._version import __version__

if TYPE_CHECKING:
    from concur_agents.adapters.wrap import governed, install
    from concur_agents.batch import AgentPool, AgentTask, Outcome, Sandboxes, run_agents
    from concur_agents.core import Reading, Usage, law_names, make_law
    from concur_agents.errors import (
        ClosedError,
        ConcurError,
        ConfigError,
        GateError,
        JournalError,
        ProbeError,
        RecordingError,
        TraceError,
        UngovernedError,
        WatchError,
    )
    from concur_agents.governor import Governor
    from concur_agents.runtime.agent import Agent, current_agent
    from concur_agents.runtime.context import bind
    from concur_agents.runtime.events import Event
    from concur_agents.runtime.session import AgentStats
    from concur_agents.runtime.status import GovernorSnapshot
    from concur_agents.runtime.step import Step

_HOMES = {
    "AgentPool": "concur_agents.batch",
    "AgentTask": "concur_agents.batch",
    "Outcome": "concur_agents.batch",
    "Sandboxes": "concur_agents.batch",
    "run_agents": "concur_agents.batch",
    "Agent": "concur_agents.runtime.agent",
    "AgentStats": "concur_agents.runtime.session",
    "ClosedError": "concur_agents.errors",
    "ConcurError": "concur_agents.errors",
    "ConfigError": "concur_agents.errors",
    "Event": "concur_agents.runtime.events",
    "GateError": "concur_agents.errors",
    "Governor": "concur_agents.governor",
    "GovernorSnapshot": "concur_agents.runtime.status",
    "JournalError": "concur_agents.errors",
    "ProbeError": "concur_agents.errors",
    "Reading": "concur_agents.core",
    "RecordingError": "concur_agents.errors",
    "Step": "concur_agents.runtime.step",
    "TraceError": "concur_agents.errors",
    "UngovernedError": "concur_agents.errors",
    "Usage": "concur_agents.core",
    "WatchError": "concur_agents.errors",
    "bind": "concur_agents.runtime.context",
    "current_agent": "concur_agents.runtime.agent",
    "governed": "concur_agents.adapters.wrap",
    "install": "concur_agents.adapters.wrap",
    "law_names": "concur_agents.core",
    "make_law": "concur_agents.core",
}

__all__ = [  # noqa: RUF022  (what a user types first comes first)
    "Governor",
    "GovernorSnapshot",
    "Agent",
    "AgentStats",
    "Step",
    "AgentPool",
    "AgentTask",
    "Outcome",
    "Sandboxes",
    "run_agents",
    "Event",
    "governed",
    "install",
    "bind",
    "current_agent",
    "Reading",
    "Usage",
    "law_names",
    "make_law",
    "ClosedError",
    "ConcurError",
    "ConfigError",
    "GateError",
    "JournalError",
    "ProbeError",
    "RecordingError",
    "TraceError",
    "UngovernedError",
    "WatchError",
    "__version__",
]


_moved.install()


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        if name in _moved.MODULES:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
