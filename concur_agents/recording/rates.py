"""Rates of tokens over the last seconds of a recording."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from concur_agents.core import Usage

WINDOW_S = 10.0
"""Length of the window [s]: a single tick sees a handful of steps."""


class Tokens(NamedTuple):
    """Tokens since the beginning, or per second."""

    at_s: float
    output: float = 0.0
    prompt: float = 0.0
    cached: float = 0.0
    hits: float = 0.0
    """The engine's count, like `queries`."""
    queries: float = 0.0


class Rates:
    """Sums tokens, and gives their rates over the last `WINDOW_S`."""

    def __init__(self, start_s: float) -> None:
        self._totals = Tokens(start_s)
        self._window = deque([self._totals])

    def add(self, usage: Usage) -> None:
        """A step has ended with this usage."""
        before = self._totals
        self._totals = before._replace(
            output=before.output + usage.completion_tokens,
            prompt=before.prompt + usage.prompt_tokens,
            cached=before.cached + (usage.cached_tokens or 0),
        )

    def tick(self, now: float, hits: float, queries: float) -> Tokens:
        """The rates at a tick [tokens/s].

        Args:
            now: its time [s].
            hits: the engine's counts so far [tokens].
            queries: likewise.
        """
        self._totals = self._totals._replace(at_s=now, hits=hits, queries=queries)
        self._window.append(self._totals)
        while len(self._window) > 2 and self._window[1].at_s <= now - WINDOW_S:
            self._window.popleft()
        before, after = self._window[0], self._window[-1]
        passed_s = max(1e-9, after.at_s - before.at_s)
        return Tokens(
            now, *((b - a) / passed_s for a, b in zip(before[1:], after[1:], strict=True))
        )
