"""The tickets that are waited for, and those whose waiters are to be woken."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concur_agents.runtime.session import Ticket
    from concur_agents.runtime.waiter import Waiter


class Tickets:
    """Tickets between request and wake-up."""

    def __init__(self) -> None:
        self._waiting: dict[Ticket, None] = {}
        self.to_wake: deque[Ticket] = deque()
        """Granted ones, for the monitor to wake once the lock is released."""

    def __len__(self) -> int:
        """How many are waited for."""
        return len(self._waiting)

    def __iter__(self) -> Iterator[Ticket]:
        """Those that are waited for, oldest first."""
        return iter(list(self._waiting))

    def wait_for(self, ticket: Ticket, make_waiter: Callable[[], Waiter]) -> None:
        """`ticket` is waited for, unless it has been granted already."""
        if not ticket.granted:
            ticket.waiter = make_waiter()
            self._waiting[ticket] = None

    def release(self, ticket: Ticket) -> None:
        """`ticket` is granted, and its waiter is to be woken."""
        ticket.granted = True
        if ticket.waiter is not None:
            self.to_wake.append(ticket)
            self.drop(ticket)

    def drop(self, ticket: Ticket) -> None:
        """`ticket` is waited for no longer."""
        self._waiting.pop(ticket, None)
