"""The agents of a pool: each from the queue to its place, and from its end into the journal."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from concur_agents.batch.journal import Journal
from concur_agents.batch.outcome import Outcome, Run, Status
from concur_agents.batch.progress import Progress
from concur_agents.batch.running_time import running_time
from concur_agents.batch.sandboxes import Sandbox, Sandboxes
from concur_agents.batch.stream import cancel
from concur_agents.batch.worker_thread import WorkerThread
from concur_agents.errors import JournalError
from concur_agents.runtime.host import Host

logger = logging.getLogger("concur_agents")


class Runs:
    """The agents of a pool that have not ended, and how the others ended.

    Args:
        governor: lets the agents in.
        timeout_s: longest running time [s] of an agent; None: no limit.
        sandboxes: makes a sandbox for each; None: they need none.
        moved: is called when an agent has left the queue or has ended.
    """

    def __init__(
        self,
        governor: Host,
        *,
        timeout_s: float | None,
        sandboxes: Sandboxes[Any, Any] | None,
        moved: Callable[[], None],
    ) -> None:
        self._governor = governor
        self._timeout_s = timeout_s
        self._sandboxes = sandboxes
        self._moved = moved
        self._runs: set[Run] = set()
        self._counts: dict[Status, int] = {"ok": 0, "error": 0, "cancelled": 0, "cached": 0}
        self.queued = 0
        """Agents in the queue."""
        self.journal: Journal | None = None
        """Keeps the results; None: nothing is kept."""
        self.journal_error: JournalError | None = None
        """The first trouble with the journal. It ends no agent."""

    def __len__(self) -> int:
        return len(self._runs)

    @property
    def inside(self) -> int:
        """Agents that have a place."""
        return sum(run.stage == "in" for run in self._runs)

    def progress(self, total: int | None) -> Progress:
        """Where the agents stand; `total` is the size of the batch."""
        inside = [run.agent for run in self._runs if run.stage == "in" and run.agent is not None]
        paused = sum(agent.state == "paused" for agent in inside)
        return Progress(
            total=total,
            ok=self._counts["ok"],
            errors=self._counts["error"],
            cancelled=self._counts["cancelled"],
            cached=self._counts["cached"],
            running=len(inside) - paused,
            paused=paused,
            queued=self.queued,
        )

    def start(self, run: Run) -> asyncio.Task[Outcome[Any, Any]]:
        """Puts an agent in the queue."""
        self._runs.add(run)
        self.queued += 1
        task = run.task = asyncio.ensure_future(self._live(run))
        task.add_done_callback(partial(self._end, run))
        return task

    def request_cancel(self, *, only_queued: bool = False) -> None:
        """Cancels the agents, or those in the queue, without waiting for their end."""
        for run in self._runs:
            if run.task is not None and (run.stage == "queued" or not only_queued):
                run.task.cancel()

    async def cancel(self) -> None:
        """Cancels the agents and waits for their end."""
        await cancel(self._runs)

    async def wait(self) -> None:
        """Waits until every agent has ended, also those that start meanwhile."""
        while self._runs:
            await asyncio.wait([run.task for run in self._runs if run.task is not None])

    def close_journal(self) -> None:
        """Closes the journal; trouble goes to `journal_error`."""
        if self.journal is not None:
            try:
                self.journal.close()
            except JournalError as trouble:
                self.journal_error = self.journal_error or trouble

    # One agent

    def _end(self, run: Run, task: asyncio.Task[Outcome[Any, Any]]) -> None:
        self._runs.discard(run)
        if run.outcome is None:  # cancelled before its first line
            self._conclude(run, "cancelled")

    async def _live(self, run: Run) -> Outcome[Any, Any]:
        """Runs one agent, from the queue to the journal. Never raises what the agent raises."""
        try:
            if self.journal is not None and run.key in self.journal:
                return self._conclude(run, "cached", value=self.journal.value(run.key))
            value = await self._run(run)
        except asyncio.CancelledError:
            return self._conclude(run, "cancelled")
        except Exception as error:
            return self._conclude(run, "error", error=error)
        else:
            return self._conclude(run, "ok", value=value)

    async def _run(self, run: Run) -> Any:
        if self._sandboxes is None:
            return await self._run_in(run, None)
        sandbox = self._sandboxes.expect(run.item, run.priority)
        try:
            return await self._run_in(run, sandbox)
        finally:
            await sandbox.leave()

    async def _run_in(self, run: Run, sandbox: Sandbox[Any, Any] | None) -> Any:
        agent = run.agent = self._governor.agent(self._free_id(run.key), priority=run.priority)
        await agent.open()
        thread: WorkerThread | None = None
        try:
            self._move(run, "in")
            with agent.active():
                given: dict[str, Any] = {"agent": agent}
                if sandbox is not None:
                    given["sandbox"] = await sandbox.enter()
                call = _call_of(run, given)
                async with running_time(agent, self._timeout_s):
                    if _is_async(run.fn):
                        return await call()
                    thread = WorkerThread(agent, call)
                    value = await thread.result()
                    return await value if inspect.isawaitable(value) else value
        finally:
            try:
                if sandbox is not None:
                    await sandbox.leave(agent)
            finally:
                if thread is None or not thread.abandoned:
                    agent.close()

    def _free_id(self, key: str) -> str:
        """`key`; another one if an agent outside of this pool is alive under that name."""
        name, count = key, 1
        while self._governor.agent_state(name) is not None:
            count += 1
            name = f"{key}~{count}"
        return name

    def _move(self, run: Run, stage: Literal["in", "over"]) -> None:
        if run.stage == "queued":
            self.queued -= 1
        run.stage = stage
        self._moved()

    def _conclude(
        self,
        run: Run,
        status: Status,
        *,
        value: Any = None,
        error: BaseException | None = None,
    ) -> Outcome[Any, Any]:
        self._move(run, "over")
        self._counts[status] += 1
        stats = None if run.agent is None else run.agent.stats
        if self.journal is not None and status in ("ok", "error"):
            try:
                self.journal.write(run.key, status, value=value, error=error, stats=stats)
            except JournalError as trouble:
                if self.journal_error is None:
                    self.journal_error = trouble
                    logger.error("%s; the batch goes on, but its results are not kept", trouble)
        run.outcome = Outcome(run.key, run.item, status, value, error, stats)
        return run.outcome


def _call_of(run: Run, given: dict[str, Any]) -> Callable[[], Any]:
    """Its function with its arguments, and with those of `given` that it has parameters for."""
    wanted = {name: given[name] for name in given if _wants(run, name)}
    return partial(run.fn, *run.args, **run.kwargs, **wanted)


def _wants(run: Run, name: str) -> bool:
    """Whether the function has a parameter of this name without an argument."""
    try:
        signature = inspect.signature(run.fn)
        taken = signature.bind_partial(*run.args, **run.kwargs).arguments
    except (
        TypeError,
        ValueError,
    ):  # a builtin without signature; or a wrong call, which raises
        return False
    return name in signature.parameters and name not in taken


def _is_async(fn: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(
        getattr(fn, "__call__", None)  # noqa: B004  (an object with an async __call__)
    )
