"""What a host shows: questions to its parts, from any thread. They change nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, cast

from concur_agents.core import AgentView, Fleet, Law, Reading, Reason, View
from concur_agents.runtime.session import Named, id_of
from concur_agents.runtime.status import EndpointStatus, GovernorSnapshot

if TYPE_CHECKING:
    from concur_agents.probes import Probe
    from concur_agents.runtime.endpoints import Endpoint, Endpoints
    from concur_agents.runtime.events import Dispatcher, Watcher
    from concur_agents.runtime.monitor import Monitor
    from concur_agents.runtime.recording_session import RecordingSession
    from concur_agents.runtime.tool_times import ToolTime

_AGENTS_AT_A_TIME = 500
"""Agents read under the lock at once: about 2 ms, on a slow machine."""


class Reads:
    """How things stand, and why. Owned by `Host`, which makes the parts."""

    _monitor: Monitor
    _dispatcher: Dispatcher
    _endpoints: Endpoints
    _recording: RecordingSession
    _law: Law

    def snapshot(self) -> GovernorSnapshot:
        """Where things stand now. Cheap; from any thread."""
        view, alive, waiters = self._monitor.look(self._view)
        engine_poller = self._endpoints.first
        return GovernorSnapshot(
            **{field.name: getattr(view, field.name) for field in fields(view)},
            law=self._law.name,
            url=engine_poller.url,
            engine=engine_poller.engine,
            last_reading=engine_poller.last_reading,
            poll_failures_total=engine_poller.failures_total,
            poll_error=engine_poller.error,
            blind_s=engine_poller.blind_s(view.at_s),
            closed=self._monitor.sessions.passing,
            alive=alive,
            waiters=waiters,
            unread_usages_total=self._monitor.unread_usages_total,
            shadow=self._recording.shadow,
            endpoints=tuple(_status_of(endpoint, view.at_s) for endpoint in self._endpoints.all),
        )

    def _view(self, now: float) -> tuple[View, int, int]:
        """How many agents are here, and how many callers wait, at the instant of the view."""
        sessions = self._monitor.sessions
        view, elsewhere = sessions.regulator.view(now), sessions.elsewhere
        alive, waiters = len(sessions.by_id) + elsewhere.alive, len(sessions.tickets)
        return view, alive, waiters + elsewhere.waiters(view)

    def explain(self, agent: str | Named) -> str:
        """Why an agent, or the one of this id, waits or what it does, in one line for humans.

        Of several pools: also that its pool is down, or any while it has none, and why.
        """
        found = id_of(agent)
        return self._monitor.look(
            lambda now: "; ".join((self._monitor.sessions.explain(found, now), *self._down(found)))
        )

    def _down(self, agent: str) -> list[str]:
        """Which pools that an agent may wait for are down, and why."""
        sessions = self._monitor.sessions
        if not self._endpoints.is_fleet or agent not in sessions.by_id or sessions.passing:
            return []
        fleet = cast("Fleet", sessions.regulator)
        pool = fleet.pool_of(agent)
        return [
            f"{name} is down: {why}"
            for endpoint in self._endpoints.all
            for name, why in endpoint.unread.items()
            if name is not None and pool in (None, name) and fleet.is_down(name)
        ]

    def why(self, agent: str | Named) -> Reason | None:
        """What keeps an agent waiting; None: it does not wait. O(1), unlike `explain`."""
        found = id_of(agent)
        return self._monitor.look(lambda now: self._monitor.sessions.regulator.why(found, now))

    def agents(self) -> list[AgentView]:
        """Every agent that is here, in order of arrival; `since_s` is on this governor's clock.

        For people, not for loops: it takes about 3 ms for a thousand agents. Agents are read a few
        hundred at a time, so that boundaries do not wait for it; an agent that leaves meanwhile is
        missing.
        """
        regulator = self._monitor.sessions.regulator
        ids = self._monitor.look(lambda _: regulator.ids())
        found: list[AgentView] = []
        for start in range(0, len(ids), _AGENTS_AT_A_TIME):
            some = ids[start : start + _AGENTS_AT_A_TIME]
            found += self._monitor.look(lambda _, some=some: regulator.agents(some))  # type: ignore[misc]
        return found

    def agent_state(self, agent: str | Named) -> str | None:
        """'queued', 'reasoning', 'acting', 'paused' or 'suspended'; None: no such agent."""
        return self._monitor.agent_state(id_of(agent))

    def tool_times(self) -> dict[str, ToolTime]:
        """How long each tool takes, learned from `agent.tool(name)` blocks.

        Beyond a thousand names further ones are counted together, as `(other tools)`.
        """
        return self._monitor.look(lambda _: dict(self._monitor.sessions.tools))

    def on_event(self, watcher: Watcher) -> Callable[[], None]:
        """Calls a function with each `Event`, in order, never two at once.

        It runs in whichever thread caused the event, so it should be quick; it may call the
        governor. What it raises is logged once and goes no further.

        Returns:
            The function that ends the subscription.
        """
        return self._dispatcher.subscribe(watcher)

    @property
    def law(self) -> Law:
        """The law in force."""
        return self._law

    @property
    def probe(self) -> Probe | None:
        """What reads the engine; None: nothing is read."""
        return self._endpoints.first.probe

    @property
    def own_probe(self) -> Probe | None:
        """The probe made from `url`, which is ours to close; None: there is none."""
        return self._endpoints.first.own_probe

    def check(self) -> Reading:
        """Reads the engine once, now, for those who want to know before they start.

        Raises:
            ProbeError: it cannot be read; the message says what to do.
            ConfigError: there is no endpoint to read.
        """
        return self._endpoints.first.check()

    def __repr__(self) -> str:
        view = self._monitor.look(self._monitor.sessions.regulator.view)
        where = f" {self._endpoints.first.url}" if self._endpoints.first.url else ""
        if view.pools:
            where = f" of {len(view.pools)} pools"
        passing = "; closed, every agent passes" if self._monitor.sessions.passing else ""
        return (
            f"<Governor {self._law.name}{where}: {view.active} active, {view.paused} paused, "
            f"{view.queued} queued{passing}>"
        )


def _status_of(endpoint: Endpoint, now: float) -> EndpointStatus:
    poller = endpoint.poller
    return EndpointStatus(
        url=poller.url,
        engine=poller.engine,
        last_reading=poller.last_reading,
        poll_failures_total=poller.failures_total,
        poll_error=poller.error,
        blind_s=poller.blind_s(now),
        pools=tuple((endpoint.pools or {}).values()),
        unread={pool: why for pool, why in endpoint.unread.items() if pool is not None},
    )
