"""The server: sockets and time around a `Hub`, in one asyncio loop.

The governor's thread reads the engines and decides as well; the governor's lock is what orders the
two.  What the hub has to say is sent by the loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from concur_agents._sockets import bind, make_private
from concur_agents.core import View
from concur_agents.errors import ConfigError
from concur_agents.governor import Governor
from concur_agents.runtime.daemon_address import DaemonAddress
from concur_agents.runtime.elsewhere import Elsewhere
from concur_agents.runtime.events import EventKind
from concur_agents.wire import Frames, Hub, Message, Receiver, Sender, WireError
from concur_agents.wire.messages import TTL_S, PoolAddress, Refused

logger = logging.getLogger("concur_agents")

TURN_S = 0.25
"""What is due by time is looked after so often [s]."""

HELLO_S = 10.0
"""A connection that has not said hello after so long [s] is closed."""

MOST_UNREAD = 2**23
"""A client that does not read more than this [bytes] is dropped."""

SAID_AGAIN_S = 60.0
"""A reason for which clients of a host are refused is logged again after so long [s]."""

MOST_SAID = 256
"""Most hosts and reasons remembered for that."""

BACKLOG = 1024


def listen(address: DaemonAddress, token: str | None) -> tuple[socket.socket, bool]:
    """Listens for clients.

    Returns:
        The socket, and whether a daemon that listened there before was killed.

    Raises:
        ConfigError: it cannot be listened to, or others could connect without a token.
    """
    if address.path is not None:
        make_private(address.path.parent)
        is_successor = address.path.is_socket()
        return bind(address.path, BACKLOG), is_successor
    if not token:
        raise ConfigError(
            f"{address} is open to all users of this machine and perhaps of others: give a token "
            "(CONCUR_TOKEN), which each client has to send"
        )
    try:
        return socket.create_server((address.host, address.port), backlog=BACKLOG), True
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {address}: {os.strerror(error.errno) if error.errno else error}; "
            "free that port, or choose another one for the daemon and its clients"
        ) from error


def log_to_stderr() -> None:
    """Our lines from INFO on, those of libraries from WARNING on."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logger.setLevel(logging.INFO)


class Daemon:
    """Lets clients in, and asks the governor for them.

    Args:
        governor: decides; it has no agents of its own.
        settle_s: see `Hub`.
        token: what clients over TCP have to send.
        idle_s: it ends when so long [s] no client was there; None: it does not.
        ttl_s: see `Hub`; very long where the governor's clock is not that of the clients.
    """

    def __init__(
        self,
        governor: Governor,
        *,
        settle_s: float,
        token: str | None = None,
        idle_s: float | None = None,
        ttl_s: float = TTL_S,
    ) -> None:
        self._monitor = governor.monitor
        self._governor = governor
        self._idle_s = idle_s
        self._seen_s = time.monotonic()
        self._clients: dict[int, _Client] = {}
        self.connected: set[_Client] = set()  # also those that are no clients any more
        self._numbers = 0
        self._said_s: dict[tuple[str, str], float] = {}  # host, why it was refused -> when [s]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Event | None = None
        self._loop_thread = 0
        self.hub = Hub(
            lambda: self._monitor.sessions.regulator,
            self._monitor.clock(),
            settle_s=settle_s,
            ttl_s=ttl_s,
            token=token,
            law=governor.law.name,
            router=None if governor.router is None else _Router(governor, governor.router),
            tell=self._tell,
        )
        self._monitor.sessions.elsewhere = _Clients(self.hub, self._flush_soon)

    async def serve(self, listeners: Iterable[tuple[socket.socket, DaemonAddress]]) -> None:
        """Serves until `end`, SIGTERM or SIGINT, or until it has been idle for long."""
        loop = self._loop = asyncio.get_running_loop()
        ended = self._ended = asyncio.Event()
        self._loop_thread = threading.get_ident()
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(NotImplementedError, ValueError, RuntimeError):  # not in the main thread
                loop.add_signal_handler(number, ended.set)
        servers: list[asyncio.Server] = []
        listeners = list(listeners)
        self.turn()  # so that the first client hears of the pools
        try:
            for found, address in listeners:
                make = self._maker(address)
                if address.path is None:
                    servers.append(await loop.create_server(make, sock=found))
                else:
                    servers.append(await loop.create_unix_server(make, sock=found))
            self._governor.start()
            while not ended.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), TURN_S)
                self.turn()
        finally:
            for found, _ in listeners:
                loop.remove_reader(found)
            # asyncio never closes a connection that it has accepted, but not yet begun, at a close.
            await asyncio.sleep(0)
            for server in servers:
                server.close()
            for _, address in listeners:
                if address.path is not None:
                    address.path.unlink(missing_ok=True)
            ended.set()
            await self._hang_up()
        if self._monitor.sessions.bug is not None:
            raise self._monitor.sessions.bug

    def end(self) -> None:
        """Ends it.  From any thread."""
        if self._loop is not None and self._ended is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._ended.set)

    async def _hang_up(self) -> None:
        """Closes all connections, also those whose other end does not read."""
        for client in list(self.connected):
            client.close()
        await asyncio.sleep(0)  # what has nothing left to send is closed now
        for client in list(self.connected):
            client.abort()
        await asyncio.sleep(0)

    @property
    def is_over(self) -> bool:
        """Whether a connection comes too late."""
        return self._ended is None or self._ended.is_set()

    # -- clients -----------------------------------------------------------------------------------

    def _maker(self, address: DaemonAddress) -> Callable[[], asyncio.Protocol]:
        return lambda: _Client(self, is_trusted=address.is_trusted)

    def join(self, client: _Client) -> int:
        """A client has connected; returns its number."""
        self._numbers += 1
        self._clients[self._numbers] = client
        self.hub.connect(self._numbers, is_trusted=client.is_trusted)
        return self._numbers

    def receive(self, number: int, messages: list[Message]) -> None:
        """A client says something.

        Raises:
            WireError: it is to be dropped.
        """

        def act(now: float) -> None:
            for message in messages:
                self.hub.receive(number, message, now)

        try:
            self._decide(act)
        finally:
            self._flush()

    def drop(self, number: int) -> None:
        """A client is of no use; it may come back."""
        self._clients.pop(number, None)
        self._decide(lambda _: self.hub.drop(number))
        self._flush()

    def say_refused(self, host: str, why: str) -> None:
        """Logs that a client was refused: once in a while, as it tries again twice a second."""
        now_s = time.monotonic()
        if now_s - self._said_s.get((host, why), -math.inf) < SAID_AGAIN_S:
            return
        if len(self._said_s) >= MOST_SAID:
            self._said_s.clear()
        self._said_s[host, why] = now_s
        logger.warning("a client at %s was dropped: %s", host, why)

    def leave(self, number: int) -> None:
        """A client has hung up."""
        if self._clients.pop(number, None) is not None:
            self._decide(lambda now: self.hub.disconnect(number, now))
            self._flush()

    # -- inside ------------------------------------------------------------------------------------

    def _decide(self, do: Callable[[float], object]) -> None:
        """Runs `do(now)` under the governor's lock."""

        def act(now: float) -> tuple[()]:
            do(now)
            return ()

        self._monitor.decide(act)
        if self._monitor.sessions.bug is not None and self._ended is not None:
            self._ended.set()  # another daemon begins with what the clients know

    def _tell(self, kind: str, now: float, agent: str | None, /, **details: Any) -> None:
        """Under the lock: something has happened to an agent of a client, or to an engine."""
        self._monitor.sessions.tell(cast("EventKind", kind), now, agent, **details)

    def _flush_soon(self) -> None:
        """Under the lock: a reading, or time, has let in an agent of a client."""
        if self._loop is not None and threading.get_ident() != self._loop_thread:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._flush)

    def turn(self) -> None:
        """Does what is due by time, and sends what comes of it."""
        self._decide(self._advance)
        self._flush()
        now_s = time.monotonic()
        for client in list(self._clients.values()):
            if not client.is_greeted and now_s - client.since_s > HELLO_S:
                client.refuse("no hello came")
        if self._clients:
            self._seen_s = now_s
        elif (
            self._idle_s is not None
            and now_s - self._seen_s >= self._idle_s
            and not self.is_over  # the turn that found it is not the last one
        ):
            logger.info("no client for %.0f s: the daemon ends", self._idle_s)
            self.end()

    def _advance(self, now: float) -> None:
        regulator: Any = self._monitor.sessions.regulator
        self.hub.set_pools(
            PoolAddress(name, address.url, address.rank, address.by_body, regulator.is_down(name))
            for name, address in self._governor.addresses.items()
        )
        self.hub.advance(now)

    def _flush(self) -> None:
        """Sends what the hub has to say."""
        out: list[tuple[int, Message]] = []
        closing: list[int] = []

        def take(_: float) -> None:
            out.extend(cast("list[tuple[int, Message]]", self.hub.take()))
            closing.extend(cast("list[int]", self.hub.closing))
            self.hub.closing = []

        self._decide(take)
        for number, message in out:
            client = self._clients.get(number)
            if client is not None:
                client.send(message)
        for number in closing:
            client = self._clients.pop(number, None)
            if client is not None:
                client.close()


class _Clients(Elsewhere):
    """The agents of all clients."""

    def __init__(self, hub: Hub, flush_soon: Callable[[], object]) -> None:
        self._hub, self._flush_soon = hub, flush_soon

    def let_in(self, agent: str, now: float) -> None:
        """See `Elsewhere`."""
        self._hub.let_in([agent], now)
        self._flush_soon()

    @property
    def alive(self) -> int:
        """Likewise."""
        return self._hub.alive

    @property
    def may_wait(self) -> bool:
        """Likewise."""
        return bool(self._hub.sessions)

    def waiters(self, view: View) -> int:
        """Likewise."""
        return view.queued + view.paused + self._hub.waiting


@dataclass
class _Router:
    """The router before the engines, and what answers through it say."""

    _governor: Governor
    url: str

    def served(self, worker: str | None, token: str | None, before: str | None) -> str | None:
        """See `wire.hub_ops.Router`."""
        return self._governor.served(worker, token, before)


class _Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, daemon: Daemon, *, is_trusted: bool) -> None:
        self._daemon, self.is_trusted = daemon, is_trusted
        self._frames, self._receiver, self._sender = Frames(), Receiver(), Sender()
        self._transport: asyncio.Transport | None = None
        self._number = 0
        self.is_greeted = False
        self.since_s = time.monotonic()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)
        if self._daemon.is_over:
            self._transport.abort()
            return
        self._daemon.connected.add(self)
        found = self._transport.get_extra_info("socket")
        if found is not None and found.family != getattr(socket, "AF_UNIX", None):
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._number = self._daemon.join(self)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._is_closed:
            return
        try:
            found = [self._receiver.message(line) for line in self._frames.cut(data)]
            self._daemon.receive(self._number, [message for message in found if message])
        except WireError as error:
            self.refuse(str(error))

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._transport = None
        self._daemon.connected.discard(self)
        self._daemon.leave(self._number)

    def send(self, message: Message) -> None:
        """Sends a frame; a client that does not read is dropped."""
        if self._transport is None or self._is_closed:
            return
        self.is_greeted = True
        self._transport.write(self._sender.frame(message))
        if self._transport.get_write_buffer_size() > MOST_UNREAD:
            self._transport.abort()

    def refuse(self, why: str) -> None:
        """Says why, and hangs up."""
        if self._transport is None or self._is_closed:
            return
        peer = self._transport.get_extra_info("peername")
        self._daemon.say_refused(peer[0] if isinstance(peer, tuple) else "this machine", why)
        self._transport.write(self._sender.frame(Refused(why[:500])))
        self._daemon.drop(self._number)
        self.close()

    def close(self) -> None:
        """Hangs up."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Hangs up without what is left to send."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def _is_closed(self) -> bool:
        return self._transport is None or self._transport.is_closing()
