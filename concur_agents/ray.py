"""One decision for all processes of a Ray cluster: `concur_agents.ray.governor`.

    import concur_agents.ray

    gov = concur_agents.ray.governor(["http://gpu1:8000", "http://gpu2:8000"])

A named, detached actor hosts the daemon (`concur_agents.daemon`).  Ray finds it and starts it again
when it dies, and nothing more: each process asks the actor once per connection where the daemon
listens, and all else goes over a socket of their own.  No wait is a call of an actor, because an
actor has room for so many calls at once, and then a call that would let one go on has none.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
import threading
from collections.abc import Iterable, Mapping
from typing import IO, Any

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from concur_agents._extras import missing_extra
from concur_agents._outside import is_from_handler
from concur_agents.daemon import Daemon, listen
from concur_agents.daemon.locks import take_locks
from concur_agents.errors import ConfigError
from concur_agents.governor import Governor
from concur_agents.runtime.config import unknown_option
from concur_agents.runtime.daemon_address import DaemonAddress, digest_of
from concur_agents.runtime.daemon_start import DaemonError
from concur_agents.runtime.endpoints import addresses_in

try:
    import ray
except ModuleNotFoundError as error:
    raise missing_extra(error) from error

logger = logging.getLogger("concur_agents")

NAMESPACE = "concur_agents"
"""Of the actors: one for all jobs of a cluster."""

START_S = 60.0
"""Longest start of the actor [s]: Ray may have to start a process for it, on a busy machine."""

FIND_S = 5.0
"""Longest question to it [s]."""

IDLE_S = 30.0
"""It ends so long after its last client [s]."""

SETTLE_S = 1.5
"""So long after a start clients come back and no agent is let in [s]: Ray tells some of them up to
a second later than others where it is."""

_LOCK_S = 5.0  # its predecessor may not be gone yet

_OF_THIS_PROCESS = ("ungoverned", "routes", "record", "socket")
_OF_BOTH = ("ranks", "api_key", "blind_agents")
_OF_THE_DAEMON = (
    *("law", "limit", "pools", "metrics_headers", "metrics_verify", "poll_interval_s"),
    *("max_wait_s", "max_open", "blind_after_s", "shadow"),
)
_SECRETS = ("api_key", "metrics_headers")  # the actor hands them to nobody


def governor(url: str | Iterable[str] | None = None, **options: Any) -> Governor:
    """A governor that shares its decisions with all others of these engines in the Ray cluster.

    For drivers, tasks and actors; it can be pickled into them, and connects there.  The first one
    starts the actor, which goes on after the job that started it and ends by itself half a minute
    after its last client.

    Args:
        url: the engines; see `Governor`.  None: with `limit`, one cap for the whole cluster.
        options: as for `Governor`.  `ungoverned`, `routes`, `record` and `socket` are this
            process's; all others are the daemon's, which has those of whoever was first.  Others
            that are given later and differ are logged.

    Raises:
        ConfigError: Ray is not connected, or an option is out of its range.
        DaemonError: the actor could not be started.
    """
    urls = addresses_in(url)
    for name in options:
        if name not in (*_OF_THIS_PROCESS, *_OF_BOTH, *_OF_THE_DAEMON):
            if name in ("shared", "token", "probe", "background", "clock"):
                raise ConfigError(f"{name} is not for a governor of a Ray cluster: leave it out")
            raise ConfigError(unknown_option(name))
    if not ray.is_initialized():
        raise ConfigError("Ray is not connected: call ray.init() before concur_agents.ray.governor")
    of_daemon = {name: options[name] for name in (*_OF_BOTH, *_OF_THE_DAEMON) if name in options}
    own = {name: options[name] for name in (*_OF_BOTH, *_OF_THIS_PROCESS) if name in options}
    Governor(urls or None, **of_daemon).close()  # wrong options are this caller's error
    actor = HostActor(urls, of_daemon)
    actor.find(START_S)
    return Governor(urls or None, shared=actor, **own)


class HostActor:
    """Finds the actor, or starts it; can be pickled.

    Args:
        urls: the engines.
        options: of the daemon, if it has to be started.
    """

    def __init__(self, urls: list[str], options: Mapping[str, Any]) -> None:
        self._urls, self._options = urls, dict(options)
        self._name = f"governor-{digest_of(urls)}"
        self._has_told = False

    def __str__(self) -> str:
        return f"Ray actor {self._name}"

    def find(self, most_s: float = FIND_S) -> tuple[str, str]:
        """The address of the daemon and its token.

        Args:
            most_s: longest question [s].

        Raises:
            DaemonError: it cannot be reached, or not be started.
        """
        if not ray.is_initialized():  # asking would start a cluster
            raise DaemonError("Ray is not connected")
        try:
            # Not ray.get, which complains in an async actor, whatever the thread.
            asked = self._actor().where.remote().future()
            where, token, options = asked.result(most_s)
        except TimeoutError as error:
            raise DaemonError(f"{self} did not answer within {most_s:g} s") from error
        except Exception as error:  # Ray raises many kinds, some of them bare
            if is_from_handler(error):
                raise
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise DaemonError(lines[-1].strip() if lines else repr(error)) from error
        self._tell_differences(options)
        return where, token

    def _actor(self) -> Any:
        try:
            return ray.get_actor(self._name, namespace=NAMESPACE)
        except ValueError:  # there is none, or it has ended
            wished = _actor_class().options(
                name=self._name,
                namespace=NAMESPACE,
                get_if_exists=True,  # another process may be as quick
                lifetime="detached",
                num_cpus=0,
                max_restarts=-1,
                max_task_retries=-1,  # who asks while it restarts hears where it is at once
            )
            return wished.remote(self._urls, self._options)

    def _tell_differences(self, running: Mapping[str, Any]) -> None:
        own = {name: self._options[name] for name in self._options if name not in _SECRETS}
        differ = [name for name, value in own.items() if running.get(name) != value]
        if differ and not self._has_told:
            self._has_told = True
            logger.warning(
                "%s was started with another %s, which stays in force: end it to change that",
                self,
                ", ".join(differ),
            )


@functools.cache
def _actor_class() -> Any:
    """One for the process: Ray keeps a copy of each that is used."""
    return ray.remote(_Hosting)


class _Hosting:
    """The actor: hosts a daemon in a thread of its own."""

    def __init__(self, urls: list[str], options: Mapping[str, Any]) -> None:
        self._options = {name: options[name] for name in options if name not in _SECRETS}
        self._token = secrets.token_hex(32)
        address = DaemonAddress(None, ray.util.get_node_ip_address(), 0)
        listener, _ = listen(address, self._token)
        self._address = address._replace(port=listener.getsockname()[1])
        self._locks = _take_locks(urls, str(self._address))
        governor = Governor(urls or None, **options, socket="auto")
        daemon = Daemon(governor, settle_s=SETTLE_S, token=self._token, idle_s=IDLE_S)
        own = ray.get_runtime_context().current_actor

        def serve() -> None:
            try:
                asyncio.run(daemon.serve([(listener, self._address)]))
            except BaseException:
                logger.exception("the daemon of %s has ended; Ray starts it again", urls)
                ray.kill(own, no_restart=False)
                raise
            ray.kill(own)  # it was idle

        threading.Thread(target=serve, name="concur-daemon", daemon=True).start()

    async def where(self) -> tuple[str, str, dict[str, Any]]:
        """Where the daemon listens, its token, and the options it was started with."""
        return str(self._address), self._token, self._options


def _take_locks(urls: Iterable[str], where: str) -> list[IO[str]]:
    attempts = Retrying(
        stop=stop_after_delay(_LOCK_S),
        wait=wait_fixed(0.1),
        retry=retry_if_exception_type(ConfigError),
        reraise=True,
    )
    return attempts(take_locks, urls, where)
