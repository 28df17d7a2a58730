"""Who is let in first.  One small function each: the smallest key goes first.

Every order puts a higher `priority` before everything else.  `warm` says that the agent's prefix
is probably still cached; it can only change to False while the agent waits.
"""

from __future__ import annotations

from collections.abc import Callable

from concur_agents.core.family import Account

Key = tuple[float, ...]
Order = Callable[[Account, bool], Key]


def warm_new_least(account: Account, warm: bool) -> Key:
    """Warm agents, longest idle first; then new ones; then cold ones with least work done."""
    # A warm agent costs nothing now and a whole prefill later; a new one is small; among cold ones
    # the least advanced is the smallest.
    if warm:
        return (-account.priority, 0, account.idle_since_s)
    if not account.has_context:
        return (-account.priority, 1, account.seq)
    return (-account.priority, 2, account.work_tokens)


def warm_cold_new(account: Account, warm: bool) -> Key:
    """Warm agents; then cold ones, most advanced first; then new ones."""
    if warm:
        return (-account.priority, 0, account.idle_since_s)
    if account.has_context:
        return (-account.priority, 1, -account.work_tokens)
    return (-account.priority, 2, account.seq)


def first_come(account: Account, warm: bool) -> Key:
    """In order of arrival, whatever the cache holds."""
    return (-account.priority, account.seq)


ORDERS: dict[str, Order] = {
    order.__name__: order for order in (warm_new_least, warm_cold_new, first_come)
}
