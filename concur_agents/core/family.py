"""An agent and its children: one place, one claim, one queue entry for all of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from concur_agents.core.prefixes import Chain
from concur_agents.core.pressure import Claim
from concur_agents.core.residency import LruEntry
from concur_agents.core.types import AgentId, State, is_plausible


@dataclass(slots=True, eq=False)
class Account:
    """Facts about one agent.  A child has an account of its own and its root's place."""

    agent: AgentId
    seq: int  # rank of arrival, of the first of its group: 0 came first
    priority: int = 0  # larger goes first
    group: str | None = None  # others with the same first prompt
    state: State = State.QUEUED  # where the family stands; meaningless in a child's account

    # sizes [tokens]
    footprint: float = 0.0  # last prompt + last completion
    last_prompt: float = 0.0
    first_prompt: float = 0.0
    family_tokens: float = 0.0  # sum of its children's footprints
    expected_prompt: float | None = None  # of the step it asks for, when the caller gave it
    need: float = 0.0  # what the step in flight will hold at its end

    # history
    steps: int = 0
    has_context: bool = False  # a step of its own has ended well
    work_tokens: float = 0.0  # output and new prompt tokens of all its steps
    output_mean: float | None = None
    growth_mean: float | None = None  # new prompt tokens per step, beyond sent and received

    # the current step or pause
    calls: int = 0  # its own, in flight
    in_flight: int = 0  # calls of this agent and its children
    waiters: dict[AgentId, int] = field(default_factory=dict)  # calls of each member at the gate
    begun_s: float = 0.0  # when the first of its own calls in flight began
    idle_since_s: float = 0.0
    waiting_since_s: float = 0.0
    has_begun: bool = False  # a step, since it was last let in
    has_sent: bool = False  # a call, since none of its family's was in flight
    is_cut_short: bool = False  # its last call was aborted, and its next one is no boundary
    distance: float | None = None  # reuse distance as its step began; None: nothing to learn
    generation: int = 0  # of the cache, when its last step ended

    # family
    parent: Account | None = None
    children: int = 0
    admitted_ever: bool = False
    is_suspended: bool = False  # its place is given back, until a member needs one
    departed: bool = False  # it left, but children still use its place

    # handles into the other books
    claim: Claim = field(default_factory=Claim)
    lru_entry: LruEntry = field(default_factory=LruEntry)
    chain: Chain = ()  # the prefixes it shares
    is_credited: bool = False  # no caller named them: newcomers found as much in the cache

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

    @property
    def since_s(self) -> float:
        """When it began to stand there [s], as far as that is known."""
        if self.calls:
            return self.begun_s
        waits = self.parent is None and self.state in (State.PAUSED, State.QUEUED)
        return self.waiting_since_s if waits else self.idle_since_s

    def expect(self, prompt_tokens: int | None) -> None:
        """Its next prompt has this size; None or an impossible one says nothing."""
        if prompt_tokens is not None and is_plausible(prompt_tokens):
            self.expected_prompt = prompt_tokens

    def begin_calls(self, calls: int, now: float) -> None:
        """`calls` of its own go out."""
        root = self.root
        if not root.in_flight and self is not root:
            root.distance = None  # by its own next call more will have been touched
        if not self.calls:
            self.begun_s = now
        self.calls += calls
        root.in_flight += calls

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
