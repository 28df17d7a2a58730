"""What `concur doctor`, `explain` and `watch` say about trouble that a governor has seen."""

from __future__ import annotations

STALLS_PAGE = "docs/semaphores.md"


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
