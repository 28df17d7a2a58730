"""How long `concur watch` holds the lock of a governor in which 30,000 agents wait.

    python benchmarks/watch_lock.py [--json] [--agents N]

Agents wait for this lock at each boundary of their steps, so a dashboard must never hold it for
more than 5 ms. For each read: how often it took the lock, and the longest time that it held it, in
the best of ten runs, because other work on the machine can only make it longer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

from concur_agents import Governor
from concur_agents.observe.frame import frame_of

AGENTS = 30_000
REPEATS = 10
GOAL_MS = 5.0


class TimedLock:
    """A lock that remembers how long it was held."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._since_s = 0.0
        self.held_s: list[float] = []

    def acquire(self) -> None:
        """Takes it."""
        self._lock.acquire()
        self._since_s = time.perf_counter()

    def release(self) -> None:
        """Gives it back."""
        self.held_s.append(time.perf_counter() - self._since_s)
        self._lock.release()


async def measure(agents: int) -> dict[str, dict[str, float]]:
    """Times of each read [ms], with so many agents waiting."""
    governor = Governor(limit=1, background=False)
    handles = [governor.agent(f"a{n}", detached=True) for n in range(agents + 1)]
    tasks = [asyncio.ensure_future(handle.open()) for handle in handles]
    await asyncio.sleep(0)  # each task runs until it waits
    assert governor.snapshot().queued == agents
    lock = governor._monitor._lock = TimedLock(governor._monitor._lock)  # type: ignore[assignment]
    last = f"a{agents}"
    reads: dict[str, Callable[[], object]] = {
        "a frame of concur watch": lambda: frame_of(governor),
        "governor.agents()": governor.agents,
        "governor.snapshot()": governor.snapshot,
        "governor.why(agent)": lambda: governor.why(last),
        "governor.explain(agent)": lambda: governor.explain(last),
    }
    found = {}
    for name, read in reads.items():
        longest, begun_s = [], time.perf_counter()
        for _ in range(REPEATS):
            lock.held_s.clear()
            read()
            longest.append(max(lock.held_s))
        found[name] = {
            "locks": len(lock.held_s),
            "longest_ms": round(min(longest) * 1000, 3),
            "takes_ms": round((time.perf_counter() - begun_s) / REPEATS * 1000, 3),
        }
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    governor.close()
    return found


def main() -> None:
    """Prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--agents", type=int, default=AGENTS)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = asyncio.run(measure(given.agents))
    if given.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{given.agents:,} agents wait; goal: at most {GOAL_MS:g} ms under the lock")
    for name, row in found.items():
        print(
            f"{name:26} {row['locks']:4.0f} times, longest {row['longest_ms']:8.3f} ms, "
            f"takes {row['takes_ms']:8.3f} ms in all"
        )


if __name__ == "__main__":
    main()
