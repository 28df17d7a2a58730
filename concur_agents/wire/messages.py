"""What crosses the wire: each message as a type.  `codec` reads and writes them.

Times are durations [s].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from concur_agents.errors import ConcurError

VERSION = 1
"""Of the protocol.  Both sides have to have the same."""

MOST_BYTES = 2**20
"""Longest frame."""

BEAT_S = 3.0
"""A client sends something at least this often [s]."""

TTL_S = 15.0
"""After so long without a frame [s] the other side counts as gone."""

MOST_HEADER = 4096
"""Longest header of an answer, address or token [characters]."""


class WireError(ConcurError):
    """The other side said something that is not in the protocol, or a frame was lost."""


class Op(NamedTuple):
    """Something that happened to an agent: a method of `Regulator`, and its arguments."""

    method: str
    agent: str
    """"": the call is about no agent."""
    seq: int
    """Rises by one with each op of a session."""
    args: dict[str, Any]


class Standing(NamedTuple):
    """Where an agent of a roster stands."""

    agent: str
    parent: str | None
    """Whose place it shares."""
    entered: bool
    """It has been let in once."""
    has_place: bool
    """Its family has a place."""
    suspended: bool
    departed: bool
    """It has left, and its children are here."""
    calls: int
    """In flight."""
    asks: int
    """Calls that wait for the answer."""
    wants_place: bool
    """It waits for a place with no call yet, at its start or after `resume`."""
    priority: int
    group: str | None
    prompt_tokens: int | None
    context: tuple[int, int] | None
    """Prompt and completion tokens of its last call; None: it has made none."""
    pool: str | None


class PoolAddress(NamedTuple):
    """One of several pools."""

    name: str
    url: str
    rank: int | None
    """Of several engines behind one address: which one; None: there is one."""
    by_body: bool
    """The rank goes into a field of the body, and not into a header."""
    is_gone: bool
    """It takes no agents."""


@dataclass(frozen=True, slots=True)
class Message:
    """One frame."""

    kind: ClassVar[str]


@dataclass(frozen=True, slots=True)
class Hello(Message):
    """The first frame of a connection, from the client."""

    kind: ClassVar[str] = "hello"
    version: int
    session: str
    """Name of the client: unique, and the same for all its connections."""
    epoch: int
    """Rank of this connection among those of the session, from 1."""
    seq: int
    """Of the last op that the roster contains."""
    agents: int
    """So many agents follow, in frames `roster`."""
    token: str = ""


@dataclass(frozen=True, slots=True)
class Roster(Message):
    """Where agents of the client stand: it alone knows for certain."""

    kind: ClassVar[str] = "roster"
    agents: tuple[Standing, ...]


@dataclass(frozen=True, slots=True)
class Ops(Message):
    """What happened since."""

    kind: ClassVar[str] = "ops"
    ops: tuple[Op, ...]


@dataclass(frozen=True, slots=True)
class Ping(Message):
    """A sign of life; the answer is `pong`."""

    kind: ClassVar[str] = "ping"


@dataclass(frozen=True, slots=True)
class Welcome(Message):
    """The roster has been taken in."""

    kind: ClassVar[str] = "welcome"
    version: int
    law: str
    beat_s: float
    ttl_s: float
    router: str | None = None
    """All calls go there, and the daemon wants to hear `served`; None: there is none."""


@dataclass(frozen=True, slots=True)
class Granted(Message):
    """Agents that have been let in: id, session's last op that was known, and pool."""

    kind: ClassVar[str] = "granted"
    agents: tuple[tuple[str, int, str | None], ...]


@dataclass(frozen=True, slots=True)
class Waits(Message):
    """Agents that were not let in at once, with the reason (fields of `core.Reason`)."""

    kind: ClassVar[str] = "waits"
    agents: tuple[tuple[str, int, dict[str, Any]], ...]


@dataclass(frozen=True, slots=True)
class Open(Message):
    """Whether agents that are in may pass their boundaries and report that afterwards."""

    kind: ClassVar[str] = "open"
    open: bool


@dataclass(frozen=True, slots=True)
class Moved(Message):
    """Agents that a router has served elsewhere than planned: id and pool."""

    kind: ClassVar[str] = "moved"
    agents: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True, slots=True)
class Pools(Message):
    """The pools, where there are several; none: they are governed as one from now on."""

    kind: ClassVar[str] = "pools"
    pools: tuple[PoolAddress, ...]


@dataclass(frozen=True, slots=True)
class Pong(Message):
    """The answer to `ping`."""

    kind: ClassVar[str] = "pong"


@dataclass(frozen=True, slots=True)
class Refused(Message):
    """The last frame before the daemon hangs up: why."""

    kind: ClassVar[str] = "refused"
    why: str = field(default="")
