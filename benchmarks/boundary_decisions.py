"""How many decisions one Regulator makes per second, and how that grows with the agents.

    python benchmarks/boundary_decisions.py [--json]

A decision is one `begin_step` or `end_step`: what happens at the boundaries of an agent's steps.
Times are CPU seconds of this process on one core, the load's own bookkeeping included, in the best
of twenty runs: what else happens on the machine can only make them longer.  Goal: 50,000 a second
with 10,000 agents, and no operation worse than O(log n).
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

from concur_agents.core import LawState, Limit, Regulator, Snapshot, Usage

AGENTS = 10_000
DECISIONS = 200_000
REPEATS = 20
GOAL = 50_000
STEP_S = 0.001
"""Virtual time between two events [s]."""
FOOTPRINT = 6_000


@dataclass(frozen=True)
class Constant:
    """A law that always decides the same, so that only the Regulator is measured."""

    limit: Limit
    name: ClassVar[str] = "constant"
    formula: ClassVar[str] = "the same limit always"
    needs_readings: ClassVar[bool] = False

    def initial(self) -> LawState:
        """The limit."""
        return LawState(self.limit)

    def decide(self, state: LawState, snapshot: Snapshot) -> LawState:
        """The same limit."""
        return state


class Load:
    """Agents that take turns: the one that has acted longest begins, the oldest call ends."""

    def __init__(self, limit: Limit, agents: int) -> None:
        self.regulator = Regulator(Constant(limit))
        self.now = 0.0
        self.acting: deque[str] = deque()
        self.calling: deque[str] = deque()
        self.asked: set[str] = set()
        self.names = (f"agent-{number}" for number in range(10**9))
        self.here: list[str] = []
        self.begun: set[str] = set()
        self.first = Usage(FOOTPRINT - 100, 100, 0)
        self.later = [Usage(FOOTPRINT - 100 + 7 * k, 100, FOOTPRINT - 300) for k in range(64)]
        self.turn = 0
        for _ in range(agents):
            self.arrive()

    def arrive(self) -> None:
        """One more agent."""
        agent = next(self.names)
        self.here.append(agent)
        self.woken(self.regulator.arrive(agent, self.now, prompt_tokens=FOOTPRINT))

    def woken(self, agents: Iterable[str]) -> None:
        """They have been let in: to start, or into the call they had asked for."""
        for agent in agents:
            if agent in self.asked:
                self.asked.discard(agent)
                self.calling.append(agent)
            else:
                self.acting.append(agent)

    def begin(self) -> None:
        """A decision: an agent stands at a boundary."""
        agent = self.acting.popleft()
        self.now += STEP_S
        self.asked.add(agent)
        self.woken(self.regulator.begin_step(agent, self.now))

    def end(self) -> None:
        """A decision: a call is over, and its agent goes on to its tools."""
        agent = self.calling.popleft()
        self.now += STEP_S
        self.turn += 1
        usage = self.later[self.turn & 63] if agent in self.begun else self.first
        self.begun.add(agent)
        self.acting.append(agent)
        self.woken(self.regulator.end_step(agent, self.now, usage))

    def take_turns(self, decisions: int) -> None:
        """A quarter of the active agents reason, the others act."""
        for _ in range(decisions):
            if len(self.calling) * 3 >= len(self.acting):
                self.end()
            else:
                self.begin()

    def come_and_go(self, calls: int) -> None:
        """Agents arrive and are cancelled wherever they stand, queued ones most of all."""
        rng, regulator = random.Random(1), self.regulator
        for _ in range(calls // 2):
            self.now += STEP_S
            at = rng.randrange(len(self.here))
            self.here[at], self.here[-1] = self.here[-1], self.here[at]
            regulator.leave(self.here.pop(), self.now)
            agent = next(self.names)
            self.here.append(agent)
            regulator.arrive(agent, self.now, prompt_tokens=FOOTPRINT)


def fixed(agents: int) -> Load:
    """Half the agents fit under a cap."""
    return Load(Limit(agents=agents / 2), agents)


def tokens(agents: int) -> Load:
    """A twentieth of the agents fit in tokens; claims fade in about a second; the others wait."""
    room = max(10, agents // 20) * FOOTPRINT
    return Load(Limit(tokens=room, hold_s_per_token=1.0 / FOOTPRINT), agents)


SCENARIOS: dict[str, tuple[Callable[[int], Load], Callable[[Load, int], None]]] = {
    "agent limit, half wait": (fixed, Load.take_turns),
    "token limit, most wait": (tokens, Load.take_turns),
    "arrivals and cancellations": (tokens, Load.come_and_go),
}


def rate(scenario: str, agents: int, decisions: int) -> float:
    """Decisions per CPU second."""
    make, run = SCENARIOS[scenario]
    load = make(agents)
    run(load, decisions // 10)
    fastest = math.inf
    for _ in range(REPEATS):
        gc.collect()
        started = time.process_time()
        run(load, decisions // REPEATS)
        fastest = min(fastest, time.process_time() - started)
    return decisions / REPEATS / fastest


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="machine-readable")
    options = parser.parse_args()
    sizes = [100, 1_000, 10_000, 100_000]
    rates = {scenario: {n: rate(scenario, n, DECISIONS) for n in sizes} for scenario in SCENARIOS}
    if options.json:
        print(json.dumps({"goal_per_s": GOAL, "decisions_per_s": rates}))
        return
    print(f"{'decisions per CPU second':28}" + "".join(f"{n:>12,} agents" for n in sizes))
    for scenario, by_size in rates.items():
        print(f"{scenario:28}" + "".join(f"{by_size[n]:>19,.0f}" for n in sizes))
    worst = min(by_size[AGENTS] for by_size in rates.values())
    print(f"slowest with {AGENTS:,} agents: {worst:,.0f}/s, goal {GOAL:,}/s")


if __name__ == "__main__":
    main()
