"""For tests of code that has a governor in it: time that jumps, scripted engines, checks.

    def test_my_agents_share_two_places():
        async def main():
            async with virtual_governor(limit=2) as governor:
                await asyncio.gather(*(my_agent(governor) for _ in range(20)))
        run(main())

Time is virtual: `asyncio.sleep(3600)` takes no time, and the same program runs the same way each
time. Threads are outside of it, because an event loop cannot see when a thread is done.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from concur_agents.core import Reading
from concur_agents.errors import ProbeError
from concur_agents.governor import Governor

T = TypeVar("T")


class ManualClock:
    """A clock [s] that moves only by `advance`. Pass it as `clock=`."""

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        """The time [s]."""
        return self.now_s

    def advance(self, by_s: float) -> None:
        """Moves the clock on [s]."""
        self.now_s += by_s


class _JumpingSelector(selectors.SelectSelector):
    """Moves the clock where an event loop would sleep."""

    def __init__(self, patience_s: float) -> None:
        super().__init__()
        self.now_s = 0.0
        self._patience_s = patience_s

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None:  # no timer is set: only another thread can wake the loop
            ready = super().select(self._patience_s)
            if not ready:
                raise RuntimeError(
                    "dead-lock: every task waits, no timer is set, and no thread has woken the "
                    f"loop for {self._patience_s} s of real time"
                )
            return ready
        self.now_s += max(timeout, 0.0)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop whose clock jumps to the next timer instead of sleeping.

    Args:
        patience_s: how long to wait for other threads when every task waits and no timer is set,
            before that counts as a dead-lock [s of real time].
    """

    def __init__(self, patience_s: float = 0.5) -> None:
        self._jumping = _JumpingSelector(patience_s)
        super().__init__(self._jumping)
        # Timers are compared with a tolerance of this; a jump lands exactly on its timer.
        self._clock_resolution = 1e-9

    def time(self) -> float:
        """The virtual time [s], 0 at the start."""
        return self._jumping.now_s


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


class ScriptedProbe:
    """An engine that returns scripted readings, one after the other; the last one repeats.

    Args:
        script: the readings, None for one that fails; or a function from the time [s] to one.
        clock: the governor's clock [s].
    """

    def __init__(
        self,
        script: Iterable[Reading | None] | Callable[[float], Reading | None],
        clock: Callable[[], float],
    ) -> None:
        self._lines = None if callable(script) else list(script)
        self._script = script if callable(script) else None
        self._clock = clock
        self.reads = 0
        """How often it was read."""

    def read(self) -> Reading:
        """The next reading.

        Raises:
            ProbeError: the script has None here.
        """
        if self._lines is None:
            assert self._script is not None
            reading = self._script(self._clock())
        else:
            reading = self._lines[min(self.reads, len(self._lines) - 1)]
        self.reads += 1
        if reading is None:
            raise ProbeError("the script says that this reading fails")
        return reading


def assert_idle(governor: Governor) -> None:
    """Fails if an agent, a call, a waiter or a claim is still in a governor.

    A closed governor counts agents and waiters only: it has stopped keeping books. That of a daemon
    counts the agents of all its clients.

    Raises:
        AssertionError: something is left; the message says what, and which agents.
    """
    snapshot = governor.snapshot()
    left: dict[str, float] = {"alive": snapshot.alive, "waiters": snapshot.waiters}
    agents: list[str] = []
    if not snapshot.closed:
        agents = [f"{agent.agent} ({agent.state})" for agent in governor.agents()]
        left |= {name: getattr(snapshot, name) for name in _ZERO_WHEN_IDLE}
        left["agents"] = len(agents)
    # Sums of claims that come and go end within rounding of 0.
    wrong = [f"{name}={value:g}" for name, value in left.items() if abs(value) > 1e-6]
    if wrong:
        named = f": {', '.join(agents[:5])}{', ...' if len(agents) > 5 else ''}" if agents else ""
        raise AssertionError(f"the governor is not idle, {' '.join(wrong)}{named}")


_ZERO_WHEN_IDLE = (
    "active",
    "reasoning",
    "acting",
    "paused",
    "queued",
    "suspended",
    "pressure_tokens",
    "footprint_tokens",
    "longest_wait_s",
)


@asynccontextmanager
async def virtual_governor(*args: Any, **options: Any) -> AsyncIterator[Governor]:
    """A `Governor` on the running loop's time, without a thread.

    Takes the arguments of `Governor` except `clock` and `background`. A bug of the governor itself
    is raised at the end of the block.
    """
    loop = asyncio.get_running_loop()
    async with Governor(*args, clock=loop.time, background=False, **options) as governor:
        due = asyncio.Event()
        governor.on_due = due.set
        beating = asyncio.ensure_future(_beat(governor, due))
        try:
            yield governor
        finally:
            beating.cancel()
            with suppress(asyncio.CancelledError):
                await beating


async def _beat(governor: Governor, due: asyncio.Event) -> None:
    await due.wait()  # the first agent, as with the governor's own thread
    while True:
        due.clear()
        rest_s = governor.beat()
        with suppress(TimeoutError):
            async with asyncio.timeout(rest_s):
                await due.wait()
