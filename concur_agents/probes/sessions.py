"""SGLang's sessions: which engines have them, and how one is closed.

With `--enable-session-radix-cache` a call may name a session. While that is open, SGLang evicts
what no session uses before what this one uses; once it is closed, its context is among what goes
first. There is nothing to open.
"""

from __future__ import annotations

import json
from typing import Any, Final

from concur_agents.errors import ProbeError
from concur_agents.probes.http import Http

SESSION_FIELD: Final = "session_id"
"""In the body of a call: the session that it belongs to."""

SESSION_SWITCH: Final = "enable_session_radix_cache"
"""What `/server_info` says of the flag; an engine that has it on has proved at its start that its
cache can do it."""


def keeps_sessions(http: Http) -> bool:
    """Whether the engine's cache goes by sessions.

    Raises:
        ProbeError: it cannot be reached.
    """
    for path in ("/server_info", "/get_server_info"):
        answer = http.get(path)
        if answer.status == 200:
            return _json(answer.text).get(SESSION_SWITCH) is True
    return False


def close_session(http: Http, name: str) -> None:
    """What the session used goes first from here on. One that is not open does no harm.

    Raises:
        ProbeError: the engine cannot be reached, or refuses.
    """
    answer = http.post("/close_session", {SESSION_FIELD: name})
    if answer.status != 200:
        raise ProbeError(f"{http.shown}/close_session answered HTTP {answer.status}")


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
