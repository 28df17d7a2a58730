"""What `concur doctor`, `explain` and `watch` say about trouble that a governor has seen."""

from __future__ import annotations

import math
from collections import defaultdict

from concur_agents.recording.timeline import Timeline, Wait

STALLS_PAGE = "docs/semaphores.md"

SHORT = 0.02
"""A share of the agents' lives below which their waits are not worth a change."""

CAUSES = {
    "tokens": "the pool is full",
    "agents": "the limit of active agents is reached",
    "max_open": "as many agents are open as `max_open` allows",
    "first_reading": "the engine's first reading has not come",
    "hold": "the batch is held, as during a weight update",
    "pools": "every pool is full",
    "daemon": "the daemon cannot be reached",
    "next": "the agent is about to be let in",
    "other": "the daemon is newer, and this release does not know its reason",
}
"""What binds -> the same in words; `docs/recordings.md` has them with what to do."""

TO_DO = {
    "tokens": "add a replica, give the engine a host tier for its KV cache, or make contexts "
    "shorter; a larger limit would only move the waits into the engine",
    "agents": "if the pool has room, raise `limit=`, or leave it to the default law; if it has "
    "none, do as for a full pool",
    "max_open": "raise `max_open=`, if your machine has room for more agents begun at once",
    "first_reading": "nothing, if these waits were short, because every batch begins with them; "
    "else look with `concur doctor URL` why the metrics page answers late",
    "pools": "add a replica, or make contexts shorter",
    "daemon": "start `concur serve` again; after five seconds this process decides by itself",
    "other": "use the daemon's release here, too",
}
"""What binds -> what helps."""


def stall_advice(stalls: int) -> str:
    """Agents were let in because nothing moved: the likely cause, and what to do."""
    return (
        f"{stalls:,} agents were let in because nothing moved (stalls). The likely cause: agents "
        "wait for the governor while they hold a semaphore, a rate limiter, a thread of a small "
        f"pool or a place with another governor. Take it inside of the step: see {STALLS_PAGE}"
    )


def pool_advice(reported: float, used: float) -> str:
    """Calls and hits prove a larger pool than the engine reports [tokens]: both numbers."""
    return (
        f"The engine reports a KV pool of {reported:,.0f} tokens; calls and cache hits prove that "
        f"it is larger, and {used:,.0f} are used. Hybrid models count blocks in another unit, and "
        "a host tier is often not counted"
    )


def cause_of(wait: Wait) -> str:
    """What bound when a wait began; of older recordings, by the numbers of the tick before."""
    if wait.cause is not None:
        return wait.cause
    if wait.active is None:
        return "first_reading"
    reached = wait.limit_agents is not None and wait.active >= wait.limit_agents
    return "agents" if reached else "tokens"


def waits_by_cause(timeline: Timeline, agent: str | None = None) -> dict[str, float]:
    """Seconds waited, by all agents or by one, by what bound, the most first.

    What bound when a wait began counts for all of it. Only the wait for the first reading has an
    end of its own: what comes after it is counted by the numbers of that reading.
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    for wait in timeline.waits:
        if agent is None or wait.agent == agent:
            for cause, waited_s in _parts_of(wait, timeline):
                seconds[cause] += waited_s
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def _parts_of(wait: Wait, timeline: Timeline) -> list[tuple[str, float]]:
    cause = cause_of(wait)
    if cause != "first_reading" or not timeline.samples:
        return [(cause, wait.waited_s)]
    first = timeline.samples[0]
    longest_s = timeline.header.regulator.get("first_reading_s", math.inf)
    over_s = max(wait.from_s, min(first.at_s, wait.from_s + longest_s))
    if over_s >= wait.to_s:
        return [(cause, wait.waited_s)]
    then = "agents" if first.limit_agents is not None else "tokens"
    if timeline.pools and wait.kind == "queued":
        then = "pools"
    return [(cause, over_s - wait.from_s), (then, wait.to_s - over_s)]


def what_to_do(timeline: Timeline, agent: str | None = None) -> str:
    """One sentence: what kept the agents, or one of them, waiting for most of the time; what helps.

    A wait below the limit is the price of a cache that keeps what it holds, so the answer may be
    that nothing is to be done.
    """
    lanes = [lane for lane in timeline.lanes.values() if agent is None or lane.id == agent]
    by_cause = waits_by_cause(timeline, agent)
    waited_s = sum(by_cause.values())
    life_s = sum(item.to_s - item.from_s for lane in lanes for item in lane.segments)
    whose = "the agents'" if agent is None else "its"
    if waited_s <= SHORT * life_s:
        of_life = f"{waited_s / life_s:.0%}" if life_s else "none"
        return f"What to do: nothing. Waits are {of_life} of {whose} time."
    cause = next(iter(by_cause))
    share = f"{by_cause[cause] / waited_s:.0%} of the waiting"
    text = f"What to do: for {share} {CAUSES.get(cause, cause)}"
    return f"{text}: {TO_DO[cause]}." if cause in TO_DO else f"{text}."
