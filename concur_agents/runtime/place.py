"""An agent's place: it is waited for on entering, held for its life, and free once that is over."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Token
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from concur_agents._outside import finishing
from concur_agents.errors import ConfigError
from concur_agents.runtime import generators
from concur_agents.runtime.context import current, restore
from concur_agents.runtime.session import Session, Ticket
from concur_agents.runtime.waiter import (
    CallWaiter,
    LoopWaiter,
    ThreadWaiter,
    Waiter,
    asyncio_loop,
)
from concur_agents.runtime.waiting import wait, wait_sync

if TYPE_CHECKING:
    from concur_agents.runtime.monitor import Monitor


class Place:
    """What an `Agent` takes on entering and gives back on leaving. It can be entered once."""

    outer: Any
    """The agent this one was opened in."""

    def __init__(
        self,
        monitor: Monitor,
        session: Session,
        *,
        prompt_tokens: int | None,
        timeout_s: float | None,
    ) -> None:
        self._monitor = monitor
        self._session = session
        self._prompt_tokens = prompt_tokens
        self._timeout_s = timeout_s
        self._entered = False
        self._token: Token[Any] | None = None
        self.block: tuple[int, int] | None = None
        """The async generator and the task that entered it; None: no async generator did."""

    @property
    def left(self) -> bool:
        """Whether its life is over: its block was left, or it was dropped."""
        return self._session.left_s is not None

    async def open(self) -> None:
        """Takes a place and waits for it. For adapters whose agent is no block; see `close`.

        Raises:
            GateError: no asyncio loop runs here.
            TimeoutError: it was not let in within `timeout_s`.
        """
        loop = asyncio_loop()
        ticket = self._enter(lambda: LoopWaiter(loop))
        if ticket.waiter is not None:
            try:
                await wait(ticket, self._timeout_s)
            except BaseException:  # also when it was let in in this very tick
                self._leave()
                raise

    def open_sync(self) -> None:
        """As `open`, in a thread.

        Raises:
            GateError: it would have to wait, and an event loop runs in this thread.
            TimeoutError: it was not let in within `timeout_s`.
        """
        self._session.thread = threading.get_ident()
        ticket = self._enter(ThreadWaiter)
        if ticket.waiter is not None:
            try:
                wait_sync(self._monitor, ticket, self._timeout_s)
            except BaseException:  # also Ctrl-C
                self._leave()
                raise

    def arrive(self, let_in: Callable[[], object]) -> bool:
        """Takes a place without waiting for it. For hosts with a queue of their own.

        Args:
            let_in: called once it has the place, if that is not now; in any thread, and must
                neither block nor raise.

        Returns:
            Whether it has its place already; `let_in` is then not called.
        """
        ticket = self._enter(lambda: CallWaiter(let_in))
        return ticket.waiter is None

    def close(self) -> None:
        """Leaves: the place goes to the next. Never blocks; calling it again does nothing."""
        self._leave()

    @finishing
    def expel(self) -> None:
        """Cancels what cannot be cancelled otherwise: an agent in a thread.

        Its gates, and those of agents nested in it, raise `asyncio.CancelledError` from now on,
        also those that wait. A call in flight is not interrupted; the place is held until it
        leaves.
        """
        self._monitor.expel(self._session)

    @contextmanager
    def active(self) -> Iterator[Self]:
        """Makes it the `current_agent()` in a block, without entering or leaving.

        For adapters that run an agent piece by piece, such as around each item of a generator:
        a variable set across a `yield` would leak into the consumer.
        """
        token = current.set(weakref.ref(self))
        try:
            yield self
        finally:
            current.reset(token)

    async def __aenter__(self) -> Self:
        await self.open()
        try:
            generators.hold(self)
        except BaseException:  # from outside
            self.close()
            raise
        return self._enter_block()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave_block()

    def __enter__(self) -> Self:
        self.open_sync()
        generators.hold(self)
        return self._enter_block()

    @finishing
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave_block()

    def _enter_block(self) -> Self:
        outer = current.get()
        try:
            self._token = current.set(weakref.ref(self))
        except BaseException:  # from outside, perhaps before the token was kept
            current.set(outer)
            self.close()
            raise
        return self

    @finishing
    def _leave_block(self) -> None:
        self.close()
        generators.release(self)
        token = self._token
        if token is not None:
            restore(current, token)
            self._token = None

    def __del__(self) -> None:
        if getattr(self, "_entered", False) and not self.left:
            self.close()

    # Inside

    @finishing
    def _leave(self) -> None:
        self._monitor.leave(self._session)

    def _enter(self, make_waiter: Callable[[], Waiter]) -> Ticket:
        if self._entered:
            raise ConfigError(
                f"agent {self._session.shown!r} was entered before; an agent is entered once, "
                "make a new one with governor.agent(...)"
            )
        ticket = Ticket(self._session, entry=True)
        self._entered = True
        try:
            self._monitor.enter(ticket, make_waiter, self._prompt_tokens)
        except BaseException:  # refused; or Ctrl-C, wherever that struck
            self._leave()
            raise
        return ticket
