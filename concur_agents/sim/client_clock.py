"""Virtual time that waits for real clients: it moves on only while every client waits.

A client computes, or it waits: in a call that the engine has received, in `ClientClock.sleep`, or
at a gate. While one computes, the time stands still, so a slow or busy machine makes a run longer
on the wall and changes nothing else. When none computes, exactly one thing happens, and the clock
looks again after it: an answer leaves, a sleeper wakes, or the time moves on to the next event. One
at a time, because the order in which sockets become readable would otherwise decide.

Clients, server and clock share one event loop, so nothing here needs a lock.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from concur_agents.sim.engine import Engine, Request
from concur_agents.sim.pages import MetricsPage
from concur_agents.sim.realtime import Driver, ServedCall, ServerStats

__all__ = ["Alarm", "ClientClock", "WaitingDriver"]


class ClientClock:
    """Virtual time [s], 0 at the start; call it to read it. Give it to the `EmbeddedServer`s."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._clients = 0
        self._asleep = 0
        self._sleeps: list[tuple[float, int, int, asyncio.Future[None]]] = []  # a heap
        self._slept = 0
        self._drivers: list[WaitingDriver] = []
        self._changed = asyncio.Event()
        self.held: Callable[[], int] = lambda: 0
        """How many clients wait at a gate now."""

    def __call__(self) -> float:
        """The time [s]."""
        return self._now_s

    @contextmanager
    def client(self) -> Iterator[None]:
        """The time waits for the code inside."""
        self._clients += 1
        try:
            yield
        finally:
            self._clients -= 1
            self.look()

    async def sleep(self, delay_s: float) -> None:
        """Wait so long [s] in virtual time; with 0: until no other client computes."""
        await self._sleep(self._plan(self._now_s + max(0.0, delay_s)))

    def look(self) -> None:
        """A client may have begun to wait. In other threads: through `call_soon_threadsafe`."""
        self._changed.set()

    async def run(self) -> None:
        """Let time pass until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            while self._is_quiet() and self._go_on():
                pass

    def attach(self, driver: WaitingDriver) -> None:
        """One more engine runs by this clock."""
        self._drivers.append(driver)

    def _is_quiet(self) -> bool:
        """Whether no client computes."""
        stats = {id(driver.stats): driver.stats for driver in self._drivers}
        calls = sum(each.in_flight for each in stats.values())
        computing = self._clients - self._asleep - calls
        return computing <= 0 or (self.held() >= computing)

    def _go_on(self) -> bool:
        """Do the next thing. False: there is none."""
        if any(driver.answer_one() for driver in self._drivers):
            return True
        while self._sleeps and self._sleeps[0][3].done():  # cancelled, or an alarm that has rung
            heapq.heappop(self._sleeps)
        if self._sleeps and self._sleeps[0][0] <= self._now_s:
            self._asleep -= 1
            heapq.heappop(self._sleeps)[3].set_result(None)
            return True
        engines_s = [driver.engine.next_event_s() for driver in self._drivers]
        next_s = min(
            self._sleeps[0][0] if self._sleeps else math.inf,
            *(math.inf if engine_s is None else engine_s for engine_s in engines_s),
            math.inf,
        )
        if next_s == math.inf:
            return False
        self._now_s = max(self._now_s, next_s)
        for driver in self._drivers:
            driver.catch_up()
        return True

    def _plan(
        self, at_s: float, *, last: bool = False, future: asyncio.Future[None] | None = None
    ) -> asyncio.Future[None]:
        """A future that is done at `at_s`; `last`: after all others of that instant."""
        if future is None:
            future = asyncio.get_running_loop().create_future()
        self._slept += 1
        heapq.heappush(self._sleeps, (at_s, last, self._slept, future))
        return future

    async def _sleep(self, future: asyncio.Future[None]) -> None:
        self._asleep += 1
        self.look()
        try:
            await future
        except asyncio.CancelledError:
            if future.cancelled():
                self._asleep -= 1
            raise


class Alarm:
    """A sleep of one client that others can cut short."""

    def __init__(self, clock: ClientClock) -> None:
        self._clock = clock
        self._future: asyncio.Future[None] | None = None
        self._rung = False

    def ring(self) -> None:
        """The sleep, or the next one, ends at this instant, once no other client computes."""
        self._rung = True
        if self._future is not None:
            self._clock._plan(self._clock(), last=True, future=self._future)
            self._clock.look()

    async def sleep(self, delay_s: float | None) -> None:
        """Wait so long [s] in virtual time, and at most until it rings; None: until it rings."""
        at_s = math.inf if delay_s is None else self._clock() + delay_s
        if self._rung:
            at_s = self._clock()
        self._future = self._clock._plan(at_s, last=True)
        try:
            await self._clock._sleep(self._future)
        finally:
            self._future = None
            self._rung = False


class WaitingDriver(Driver):
    """Runs the engine by a `ClientClock`."""

    def __init__(
        self,
        engine: Engine,
        page: MetricsPage,
        clock: ClientClock,
        stats: ServerStats | None = None,
        rank: int = 0,
    ) -> None:
        super().__init__(engine, 1.0, page, stats, rank)
        self._clock = clock
        self._ended: deque[Request] = deque()
        clock.attach(self)

    def catch_up(self) -> None:
        """Run the engine up to now."""
        self._catch_up()

    def answer_one(self) -> bool:
        """Send the earliest answer that is still to be sent. False: there is none."""
        while self._ended:
            request = self._ended.popleft()
            if request.id in self._calls:
                super()._finish(request)
                return True
        return False

    def progress(self, call: ServedCall) -> int:
        """Output tokens so far."""
        return call.output_tokens if call.request in self._ended else super().progress(call)

    def _now(self) -> float:
        return self._clock()

    def _finish(self, request: Request) -> None:
        self._ended.append(request)

    def _plan(self) -> None:
        self._clock.look()
