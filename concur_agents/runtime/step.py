"""The steps of an agent's life. What is between them is in `blocks`.

Handles as well, and as thin as the agent's own: they say when something begins and ends.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Hashable
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any, Self

from concur_agents._outside import finishing
from concur_agents.probes.usage import read_usage
from concur_agents.runtime.checks import check_chain, check_tokens, read_flag, read_seconds
from concur_agents.runtime.context import restore
from concur_agents.runtime.session import End, Session, Ticket
from concur_agents.runtime.waiter import (
    LoopWaiter,
    ThreadWaiter,
    Waiter,
    asyncio_loop,
    running_loop,
)
from concur_agents.runtime.waiting import check_expelled, wait, wait_sync

if TYPE_CHECKING:
    from concur_agents.core import Chain, Usage
    from concur_agents.runtime.monitor import Monitor


_call: ContextVar[Ticket | None] = ContextVar("concur_agents_call", default=None)
"""The ticket of the innermost call that this code runs in; the call may be over."""


class Step:
    """One LLM call with all its retries. Made by `Agent.step` and `Agent.gate`.

    A step that begins inside an open step of the same agent (in the same context, as context
    variables have it) is part of that one: it does not ask for a turn, and its usage and its
    refusals count for the outer step. So it does not matter how many layers gate the same call.
    """

    __slots__ = (
        "_asks",
        "_is_part",
        "_monitor",
        "_prefix",
        "_prompt_tokens",
        "_session",
        "_source",
        "_ticket",
        "_token",
        "_was_aborted",
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
        source: str = "",
        agent: Any = None,
    ) -> None:
        self._monitor = monitor
        self._session = session
        self._prompt_tokens = check_tokens(prompt_tokens)
        self._prefix = check_chain(prefix)
        self._source = source
        self._ticket: Ticket | None = None
        self._is_part = False  # the ticket is that of an outer step
        self._asks = False  # it has asked for the turn of that ticket
        self._token: Token[Ticket | None] | None = None
        self._was_aborted = False
        self.usage: Usage | None = None
        """What was recorded for it."""
        self.agent = agent
        """The `Agent` that makes the call."""

    def record(self, usage: object) -> None:
        """Says what the call used: it makes footprints exact.

        Args:
            usage: the `usage` of a chat completion, completion or response of the openai client,
                the whole response, a dictionary with the same names, LangChain's
                `usage_metadata`, a `concur_agents.core.Usage`, or another form of
                `probes.usage.DIALECTS`. None is ignored, because streams may end without. What
                holds no token counts is not reported: it is warned of once and counted
                (`governor.snapshot().unread_usages_total`), and never fails the agent.
        """
        told = read_usage(usage)
        if told is not None:
            self.usage = told
        elif usage is not None:
            self._monitor.meet_unread_usage(usage)

    def refused(self, retry_after_s: float = 0.0) -> None:
        """Says that the endpoint refused the call for lack of capacity (429, 503).

        The step goes on: what is tried again inside of it is part of it.

        Args:
            retry_after_s: how long it asked to wait [s].
        """
        if self._ticket is not None:
            end = End(overloaded=True, retry_after_s=read_seconds(retry_after_s))
            self._monitor.retry(self._ticket, end)

    def aborted(self) -> None:
        """Says that the engine cut the call short, as for a weight update: it is neither a step nor
        a failure, and the agent's next call goes on with it, so that it is not paused before.
        """
        self._was_aborted = True

    def again(self) -> None:
        """Another try of the call begins: how long it takes is counted from here."""
        if self._ticket is not None:
            self._monitor.retry(self._ticket, End())

    async def begin(self) -> None:
        """Waits for the turn. `async with` does this."""
        loop = asyncio_loop()
        try:
            ticket = self._begin(lambda: LoopWaiter(loop))
            if ticket is not None and ticket.waiter is not None:
                await wait(ticket)
        except BaseException:  # also when the turn was granted in this very tick
            self._give_up()
            raise

    def begin_sync(self) -> None:
        """Waits for the turn. Plain `with` does this.

        Raises:
            GateError: it would have to wait, and an event loop runs in this thread.
        """
        try:
            ticket = self._begin(ThreadWaiter)
            if ticket is not None and ticket.waiter is not None:
                wait_sync(self._monitor, ticket)
        except BaseException:  # also Ctrl-C
            self._give_up()
            raise

    def enclose(self) -> None:
        """From here on, and until it ends, this step has the later ones of this context as parts.

        `with` does this for its block.
        """
        ticket = self._ticket
        if ticket is not None and not self._is_part:
            ticket.around = _innermost(None)
            self._token = _call.set(ticket)

    def around_tries(self, then: Callable[[], object] | None = None) -> Tries:
        """A block in which a client makes one call, with all its tries.

        The first try asks for the turn, because it knows the prompt; later tries are parts of the
        same step. The step ends with the block, or with the try whose answer is still being read.

        Args:
            then: called when the step has ended.
        """
        return Tries(self, then)

    def _enter_tries(self, then: Callable[[], object] | None) -> None:
        check_expelled(self._session)
        outer = _innermost(self._session, self._source)
        if outer is not None:
            self._join(outer)
        else:
            self._ticket = self._make_ticket()
            self._ticket.left_to_first_part = True
            self._ticket.then = then
            self._enter_block()

    def _leave_tries(self, *, failed: bool) -> None:
        try:
            ticket = self._ticket
            if not failed and ticket is not None and not self._is_part and ticket.parts:
                self._ticket = None
                ticket.ends_with_parts = True
            else:
                self._end()
        finally:
            self._leave_block()

    @finishing
    def end(self) -> None:
        """The call is over. From any thread, never blocks; calling it again does nothing."""
        self._end()

    @finishing
    def finish(self, *, overloaded: bool = False, retry_after_s: float = 0.0) -> None:
        """As `end`; says with it whether the endpoint refused the call. See `Agent.done`."""
        self._end(overloaded, retry_after_s)

    @finishing
    def withdraw(self) -> None:
        """The call was not sent after all: neither a step nor a failure. As `end` otherwise."""
        self._finish(End(sent=False))

    def _begin(self, make_waiter: Callable[[], Waiter]) -> Ticket | None:
        """Asks for a turn; returns the ticket to wait for. None: this is part of an open call."""
        check_expelled(self._session)
        ticket = _innermost(self._session, self._source)
        if ticket is None:
            ticket = self._ticket = self._make_ticket()
        else:
            is_retry = ticket.tried
            self._join(ticket)
            if is_retry and ticket.open and self._monitor.must_move(ticket.session.id):
                self._monitor.withdraw(ticket)  # the call begins anew, and in another pool
            elif not ticket.left_to_first_part or ticket.open:
                return None
            ticket.granted, ticket.waiter = False, None  # an earlier try may have been turned away
            ticket.prompt_tokens = self._prompt_tokens
        self._asks = True
        self._monitor.begin(ticket, make_waiter, self._prefix)
        return ticket

    @finishing
    def _give_up(self) -> None:
        """It has not begun: it was refused, or its wait was cancelled."""
        ticket = self._ticket
        if ticket is not None:
            if self._is_part:
                ticket.parts.discard(self)
            if self._asks:
                self._monitor.withdraw(ticket)
            self._ticket = None

    def _make_ticket(self) -> Ticket:
        return Ticket(
            self._session,
            key=caller(),
            source=self._source,
            prompt_tokens=self._prompt_tokens,
        )

    def _join(self, outer: Ticket) -> None:
        self._ticket, self._is_part = outer, True
        outer.parts.add(self)
        if outer.tried:
            outer.tried = False
            self.again()

    def _end(self, overloaded: bool = False, retry_after_s: float = 0.0) -> None:
        refused, again_s = read_flag(overloaded), read_seconds(retry_after_s)
        self._finish(End(self.usage, refused, again_s, aborted=self._was_aborted))

    def _finish(self, end: End) -> None:
        # An exception from outside may cut this off anywhere, and it is then done again.
        ticket = self._ticket
        if ticket is None:
            return
        if not self._is_part:
            self._close(ticket, end)
            self._ticket = None
            return
        ticket.parts.discard(self)
        if end.sent:
            ticket.tried, ticket.was_aborted = True, end.aborted
        if end.usage is not None:
            ticket.usage = end.usage
        if end.overloaded:  # reported now, because the outer step may end a Retry-After later
            self._monitor.retry(ticket, end)
        if ticket.ends_with_parts and not ticket.parts:
            self._close(ticket, End())
        self._ticket = None

    def _close(self, ticket: Ticket, end: End) -> None:
        ticket.left_to_first_part = False
        self._monitor.end(ticket, end)
        then = ticket.then
        if then is not None:
            then()
            ticket.then = None

    def _leave_block(self) -> None:
        token = self._token
        if token is not None:
            restore(_call, token)
            self._token = None

    async def __aenter__(self) -> Self:
        await self.begin()
        return self._enter_block()

    def __enter__(self) -> Self:
        self.begin_sync()
        return self._enter_block()

    def _enter_block(self) -> Self:
        try:
            self.enclose()
        except BaseException:
            self._leave()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._leave()

    @finishing
    def __exit__(self, *_: object) -> None:
        self._end_block()

    @finishing
    def _leave(self) -> None:
        self._end_block()

    def _end_block(self) -> None:
        self._end()
        self._leave_block()


class Tries:
    """A block around the tries of a call. Made by `Step.around_tries`."""

    __slots__ = ("_step", "_then")

    def __init__(self, step: Step, then: Callable[[], object] | None) -> None:
        self._step = step
        self._then = then

    def __enter__(self) -> None:
        self._step._enter_tries(self._then)

    @finishing
    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._step._leave_tries(failed=kind is not None)


def _innermost(session: Session | None, source: str = "") -> Ticket | None:
    """The ticket of the innermost open call that this code runs in; None: there is none.

    Args:
        session: only a call of this agent; None: of any.
        source: but not one of the same source, unless that is empty.
    """
    ticket = _call.get()
    while ticket is not None:
        is_open = ticket.open or ticket.left_to_first_part
        is_own = session is None or ticket.session is session
        if is_open and is_own and not (source and source == ticket.source):
            return ticket
        ticket = ticket.around
    return None


def caller() -> Hashable:
    """Tells calls made one after the other from calls made in parallel: the task, else the thread.

    An id and no reference: should it be reused, its first owner is gone and so is his call.
    """
    loop = running_loop()
    if loop is not None:
        task = asyncio.current_task(loop)
        if task is not None:
            return id(task)
    return -threading.get_ident()
