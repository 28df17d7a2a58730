"""Waiting for a ticket: on an event loop, or in a thread.

A wait ends when the ticket is granted, or by the exception that cancels it; the ticket is then
withdrawn, also when it was granted in that very tick.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from concur_agents.errors import GateError
from concur_agents.runtime.waiter import LoopWaiter, ThreadWaiter, is_thread_needed, running_loop

if TYPE_CHECKING:
    from concur_agents.runtime.monitor import Monitor
    from concur_agents.runtime.session import Session, Ticket

_LOOK_S, _NEXT_LOOK_S = 0.5, 0.05
"""A waiting thread checks this often whether others need it, and more often once they did."""


async def wait(monitor: Monitor, ticket: Ticket) -> None:
    """Waits on the running loop until `ticket` is granted."""
    assert isinstance(ticket.waiter, LoopWaiter)
    try:
        await ticket.waiter.wait()
    except BaseException:  # also when the turn was granted in this very tick
        monitor.withdraw(ticket)
        raise
    check_expelled(ticket.session)


def wait_sync(monitor: Monitor, ticket: Ticket) -> None:
    """Waits in this thread until `ticket` is granted.

    Raises:
        GateError: an event loop runs in this thread.
    """
    assert isinstance(ticket.waiter, ThreadWaiter)
    if running_loop() is not None:
        monitor.withdraw(ticket)
        raise GateError(
            f"agent {ticket.session.shown!r} has to wait for its turn, but an event loop runs "
            "in this thread and a synchronous wait would stop everything on it: use `async with` "
            "and async clients here, or move the synchronous agent to a thread with "
            "`asyncio.to_thread`"
        )
    try:
        _sleep(monitor, ticket, ticket.waiter)
    except BaseException:  # Ctrl-C
        monitor.withdraw(ticket)
        raise
    check_expelled(ticket.session)


def check_expelled(session: Session) -> None:
    """Raises if the agent, or one whose place it shares, has been expelled."""
    if session.is_expelled():
        raise _Expelled(f"agent {session.shown!r} was cancelled")


def _sleep(monitor: Monitor, ticket: Ticket, waiter: ThreadWaiter) -> None:
    """Waits, but does not keep a thread from the agents that it waits for."""
    session = ticket.session
    if ticket.entry or session.root.thread == threading.get_ident():
        waiter.wait()
        return
    most_s = _NEXT_LOOK_S if session.was_needed else _LOOK_S
    while not waiter.wait(most_s):
        if is_thread_needed():
            session.was_needed = True
            monitor.withdraw(ticket)
            monitor.meet_starvation(session.id)
            return  # the step was never begun, and passes


class _Expelled(asyncio.CancelledError, KeyboardInterrupt):
    """Ends an agent in a thread at once, as Ctrl-C does.

    Retry loops, that of mini-swe-agent among them, try again after anything but
    KeyboardInterrupt; an agent that was cancelled would keep its place for minutes.
    """
