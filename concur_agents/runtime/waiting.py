"""Waiting for a ticket: on an event loop, or in a thread.

A wait ends when the ticket is granted, or by the exception that cancels it. The caller then
withdraws the ticket, also when it was granted in that very tick.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from concur_agents._outside import is_from_handler
from concur_agents.errors import GateError
from concur_agents.runtime.waiter import (
    LoopWaiter,
    ThreadWaiter,
    foreign_loop,
    is_thread_needed,
    running_loop,
)

if TYPE_CHECKING:
    from concur_agents.runtime.monitor import Monitor
    from concur_agents.runtime.session import Session, Ticket

_LOOK_S, _NEXT_LOOK_S = 0.5, 0.05
"""A waiting thread checks this often whether others need it, and more often once they did."""


async def wait(ticket: Ticket, timeout_s: float | None = None) -> None:
    """Waits on the running loop until `ticket` is granted.

    Args:
        ticket: has a `LoopWaiter`.
        timeout_s: bound on the wait at the entry [s]; None: no bound.

    Raises:
        TimeoutError: the bound has passed.
    """
    assert isinstance(ticket.waiter, LoopWaiter)
    try:
        async with asyncio.timeout(timeout_s):
            await ticket.waiter.wait()
    except TimeoutError as error:
        if is_from_handler(error):
            raise
        raise _timed_out(ticket.session, timeout_s or 0.0) from None
    check_expelled(ticket.session)


def wait_sync(monitor: Monitor, ticket: Ticket, timeout_s: float | None = None) -> None:
    """Waits in this thread until `ticket` is granted.

    Args:
        monitor: grants it.
        ticket: has a `ThreadWaiter`.
        timeout_s: bound on the wait at the entry [s]; None: no bound.

    Raises:
        GateError: an event loop runs in this thread.
        TimeoutError: the bound has passed.
    """
    assert isinstance(ticket.waiter, ThreadWaiter)
    if library := foreign_loop():
        monitor.withdraw(ticket)
        raise GateError(
            f"agent {ticket.session.shown!r} has to wait for its turn, but {library} runs an event "
            "loop in this thread and a synchronous wait would stop everything on it. `async with` "
            f"needs asyncio: under {library} move the synchronous agent to a thread, as with "
            "`trio.to_thread.run_sync`"
        )
    if running_loop() is not None:
        raise GateError(
            f"agent {ticket.session.shown!r} has to wait for its turn, but an event loop runs "
            "in this thread and a synchronous wait would stop everything on it: use `async with` "
            "and async clients here, or move the synchronous agent to a thread with "
            "`asyncio.to_thread`"
        )
    _sleep(monitor, ticket, ticket.waiter, timeout_s)
    check_expelled(ticket.session)


def check_expelled(session: Session) -> None:
    """Raises if the agent, or one whose place it shares, has been expelled."""
    if session.is_expelled():
        raise _Expelled(f"agent {session.shown!r} was cancelled")


def _sleep(monitor: Monitor, ticket: Ticket, waiter: ThreadWaiter, timeout_s: float | None) -> None:
    """Waits, but does not keep a thread from the agents that it waits for."""
    session = ticket.session
    if ticket.entry or session.root.thread == threading.get_ident():
        if not waiter.wait(timeout_s):
            raise _timed_out(session, timeout_s or 0.0)
        return
    most_s = _NEXT_LOOK_S if session.was_needed else _LOOK_S
    while not waiter.wait(most_s):
        if is_thread_needed():
            session.was_needed = True
            monitor.withdraw(ticket)
            monitor.meet_starvation(session.id)
            return  # the step was never begun, and passes


def _timed_out(session: Session, timeout_s: float) -> TimeoutError:
    return TimeoutError(f"agent {session.id!r} was not let in within {timeout_s:g} s")


class _Expelled(asyncio.CancelledError, KeyboardInterrupt):
    """Ends an agent in a thread at once, as Ctrl-C does.

    Retry loops, that of mini-swe-agent among them, try again after anything but
    KeyboardInterrupt; an agent that was cancelled would keep its place for minutes.
    """
