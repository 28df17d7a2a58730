"""The connection of a process to its daemon: one thread, which is idle most of the time.

It sends what the `RemoteRegulator` has to say, delivers what the daemon says, and connects again
when that ends.  Its signs of life do not depend on the program's event loops.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, cast

from concur_agents._outside import is_from_handler
from concur_agents.errors import ConcurError
from concur_agents.runtime.daemon_start import DaemonStartsError
from concur_agents.runtime.events import told
from concur_agents.wire import Frames, Message, Receiver, RemoteRegulator, Sender, WireError

if TYPE_CHECKING:
    from concur_agents.runtime.monitor import Monitor

logger = logging.getLogger("concur_agents")

TURN_S = 1.0
"""Longest sleep: what is due by time is looked after so often [s]."""

FIRST_RETRY_S, LAST_RETRY_S = 0.05, 0.5
"""Time until the next attempt to connect: doubles from the one to the other [s].

A new daemon admits nobody for a second (`wire.hub.SETTLE_S`), so that those who look for it twice
as often have said by then what they hold.
"""

_READ = 2**16


class Link:
    """Connects a monitor's `RemoteRegulator` to its daemon.

    Args:
        dial: a new connection; OSError or ConcurError: there is none.
        where: the address, for people.
        heard: called under the lock when the daemon may have said something.
    """

    def __init__(
        self,
        dial: Callable[[], socket.socket],
        where: str,
        heard: Callable[[RemoteRegulator], object] = lambda _: None,
    ) -> None:
        self._dial, self._where, self._heard = dial, where, heard
        self._monitor: Monitor | None = None
        self._thread: threading.Thread | None = None
        self._socket: socket.socket | None = None
        self._stopped = self._is_told = False
        self._woken, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)

    def start(self, monitor: Monitor) -> None:
        """Starts the thread, if it does not run.

        Raises:
            RuntimeError: there can be no more threads.
        """
        if self._thread is not None or self._stopped:
            return
        self._monitor = monitor
        thread = threading.Thread(target=self._run, name="concur-link", daemon=True)
        self._thread = thread
        try:
            thread.start()
        except BaseException:
            self._thread = None
            raise

    def wake(self) -> None:
        """There is something to send.  From any thread, never blocks."""
        with contextlib.suppress(OSError):  # full: it is awake; closed: it has ended
            self._waker.send(b"!")

    def stop(self) -> None:
        """Ends the thread and the connection: the daemon lets this process's agents leave."""
        self._stopped = True
        self.wake()
        if self._thread is None:  # it was never needed
            self.abandon()

    def join(self, timeout_s: float) -> None:
        """Waits for the end of the thread [s]."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def abandon(self) -> None:
        """Closes what is open here, and reports nothing: in a forked child, or without a thread."""
        for end in (self._socket, self._woken, self._waker):
            if end is not None:
                end.close()

    # -- its thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        retry_s = FIRST_RETRY_S
        while not self._stopped:
            try:
                self._socket = self._dial()
            except (OSError, ConcurError) as error:
                self._tell(error)
                self._rest(retry_s)
                retry_s = min(2 * retry_s, LAST_RETRY_S)
                continue
            began_s = time.monotonic()
            try:
                self._serve(self._socket)
            except (OSError, WireError) as error:
                self._tell(error)
            finally:
                self._socket.close()
                self._socket = None
                self._decide(lambda regulator, now: regulator.disconnected(now))
            if time.monotonic() - began_s > LAST_RETRY_S:
                retry_s = FIRST_RETRY_S
            self._rest(retry_s)
            retry_s = min(2 * retry_s, LAST_RETRY_S)
        self._woken.close()
        self._waker.close()

    def _serve(self, connection: socket.socket) -> None:
        """Until the connection ends.

        Raises:
            OSError: it has ended.
            WireError: it is of no use.
        """
        connection.setblocking(False)
        sender, receiver, frames, out = Sender(), Receiver(), Frames(), bytearray()
        served = self._regulator
        self._decide(lambda regulator, now: regulator.connected(now))
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            selector.register(connection, selectors.EVENT_READ)
            while not self._stopped:
                for message in self._take(served):
                    out += sender.frame(message)
                writes = 0
                if out:
                    with contextlib.suppress(BlockingIOError):
                        del out[: connection.send(out)]
                    writes = selectors.EVENT_WRITE if out else 0
                selector.modify(connection, selectors.EVENT_READ | writes)
                ready = {key.fileobj for key, _ in selector.select(TURN_S)}
                if self._woken in ready:
                    self._drain()
                if connection in ready:
                    self._hear(served, self._read(connection, frames, receiver))

    def _read(self, connection: socket.socket, frames: Frames, receiver: Receiver) -> list[Message]:
        try:
            data = connection.recv(_READ)
        except BlockingIOError:  # it can only be written to
            return []
        if not data:
            raise ConnectionResetError("the daemon has ended")
        found = (receiver.message(line) for line in frames.cut(data))
        return [message for message in found if message is not None]

    def _hear(self, served: RemoteRegulator, messages: list[Message]) -> None:
        was_reached = served.is_reached

        def deliver(regulator: RemoteRegulator, now: float) -> None:
            for message in messages:
                regulator.deliver(message, now)

        self._decide(deliver)
        if not was_reached and served.is_reached:
            logger.log(
                logging.INFO if self._is_told else logging.DEBUG,
                "the daemon at %s answers",
                self._where,
                extra=told("daemon_reached", where=self._where),
            )
            self._is_told = False

    def _take(self, served: RemoteRegulator) -> list[Message]:
        out: list[Message] = []

        def take(regulator: RemoteRegulator, now: float) -> None:
            if regulator is not served:  # a signal handler's exception cut a decision off
                raise WireError("the agents are counted anew")
            out.extend(regulator.take(now))

        self._decide(take)
        return out

    @property
    def _regulator(self) -> RemoteRegulator:
        assert self._monitor is not None
        found = self._monitor.sessions.regulator
        return cast("RemoteRegulator", getattr(found, "inner", found))

    def _decide(self, do: Callable[[RemoteRegulator, float], None]) -> None:
        """Under the lock: `do`, and what comes of it."""
        monitor = self._monitor
        assert monitor is not None

        def act(now: float) -> Iterable[str]:
            if monitor.sessions.passing:
                return ()
            regulator = self._regulator
            do(regulator, now)
            let_in = monitor.sessions.regulator.advance(now)
            self._heard(regulator)  # before the agents that are let in make their calls
            for agent in regulator.newly_waiting():
                monitor.sessions.pause(agent, now)
            return let_in

        monitor.decide(act)

    def _tell(self, error: Exception) -> None:
        """Says once per outage that there is no daemon."""
        if is_from_handler(error):
            raise error
        if not (self._is_told or self._stopped or isinstance(error, DaemonStartsError)):
            self._is_told = True
            logger.warning(
                "cannot reach the daemon at %s: %s. Agents that are in go on; those that wait go "
                "on after 5 s without it, as many as were in here",
                self._where,
                error,
                extra=told("daemon_lost", where=self._where, error=str(error)),
            )

    def _rest(self, seconds: float) -> None:
        """Sleeps for so long, or until it is to end."""
        ends_s = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            while not self._stopped and (rest_s := ends_s - time.monotonic()) > 0:
                if selector.select(rest_s):
                    self._drain()

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(_READ)
