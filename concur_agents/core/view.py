"""How things stand, for eyes, logs and tests: nothing here decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from concur_agents.core.family import AgentId
from concur_agents.core.laws.law import Limit


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The Regulator at one instant, for eyes, logs and tests."""

    at_s: float
    active: int
    reasoning: int
    acting: int
    paused: int
    queued: int
    suspended: int = 0
    """Agents that have given their place back for a while."""
    done_total: int
    pressure_tokens: float
    capacity_tokens: float | None
    footprint_tokens: float
    limit: Limit
    reason: str
    hit_rate: float | None
    """Cached share of the prompt tokens between the last two ticks; None: no prompt tokens."""
    hit_deficit: float | None
    """1 - H/H*, over recent steps of agents that had sent something; None: no such step."""
    pauses_total: int
    overdue_total: int
    longest_wait_s: float


class AgentView(NamedTuple):
    """One agent at one instant, for eyes and tests."""

    agent: AgentId
    parent: AgentId | None
    """Whose place it shares."""
    state: str
    """'queued', 'reasoning', 'acting', 'paused' or 'suspended'."""
    since_s: float
    """When that began, on the host's clock [s]."""
    footprint_tokens: float
    held_tokens: float
    """What it claims for the call that it is in; 0: it is in none."""
    steps: int
    """Steps that have ended well."""
