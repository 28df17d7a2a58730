"""A plain function as an agent: it runs in a thread of its own, and an event loop waits for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Any

from concur_agents._text import wire_id
from concur_agents.runtime.agent import Agent


class WorkerThread:
    """Runs an agent's function in a new thread, in a copy of the caller's context.

    Args:
        agent: the agent; it has been let in.
        call: its function, with its arguments.
    """

    def __init__(self, agent: Agent, call: Callable[[], Any]) -> None:
        self._agent = agent
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[Any] = self._loop.create_future()
        self._lock = threading.Lock()
        self._over = False
        self.abandoned = False
        """The pool has stopped waiting: the agent ends at its next boundary and leaves then."""
        # A daemon, because an abandoned thread must not hold up the exit of the interpreter.
        threading.Thread(
            target=copy_context().run,
            args=(self._run,),
            name=f"agent {wire_id(agent.id)}",
            daemon=True,
        ).start()

    async def result(self) -> Any:
        """What the function returned or raised. If cancelled, it expels the agent."""
        try:
            return await self._future
        except asyncio.CancelledError:
            with self._lock:
                self.abandoned = not self._over
            if self.abandoned:
                self._agent.expel()
            raise

    def _run(self) -> None:
        value: Any = None
        error: BaseException | None = None
        try:
            value = self._call()
        except BaseException as caught:
            error = caught
        with self._lock:
            self._over = True
            abandoned = self.abandoned
        if abandoned:
            self._agent.close()
            return
        with suppress(RuntimeError):  # the loop is closed, so nothing waits for the result
            self._loop.call_soon_threadsafe(self._finish, value, error)

    def _finish(self, value: Any, error: BaseException | None) -> None:
        if self._future.done():
            return
        if error is None:
            self._future.set_result(value)
        elif isinstance(error, Exception | asyncio.CancelledError):
            self._future.set_exception(error)
        else:  # because SystemExit would end the loop, and with it all other agents
            self._future.set_exception(RuntimeError(f"the agent's thread raised {error!r}"))
