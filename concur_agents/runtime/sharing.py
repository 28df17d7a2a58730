"""A governor that shares its decisions with other processes: `Governor(shared=...)`."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol, cast

from concur_agents.core import Law, law_names
from concur_agents.errors import ConfigError
from concur_agents.runtime.daemon_address import AUTO, DaemonAddress, daemon_address
from concur_agents.runtime.daemon_start import start_daemon
from concur_agents.runtime.endpoints import Address, Endpoints
from concur_agents.runtime.link import Link
from concur_agents.wire import RemoteRegulator

if TYPE_CHECKING:
    from concur_agents.runtime.monitor import Monitor

_OF_THE_DAEMON = ("pools", "law", "limit", "max_wait_s", "max_open")
"""Options that only the process that decides can use."""


class Finder(Protocol):
    """Knows where a daemon is that is elsewhere each time it was started.

    It can be pickled, and its `str` names the daemon for people.
    """

    def find(self) -> tuple[str, str]:
        """The address of the daemon and its token, asked for before each connection.

        Raises:
            ConcurError: it is not there now.
        """


class Sharing:
    """How a governor finds its daemon, and its connection to it.

    Args:
        where: "auto", "unix:PATH", "tcp://HOST:PORT", or what finds it.
        token: for TCP; None: none.
        options: of the governor; with "auto" they are those of the daemon, if it has to be started.

    Raises:
        ConfigError: the address is none, or an option is the daemon's.
    """

    def __init__(self, where: str | Finder, token: str | None, options: Mapping[str, Any]) -> None:
        self.options = {**options, "shared": where, "token": token}
        """Make another governor of the same daemon."""
        self._find: Callable[[], DaemonAddress]
        if isinstance(where, str):
            url = options["url"] or ()
            address = daemon_address(where, [url] if isinstance(url, str) else url)
            self._where, self._find = str(address), lambda: address
        else:
            self._where, self._find = str(where), lambda: self._ask(where)
        self._token = token or ""
        self._daemon: dict[str, Any] | None = None
        if where == AUTO:
            self._daemon = {**options, "law": describe(options["law"])}
        else:
            given = [name for name in _OF_THE_DAEMON if options[name] is not None]
            if given:
                raise ConfigError(
                    f"{', '.join(given)}: the daemon at {self._where} decides. Give that to "
                    "`concur serve`, or leave it out here"
                )
        self._safe_agents: int = options["blind_agents"]
        self._link: Link | None = None
        self._regulator: RemoteRegulator | None = None

    def begin(self, start_s: float, endpoints: Endpoints) -> RemoteRegulator:
        """A client with a session of its own."""

        def heard(regulator: RemoteRegulator) -> None:
            endpoints.router = regulator.router
            if regulator.are_pools_said:
                endpoints.addresses = {
                    name: Address(pool.url, pool.rank, pool.by_body, served_rank=pool.rank)
                    for name, pool in regulator.addresses.items()
                }

        link = self._link = Link(self._dial, self._where, heard)
        session = f"{_host_name()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._regulator = RemoteRegulator(
            session, start_s, token=self._token, safe_agents=self._safe_agents, wake=link.wake
        )
        return self._regulator

    def anew(self) -> Any:
        """One to put the same agents into; see `RemoteRegulator.anew`."""
        assert self._regulator is not None
        self._regulator = self._regulator.anew()
        return self._regulator

    def start(self, monitor: Monitor) -> None:
        """An agent is here: connects, if that has not begun."""
        if self._link is not None:
            self._link.start(monitor)

    @property
    def stop(self) -> Callable[[], None]:
        """Ends the connection."""
        assert self._link is not None
        return self._link.stop

    def join(self, timeout_s: float) -> None:
        """Waits for the end of the connection's thread [s]."""
        if self._link is not None:
            self._link.join(timeout_s)

    def after_fork(self) -> None:
        """In a child: the parent's connection is not its own."""
        if self._link is not None:
            self._link.abandon()

    def _dial(self) -> socket.socket:
        address = self._find()
        try:
            return address.connect()
        except (FileNotFoundError, ConnectionRefusedError):
            if self._daemon is None or address.path is None:
                raise
            start_daemon(address.path, self._daemon)
        return address.connect()

    def _ask(self, finder: Finder) -> DaemonAddress:
        where, token = finder.find()
        assert self._regulator is not None
        self._regulator.token = token  # before the hello of the connection that is made now
        return daemon_address(where)


def describe(law: str | Law | None) -> Any:
    """A law for another process: its name, or its name and options.

    Raises:
        ConfigError: it is an object that only this process has.
    """
    if law is None or isinstance(law, str):
        return law
    if law.name not in law_names() or not type(law).__module__.startswith("concur_agents."):
        raise ConfigError(
            f"law={law!r} exists in this process only: name it as package.module:Class, or start "
            "the daemon with `concur serve`"
        )
    return {"name": law.name, "options": asdict(cast("Any", law))}


def _host_name() -> str:
    name = socket.gethostname().partition(".")[0]
    return "".join(c for c in name if c.isascii() and (c.isalnum() or c in "-_")) or "host"
