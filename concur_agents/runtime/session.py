"""What a governor knows of one agent: its place, and the turns it waits for.

Plain state. It changes only in `Sessions`, under the lock of the `Monitor`; a ticket's `waiter`
alone is also touched outside of it, by its owner, who waits on it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from concur_agents._text import shown_id

if TYPE_CHECKING:
    from concur_agents.core import Usage
    from concur_agents.runtime.waiter import Waiter


class Named(Protocol):
    """An `Agent`, as questions about it take it in place of its id."""

    @property
    def id(self) -> str:
        """Its name with the governor."""
        ...


def id_of(agent: str | Named) -> str:
    """The id of an agent, given by that id or as the object that `gov.agent(...)` returns."""
    return agent if isinstance(agent, str) else agent.id


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStats:
    """What one agent has done so far.

    Attributes:
        queued_s: time [s] from its arrival until it was let in.
        paused_s: time [s] it stood at boundaries after that.
        running_s: its life [s] without the two.
        pauses: how often it was paused.
        steps: LLM calls that have ended.
        prompt_tokens: sum over its steps, where the server said so.
        completion_tokens: sum over its steps, where the server said so.
        cached_tokens: sum over its steps; None: no response ever told.
    """

    queued_s: float
    paused_s: float
    running_s: float
    pauses: int
    steps: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None


class End(NamedTuple):
    """How a call ended."""

    usage: Usage | None = None
    overloaded: bool = False
    retry_after_s: float = 0.0
    sent: bool = True  # False: nothing was, so there is nothing to be learned from it
    aborted: bool = False  # the engine cut it short: what follows goes on with it


class Ticket:
    """One wait for a turn: at the entry (`entry` true), or before one call.

    The ticket of a call lasts as long as the call. Steps that begin inside the call share it:
    they are its parts, such as the tries of a client (see `runtime.step`).
    """

    __slots__ = (
        "around",
        "began_s",
        "ends_with_parts",
        "entry",
        "granted",
        "key",
        "left_to_first_part",
        "open",
        "parts",
        "prompt_tokens",
        "session",
        "source",
        "then",
        "tried",
        "usage",
        "waiter",
        "was_aborted",
    )

    def __init__(
        self,
        session: Session,
        *,
        entry: bool = False,
        key: Hashable = None,
        source: str = "",
        prompt_tokens: int | None = None,
    ) -> None:
        self.session = session
        self.entry = entry
        self.key = key  # the task or thread that makes the call
        self.source = source  # the layer that asked, as given to `Agent.gate`; empty: a block
        self.prompt_tokens = prompt_tokens
        self.granted = False
        self.open = False  # the call is in flight
        self.began_s = 0.0  # since then
        self.waiter: Waiter | None = None
        self.around: Ticket | None = None  # the call that was open where this one began
        self.left_to_first_part = False  # the first part asks for the turn, as it knows the prompt
        self.parts: set[object] = set()  # parts in flight
        self.tried = False  # a part has ended
        self.ends_with_parts = False  # its block was left while a part was in flight
        self.usage: Usage | None = None  # what the latest part has used
        self.was_aborted = False  # the latest part was cut short
        self.then: Callable[[], object] | None = None  # called when the call is over


@dataclass(eq=False, slots=True)
class Session:
    """What a governor knows of one agent from its arrival to its leaving."""

    id: str
    priority: int
    parent: Session | None
    group: str | None = None
    arrived_s: float = 0.0
    left_s: float | None = None
    suspended: bool = False  # the place is given back for a while (`suspended`)
    expelled: bool = False  # its gates raise (`expel`)
    entering: Ticket | None = None
    asked: list[Ticket] = field(default_factory=list)  # its calls that wait at a boundary
    calls: dict[Hashable, Ticket] = field(default_factory=dict)  # its calls in flight, by caller
    waiting_since_s: float | None = None
    queued_s: float = 0.0
    paused_s: float = 0.0
    pauses: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None
    thread: int | None = None  # it has this thread to itself
    was_needed: bool = False  # a thread that it waited in was needed by others
    served_by: str | None = None  # behind a router: the pool that answered last
    token: str | None = None  # behind a router: what it wants back with the next call

    @property
    def shown(self) -> str:
        """Its id as messages show it."""
        return shown_id(self.id)

    @property
    def root(self) -> Session:
        """The agent whose place it shares; itself if it has its own."""
        session = self
        while session.parent is not None:
            session = session.parent
        return session

    def is_expelled(self) -> bool:
        """Whether it, or an agent whose place it shares, has been expelled."""
        session: Session | None = self
        while session is not None:
            if session.expelled:
                return True
            session = session.parent
        return False

    def note(self, usage: Usage | None, *, aborted: bool = False) -> None:
        """Adds up what a step used; one that was cut short is none."""
        self.steps += not aborted
        if usage is None:
            return
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens
        if usage.cached_tokens is not None:
            self.cached_tokens = (self.cached_tokens or 0) + usage.cached_tokens

    def stop_waiting(self, now: float) -> float:
        """Books the wait that ends now as queue or pause; returns how long it was [s]."""
        if self.waiting_since_s is None:
            return 0.0
        waited_s = now - self.waiting_since_s
        self.queued_s, self.paused_s = self._waits(now)
        self.waiting_since_s = None
        return waited_s

    def _waits(self, now: float) -> tuple[float, float]:
        """`queued_s` and `paused_s` with the wait that still goes on."""
        going_s = 0.0 if self.waiting_since_s is None else now - self.waiting_since_s
        if self.entering is not None:
            return self.queued_s + going_s, self.paused_s
        return self.queued_s, self.paused_s + going_s

    def stats(self, now: float) -> AgentStats:
        """The sums up to now."""
        end = now if self.left_s is None else self.left_s
        queued, paused = self._waits(end)
        return AgentStats(
            queued_s=queued,
            paused_s=paused,
            running_s=max(0.0, end - self.arrived_s - queued - paused),
            pauses=self.pauses,
            steps=self.steps,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cached_tokens=self.cached_tokens,
        )
