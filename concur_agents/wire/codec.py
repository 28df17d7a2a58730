"""Frames: messages as lines of JSON, read and checked here and nowhere else.

A frame is one line, an object with its number `n`, its `kind`, and the fields of that kind.  A
frame that is not exactly that is a `WireError`: its sender is dropped.  Fields that are not known
are ignored, so that a later version may add some.
"""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import Any

from concur_agents.core import Usage
from concur_agents.wire.messages import (
    MOST_HEADER,
    Granted,
    Hello,
    Message,
    Moved,
    Op,
    Open,
    Ops,
    Ping,
    Pong,
    PoolAddress,
    Pools,
    Refused,
    Roster,
    Standing,
    Waits,
    Welcome,
    WireError,
)

_MOST_TEXT = 300
"""Longest id or name [characters]."""

_MOST_PARTS = 64
"""Most leading parts of a prompt."""

_MOST_TOKENS = 10**12


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
