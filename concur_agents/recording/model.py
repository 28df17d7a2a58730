"""What a recording is made of: its header, its lines, and where an agent stands."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from concur_agents._version import __version__
from concur_agents.core import Law, LawState, Snapshot, Usage, View
from concur_agents.errors import RecordingError
from concur_agents.recording.values import law_of

FORMAT = 2
"""Version of the format that is written. The reader also takes format 1, see `format_1`."""

CALLS_OF_NO_AGENT = (
    "tick", "advance", "flushed", "hold", "end_hold", "add_pool", "remove_pool", "regroup",
)  # fmt: skip

CALLS = (
    "arrive",
    "begin_step",
    "found",
    "end_step",
    "retry_step",
    "withdraw_step",
    "suspend",
    "resume",
    "leave",
    *CALLS_OF_NO_AGENT,
)
"""The calls of a Regulator or a Fleet that decide, and the one that puts another in its place.
Reads change nothing and are not recorded."""

AgentState: TypeAlias = Literal["queued", "reasoning", "acting", "paused", "suspended"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadow:
    """A law that decides beside the one in force, from the same snapshots, without effect."""

    law: str
    """Its name."""
    state: LawState


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """What a tick adds to the call itself."""

    state: dict[str, Any]
    """`LawState.to_dict()` of the law in force."""
    view: View
    """Of a fleet: the sums, and in `pools` only the one that was ticked."""
    snapshot: Snapshot | None
    """The input of the law; None: the law did not decide, because the poll failed."""
    shadow: dict[str, Any] | None
    """`LawState.to_dict()` of the shadow law."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedCall:
    """One call of the Regulator, with its answer."""

    name: str
    """One of `CALLS`."""
    now: float
    agent: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Its other arguments, without those that the caller left out."""
    let_in: tuple[str, ...] = ()
    """The agents that it let in."""
    moves: dict[str, AgentState] | None = None
    """Where the agents stand now that it moved; None: the file does not say, see `derive`."""
    pools: dict[str, str] = field(default_factory=dict)
    """Of a fleet: the pool of each agent that it let in elsewhere than before."""
    error: str | None = None
    """Name of the exception that it raised instead."""
    reason: str | None = None
    """Code of the decision in force, where it differs from the call before."""
    why: str | None = None
    """Why this call did not let its agent in, with the numbers; None: the agent may go on."""
    cause: str | None = None
    """The same as a code, a `core.why.Cause`; None: the agent may go on, or the file is older."""
    tick: Tick | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """An event that is not a call of the Regulator: a tool, a failed poll, the end."""

    kind: str
    now: float
    agent: str | None = None
    reason: str = ""
    waited_s: float | None = None
    pool: str | None = None
    """The one that it concerns, where there are several."""


Line: TypeAlias = RecordedCall | Happening


@dataclass(slots=True)
class Standing:
    """Where one agent stands, according to the lines so far."""

    id: str
    arrived_s: float
    parent: str | None = None
    priority: int = 0
    state: AgentState = "queued"
    since_s: float = 0.0
    """When it entered this state."""
    steps: int = 0
    prompt_tokens: int = 0
    """Sum over its steps."""
    cached_tokens: int = 0
    """Sum over its steps, where the server reports it."""
    footprint_tokens: int = 0
    pool: str | None = None
    """Where it was last let in; None: nowhere yet, or there is one pool."""
    # Only where the lines do not say who moved, see `derive`:
    calls: int = 0
    """Its calls in flight."""
    waiting_calls: int = 0
    """Its calls that wait at a boundary."""
    is_suspended: bool = False
    """It has given its place back; the place is free once none of its calls needs it."""

    @property
    def waits(self) -> bool:
        """Whether it waits to be let in."""
        return self.state in ("queued", "paused")

    def note(self, usage: Usage | None) -> None:
        """Adds up a step that has ended; None: its usage is unknown."""
        if usage is not None:
            self.steps += 1
            self.prompt_tokens += usage.prompt_tokens
            self.cached_tokens += usage.cached_tokens or 0
            self.footprint_tokens = usage.prompt_tokens + usage.completion_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The first line of a file."""

    start_s: float
    """The Regulator's start on the host's clock [s]."""
    now: float
    """Start of this file on the same clock [s]."""
    unix_s: float
    """The same instant as time since 1970 [s]."""
    law: dict[str, Any]
    """`name`, and `config`: its fields, or None if JSON cannot hold them."""
    regulator: dict[str, Any]
    """The Regulator's other options; of a Fleet also `pools`, their names at the start."""
    part: int = 0
    """Number of this file, from 0."""
    from_start: bool = True
    """The recording began before the first call."""
    shadow: dict[str, Any] | None = None
    url: str | None = None
    version: str = __version__
    python: str = field(default_factory=platform.python_version)
    pid: int = field(default_factory=os.getpid)
    agents: tuple[Standing, ...] = ()
    """The agents present when this file began."""

    @property
    def pools(self) -> tuple[str, ...]:
        """The pools at the start, of a fleet; empty: there is one pool."""
        return tuple(self.regulator.get("pools") or ())

    def make_law(self) -> Law:
        """The recorded law.

        Raises:
            RecordingError: this version has no such law, or the law has other options here.
        """
        try:
            return law_of(self.law)
        except (ValueError, TypeError, KeyError) as error:
            raise RecordingError(
                f"the recorded law {self.law.get('name')!r} cannot be made here ({error}): "
                "concur explain and concur report do without it"
            ) from error
