"""An agent and its children: one place, one claim, one queue entry for all of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from concur_agents.core.prefixes import Chain
from concur_agents.core.pressure import Claim
from concur_agents.core.residency import LruEntry
from concur_agents.core.types import AgentId, State


@dataclass(slots=True, eq=False)
class Account:
    """Facts about one agent.  A child has an account of its own and its root's place."""

    agent: AgentId
    arrived_s: float
    seq: int
    """Rank of arrival: 0 came first."""
    priority: int = 0
    """Larger goes first."""
    state: State = State.QUEUED
    """Where the family stands; meaningless in a child's account."""

    # sizes [tokens]
    footprint: float = 0.0
    """Last prompt + last completion."""
    last_prompt: float = 0.0
    first_prompt: float = 0.0
    family_tokens: float = 0.0
    """Sum of its children's footprints."""
    expected_prompt: float | None = None
    """Prompt of the step it asks for, when the caller gave it."""

    # history
    steps: int = 0
    has_context: bool = False
    """A step of its own has ended well."""
    work_tokens: float = 0.0
    """Output and new prompt tokens of all its steps: how far it has come."""
    output_mean: float | None = None
    growth_mean: float | None = None
    """New prompt tokens per step, beyond what it had sent and received."""

    # the current step or pause
    calls: int = 0
    """Its own calls in flight."""
    in_flight: int = 0
    """Calls in flight of this agent and its children."""
    waiters: dict[AgentId, int] = field(default_factory=dict)
    """Members of the family that wait at the gate, each with its number of calls."""
    begun_s: float = 0.0
    """When the first of its own calls in flight began."""
    idle_since_s: float = 0.0
    waiting_since_s: float = 0.0
    has_begun: bool = False
    """It has begun a step since it was last let in."""
    has_sent: bool = False
    """A call has been sent since none of its family's was in flight."""
    distance: float | None = None
    """Reuse distance when its step began [tokens]; None: nothing to be learned from this step."""
    generation: int = 0
    """Engine restarts seen when its last step ended."""
    need: float = 0.0
    """What the step in flight will hold at its end [tokens]."""

    # family
    parent: Account | None = None
    children: int = 0
    admitted_ever: bool = False
    is_suspended: bool = False
    """It has given its place back; a member that needs one comes back for it."""
    departed: bool = False
    """It left, but children still use its place."""

    # handles into the other books
    claim: Claim = field(default_factory=Claim)
    lru_entry: LruEntry = field(default_factory=LruEntry)
    chain: Chain = ()
    """Names of the prefixes it shares."""
    is_credited: bool = False
    """No caller named them: newcomers found as much in the cache."""

    @property
    def root(self) -> Account:
        """The account whose place it uses."""
        return self.parent or self

    @property
    def standing(self) -> State:
        """Where it stands itself: in a family some call while others run tools."""
        if self.parent is None:
            return self.state
        if self.calls:
            return State.REASONING
        return self.parent.state if self.parent.waiters.get(self.agent) else State.ACTING

    def since_s(self, standing: State) -> float:
        """When it began to stand there [s], as far as that is known."""
        if standing is State.REASONING and self.calls:
            return self.begun_s
        if self.parent is None and standing in (State.PAUSED, State.QUEUED):
            return self.waiting_since_s
        return self.idle_since_s

    def begin_calls(self, calls: int, now: float) -> None:
        """`calls` of its own go out."""
        root = self.root
        if not root.in_flight and self is not root:
            root.distance = None  # by its own next call more will have been touched
        if not self.calls:
            self.begun_s = now
        self.calls += calls
        root.in_flight += calls

    def end_calls(self, calls: int) -> None:
        """`calls` of its own are over."""
        self.calls -= calls
        self.root.in_flight -= calls

    def stop_waiting(self) -> None:
        """One of its calls, whose family is not active, waits no longer.

        Raises:
            ValueError: none waits.
        """
        root = self.root
        calls = root.waiters.get(self.agent, 0)
        if not calls:
            raise ValueError(f"agent {self.agent!r} has no step to end")
        root.waiters[self.agent] = calls - 1
        if calls == 1 and (root.admitted_ever or self is not root):
            del root.waiters[self.agent]  # a root that was never let in still waits to start

    def take_waiters(self) -> tuple[list[AgentId], dict[AgentId, int]]:
        """Of a root just let in: the members that go on, and how many calls each begins."""
        waiters, self.waiters = self.waiters, {}
        return list(waiters or ([] if self.departed else [self.agent])), waiters

    @property
    def needs_place(self) -> bool:
        """Whether a member uses or asks for the place, so that it cannot be given back."""
        return bool(self.in_flight or self.waiters or self.children)
