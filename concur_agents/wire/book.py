"""The agents of one session, as both sides book them from the same ops.

The client books what its agents do, and what was granted.  The server books the ops as they come,
and what it grants.  So the client knows where its agents stand when the server is gone, and the
server can tell an op that makes sense from one that does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from concur_agents.core import Usage
from concur_agents.wire.messages import Standing, WireError


@dataclass(slots=True, eq=False)
class Entry:
    """One agent.  `has_place`, `suspended` and `wants_place` are meaningless in a child's entry."""

    agent: str
    parent: Entry | None = None
    """The root of its family; None: it is one."""
    priority: int = 0
    group: str | None = None
    prompt_tokens: int | None = None
    entered: bool = False
    has_place: bool = False
    suspended: bool = False
    departed: bool = False
    wants_place: bool = False
    wants_seq: int = 0
    """The op by which it wants its place."""
    place_seq: int = 0
    """The last op of its family that was about its place: an answer to an earlier one is stale."""
    is_told: bool = False
    """Of a root, for the client: the answer to its calls was that they wait."""
    calls: int = 0
    asks: list[int] = field(default_factory=list)
    """The ops of its calls that wait, oldest first."""
    context: Usage | None = None
    pool: str | None = None
    served_by: str | None = None
    """For the server, behind a router: the pool that the last answer named."""
    steps: int = 0
    since_s: float = 0.0
    """When it last began to wait, on the client's clock [s]."""
    waits_since_s: float | None = None
    """For the server: since when it waits [s]; None: it does not."""
    calls_since_s: list[float | None] = field(default_factory=list)
    """For the server: when each call in flight left [s]; None: before the server knew of it."""
    children: dict[str, Entry] = field(default_factory=dict)

    @property
    def root(self) -> Entry:
        """The agent whose place it uses."""
        return self.parent or self

    @property
    def family(self) -> Iterator[Entry]:
        """Itself, of a root, and its children."""
        yield self
        yield from self.children.values()

    @property
    def has_calls(self) -> bool:
        """Whether a call of its family is in flight."""
        return any(member.calls for member in self.family)

    @property
    def has_asks(self) -> bool:
        """Whether a call of its family waits for the answer."""
        return any(member.asks for member in self.family)

    @property
    def waits(self) -> bool:
        """Whether its family waits for something."""
        return self.wants_place or self.has_asks

    def standing(self) -> Standing:
        """For a roster."""
        context = self.context
        return Standing(
            agent=self.agent,
            parent=None if self.parent is None else self.parent.agent,
            entered=self.entered,
            has_place=self.has_place,
            suspended=self.suspended,
            departed=self.departed,
            calls=self.calls,
            asks=len(self.asks),
            wants_place=self.wants_place,
            priority=self.priority,
            group=self.group,
            prompt_tokens=self.prompt_tokens,
            context=None if context is None else (context.prompt_tokens, context.completion_tokens),
            pool=self.root.pool,
        )


class Book:
    """All of them, in order of arrival."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._departed: list[Entry] = []  # roots whose children are here

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, agent: object) -> bool:
        return agent in self._entries

    def __iter__(self) -> Iterator[Entry]:
        """The agents that are here."""
        return iter(list(self._entries.values()))

    @property
    def roots(self) -> list[Entry]:
        """The agents with a place of their own, those that left before their children first."""
        entries = (*self._departed, *self._entries.values())
        return [entry for entry in entries if entry.parent is None]

    def find(self, agent: str) -> Entry | None:
        """The entry of an agent; None: it is not here."""
        return self._entries.get(agent)

    def get(self, agent: str) -> Entry:
        """The entry of an agent.

        Raises:
            WireError: it is not here.
        """
        entry = self._entries.get(agent)
        if entry is None:
            raise WireError(f"agent {agent!r} is not here: it must arrive first")
        return entry

    # -- what happens to an agent ----------------------------------------------------------------

    def arrive(self, agent: str, seq: int, parent: str | None = None) -> Entry:
        """It wants a place, or shares that of `parent`.

        Raises:
            WireError: it is here already, or its parent is not.
        """
        if agent in self._entries:
            raise WireError(f"agent {agent!r} is here already: ids must be unique until it leaves")
        entry = Entry(agent)
        if parent is None:
            entry.wants_place, entry.wants_seq, entry.place_seq = True, seq, seq
        else:
            root = self.get(parent).root
            entry.parent, entry.entered = root, True
            root.children[agent] = entry
        self._entries[agent] = entry
        return entry

    def ask(self, entry: Entry, seq: int) -> None:
        """A call waits for the answer."""
        root = entry.root
        if entry is root:
            root.suspended = False
        if not root.has_calls:
            root.has_place = False  # that is the question
        root.is_told = root.is_told and root.has_asks
        root.place_seq = seq
        entry.asks.append(seq)

    def pass_on(self, entry: Entry) -> None:
        """A call has left without asking."""
        root = entry.root
        if entry is root:
            root.suspended = False
        entry.calls += 1
        root.has_place = root.entered = True
        root.wants_place = False

    def grant(self, entry: Entry) -> None:
        """The family has its place, and the calls of this agent go out."""
        root = entry.root
        root.has_place = root.entered = True
        root.wants_place = root.is_told = False
        entry.calls += len(entry.asks)
        entry.asks.clear()

    def end(self, entry: Entry, usage: Usage | None) -> None:
        """A call is over.

        Raises:
            WireError: it has none.
        """
        if not entry.calls:
            raise WireError(f"agent {entry.agent!r} has no call to end")
        entry.calls -= 1
        if usage is not None:
            entry.context, entry.steps = usage, entry.steps + 1
        self._settle(entry.root)

    def withdraw(self, entry: Entry) -> None:
        """A call is called off, waiting or not.

        Raises:
            WireError: it has none.
        """
        if entry.asks:
            entry.asks.pop()
        elif entry.calls:
            entry.calls -= 1
        else:
            raise WireError(f"agent {entry.agent!r} has no call to withdraw")
        self._settle(entry.root)

    def suspend(self, entry: Entry, seq: int) -> None:
        """It gives its place back.

        Raises:
            WireError: it has none of its own, or was never let in.
        """
        if entry.parent is not None or not entry.entered:
            raise WireError(f"agent {entry.agent!r} has no place of its own to give back")
        entry.suspended, entry.wants_place, entry.place_seq = True, False, seq
        self._settle(entry)

    def resume(self, entry: Entry, seq: int) -> None:
        """It wants its place again.

        Raises:
            WireError: it has none of its own.
        """
        if entry.parent is not None or not entry.entered:
            raise WireError(f"agent {entry.agent!r} has no place of its own to ask for")
        entry.suspended = False
        if not entry.has_place:
            entry.wants_place, entry.wants_seq, entry.place_seq = True, seq, seq

    def leave(self, entry: Entry) -> None:
        """It is gone, wherever it stood."""
        root = entry.root
        del self._entries[entry.agent]
        entry.calls = 0
        entry.asks.clear()
        if entry is not root:
            del root.children[entry.agent]
            if root.departed and not root.children:
                self._departed.remove(root)
        elif root.children:
            root.departed = True
            self._departed.append(root)
        self._settle(root)

    @staticmethod
    def _settle(root: Entry) -> None:
        """The place of a suspended agent is free unless a member of its family needs it."""
        if root.suspended and not (root.has_calls or root.has_asks or root.children):
            root.has_place = False

    # -- rosters -----------------------------------------------------------------------------------

    def roster(self) -> list[Standing]:
        """Where all stand: each root, and its children behind it."""
        return [member.standing() for root in self.roots for member in root.family]

    def take(self, standings: Iterable[Standing], seq: int) -> None:
        """Books agents as a roster has them.

        Args:
            standings: each root, and its children behind it.
            seq: of the last op that the roster contains.

        Raises:
            WireError: they contradict each other.
        """
        root: Entry | None = None
        for one in standings:
            if one.agent in self._entries and not one.departed:
                raise WireError(f"agent {one.agent!r} is in the roster twice")
            entry = Entry(
                one.agent,
                priority=one.priority,
                group=one.group,
                prompt_tokens=one.prompt_tokens,
                entered=one.entered,
                has_place=one.has_place,
                suspended=one.suspended,
                departed=one.departed,
                wants_place=one.wants_place,
                wants_seq=seq,
                place_seq=seq,
                calls=one.calls,
                asks=[seq] * one.asks,
                context=None if one.context is None else Usage(*one.context),
                pool=one.pool,
            )
            if one.parent is None:
                root = entry
            elif root is None or root.agent != one.parent or one.departed:
                raise WireError(f"agent {one.agent!r} is not behind its parent in the roster")
            else:
                entry.parent = root
                root.children[one.agent] = entry
            if entry.departed:
                self._departed.append(entry)
            else:
                self._entries[one.agent] = entry
            _check(entry)


def _check(entry: Entry) -> None:
    root = entry.root
    is_in = entry.entered and (entry.parent is not None or entry.has_place or not entry.calls)
    if (entry.calls or entry.asks) and entry.departed:
        raise WireError(f"agent {entry.agent!r} has left and makes calls")
    if (entry.calls and not (is_in and root.has_place)) or (root.has_place and not root.entered):
        raise WireError(f"agent {entry.agent!r} makes calls without a place")
