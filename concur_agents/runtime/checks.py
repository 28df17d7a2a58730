"""Looks at what callers hand in, before it goes under the governor's lock.

In there every exception is taken for a bug of ours, and the governor fails open for good: a wrong
argument has to be its caller's error, here.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from typing import Any, SupportsFloat

from concur_agents._outside import is_from_handler
from concur_agents.core import Chain
from concur_agents.errors import ConfigError


def check_tokens(tokens: int | None) -> int | None:
    """The size of a prompt.

    Raises:
        ConfigError: it is none.
    """
    if tokens is None:
        return None
    if not _is_number(tokens) or not 0 <= tokens < math.inf:
        raise ConfigError(f"prompt_tokens must be at least 0 tokens, or None, got {tokens!r}")
    return int(tokens)


def check_priority(priority: int) -> int:
    """A priority.

    Raises:
        ConfigError: it is no whole number.
    """
    if not _is_number(priority) or not math.isfinite(priority) or int(priority) != priority:
        raise ConfigError(f"priority must be a whole number, got {priority!r}: higher goes first")
    return int(priority)


def check_timeout(timeout_s: float | None) -> float | None:
    """A bound on a wait [s]; None: no bound.

    Raises:
        ConfigError: it is neither.
    """
    if timeout_s is None or timeout_s == math.inf:
        return None
    if not _is_number(timeout_s) or not timeout_s >= 0:
        raise ConfigError(f"timeout_s must be at least 0 s, or None, got {timeout_s!r}")
    return float(timeout_s)


def check_chain(prefix: Chain | None) -> Chain | None:
    """The leading parts of a prompt, as tuples.

    Raises:
        ConfigError: they are none.
    """
    if prefix is None:
        return None
    parts: dict[Hashable, float] = {}
    reached = 0.0
    try:
        for name, tokens in prefix:
            if name in parts or not _is_number(tokens) or not reached <= tokens < math.inf:
                raise ValueError
            parts[name] = reached = float(tokens)
    except (TypeError, ValueError) as error:
        if is_from_handler(error):
            raise
        raise _bad_chain(prefix) from None
    return tuple(parts.items())


def check_routes(routes: Iterable[Any]) -> tuple[str, ...]:
    """Paths of LLM calls.

    Raises:
        ConfigError: one is none, or is the whole server.
    """
    paths = (routes,) if isinstance(routes, str) else tuple(routes)
    for path in paths:
        if not isinstance(path, str) or not path.strip("/"):
            raise ConfigError(f"routes must be paths such as '/rollout/step', got {path!r}")
    return paths


def read_seconds(told: object) -> float:
    """A time [s] from outside; 0 where it is none. Never raises."""
    return float(told) if _is_number(told) and told > 0 else 0.0  # type: ignore[arg-type, operator]


def _is_number(value: object) -> bool:
    # Numbers of numpy's are none of `int` and `float`, and as good; the callers make them so.
    return isinstance(value, _NUMBERS) or (
        isinstance(value, SupportsFloat) and not isinstance(value, str | bytes)
    )


_NUMBERS = (int, float)  # not `int | float`, which would be made anew at each question


def _bad_chain(prefix: object) -> ConfigError:
    return ConfigError(
        "prefix must be (name, tokens from the start up to its end) of each leading part, shortest "
        f"first, each name once, such as [('system prompt', 900)]; got {prefix!r:.200}"
    )
