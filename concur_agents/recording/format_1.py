"""Format 1, which version 0.1 wrote: its headers and lines with the names of today.

Format 1 also holds the questions that were put to the Regulator (`asked`, and lines of the call
`ask`), because an answer rounded later sums differently. Reads change nothing now, so the questions
are dropped. A recording of format 1 replays to the bit only where the law has not changed since.
"""

from __future__ import annotations

from typing import Any

_EVENTS = {"off_began": "suspended", "off_ended": "resume_asked"}
_STANDING = {"asked": "waiting_calls", "is_off": "is_suspended"}


def upgrade_header(found: dict[str, Any]) -> dict[str, Any]:
    """The header of a file as format 2 has it."""
    options = _renamed(found["regulator"], {"max_started": "max_open"})
    agents = [_renamed(who, _STANDING) for who in found["agents"]]
    for who in agents:
        who["state"] = _state(who["state"])
    return {**found, "regulator": options, "agents": agents}


def upgrade_line(found: dict[str, Any]) -> dict[str, Any] | None:
    """A line as format 2 has it; None: it holds questions only."""
    if "event" in found:
        return {**found, "event": _EVENTS.get(found["event"], found["event"])}
    if found["call"] == "ask":
        return None
    line = {name: value for name, value in found.items() if name != "asked"}
    if "view" in line:
        line["view"] = _renamed(line["view"], {"off": "suspended"})
    return line


def _state(state: str) -> str:
    return "suspended" if state == "off" else state


def _renamed(found: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in found.items()}
