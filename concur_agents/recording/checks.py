"""Looks at what a file holds before it is believed: recordings may be torn, edited or hostile.

Names and texts come out of here safe for a terminal and for a page. Every check raises ValueError.
"""

from __future__ import annotations

import math
from typing import Any, cast, get_args

from concur_agents._text import printable, wire_id
from concur_agents.recording.model import AgentState

_MOST = 1e15
"""No count and no time in a recording is larger; sums of these stay finite."""


def name_of(found: Any) -> str | None:
    """The id of an agent, or None."""
    return None if found is None else wire_id(text_of(found))


def text_of(found: Any) -> str:
    """A text."""
    if not isinstance(found, str):
        raise ValueError(f"not a text: {found!r:.40}")
    return found


def state_of(found: Any) -> AgentState:
    """Where an agent stands."""
    if found not in get_args(AgentState):
        raise ValueError(f"no state of an agent: {found!r:.40}")
    return cast("AgentState", found)


def line_of(found: Any) -> str | None:
    """A text in one line, or None."""
    return None if found is None else printable(text_of(found), 1000)


def number_of(found: Any) -> float:
    """A finite number; an int stays one."""
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise ValueError(f"not a number: {found!r:.40}")
    if not math.isfinite(found) or abs(found) > _MOST:
        raise ValueError(f"not a number that a recording holds: {found!r:.40}")
    return found


def count_of(found: Any) -> int:
    """A whole number from 0."""
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found <= _MOST:
        raise ValueError(f"not a count: {found!r:.40}")
    return found


def dict_of(found: Any) -> dict[str, Any]:
    """A JSON object."""
    if not isinstance(found, dict):
        raise ValueError(f"not an object: {found!r:.40}")
    return found
