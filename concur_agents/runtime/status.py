"""What a governor shows of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from concur_agents.core import Reading, View
from concur_agents.recording import Shadow


@dataclass(frozen=True, kw_only=True)
class EndpointStatus:
    """How well one engine can be read; the attributes as in `GovernorSnapshot`.

    Attributes:
        pools: the pools on its page; empty: the governor has one pool in all.
        unread: those of them without a reading the last time, and why: the page could not be
            read, or does not show them.
    """

    url: str | None
    engine: str | None
    last_reading: Reading | None
    poll_failures_total: int
    poll_error: str | None
    blind_s: float
    pools: tuple[str, ...] = ()
    unread: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GovernorSnapshot(View):
    """Where a governor stands: the regulator's view, and how well the engine can be read.

    Attributes:
        law: name of the law in force.
        url: the endpoint that is read; None: none.
        engine: what kind of engine it is; None: not known (yet).
        last_reading: the engine's last words; None: none yet.
        poll_failures_total: readings that failed.
        poll_error: why the last reading failed; None: it did not.
        blind_s: time [s] since the last good reading, or since the first attempt; 0: no endpoint.
        closed: every agent passes, because the governor was closed, broke, or belongs to a parent
            process.
        alive: agents that have entered and not left, waiting or not; of a daemon: in all processes.
        waiters: threads and tasks that wait for their turn; of a daemon: agents that do.
        unread_usages_total: usages recorded by the program in which there were no token counts.
        shadow: the law that decides beside the one in force, and where it stands; None: none.
        endpoints: each engine that is read; `url` and so on above are those of the first.
        pools: with several, the view of each by its name; the numbers of the whole are sums, or
            means where a sum says nothing, without the tokens of a pool that is down.
    """

    law: str
    url: str | None
    engine: str | None
    last_reading: Reading | None
    poll_failures_total: int
    poll_error: str | None
    blind_s: float
    closed: bool
    alive: int
    waiters: int
    unread_usages_total: int = 0
    shadow: Shadow | None = None
    endpoints: tuple[EndpointStatus, ...] = ()
