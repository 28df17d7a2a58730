"""The form of a line: JSON, to the bit, there and back."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable
from dataclasses import asdict, fields
from hashlib import blake2b
from typing import Any, TypeVar

from concur_agents.core import Chain, LawState, Limit, Reading, Snapshot, Usage, View
from concur_agents.recording.model import CALLS, QUESTIONS, Happening, Line, RecordedCall, Tick
from concur_agents.recording.values import numbers, plain, scrub


def parse(raw: bytes) -> Line | None:
    """A line, or None if it is none of ours."""
    try:
        found = json.loads(raw)
        if "event" in found:
            return Happening(kind=found.pop("event"), **found)
        return _call_of(found)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


T = TypeVar("T")


def _make(kind: type[T], found: dict[str, Any]) -> T:
    """An instance without what only another version knows of."""
    names = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in found.items() if name in names})


def _call_of(found: dict[str, Any]) -> RecordedCall:
    name, now = found.pop("call"), found.pop("now")
    agent, let_in = found.pop("agent", None), tuple(found.pop("let_in", ()))
    error, reason = found.pop("error", None), found.pop("reason", None)
    why = found.pop("why", None)
    asked = tuple((question, at_s, whom) for question, at_s, whom in found.pop("asked", ()))
    tick = None
    if name not in CALLS or not {question for question, _, _ in asked} <= set(QUESTIONS):
        raise ValueError(name)
    if name == "tick":
        view = found.pop("view")
        snapshot = found.pop("snapshot")
        told = found.get("reading")
        reading = None if told is None else _make(Reading, numbers(told))
        found["reading"] = reading
        limit = {key: math.inf if bound is None else bound for key, bound in view["limit"].items()}
        tick = Tick(
            state=found.pop("state"),
            view=_make(View, {**numbers(view), "limit": _make(Limit, limit)}),
            snapshot=None
            if snapshot is None
            else _make(Snapshot, {**numbers(snapshot), "reading": reading}),
            shadow=found.pop("shadow", None),
        )
    if "usage" in found and found["usage"] is not None:
        found["usage"] = Usage(**found["usage"])
    if found.get("prefix") is not None:
        found["prefix"] = tuple((part, tokens) for part, tokens in found["prefix"])
    return RecordedCall(
        name=name,
        now=now,
        agent=agent,
        options=numbers(found),
        let_in=let_in,
        error=error,
        reason=reason,
        why=why,
        tick=tick,
        asked=asked,
    )


def line_dict(line: Line) -> dict[str, Any]:
    """A line as the object that is written; `parse` is the way back."""
    if isinstance(line, Happening):
        told: dict[str, Any] = {"event": line.kind, "now": line.now}
        if line.agent is not None:
            told["agent"] = line.agent
        if line.reason:
            told["reason"] = scrub(line.reason)
        if line.waited_s is not None:
            told["waited_s"] = line.waited_s
        return told
    told = {"call": line.name, "now": line.now}
    if line.agent is not None:
        told["agent"] = line.agent
    for name, value in line.options.items():
        told[name] = _option(name, value)
    if line.error is None:
        told["let_in"] = line.let_in
    else:
        told["error"] = line.error
    if line.reason is not None:
        told["reason"] = line.reason
    if line.why is not None:
        told["why"] = line.why
    if line.asked:
        told["asked"] = line.asked
    if line.tick is not None:
        tick = line.tick
        view = asdict(tick.view)
        view["limit"] = LawState(tick.view.limit).to_dict()["limit"]
        told["state"] = tick.state
        told["view"] = view
        told["snapshot"] = None
        if tick.snapshot is not None:
            told["snapshot"] = {
                item.name: getattr(tick.snapshot, item.name)
                for item in fields(Snapshot)
                if item.name != "reading"
            }
        if tick.shadow is not None:
            told["shadow"] = tick.shadow
    return told


def _option(name: str, value: Any) -> Any:
    if name == "prefix" and value is not None:
        return _digests(value)
    if isinstance(value, Reading | Usage):
        every = ((item.name, getattr(value, item.name)) for item in fields(value))
        return {key: told for key, told in every if told is not None}
    return value


def _digests(chain: Chain) -> list[tuple[str, float]]:
    """A chain with its names as digests: only whether they are equal matters."""
    return [(_digest(name), tokens) for name, tokens in chain]


def _digest(name: Hashable) -> str:
    text = name if isinstance(name, str | bytes) else repr(name)
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return blake2b(raw, digest_size=9).hexdigest()


def dump(line: dict[str, Any]) -> bytes:
    """An object as one line of JSON, its end included."""
    try:
        text = json.dumps(line, allow_nan=False, default=_foreign, separators=(",", ":"))
    except ValueError:  # an infinity: JSON has none
        text = json.dumps(plain(line), allow_nan=False, default=_foreign, separators=(",", ":"))
    return text.encode() + b"\n"


def _foreign(value: Any) -> Any:
    item = getattr(value, "item", None)  # a number of numpy's
    return item() if callable(item) else repr(value)
