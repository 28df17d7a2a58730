"""A block in which no agent passes a boundary, such as a weight update."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from concur_agents._outside import finishing
from concur_agents._text import shown_id

if TYPE_CHECKING:
    from concur_agents.runtime.monitor import Monitor
    from concur_agents.runtime.sessions import Sessions

logger = logging.getLogger("concur_agents")

HOLD_S = 300.0
"""Longest that a hold lasts if the caller says nothing else [s]."""


class Hold:
    """Made by `Governor.hold`. Neither end of the block waits, so it is the same in async code.

    Args:
        name: tells it from others of this governor that overlap.
        timeout_s: it is over by itself after so long [s].
        begun: called once it is in force here.
    """

    def __init__(
        self, monitor: Monitor, name: str, timeout_s: float, begun: Callable[[], object]
    ) -> None:
        self._monitor = monitor
        self._name = name
        self._timeout_s = timeout_s
        self._begun = begun

    def __enter__(self) -> Self:
        self._monitor.decide(lambda now: self._sessions.hold(self._name, self._timeout_s, now))
        self._begun()
        return self

    @finishing
    def __exit__(self, *_: object) -> None:
        was_over = self._monitor.look(lambda now: not self._sessions.is_held(self._name, now))
        self._monitor.decide(lambda now: self._sessions.end_hold(self._name, now))
        if was_over:
            logger.warning(
                "the hold %s was over by itself after %g s, before its block was left, and agents "
                "went on: give `hold` a larger timeout_s if a weight update takes as long",
                shown_id(self._name),
                self._timeout_s,
            )

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        self.__exit__()

    @property
    def _sessions(self) -> Sessions:
        return self._monitor.sessions
