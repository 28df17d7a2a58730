"""The simulator and the Governor decide the same from the same plan.

One regulator, three hosts. The simulator's runner pops a heap; here the same agents are asyncio
tasks, or threads, that call the same simulated engine through the Governor, with its lock, waiters
and beats. If a host woke an agent late, twice, or asked in another order, the stories would part.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import random
import threading
from contextlib import suppress
from functools import partial
from itertools import count

import pytest

from concur_agents.core import (
    FIRST_READING_S,
    Fleet,
    Limit,
    Reading,
    Regulator,
    Usage,
    law_names,
    make_law,
)
from concur_agents.governor import Governor
from concur_agents.runtime.poller import EnginePoller
from concur_agents.sim.cache import Run
from concur_agents.sim.engine import Engine, Request
from concur_agents.sim.profile import load_profile
from concur_agents.sim.replicas import FleetGate, simulate_fleet
from concur_agents.sim.runner import RegulatorGate, simulate
from concur_agents.sim.workload import AgentPlan, PlanStep
from concur_agents.testing import run, virtual_governor

POLL_S = 1.0


def plans(seed, agents=24, steps=5, at_once=False):
    rng = random.Random(seed)
    batch = []
    for i in range(agents):
        prompt, story = (Run(("system", 0), 512), Run((i, "task"), rng.randint(200, 900))), []
        for k in range(steps):
            output = Run((i, k, "out"), rng.randint(20, 120))
            story.append(PlanStep(prompt, output, tool_s=rng.uniform(0.05, 3.0)))
            prompt = (*prompt, output, Run((i, k, "tool"), rng.randint(50, 700)))
        # The first one comes with the first poll of the runner; the governor polls when he comes.
        arrive_s = POLL_S if i == 0 else POLL_S + rng.uniform(0.001, 4.0)
        if at_once:  # at 0, for of timers that are due at once none is the first
            arrive_s = 0.0
        batch.append(AgentPlan(f"a{i}", tuple(story), arrive_s))
    return batch


# -- on an event loop ------------------------------------------------------------------------


class Served:
    """The simulated engine as a server in a running event loop."""

    def __init__(self, profile):
        self.engine = Engine(profile)
        self._changed = asyncio.Event()
        self._calls: dict[str, asyncio.Future[Request]] = {}

    async def call(self, name, step):
        now = asyncio.get_running_loop().time()
        self._pass(now)
        self.engine.submit(Request(name, step.prompt, step.output, now))
        self._changed.set()
        future = self._calls[name] = asyncio.get_running_loop().create_future()
        return await future

    def _pass(self, to_s):
        finished = [e.request for e in self.engine.advance(to_s) if e.kind == "finished"]
        for request in finished:
            self._calls.pop(request.id).set_result(request)

    async def run(self):
        while True:
            self._changed.clear()
            due_s = self.engine.next_event_s()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due_s):
                    await self._changed.wait()
                continue
            for event in self.engine.advance(due_s):
                if event.kind == "finished":
                    self._calls.pop(event.request.id).set_result(event.request)
                    for _ in range(9):  # several may finish at once: each tells its tale in turn
                        await asyncio.sleep(0)

    def read(self):
        now = asyncio.get_running_loop().time()
        self._pass(now)
        return reading_of(self.engine, now)


def reading_of(engine, now):
    """As the simulator's runner reads it."""
    at = engine.counters()
    return Reading(
        at_s=now,
        kv_usage=at.kv_usage,
        capacity_tokens=at.capacity_tokens,
        hit_tokens_total=at.cached_tokens_total,
        query_tokens_total=at.prompt_tokens_total,
        running=at.running,
        waiting=at.waiting,
        preemptions_total=at.preemptions_total,
        computed_tokens_total=at.computed_tokens_total,
        prefill_s_total=at.prefill_s_total,
        generated_tokens_total=at.generated_tokens_total,
        decode_s_total=at.decode_s_total,
    )


class LoopHost:
    """Agents as tasks of one event loop, and their engines on its time."""

    def __init__(self, profile, pools):
        self.story = []
        self.probes = self._served = {pool: Served(profile) for pool in pools}

    def run(self, batch, *urls, **options):
        """Runs a batch with a `Governor` of these arguments; returns how often agents paused."""
        return run(self._run(batch, *urls, **options))

    async def _run(self, batch, *urls, **options):
        serving = [asyncio.ensure_future(each.run()) for each in self._served.values()]
        async with virtual_governor(*urls, **options) as governor:
            governor.on_event(self._note)
            await asyncio.gather(*(self._live(governor, plan) for plan in batch))
            pauses = governor.snapshot().pauses_total
        for each in serving:
            each.cancel()
        return pauses

    async def _live(self, governor, plan):
        await asyncio.sleep(plan.arrive_s)
        first = plan.steps[0].prompt_tokens
        async with governor.agent(plan.id, prompt_tokens=first) as agent:
            for k, step in enumerate(plan.steps):
                async with agent.step(step.prompt_tokens) as call:
                    request = await self._served[agent.pool].call(f"{plan.id}/{k}", step)
                    cached = request.cached_tokens or 0
                    call.record(Usage(step.prompt_tokens, step.output.tokens, cached))
                if k + 1 < len(plan.steps):
                    await asyncio.sleep(step.tool_s)

    def _note(self, event):
        if event.kind in ("admitted", "step_began"):
            self.story.append((event.agent, event.pool, event.at_s))


# -- in threads ------------------------------------------------------------------------------


class ThreadsHost:
    """Agents in threads, and their engines: time moves once all of them rest.

    An agent rests while it sleeps, is in a call, or waits for the governor.
    """

    def __init__(self, profile, pools):
        self.now = 0.0
        self.story = []
        self._engines = {pool: Engine(profile) for pool in pools}
        self.probes = {pool: EngineProbe(engine, self) for pool, engine in self._engines.items()}
        self._changed = threading.Condition()
        self._running = 0  # threads that neither sleep nor are in a call; they may wait
        self._to_come, self._planned = [], count()
        self._entered = []  # agents that have just been let in
        self._sent, self._in_flight = [], {}  # calls that no engine has yet, and that one has
        self._beat_s = math.inf

    def run(self, batch, *urls, **options):
        """Runs a batch with a `Governor` of these arguments; returns how often agents paused."""
        with Governor(*urls, clock=lambda: self.now, background=False, **options) as self.governor:
            self.governor.on_due = self._beat_now
            self.governor.on_event(self._note)
            for plan in batch:
                self._at(plan.arrive_s, partial(self._start, plan))
            while self._to_come or self._in_flight or self.governor.snapshot().alive:
                self._pass()
            return self.governor.snapshot().pauses_total

    # What agents do, each in its thread

    def _live(self, plan):
        first = plan.steps[0].prompt_tokens
        with self.governor.agent(plan.id, prompt_tokens=first) as agent:
            self._rest(lambda woken: self._entered.append((plan.id, woken)))
            for k, step in enumerate(plan.steps):
                with agent.step(step.prompt_tokens) as call:
                    request = self._call(agent, f"{plan.id}/{k}", step)
                    cached = request.cached_tokens or 0
                    call.record(Usage(step.prompt_tokens, step.output.tokens, cached))
                if k + 1 < len(plan.steps):
                    self._sleep(step.tool_s)
        self._ran(-1)

    def _call(self, agent, name, step):
        request = Request(name, step.prompt, step.output, self.now)
        self._rest(lambda woken: self._sent.append((agent.id, woken, agent.pool, request)))
        return request

    def _sleep(self, for_s):
        self._rest(lambda woken: self._at(self.now + for_s, partial(self._wake, woken)))

    def _rest(self, until):
        woken = threading.Event()
        until(woken)
        self._ran(-1)
        assert woken.wait(60)

    def _ran(self, change):
        with self._changed:
            self._running += change
            self._changed.notify()

    def _note(self, event):
        if event.kind in ("admitted", "step_began"):
            self.story.append((event.agent, event.pool, event.at_s))
        with self._changed:
            self._changed.notify()  # it may have begun to wait

    # What time does, in the thread of the test

    def _pass(self):
        events = [engine.next_event_s() for engine in self._engines.values()]
        due = [at_s for at_s in (*events, self._beat_s) if at_s is not None]
        self.now = min([*due, *(at_s for at_s, *_ in self._to_come[:1])])
        for engine in self._engines.values():
            for event in engine.advance(self.now):
                if event.kind == "finished":
                    self._wake(self._in_flight.pop(event.request.id))
        while self._to_come and self._to_come[0][0] <= self.now:
            heapq.heappop(self._to_come)[-1]()
        if self._beat_s <= self.now:
            self._beat_s = math.inf
            rest_s = self.governor.beat()
            if rest_s is not None:
                self._beat_s = min(self._beat_s, self.now + rest_s)
            self._settle()

    def _at(self, at_s, do):
        heapq.heappush(self._to_come, (at_s, next(self._planned), do))

    def _beat_now(self):
        self._beat_s = self.now

    def _start(self, plan):
        self._ran(+1)
        threading.Thread(target=self._live, args=(plan,), daemon=True).start()
        self._settle()

    def _wake(self, woken):
        self._ran(+1)
        woken.set()
        self._settle()

    def _settle(self):
        """Returns once all agents rest.

        Of several that are let in at once each goes on in its turn, as on an event loop.
        """
        with self._changed:
            assert self._changed.wait_for(
                lambda: self._running == self.governor.snapshot().waiters, timeout=60
            )
        granted = {agent: rank for rank, (agent, *_) in enumerate(self.story)}
        if self._entered:
            first = min(self._entered, key=lambda entered: granted[entered[0]])
            self._entered.remove(first)
            self._wake(first[1])
            return
        for _, woken, pool, request in sorted(self._sent, key=lambda sent: granted[sent[0]]):
            self._engines[pool].submit(request)
            self._in_flight[request.id] = woken
        self._sent.clear()


class EngineProbe:
    """Reads an engine that the test moves on."""

    def __init__(self, engine, host):
        self._engine, self._host = engine, host

    def read(self):
        return reading_of(self._engine, self._host.now)


# -- the simulator ---------------------------------------------------------------------------


class Noted:
    """A gate that writes down which agents it lets in, where, and when."""

    def __init__(self, regulator):
        super().__init__(regulator)
        self.story = []

    def _note(self, now, woken):
        self.story += [(agent, self.regulator.pool_of(agent), now) for agent in woken]
        return woken

    def arrive(self, agent, now, prompt_tokens):
        return self._note(now, super().arrive(agent, now, prompt_tokens))

    def begin_step(self, agent, now, prompt_tokens):
        return self._note(now, super().begin_step(agent, now, prompt_tokens))

    def end_step(self, agent, now, usage):
        return self._note(now, super().end_step(agent, now, usage))

    def leave(self, agent, now):
        return self._note(now, super().leave(agent, now))

    def tick(self, reading, now):
        return self._note(now, super().tick(reading, now))

    def tick_replica(self, replica, reading, now):
        return self._note(now, super().tick_replica(replica, reading, now))

    def advance(self, now):
        return self._note(now, super().advance(now))


class NotedRegulator(Noted, RegulatorGate):
    pass


class NotedFleet(Noted, FleetGate):
    pass


# -- the same story --------------------------------------------------------------------------

HOSTS = {"loop": LoopHost, "threads": ThreadsHost}


def assert_same(host, gate, pauses):
    told, simulated = host.story, gate.story
    assert [row[:2] for row in told] == [row[:2] for row in simulated]
    # Hosts wake no more often than once a millisecond, but count it from different events, and a
    # law that measures how long steps take carries such a millisecond on.
    assert [at for *_, at in told] == pytest.approx([at for *_, at in simulated], abs=0.02)
    assert pauses == gate.regulator.view(0.0).pauses_total
    assert len(told) >= 24 * 6


@pytest.mark.parametrize(
    ("host", "seed", "at_once"),
    [
        ("loop", 1, False),
        ("loop", 2, False),
        ("loop", 3, False),
        ("loop", 4, True),
        ("threads", 1, False),
        ("threads", 4, True),
    ],
)
@pytest.mark.parametrize("name", [*law_names(), "timetable"])
def test_simulator_and_governor_make_identical_decisions_from_the_same_plan(
    name, host, seed, at_once, timetable
):
    options = {
        "fixed": {"agents": 5},
        "cache_aimd": {"interval_s": 2.0, "start": 6.0, "hit_low": 0.9, "usage_high": 0.3},
    }
    if name == "timetable":  # tokens, fading claims and cuts, at times of their own
        law = timetable(
            (0, Limit(tokens=20_000, hold_s_per_token=0.001)),
            (6.5, Limit(tokens=9_000, hold_s_per_token=0.0005)),
            (14.5, Limit(agents=7, tokens=16_000, hold_s_per_token=0.002)),
        )
    else:
        law = make_law(name, **options.get(name, {}))
    profile = load_profile("h100-qwen3-8b").replace(kv_blocks=800)
    batch = plans(seed, at_once=at_once)
    first_reading_s = 0.0 if name == "fixed" else FIRST_READING_S
    gate = NotedRegulator(Regulator(law, 0.0, first_reading_s=first_reading_s))
    simulate(batch, profile, gate, poll_interval_s=POLL_S, seed=0)

    governed = HOSTS[host](profile, [None])
    probe = governed.probes[None]
    pauses = governed.run(batch, probe=probe, law=law, poll_interval_s=POLL_S)

    assert_same(governed, gate, pauses)
    if name in ("cache_aimd", "timetable"):
        assert pauses > 0  # otherwise there was little to agree on


POOLS = ["http://gpu1:8000", "http://gpu2:8000", "http://gpu3:8000"]


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("host", list(HOSTS))
@pytest.mark.parametrize("name", ["working_set", "cache_aimd", "fixed", "timetable"])
def test_simulator_and_governor_make_identical_decisions_for_a_fleet(
    name, host, seed, timetable, monkeypatch
):
    """Who goes on, when, and in which of three pools."""
    if name == "timetable":
        law = timetable(
            (0, Limit(tokens=7_000, hold_s_per_token=0.001)),
            (6.5, Limit(tokens=4_000, hold_s_per_token=0.0005)),
            (14.5, Limit(agents=3, tokens=6_000, hold_s_per_token=0.002)),
        )
    else:
        law = make_law(name, **({"agents": 2} if name == "fixed" else {}))
    profile = load_profile("h100-qwen3-8b").replace(kv_blocks=300)
    batch = plans(seed)
    first_reading_s = 0.0 if name == "fixed" else FIRST_READING_S
    gate = NotedFleet(Fleet(law, POOLS, 0.0, first_reading_s=first_reading_s))
    simulate_fleet(batch, [profile] * 3, gate, poll_interval_s=POLL_S, seed=0)

    governed = HOSTS[host](profile, POOLS)
    monkeypatch.setattr(EnginePoller, "_make_probe", lambda poller: governed.probes[poller.url])
    pauses = governed.run(batch, POOLS, law=law, poll_interval_s=POLL_S)

    assert_same(governed, gate, pauses)
    assert {pool for _, pool, _ in governed.story} == set(POOLS)
    if name in ("working_set", "timetable"):
        assert pauses > 0
