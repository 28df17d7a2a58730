"""Batches: an agent for each item, with a journal, progress, and a thread pool executor."""

from __future__ import annotations

from concur_agents.batch.outcome import AgentTask, Outcome
from concur_agents.batch.pool import AgentPool
from concur_agents.batch.run import run_agents
from concur_agents.batch.sandboxes import Sandboxes

__all__ = ["AgentPool", "AgentTask", "Outcome", "Sandboxes", "run_agents"]
