"""What an agent's life is made of: its steps, and the blocks between them.

Handles as well, and as thin as the agent's own: they say when something begins and ends.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Self

from concur_agents.errors import ConfigError
from concur_agents.probes.usage import read_usage
from concur_agents.runtime.checks import check_chain, check_tokens, read_seconds
from concur_agents.runtime.session import End, Session, Ticket
from concur_agents.runtime.waiter import LoopWaiter, ThreadWaiter, Waiter, running_loop
from concur_agents.runtime.waiting import check_expelled, wait, wait_sync

if TYPE_CHECKING:
    from concur_agents.core import Chain, Usage
    from concur_agents.runtime.monitor import Monitor


class Step:
    """One LLM call with all its retries. Made by `Agent.step` and `Agent.gate`."""

    __slots__ = (
        "_monitor",
        "_prefix",
        "_prompt_tokens",
        "_session",
        "_source",
        "_ticket",
        "agent",
        "usage",
    )

    def __init__(
        self,
        monitor: Monitor,
        session: Session,
        prompt_tokens: int | None,
        prefix: Chain | None,
        *,
        source: str,
        agent: Any = None,
    ) -> None:
        self._monitor = monitor
        self._session = session
        self._prompt_tokens = check_tokens(prompt_tokens)
        self._prefix = check_chain(prefix)
        self._source = source
        self._ticket: Ticket | None = None
        self.usage: Usage | None = None
        """What was recorded for it."""
        self.agent = agent
        """The `Agent` that makes the call."""

    def record(self, usage: object) -> None:
        """Says what the call used: it makes footprints exact.

        Args:
            usage: the `usage` of a chat completion, completion or response of the openai client,
                the whole response, a dictionary with the same names, LangChain's
                `usage_metadata`, or a `concur_agents.core.Usage`. None is ignored, since streams
                may end without.

        Raises:
            ConfigError: it holds no token counts.
        """
        told = read_usage(usage)
        if told is not None:
            self.usage = told
        elif usage is not None:
            raise ConfigError(
                f"no token counts in {usage!r:.200}: record() takes the `usage` of an OpenAI "
                "response, a dictionary with prompt_tokens and completion_tokens, or a Usage"
            )

    def refused(self, retry_after_s: float = 0.0) -> None:
        """Says that the endpoint refused the call for lack of capacity (429, 503).

        The step goes on: what is tried again inside of it is part of it.

        Args:
            retry_after_s: how long it asked to wait [s].
        """
        if self._ticket is not None:
            end = End(overloaded=True, retry_after_s=read_seconds(retry_after_s))
            self._monitor.retry(self._ticket, end)

    def again(self) -> None:
        """Another try of the call begins: how long it takes is counted from here."""
        if self._ticket is not None:
            self._monitor.retry(self._ticket, End())

    async def begin(self) -> None:
        """Waits for the turn. `async with` does this."""
        loop = asyncio.get_running_loop()
        ticket = self._begin(lambda: LoopWaiter(loop))
        if ticket.waiter is not None:
            await wait(self._monitor, ticket)

    def begin_sync(self) -> None:
        """Waits for the turn. Plain `with` does this."""
        ticket = self._begin(ThreadWaiter)
        if ticket.waiter is not None:
            wait_sync(self._monitor, ticket)

    def end(self) -> None:
        """The call is over. From any thread, never blocks; calling it again does nothing."""
        self.finish()

    def finish(self, *, overloaded: bool = False, retry_after_s: float = 0.0) -> None:
        """As `end`; says with it whether the endpoint refused the call. See `Agent.done`."""
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            end = End(self.usage, overloaded, read_seconds(retry_after_s))
            self._monitor.end(ticket, end)

    def withdraw(self) -> None:
        """The call was not sent after all: neither a step nor a failure. As `end` otherwise."""
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            self._monitor.end(ticket, End(sent=False))

    def _begin(self, make_waiter: Callable[[], Waiter]) -> Ticket:
        check_expelled(self._session)
        ticket = self._ticket = Ticket(
            self._session,
            key=caller(),
            source=self._source,
            prompt_tokens=self._prompt_tokens,
        )
        self._monitor.begin(ticket, make_waiter, self._prefix)
        return ticket

    async def __aenter__(self) -> Self:
        await self.begin()
        return self

    def __enter__(self) -> Self:
        self.begin_sync()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.end()

    def __exit__(self, *_: object) -> None:
        self.end()


class _Block:
    """A block that is the same in sync and async code, since neither end of it waits."""

    __slots__ = ("_monitor", "_session")

    def __init__(self, monitor: Monitor, session: Session) -> None:
        self._monitor = monitor
        self._session = session

    def _start(self) -> None:
        raise NotImplementedError

    def _stop(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> None:
        self._start()

    def __exit__(self, *_: object) -> None:
        self._stop()

    async def __aenter__(self) -> None:
        self._start()

    async def __aexit__(self, *_: object) -> None:
        self._stop()


class Suspension(_Block):
    """The agent is away and its place is free. Made by `Agent.suspended`."""

    __slots__ = ()

    def _start(self) -> None:
        self._monitor.suspend(self._session)

    def _stop(self) -> None:
        self._monitor.resume(self._session)


class Tool(_Block):
    """The agent runs a tool. Made by `Agent.tool`."""

    __slots__ = ("_began_s", "_name")

    def __init__(self, monitor: Monitor, session: Session, name: str) -> None:
        super().__init__(monitor, session)
        self._name = name
        self._began_s = 0.0

    def _start(self) -> None:
        self._began_s = self._monitor.tool_began(self._session, self._name)

    def _stop(self) -> None:
        self._monitor.tool_ended(self._session, self._name, self._began_s)


def caller() -> Hashable:
    """Tells calls made one after the other from calls made in parallel: the task, else the thread.

    An id and no reference: should it be reused, its first owner is gone and so is his call.
    """
    if running_loop() is not None:
        task = asyncio.current_task()
        if task is not None:
            return id(task)
    return -threading.get_ident()
