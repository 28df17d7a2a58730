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

from concur_agents._version import __version__

if TYPE_CHECKING:
    from concur_agents.adapters.wrap import governed, install
    from concur_agents.context import bind, current_agent
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
    from concur_agents.hosts.agent import Agent
    from concur_agents.hosts.events import Event
    from concur_agents.hosts.place import AgentStats
    from concur_agents.hosts.snapshot import GovernorSnapshot
    from concur_agents.hosts.step import Step
    from concur_agents.pool import AgentPool, AgentTask, Outcome, run_agents

_HOMES = {
    "AgentPool": "concur_agents.pool",
    "AgentTask": "concur_agents.pool",
    "Outcome": "concur_agents.pool",
    "run_agents": "concur_agents.pool",
    "Agent": "concur_agents.hosts.agent",
    "AgentStats": "concur_agents.hosts.place",
    "ClosedError": "concur_agents.errors",
    "ConcurError": "concur_agents.errors",
    "ConfigError": "concur_agents.errors",
    "Event": "concur_agents.hosts.events",
    "GateError": "concur_agents.errors",
    "Governor": "concur_agents.governor",
    "GovernorSnapshot": "concur_agents.hosts.snapshot",
    "JournalError": "concur_agents.errors",
    "ProbeError": "concur_agents.errors",
    "Reading": "concur_agents.core",
    "RecordingError": "concur_agents.errors",
    "Step": "concur_agents.hosts.step",
    "TraceError": "concur_agents.errors",
    "UngovernedError": "concur_agents.errors",
    "Usage": "concur_agents.core",
    "WatchError": "concur_agents.errors",
    "bind": "concur_agents.context",
    "current_agent": "concur_agents.context",
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


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
