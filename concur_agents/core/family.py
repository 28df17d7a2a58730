"""One agent's book: where it stands, what it holds, what its steps were like."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from concur_agents.core.prefixes import Chain
from concur_agents.core.pressure import Claim
from concur_agents.core.residency import LruEntry

AgentId = str


class State(enum.Enum):
    """Where an agent stands."""

    QUEUED = "queued"
    """Never admitted."""
    REASONING = "reasoning"
    """Active, a call is in flight."""
    ACTING = "acting"
    """Active, running a tool."""
    PAUSED = "paused"
    """Stopped at a boundary, waiting to be let in again."""
    SUSPENDED = "suspended"
    """Holds no place and asks for none: in a long tool, say."""

    def __init__(self, word: str) -> None:
        self.is_active = word in ("reasoning", "acting")
        """Whether an agent that stands here holds a place."""


@dataclass(slots=True, eq=False)
class Account:
    """Facts about one agent.  The Regulator writes it; orders and explanations read it."""

    agent: AgentId
    arrived_s: float
    seq: int
    """Rank of arrival: 0 came first."""
    priority: int = 0
    """Larger goes first."""
    state: State = State.QUEUED

    # sizes [tokens]
    footprint: float = 0.0
    """Last prompt + last completion."""
    last_prompt: float = 0.0
    first_prompt: float = 0.0
    family_tokens: float = 0.0
    """Sum of its children's footprints."""
    expected_prompt: float | None = None
    """Prompt of the step it asks for, when the caller told."""

    # history
    steps: int = 0
    has_context: bool = False
    """It has sent something: a step of its own has ended well."""
    work_tokens: float = 0.0
    """Output and new prompt tokens of all its steps: how far it has come."""
    output_mean: float | None = None
    growth_mean: float | None = None
    """New prompt tokens per step, beyond what it had sent and received."""
    pauses: int = 0

    # the current step or pause
    calls: int = 0
    """Its own calls that are being answered."""
    in_flight: int = 0
    """Calls of this agent and its children that are being answered."""
    waiters: dict[AgentId, int] = field(default_factory=dict)
    """Who of its family waits at the gate, with how many calls."""
    begun_s: float = 0.0
    """When the first of its own calls in flight began."""
    in_calls: float = 0.0
    """Tokens of all contexts in calls at that instant."""
    idle_since_s: float = 0.0
    idle_s: float = 0.0
    """How long no call had been in flight when the first of those in flight began."""
    waiting_since_s: float = 0.0
    has_begun: bool = False
    """It has begun a step since it was last let in."""
    has_sent: bool = False
    """A call has been sent since none of its family's was in flight."""
    paused_since_step: bool = False
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
    """It has been let in at least once."""
    is_suspended: bool = False
    """It has given its place back; those of its family who need one come back for it."""
    departed: bool = False
    """It left, but children still use its place."""

    # handles into the other books
    claim: Claim = field(default_factory=Claim)
    lru_entry: LruEntry = field(default_factory=LruEntry)
    chain: Chain = ()
    """Names of the prefixes it shares."""
    is_credited: bool = False
    """Nobody named them: newcomers found as much in the cache."""
    ticket: int = 0
    """Valid queue entry; older entries of this account are void."""

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
