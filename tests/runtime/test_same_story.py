"""The simulator and the Governor decide the same from the same plan.

One regulator, two hosts. The simulator's runner pops a heap; here the same agents are asyncio
tasks that call the same simulated engine through the Governor, with its lock, waiters and beats.
If a host woke somebody late, twice, or asked in another order, the two stories would part.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

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


class Recorder(RegulatorGate):
    """Writes down whom the regulator lets in, and when."""

    def __init__(self, regulator):
        super().__init__(regulator)
        self.story = []

    def _note(self, now, woken):
        self.story += [(agent, now) for agent in woken]
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

    def advance(self, now):
        return self._note(now, super().advance(now))


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
        at = self.engine.counters()
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


def governed_story(batch, profile, law):
    story = []

    async def agent(governor, served, plan):
        await asyncio.sleep(plan.arrive_s)
        first = plan.steps[0].prompt_tokens
        async with governor.agent(plan.id, prompt_tokens=first) as agent:
            for k, step in enumerate(plan.steps):
                async with agent.step(step.prompt_tokens) as call:
                    request = await served.call(f"{plan.id}/{k}", step)
                    cached = request.cached_tokens or 0
                    call.record(Usage(step.prompt_tokens, step.output.tokens, cached))
                if k + 1 < len(plan.steps):
                    await asyncio.sleep(step.tool_s)

    async def main():
        served = Served(profile)
        serving = asyncio.ensure_future(served.run())
        async with virtual_governor(probe=served, law=law, poll_interval_s=POLL_S) as governor:
            governor.on_event(
                lambda e: (
                    story.append((e.agent, e.at_s))
                    if e.kind in ("admitted", "step_began")
                    else None
                )
            )
            await asyncio.gather(*(agent(governor, served, plan) for plan in batch))
            pauses = governor.snapshot().pauses_total
        serving.cancel()
        return pauses

    return story, run(main())


@pytest.mark.parametrize(("seed", "at_once"), [(1, False), (2, False), (3, False), (4, True)])
@pytest.mark.parametrize("name", [*law_names(), "timetable"])
def test_simulator_and_governor_make_identical_decisions_from_the_same_plan(
    name, seed, at_once, timetable
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
    gate = Recorder(Regulator(law, 0.0, first_reading_s=first_reading_s))
    simulate(batch, profile, gate, poll_interval_s=POLL_S, seed=0)

    story, pauses = governed_story(batch, profile, law)

    assert [agent for agent, _ in story] == [agent for agent, _ in gate.story]
    # Both hosts wake no more often than once a millisecond, but count it from different events,
    # and a law that measures how long steps take carries such a millisecond on.
    assert [at for _, at in story] == pytest.approx([at for _, at in gate.story], abs=0.02)
    assert pauses == gate.regulator.view(0.0).pauses_total
    assert len(story) >= 24 * 6
    if name in ("cache_aimd", "timetable"):
        assert pauses > 0  # otherwise there was little to agree on


# -- several engines -------------------------------------------------------------------------

POOLS = ["http://gpu1:8000", "http://gpu2:8000", "http://gpu3:8000"]


class FleetRecorder(FleetGate):
    """Writes down whom the fleet lets in, when, and where."""

    def __init__(self, fleet):
        super().__init__(fleet)
        self.story = []

    def _note(self, now, woken):
        self.story += [(agent, self.fleet.pool_of(agent), now) for agent in woken]
        return woken

    def arrive(self, agent, now, prompt_tokens):
        return self._note(now, super().arrive(agent, now, prompt_tokens))

    def begin_step(self, agent, now, prompt_tokens):
        return self._note(now, super().begin_step(agent, now, prompt_tokens))

    def end_step(self, agent, now, usage):
        return self._note(now, super().end_step(agent, now, usage))

    def leave(self, agent, now):
        return self._note(now, super().leave(agent, now))

    def tick_replica(self, replica, reading, now):
        return self._note(now, super().tick_replica(replica, reading, now))

    def advance(self, now):
        return self._note(now, super().advance(now))


def governed_fleet_story(batch, profile, law, monkeypatch):
    """The same with a `Governor` of three engines; each call goes to its agent's pool."""
    story, served = [], {}

    async def agent(governor, plan):
        await asyncio.sleep(plan.arrive_s)
        first = plan.steps[0].prompt_tokens
        async with governor.agent(plan.id, prompt_tokens=first) as agent:
            for k, step in enumerate(plan.steps):
                async with agent.step(step.prompt_tokens) as call:
                    request = await served[agent.pool].call(f"{plan.id}/{k}", step)
                    cached = request.cached_tokens or 0
                    call.record(Usage(step.prompt_tokens, step.output.tokens, cached))
                if k + 1 < len(plan.steps):
                    await asyncio.sleep(step.tool_s)

    async def main():
        served.update({pool: Served(profile) for pool in POOLS})
        serving = [asyncio.ensure_future(each.run()) for each in served.values()]
        monkeypatch.setattr(EnginePoller, "_make_probe", lambda poller: served[poller.url])
        async with virtual_governor(POOLS, law=law, poll_interval_s=POLL_S) as governor:
            governor.on_event(
                lambda e: (
                    story.append((e.agent, e.pool, e.at_s))
                    if e.kind in ("admitted", "step_began")
                    else None
                )
            )
            await asyncio.gather(*(agent(governor, plan) for plan in batch))
            pauses = governor.snapshot().pauses_total
        for each in serving:
            each.cancel()
        return pauses

    return run(main()), story


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", ["working_set", "cache_aimd", "fixed", "timetable"])
def test_simulator_and_governor_make_identical_decisions_for_a_fleet(
    name, seed, timetable, monkeypatch
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
    gate = FleetRecorder(Fleet(law, POOLS, 0.0, first_reading_s=first_reading_s))
    simulate_fleet(batch, [profile] * 3, gate, poll_interval_s=POLL_S, seed=0)

    pauses, story = governed_fleet_story(batch, profile, law, monkeypatch)

    assert [row[:2] for row in story] == [row[:2] for row in gate.story]
    assert [at for *_, at in story] == pytest.approx([at for *_, at in gate.story], abs=0.02)
    assert pauses == gate.fleet.view(0.0).pauses_total
    assert {pool for _, pool, _ in story} == set(POOLS)
    if name in ("working_set", "timetable"):
        assert pauses > 0
