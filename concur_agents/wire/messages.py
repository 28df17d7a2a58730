"""What crosses the wire: each message as a type, read and checked here and nowhere else.

A frame is one line of JSON, an object with its number `n`, its `kind`, and the fields of that kind.
A frame that is not exactly that is a `WireError`: its sender is dropped.  Times are durations [s].
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple

from concur_agents.core import Usage
from concur_agents.errors import ConcurError

VERSION = 1
"""Of the protocol.  Both sides have to have the same."""

MOST_BYTES = 2**20
"""Longest frame."""

BEAT_S = 3.0
"""A client sends something at least this often [s]."""

TTL_S = 15.0
"""After so long without a frame [s] the other side counts as gone."""

_MOST_TEXT = 300
"""Longest id or name [characters]."""

MOST_HEADER = 4096
"""Longest header of an answer, address or token [characters]."""

_MOST_PARTS = 64
"""Most leading parts of a prompt."""

_MOST_TOKENS = 10**12


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


_KINDS: dict[str, type[Message]] = {
    each.kind: each
    for each in (
        Hello, Roster, Ops, Ping, Welcome, Granted, Waits, Open, Moved, Pools, Pong, Refused,
    )
}  # fmt: skip


def encode(message: Message, n: int) -> bytes:
    """The frame number `n` of a connection."""
    frame: dict[str, Any] = {"n": n, "kind": message.kind}
    for each in fields(message):
        frame[each.name] = getattr(message, each.name)
    return json.dumps(frame, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> tuple[int, Message]:
    """A frame's number and what it says.

    Raises:
        WireError: it is no frame of ours.
    """
    try:
        frame = json.loads(line, parse_constant=_refuse)
        if not isinstance(frame, dict):
            raise WireError("a frame is an object")
        n, kind = _int(frame.pop("n", None)), frame.pop("kind", None)
        read = _READERS.get(kind) if isinstance(kind, str) else None
        if read is None:
            raise WireError(f"there is no kind {str(kind)[:40]!r}")
        return n, read(frame)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise WireError(f"not a frame: {type(error).__name__}: {str(error)[:100]}") from None


def _refuse(constant: str) -> Any:
    raise WireError(f"{constant} is no number")


# -- fields ----------------------------------------------------------------------------------------


def _int(value: object, least: int = 0, most: int = 2**53) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise WireError(f"not a whole number from {least}: {str(value)[:40]}")
    return value


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e9:
        raise WireError(f"not a duration: {str(value)[:40]}")
    return float(value)


def _positive(value: object) -> float:
    seconds = _seconds(value)
    if not seconds > 0:
        raise WireError("not a duration above 0")
    return seconds


def _bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise WireError(f"neither true nor false: {str(value)[:40]}")
    return value


def _text(value: object, most: int = _MOST_TEXT) -> str:
    if not isinstance(value, str) or len(value) > most:
        raise WireError(f"not a text of at most {most} characters: {str(value)[:40]}")
    return value


def _tokens(value: object) -> int | None:
    return None if value is None else _int(value, 0, _MOST_TOKENS)


def _name(value: object) -> str | None:
    return None if value is None else _text(value)


def _long(value: object) -> str | None:
    return None if value is None else _text(value, MOST_HEADER)


def _row(value: object, length: int) -> list[Any]:
    if not isinstance(value, list) or len(value) != length:
        raise WireError(f"not a list of {length}: {str(value)[:40]}")
    return value


def _rows(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise WireError(f"not a list: {str(value)[:40]}")
    return value


def _prefix(value: object) -> tuple[tuple[str, float], ...] | None:
    if value is None:
        return None
    rows = _rows(value)
    if len(rows) > _MOST_PARTS:
        raise WireError(f"a prompt has at most {_MOST_PARTS} parts, got {len(rows)}")
    return tuple((_text(name), _amount(tokens)) for name, tokens in (_row(row, 2) for row in rows))


def _amount(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WireError(f"not a number: {str(value)[:40]}")
    if not 0 <= value <= _MOST_TOKENS:
        raise WireError(f"not a number of tokens: {value}")
    return float(value)


def _usage(value: object) -> Usage | None:
    if value is None:
        return None
    prompt, completion, cached = _row(value, 3)
    return Usage(_int(prompt, 0, _MOST_TOKENS), _int(completion, 0, _MOST_TOKENS), _tokens(cached))


_ARGS: dict[str, dict[str, Any]] = {
    "arrive": {
        "prompt_tokens": _tokens,
        "parent": _name,
        "priority": lambda value: _int(value, -(2**31), 2**31),
        "group": _name,
        "passed": _bool,
    },
    "begin_step": {"prompt_tokens": _tokens, "prefix": _prefix, "passed": _bool},
    "end_step": {
        "usage": _usage,
        "overloaded": _bool,
        "retry_after_s": _seconds,
        "aborted": _bool,
    },
    "retry_step": {"overloaded": _bool, "retry_after_s": _seconds},
    "withdraw_step": {},
    "suspend": {},
    "resume": {},
    "leave": {},
    "served": {"worker": _long, "token": _long},
    "flushed": {"pool": _name},
    "hold": {"name": _text, "timeout_s": _positive},
    "end_hold": {"name": _text},
}
"""The ops and their arguments.  An argument that is left out has `Regulator`'s default."""


def _op(row: object) -> Op:
    method, agent, seq, args = _row(row, 4)
    readers = _ARGS[_text(method)]
    if not isinstance(args, dict):
        raise WireError("the arguments of an op are an object")
    return Op(method, _text(agent), _int(seq), {name: readers[name](args[name]) for name in args})


def _standing(row: object) -> Standing:
    found = Standing._make(_row(row, len(Standing._fields)))
    context = None
    if found.context is not None:
        prompt, completion = _row(found.context, 2)
        context = (_int(prompt, 0, _MOST_TOKENS), _int(completion, 0, _MOST_TOKENS))
    return Standing(
        agent=_text(found.agent),
        parent=_name(found.parent),
        entered=_bool(found.entered),
        has_place=_bool(found.has_place),
        suspended=_bool(found.suspended),
        departed=_bool(found.departed),
        calls=_int(found.calls, 0, 10**6),
        asks=_int(found.asks, 0, 10**6),
        wants_place=_bool(found.wants_place),
        priority=_int(found.priority, -(2**31), 2**31),
        group=_name(found.group),
        prompt_tokens=_tokens(found.prompt_tokens),
        context=context,
        pool=_name(found.pool),
    )


def _granted(row: object) -> tuple[str, int, str | None]:
    agent, seq, pool = _row(row, 3)
    return _text(agent), _int(seq), _name(pool)


def _move(row: object) -> tuple[str, str | None]:
    agent, pool = _row(row, 2)
    return _text(agent), _name(pool)


def _wait(row: object) -> tuple[str, int, dict[str, Any]]:
    agent, seq, why = _row(row, 3)
    if not isinstance(why, dict):
        raise WireError("a reason is an object")
    return _text(agent), _int(seq), why


def _pool(row: object) -> PoolAddress:
    name, url, rank, by_body, is_gone = _row(row, 5)
    return PoolAddress(
        _text(name, 2000),
        _text(url, 2000),
        None if rank is None else _int(rank),
        _bool(by_body),
        _bool(is_gone),
    )


_READERS: dict[str, Any] = {
    "hello": lambda f: Hello(
        version=_int(f["version"]),
        session=_text(f["session"]),
        epoch=_int(f["epoch"], 1),
        seq=_int(f["seq"]),
        agents=_int(f["agents"], 0, 10**7),
        token=_text(f.get("token", ""), 4096),
    ),
    "roster": lambda f: Roster(tuple(_standing(row) for row in _rows(f["agents"]))),
    "ops": lambda f: Ops(tuple(_op(row) for row in _rows(f["ops"]))),
    "ping": lambda f: Ping(),
    "welcome": lambda f: Welcome(
        version=_int(f["version"]),
        law=_text(f["law"]),
        beat_s=_seconds(f["beat_s"]),
        ttl_s=_seconds(f["ttl_s"]),
        router=_long(f.get("router")),
    ),
    "granted": lambda f: Granted(tuple(_granted(row) for row in _rows(f["agents"]))),
    "waits": lambda f: Waits(tuple(_wait(row) for row in _rows(f["agents"]))),
    "open": lambda f: Open(_bool(f["open"])),
    "moved": lambda f: Moved(tuple(_move(row) for row in _rows(f["agents"]))),
    "pools": lambda f: Pools(tuple(_pool(row) for row in _rows(f["pools"]))),
    "pong": lambda f: Pong(),
    "refused": lambda f: Refused(_text(f.get("why", ""), 2000)),
}


def finite(value: float) -> float | None:
    """A number for JSON, which has no infinity: None."""
    return value if math.isfinite(value) else None
