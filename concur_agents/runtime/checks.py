"""Looks at what callers hand in, before it goes under the governor's lock.

In there every exception is taken for a bug of ours, and the governor fails open for good: a wrong
argument has to be its caller's error, here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Iterable
from functools import cache
from typing import Any

from concur_agents._outside import is_from_handler
from concur_agents.core import Chain
from concur_agents.errors import ConfigError

logger = logging.getLogger("concur_agents")


def check_tokens(tokens: int | None) -> int | None:
    """The size of a prompt.

    Raises:
        ConfigError: it is none.
    """
    if tokens is None:
        return None
    if type(tokens) is int and 0 <= tokens <= _MOST:  # the usual case
        return tokens
    number = _number(tokens)
    if number is None or not 0 <= number < math.inf:
        raise ConfigError(f"prompt_tokens must be at least 0 tokens, or None, got {_shown(tokens)}")
    return int(number)


def check_priority(priority: int) -> int:
    """A priority.

    Raises:
        ConfigError: it is no whole number.
    """
    number = _number(priority)
    if number is None or not math.isfinite(number) or int(number) != number:
        raise ConfigError(
            f"priority must be a whole number, got {_shown(priority)}: higher goes first"
        )
    return int(priority)


def check_timeout(timeout_s: float | None) -> float | None:
    """A bound on a wait [s]; None: no bound.

    Raises:
        ConfigError: it is neither.
    """
    if timeout_s is None:
        return None
    number = _number(timeout_s)
    if number is None or not number >= 0:
        raise ConfigError(f"timeout_s must be at least 0 s, or None, got {_shown(timeout_s)}")
    return None if number == math.inf else number


def read_name(name: object, what: str = "an agent's id") -> str | None:
    """The text of a name that the caller has given to something; None: it has none. Never raises.

    Programs name agents by what they have: rows by an int, tasks by a UUID, files by their path.
    """
    if type(name) is str or name is None:
        return name
    try:
        # A subclass of `str` may say anything when it is asked.
        return str.__str__(name) if isinstance(name, str) else str.__str__(str(name))
    except Exception as error:  # objects of others may raise anything
        if is_from_handler(error):
            raise
        _warn_nameless(what, type(name).__name__)
        return None


@cache
def _warn_nameless(what: str, kind: str) -> None:
    logger.warning("%s is of type %s, which has no text; it counts as none (said once)", what, kind)


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
            number = _number(tokens)
            if name in parts or number is None or not reached <= number < math.inf:
                raise ValueError
            parts[name] = reached = number
    except Exception as error:  # names of others may raise anything when they are compared
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
            raise ConfigError(f"routes must be paths such as '/rollout/step', got {_shown(path)}")
    return paths


def read_seconds(told: object) -> float:
    """A time [s] from outside; 0 where it is none. Never raises."""
    number = _number(told)
    return number if number is not None and number > 0 else 0.0


def read_flag(told: object) -> bool:
    """Whether something from outside is true; what cannot say is not. Never raises."""
    if type(told) is bool:  # without `try`: see `_number`
        return told
    try:
        return bool(told)
    except Exception as error:  # as of an array of numpy's
        if is_from_handler(error):
            raise
        return False


_MOST = 10**15
"""Beyond it whole numbers are looked at as all others are."""


def _number(value: object) -> float | None:
    """A number, also numpy's or a fraction; None: it is none, or too large for one."""
    if type(value) is float:
        return value
    if type(value) is int and -_MOST <= value <= _MOST:
        # Without `try`, where an exception that is raised into the thread passes for the object's.
        return float(value)
    if isinstance(value, str | bytes | bytearray):
        return None  # `float` would read them
    try:
        return float(value)  # type: ignore[arg-type]
    except Exception as error:  # objects of others may raise anything
        if is_from_handler(error):
            raise
        return None


def _shown(value: object) -> str:
    try:
        return f"{value!r:.200}"
    except Exception as error:  # an object of others may not even have a repr
        if is_from_handler(error):
            raise
        return f"an object of type {type(value).__name__}"


def _bad_chain(prefix: object) -> ConfigError:
    return ConfigError(
        "prefix must be (name, tokens from the start up to its end) of each leading part, shortest "
        f"first, each name once, such as [('system prompt', 900)]; got {_shown(prefix)}"
    )
