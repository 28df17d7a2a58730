"""What a recording is made of: its header, its lines, and where an agent stands."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from concur_agents._version import __version__
from concur_agents.core import Law, LawState, Snapshot, View
from concur_agents.errors import RecordingError
from concur_agents.recording.values import law_of

VERSION = 1
"""Of the format. A reader takes files of its own version only."""

CALLS = (
    "arrive",
    "begin_step",
    "end_step",
    "retry_step",
    "withdraw_step",
    "suspend",
    "resume",
    "leave",
    "tick",
    "advance",
    "ask",
)
"""The door of the Regulator; "ask" is a line of questions only."""

QUESTIONS = ("view", "explain", "why", "next_wake")
"""What may be asked of it. An answer decides nothing, but to give it the Regulator sums up fading
claims as of that instant, and sums of another order round otherwise. So they are noted, too.
"""

Question: TypeAlias = tuple[str, float, str | None]
"""One of `QUESTIONS`, when [s], and about whom."""

AgentState: TypeAlias = Literal["queued", "reasoning", "acting", "paused", "suspended"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadow:
    """A law that decides beside the one in force, from the same snapshots, without effect."""

    law: str
    """Its name."""
    state: LawState


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """What is known at a tick beyond the call itself."""

    state: dict[str, Any]
    """`LawState.to_dict()` of the law in force."""
    view: View
    snapshot: Snapshot | None
    """What the law was shown; None: it was not asked (the poll failed)."""
    shadow: dict[str, Any] | None
    """`LawState.to_dict()` of the shadow law."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedCall:
    """One call of the Regulator."""

    name: str
    now: float
    agent: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Its other arguments; those that were left out are missing."""
    let_in: tuple[str, ...] = ()
    """Its answer."""
    error: str | None = None
    """What it raised instead; the name of the exception."""
    reason: str | None = None
    """The code of the decision in force, where it has changed since the call before."""
    why: str | None = None
    """What kept the agent from being let in by this call, in numbers; None: nothing did."""
    tick: Tick | None = None
    asked: tuple[Question, ...] = ()
    """What was asked since the call before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """Something that is no call of the Regulator: a tool, a failed poll, the end."""

    kind: str
    now: float
    agent: str | None = None
    reason: str = ""
    waited_s: float | None = None


Line: TypeAlias = RecordedCall | Happening


@dataclass(slots=True)
class Standing:
    """Where one agent stands, as far as the lines tell."""

    id: str
    arrived_s: float
    parent: str | None = None
    priority: int = 0
    state: AgentState = "queued"
    since_s: float = 0.0
    """When it came into this state."""
    calls: int = 0
    """Its calls in flight."""
    asked: int = 0
    """Its calls that wait."""
    is_off: bool = False
    """It has given its place back, as far as its calls allow."""
    steps: int = 0
    prompt_tokens: int = 0
    """Sum over its steps."""
    cached_tokens: int = 0
    """Sum over its steps, where the server said so."""
    footprint_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The first line of a file."""

    start_s: float
    """The Regulator's start on the host's clock [s]."""
    now: float
    """When this file was begun, on the same clock [s]."""
    unix_s: float
    """The same instant as time since 1970 [s]."""
    law: dict[str, Any]
    """`name`, and `config`: its fields, or None if they cannot be written as JSON."""
    regulator: dict[str, Any]
    """Its other options."""
    part: int = 0
    """Number of this file, from 0."""
    from_start: bool = True
    """Nothing had happened when the recording began."""
    shadow: dict[str, Any] | None = None
    url: str | None = None
    version: str = __version__
    python: str = field(default_factory=platform.python_version)
    pid: int = field(default_factory=os.getpid)
    agents: tuple[Standing, ...] = ()
    """Who was there when this file was begun."""

    def make_law(self) -> Law:
        """The recorded law.

        Raises:
            RecordingError: it is not one of ours.
        """
        try:
            return law_of(self.law)
        except (ValueError, TypeError, KeyError) as error:
            raise RecordingError(
                f"the recorded law {self.law.get('name')!r} cannot be made here ({error}): "
                "name another law"
            ) from error
