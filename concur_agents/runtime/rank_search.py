"""Finds out whether the engines on one page can be pools of their own.

A page with several engines may be that of data-parallel ranks, and calls can be pinned to these if
nothing on the way drops the header. That is proved with a few tiny calls before it is believed.
They are made where a governor reads the address with a thread of its own, its law goes by tokens,
and the engine serves a model whose name is known.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from concur_agents.errors import ProbeError
from concur_agents.probes.pinning import PinProof
from concur_agents.runtime.attempt import Attempt

if TYPE_CHECKING:
    from concur_agents.probes import PageReading
    from concur_agents.runtime.poller import EnginePoller

logger = logging.getLogger("concur_agents")

HOLD_S = 5.0
"""Longest time that the first reading waits for the proof [s]: until it is there few agents run,
and their calls disturb the counters little."""

REST_S = 60.0
"""From a proof that said nothing until the next one [s]: the engine may still be starting."""

TRIES = 3
"""Proofs that say nothing before no more is asked."""

_HIDDEN = (
    "its page shows one of them, which is governed as if it were all: start SGLang with "
    "--enable-metrics-for-all-schedulers"
)

_ENGINES = ("vllm", "sglang")


class RankSearch:
    """The proofs of one address, one at a time, each in a thread of its own.

    Args:
        poller: reads the address, and makes the calls.
        nudge: asks for a beat once there is a result; it must not keep its owner alive.
    """

    def __init__(self, poller: EnginePoller, nudge: Callable[[], object]) -> None:
        self._poller, self._nudge = poller, nudge
        self._attempt: Attempt[PinProof | None] | None = None
        self._held_until_s: float | None = None
        self._next_s = -math.inf
        self._left = TRIES

    def look(self, page: PageReading, now: float) -> None:
        """A page was read; begins a proof if it shows several engines, and that is due."""
        if self._attempt is not None or not self._left or now < self._next_s:
            return
        ask, held_until_s = self._prove, self._held_until_s or now + HOLD_S
        if count_ranks(page) < 2:
            if page.engine != "sglang" or len(page.readings) != 1:
                return
            ask, held_until_s, self._left = self._look_for_hidden, now, 1
        self._left -= 1
        self._next_s, self._held_until_s = now + REST_S, held_until_s
        try:
            self._attempt = Attempt(ask, self._nudge, due_s=held_until_s)
        except RuntimeError as error:
            logger.warning("the ranks of an engine cannot be checked: %s", error)

    def holds(self, now: float) -> bool:
        """Whether the reading should wait for the proof."""
        attempt = self._attempt
        return attempt is not None and not attempt.over and now < attempt.due_s

    def take(self) -> PinProof | None:
        """The proof that has come, once; None: there is none."""
        attempt = self._attempt
        if attempt is None or not attempt.over:
            return None
        self._attempt = None
        if attempt.error is not None:
            logger.warning("the ranks of an engine cannot be checked", exc_info=attempt.error)
        return attempt.result

    def stop(self) -> None:
        """The answer is known: no more is asked."""
        self._left = 0

    def _prove(self) -> PinProof | None:
        return self._poller.check_pinning(None, None)

    def _look_for_hidden(self) -> PinProof | None:
        """SGLang shows one of its ranks alone, if it is not asked to show them all."""
        try:
            count = self._poller.hidden_ranks()
        except ProbeError:
            return None
        return None if count < 2 else PinProof(ranks=count, verdict="unknown", text=_HIDDEN)


def count_ranks(page: PageReading) -> int:
    """Engines that calls might be pinned to; 1: one, or others than ranks of one model."""
    count = len(page.readings)
    is_ranks = all(str(rank) in page.readings for rank in range(count))
    return count if is_ranks and page.engine in _ENGINES else 1
