"""How one agent of a batch ends: `Outcome`; and the handle of one on its way: `AgentTask`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias, TypeVar, cast

from concur_agents.runtime.agent import Agent
from concur_agents.runtime.session import AgentStats

T = TypeVar("T")
R = TypeVar("R")

Status: TypeAlias = Literal["ok", "error", "cancelled", "cached"]


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T, R]):
    """How one agent ended.

    Attributes:
        key: its name.
        item: the item that it was given.
        status: "ok", "error", "cancelled", or "cached": an earlier run has finished it.
        value: what it returned, if "ok" or "cached".
        error: what it raised, if "error"; a `TimeoutError` if it ran out of time.
        stats: its times and tokens; None: it did not run.
    """

    key: str
    item: T
    status: Status
    value: R | None = None
    error: BaseException | None = None
    stats: AgentStats | None = None

    def result(self) -> R:
        """What the agent returned.

        Raises:
            BaseException: what the agent raised; `asyncio.CancelledError` if it was cancelled.
        """
        if self.status == "cancelled":
            raise asyncio.CancelledError(f"agent {self.key!r} was cancelled")
        if self.error is not None:
            raise self.error
        return cast("R", self.value)


@dataclass(slots=True, eq=False)
class Run:
    """One agent of a pool, from its item to its outcome."""

    key: str
    item: Any
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    priority: int = 0
    index: int = 0  # its item's place in the batch
    agent: Agent | None = None
    stage: Literal["queued", "in", "over"] = "queued"
    task: asyncio.Task[Outcome[Any, Any]] | None = None
    outcome: Outcome[Any, Any] | None = None


class AgentTask(Generic[R]):
    """An agent that was submitted. Await it for its result. Made by `AgentPool.submit`."""

    def __init__(self, run: Run, task: asyncio.Task[Outcome[Any, R]]) -> None:
        self._run = run
        self._task = task

    @property
    def key(self) -> str:
        """The agent's name."""
        return self._run.key

    @property
    def status(self) -> str:
        """'queued', 'reasoning', 'acting' or 'paused'; the status of its outcome once it ends."""
        if self._run.outcome is not None:
            return self._run.outcome.status
        return (self._run.agent and self._run.agent.state) or "queued"

    def done(self) -> bool:
        """Whether the agent has ended."""
        return self._task.done()

    def cancel(self) -> None:
        """Ends the agent. One in a thread ends at its next boundary."""
        self._task.cancel()

    async def outcome(self) -> Outcome[Any, R]:
        """Waits for the end of the agent, whatever that is."""
        await asyncio.wait([self._task])
        assert self._run.outcome is not None
        return self._run.outcome

    def __await__(self) -> Generator[Any, None, R]:
        outcome = yield from self._task.__await__()
        return outcome.result()

    def __repr__(self) -> str:
        return f"<AgentTask {self.key!r} {self.status}>"
