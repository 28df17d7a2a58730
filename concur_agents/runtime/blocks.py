"""What is between the steps of an agent's life: tools, and times without its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from concur_agents._outside import finishing

if TYPE_CHECKING:
    from concur_agents.runtime.monitor import Monitor
    from concur_agents.runtime.session import Session


class _Block:
    """A block that is the same in sync and async code, since neither end of it waits."""

    __slots__ = ("_monitor", "_session")

    def __init__(self, monitor: Monitor, session: Session) -> None:
        self._monitor = monitor
        self._session = session

    def _start(self) -> None:
        raise NotImplementedError

    def _stop(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> None:
        self._start()

    def __exit__(self, *_: object) -> None:
        self._stop()

    async def __aenter__(self) -> None:
        self._start()

    async def __aexit__(self, *_: object) -> None:
        self._stop()


class Suspension(_Block):
    """The agent is away and its place is free. Made by `Agent.suspended`."""

    __slots__ = ()

    @finishing
    def _start(self) -> None:
        self._monitor.suspend(self._session)

    @finishing
    def _stop(self) -> None:
        self._monitor.resume(self._session)


class Tool(_Block):
    """The agent runs a tool. Made by `Agent.tool`."""

    __slots__ = ("_began_s", "_name")

    def __init__(self, monitor: Monitor, session: Session, name: str) -> None:
        super().__init__(monitor, session)
        self._name = name
        self._began_s = 0.0

    def _start(self) -> None:
        self._began_s = self._monitor.tool_began(self._session, self._name)

    def _stop(self) -> None:
        self._monitor.tool_ended(self._session, self._name, self._began_s)
