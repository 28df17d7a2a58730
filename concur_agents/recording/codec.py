"""Lines as JSON and back, without losing a bit."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable
from dataclasses import MISSING, asdict, fields
from hashlib import blake2b
from typing import Any, TypeVar

from concur_agents._text import printable, wire_id
from concur_agents.core import Chain, LawState, Limit, Present, Reading, Snapshot, Usage, View
from concur_agents.recording.checks import (
    count_of,
    dict_of,
    line_of,
    name_of,
    number_of,
    state_of,
    text_of,
)
from concur_agents.recording.format_1 import upgrade_line
from concur_agents.recording.model import (
    CALLS,
    CALLS_OF_NO_AGENT,
    FORMAT,
    Happening,
    Header,
    Line,
    RecordedCall,
    Tick,
)
from concur_agents.recording.values import numbers, plain, scrub


def parse(raw: bytes, version: int = FORMAT) -> Line | None:
    """Reads a line.

    Args:
        raw: the line.
        version: format of the file.

    Returns:
        The line; None: it holds nothing that is read today.

    Raises:
        ValueError: it is not a line of a recording.
    """
    try:
        written = dict_of(json.loads(raw))
        found = upgrade_line(written) if version == 1 else written
        if found is None:
            return None
        return _happening_of(found) if "event" in found else _call_of(found)
    except (KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"not a line of a recording: {raw[:40]!r}") from error


T = TypeVar("T")


def _make(kind: type[T], found: dict[str, Any]) -> T:
    """An instance without the fields that only another version knows.

    A field that the recording version did not write yet is None.
    """
    names = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    known = {name: value for name, value in found.items() if name in names}
    for name, item in names.items():
        if name not in known and item.default is MISSING and item.default_factory is MISSING:
            known[name] = None
    return kind(**known)


def _happening_of(found: dict[str, Any]) -> Happening:
    kind, waited_s = text_of(found.pop("event")), found.pop("waited_s", None)
    is_name = kind in ("tool_began", "tool_ended")
    reason = text_of(found.pop("reason", ""))
    return Happening(
        kind=printable(kind),
        now=number_of(found.pop("now")),
        agent=name_of(found.pop("agent", None)),
        reason=wire_id(reason) if is_name and reason else printable(reason, 1000),
        waited_s=None if waited_s is None else number_of(waited_s),
        pool=line_of(found.pop("pool", None)),
    )


def _call_of(found: dict[str, Any]) -> RecordedCall:
    name, now = found.pop("call"), number_of(found.pop("now"))
    if name not in CALLS:
        raise ValueError(name)
    agent = name_of(found.pop("agent", None))
    if (agent is None) != (name in CALLS_OF_NO_AGENT):
        raise ValueError(f"{name} of {agent}")
    let_in = tuple(wire_id(text_of(who)) for who in found.pop("let_in", ()))
    moves = found.pop("moves", None)
    if moves is not None:
        moves = {wire_id(who): state_of(state) for who, state in dict_of(moves).items()}
    pools = {
        wire_id(who): printable(text_of(pool), 1000)
        for who, pool in dict_of(found.pop("pools", {})).items()
    }
    for key in ("pool", "name", "group"):
        if key in found:
            found[key] = line_of(found[key])
    error, reason = line_of(found.pop("error", None)), line_of(found.pop("reason", None))
    why, cause = line_of(found.pop("why", None)), line_of(found.pop("cause", None))
    if "parent" in found:
        found["parent"] = name_of(found["parent"])
    tick = None
    if name == "tick":
        view = found.pop("view")
        snapshot = found.pop("snapshot")
        written = found.get("reading")
        reading = None if written is None else _make(Reading, numbers(written))
        found["reading"] = reading
        tick = Tick(
            state=found.pop("state"),
            view=_view_of(view),
            snapshot=None
            if snapshot is None
            else _make(Snapshot, {**numbers(snapshot), "reading": reading}),
            shadow=found.pop("shadow", None),
        )
    if name == "regroup":
        found = _regrouping_of(found)
    if "usage" in found and found["usage"] is not None:
        found["usage"] = Usage(**found["usage"])
        for tokens in asdict(found["usage"]).values():
            if tokens is not None:
                number_of(tokens)
    if found.get("prefix") is not None:
        found["prefix"] = tuple(
            (text_of(part), number_of(tokens)) for part, tokens in found["prefix"]
        )
    return RecordedCall(
        name=name,
        now=now,
        agent=agent,
        options=numbers(found),
        let_in=let_in,
        moves=moves,
        pools=pools,
        error=error,
        reason=reason,
        why=why,
        cause=cause,
        tick=tick,
    )


def _regrouping_of(found: dict[str, Any]) -> dict[str, Any]:
    """The options of a `regroup`."""
    readings = dict_of(found["readings"])
    return {
        "names": [printable(text_of(name), 1000) for name in found["names"]],
        "agents": [_present_of(dict_of(who)) for who in found["agents"]],
        "readings": {
            printable(name, 1000) or None: _make(Reading, numbers(dict_of(reading)))
            for name, reading in readings.items()
        },
    }


def _present_of(found: dict[str, Any]) -> Present:
    priority = found.get("priority", 0)
    number_of(priority)
    return Present(
        agent=wire_id(text_of(found["agent"])),
        parent=name_of(found.get("parent")),
        priority=priority,
        group=line_of(found.get("group")),
        pool=line_of(found.get("pool")),
        enters=found.get("enters") is True,
        is_suspended=found.get("is_suspended") is True,
        calls=_prompts_of(found.get("calls", ())),
        asked=_prompts_of(found.get("asked", ())),
    )


def _prompts_of(found: Any) -> tuple[int | None, ...]:
    return tuple(None if tokens is None else count_of(tokens) for tokens in found)


def _view_of(found: dict[str, Any]) -> View:
    limit = {key: math.inf if bound is None else bound for key, bound in found["limit"].items()}
    pools = {
        printable(text_of(name), 1000): _view_of(dict_of(view))
        for name, view in dict_of(found.get("pools", {})).items()
    }
    return _make(View, {**numbers(found), "limit": _make(Limit, limit), "pools": pools})


def line_dict(line: Line) -> dict[str, Any]:
    """A line as the object that is written; `parse` is the way back."""
    if isinstance(line, Happening):
        return _happening_dict(line)
    written: dict[str, Any] = {"call": line.name, "now": line.now}
    if line.agent is not None:
        written["agent"] = wire_id(line.agent)
    for name, value in line.options.items():
        written[name] = _option(name, value)
    if line.error is None:
        written["let_in"] = [wire_id(agent) for agent in line.let_in]
        if line.moves is not None:
            written["moves"] = {wire_id(agent): state for agent, state in line.moves.items()}
        if line.pools:
            written["pools"] = {wire_id(agent): pool for agent, pool in line.pools.items()}
    else:
        written["error"] = line.error
    if line.reason is not None:
        written["reason"] = line.reason
    if line.why is not None:
        written["why"] = line.why
    if line.cause is not None:
        written["cause"] = line.cause
    if line.tick is not None:
        written |= _tick_dict(line.tick)
    return written


def header_dict(header: Header) -> dict[str, Any]:
    """A header as the object that is written."""
    written = {"concur_recording": FORMAT, **asdict(header)}
    for who in written["agents"]:
        who["id"] = wire_id(who["id"])
        who["parent"] = None if who["parent"] is None else wire_id(who["parent"])
        if who["pool"] is None:
            del who["pool"]
    return written


def _happening_dict(line: Happening) -> dict[str, Any]:
    written: dict[str, Any] = {"event": line.kind, "now": line.now}
    if line.agent is not None:
        written["agent"] = wire_id(line.agent)
    if line.reason:
        is_name = line.kind in ("tool_began", "tool_ended")
        written["reason"] = wire_id(line.reason) if is_name else scrub(line.reason)
    if line.waited_s is not None:
        written["waited_s"] = line.waited_s
    if line.pool is not None:
        written["pool"] = line.pool
    return written


def _tick_dict(tick: Tick) -> dict[str, Any]:
    written: dict[str, Any] = {
        "state": tick.state,
        "view": _view_dict(tick.view),
        "snapshot": None,
    }
    if tick.snapshot is not None:
        written["snapshot"] = {
            item.name: getattr(tick.snapshot, item.name)
            for item in fields(Snapshot)
            if item.name != "reading"  # it stands in the call already
        }
    if tick.shadow is not None:
        written["shadow"] = tick.shadow
    return written


def _view_dict(view: View) -> dict[str, Any]:
    written = {item.name: getattr(view, item.name) for item in fields(View)}
    written["limit"] = LawState(view.limit).to_dict()["limit"]
    del written["pools"]
    if view.pools:
        written["pools"] = {name: _view_dict(pool) for name, pool in view.pools.items()}
    return written


def _option(name: str, value: Any) -> Any:
    if name == "prefix" and value is not None:
        return _digests(value)
    if name in ("parent", "group") and value is not None:
        return wire_id(value)
    if name == "agents":
        return [_present_dict(who) for who in value]
    if name == "readings":
        return {pool or "": _known(reading) for pool, reading in value.items()}
    return _known(value) if isinstance(value, Reading | Usage) else value


def _known(value: Any) -> dict[str, Any]:
    every = ((item.name, getattr(value, item.name)) for item in fields(value))
    return {key: known for key, known in every if known is not None}


def _present_dict(who: Present) -> dict[str, Any]:
    written = {key: value for key, value in _known(who).items() if value or key == "priority"}
    for key in ("agent", "parent", "group"):
        if key in written:
            written[key] = wire_id(written[key])
    return written


def _digests(chain: Chain) -> list[tuple[str, float]]:
    """A chain with digests for names: only whether two names are equal matters."""
    return [(_digest(name), tokens) for name, tokens in chain]


def _digest(name: Hashable) -> str:
    text = name if isinstance(name, str | bytes) else repr(name)
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return blake2b(raw, digest_size=9).hexdigest()


def dump(line: dict[str, Any]) -> bytes:
    """An object as one line of JSON, newline included."""
    try:
        text = json.dumps(line, allow_nan=False, default=_foreign, separators=(",", ":"))
    except ValueError:  # JSON has no infinity
        text = json.dumps(plain(line), allow_nan=False, default=_foreign, separators=(",", ":"))
    return text.encode() + b"\n"


def _foreign(value: Any) -> Any:
    item = getattr(value, "item", None)  # a number of numpy
    return item() if callable(item) else repr(value)
