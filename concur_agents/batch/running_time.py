"""A limit on the time that an agent runs; its queue and its pauses do not count."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from concur_agents._text import shown_id
from concur_agents.runtime.agent import Agent

SHORTEST_TIMER_S = 0.05
"""How closely [s] the limit is kept while an agent is paused shortly before it."""


@asynccontextmanager
async def running_time(agent: Agent, limit_s: float | None) -> AsyncIterator[None]:
    """Ends the block when the agent has run for this long; None: no limit.

    Raises:
        TimeoutError: the agent ran for longer than `limit_s`.
    """
    if limit_s is None:
        yield
        return
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None
    scope = asyncio.timeout(None)

    def check() -> None:
        nonlocal timer
        left_s = limit_s - agent.stats.running_s
        if left_s <= 0:
            scope.reschedule(loop.time())
        else:  # a pause before then leaves as much time over
            timer = loop.call_later(max(left_s, SHORTEST_TIMER_S), check)

    try:
        async with scope:
            check()
            yield
    except TimeoutError as error:
        if not scope.expired():
            raise  # the agent's own
        raise TimeoutError(
            f"agent {shown_id(agent.id)!r} ran for more than {limit_s:g} s "
            "(queue and pauses not counted)"
        ) from error
    finally:
        if timer is not None:
            timer.cancel()
