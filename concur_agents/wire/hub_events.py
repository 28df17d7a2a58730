"""What happens to the agents of clients, said as a governor says it of its own.

The words are those of `runtime.events`; the host makes events of them, for metrics and traces.
Ids are those of the Regulator, `SESSION/AGENT`, and times those of the server: a wait ends when the
answer is sent, and a step lasts from there to the report of its end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from concur_agents.core import AgentId, Usage
from concur_agents.wire.book import Book, Entry


class Tell(Protocol):
    """Hears of one thing: `tell(kind, now, agent, **details)`, see `runtime.events.Event`."""

    def __call__(
        self, kind: str, now: float, agent: AgentId | None, /, **details: object
    ) -> object:
        """It happened."""


class HubEvents:
    """Says what happens, and keeps since when each agent waits and each call is in flight.

    Args:
        tell: hears it; None: nothing does.
    """

    def __init__(self, tell: Tell | None) -> None:
        self._tell: Tell = tell or (lambda *_, **__: None)

    def arrived(self, key: AgentId, entry: Entry, now: float, parent: AgentId | None) -> None:
        """It asks to start; with a parent it is in."""
        self._tell("arrived", now, key, parent=parent, prompt_tokens=entry.prompt_tokens)
        if entry.parent is None:
            entry.waits_since_s = now
        else:
            self._tell("admitted", now, key, waited_s=0.0)

    def let_in(self, key: AgentId, entry: Entry, now: float, *, was_in: bool, calls: int) -> None:
        """It was let in.

        Args:
            key: its id.
            entry: as it is booked now.
            now: the time [s].
            was_in: it had been let in before.
            calls: so many that waited have left.
        """
        since_s, entry.waits_since_s = entry.waits_since_s, None
        if not was_in:
            self._tell("admitted", now, key, waited_s=None if since_s is None else now - since_s)
        elif since_s is not None:
            self._tell("resumed", now, key, waited_s=now - since_s)
        for _ in range(calls):
            self.passed(key, entry, now)

    def passed(self, key: AgentId, entry: Entry, now: float) -> None:
        """A call of it leaves."""
        entry.calls_since_s.append(now)
        self._tell("step_began", now, key, prompt_tokens=entry.prompt_tokens)

    def asked(self, key: AgentId, entry: Entry, now: float) -> None:
        """A call of it has asked to leave: from now on it waits, if it was not let in."""
        if entry.asks and entry.waits_since_s is None:
            entry.waits_since_s = now
            self._tell("paused", now, key)

    def ended(
        self,
        key: AgentId,
        entry: Entry,
        now: float,
        usage: Usage | None,
        *,
        is_aborted: bool = False,
    ) -> None:
        """A call of it is over: of several the oldest, which changes no sum of their times."""
        since_s = entry.calls_since_s.pop(0)
        self._tell(
            "step_ended",
            now,
            key,
            usage=usage,
            reason="abort" if is_aborted else "",
            waited_s=None if since_s is None else now - since_s,
        )

    def withdrawn(self, key: AgentId, entry: Entry, now: float, *, waited: bool) -> None:
        """A call of it was called off, while it waited or after it was let out."""
        if not waited:
            entry.calls_since_s.pop()
            self._tell("step_withdrawn", now, key)
        elif not entry.asks:
            entry.waits_since_s = None

    def suspended(self, key: AgentId, now: float) -> None:
        """It gives its place back."""
        self._tell("suspended", now, key)

    def comes_back(self, key: AgentId, entry: Entry, now: float) -> None:
        """It asks for a place again, if it had given its own back."""
        if entry.parent is None and entry.suspended:
            self._tell("resume_asked", now, key)

    def flushed(self, pool: str | None, now: float) -> None:
        """The cache of an engine was emptied; None: of all."""
        self._tell("flushed", now, None, pool=pool)

    def left(self, key: AgentId, entry: Entry, now: float) -> None:
        """It is gone, wherever it stood."""
        while entry.calls_since_s:
            self.ended(key, entry, now, None)
        self._tell("left", now, key)

    def returned(
        self, former: Book, book: Book, key: Callable[[Entry], AgentId], now: float
    ) -> None:
        """A client has connected, perhaps again: its agents are those of `book` now.

        What happened meanwhile is known by its outcome only: how long it took is not.
        """
        for entry in former:
            if book.find(entry.agent) is None:
                self.left(key(entry), entry, now)
        for entry in book:
            name, before = key(entry), former.find(entry.agent)
            if before is None:
                parent = None if entry.parent is None else key(entry.parent)
                self._tell("arrived", now, name, parent=parent, prompt_tokens=entry.prompt_tokens)
                if entry.entered:
                    self._tell("admitted", now, name, waited_s=None)
            else:
                entry.waits_since_s, entry.calls_since_s = (
                    before.waits_since_s,
                    before.calls_since_s,
                )
                if entry.entered and not before.entered:
                    entry.waits_since_s = None
                    self._tell("admitted", now, name, waited_s=None)
                while len(entry.calls_since_s) > entry.calls:
                    self.ended(name, entry, now, None)
            while len(entry.calls_since_s) < entry.calls:
                entry.calls_since_s.append(None)
                self._tell("step_began", now, name, prompt_tokens=entry.prompt_tokens)
            self._wait(name, entry, now)

    def _wait(self, key: AgentId, entry: Entry, now: float) -> None:
        """It waits from now on, if it is to and did not."""
        if entry.asks:
            self.asked(key, entry, now)
        elif entry.entered:
            entry.waits_since_s = None
        elif entry.waits_since_s is None:
            entry.waits_since_s = now
