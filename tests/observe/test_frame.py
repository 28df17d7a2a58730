"""Frames: where a governor stands, at one instant."""

import asyncio
from collections import Counter
from dataclasses import fields

import pytest

from concur_agents import Governor, make_law
from concur_agents.core import Reading, Regulator, Usage
from concur_agents.observe.frame import MOST_ROWS, frame_of
from concur_agents.runtime.status import GovernorSnapshot
from concur_agents.testing import ScriptedProbe, run, virtual_governor


def test_a_frame_shows_claims_and_waits_with_their_reasons():
    """In virtual time: one reasons, one acts with a context that fades, one waits."""

    def engine(now):
        return Reading(at_s=now, capacity_tokens=10_000, kv_usage=0.5)

    async def reasons(governor):
        async with governor.agent("reasons") as agent:
            async with agent.step(prompt_tokens=3000) as step:
                await asyncio.sleep(2)
                step.record(Usage(3000, 1000, 0))
            async with agent.step(prompt_tokens=4500):
                await asyncio.sleep(60)

    async def acts(governor):
        async with governor.agent("acts") as agent:
            async with agent.step(prompt_tokens=900) as step:
                await asyncio.sleep(2)
                step.record(Usage(900, 100, 0))
            await asyncio.sleep(60)

    async def waits(governor):
        await asyncio.sleep(1)
        async with governor.agent("waits"):
            pass

    async def main():
        clock = asyncio.get_running_loop().time
        probe = ScriptedProbe(engine, clock)
        async with virtual_governor(probe=probe, law=make_law("fixed", agents=2)) as governor:
            tasks = [asyncio.ensure_future(f(governor)) for f in (reasons, acts, waits)]
            await asyncio.sleep(31)
            frame, view = frame_of(governor), governor.snapshot()
            for agent in tasks:
                agent.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return frame, view

    frame, view = run(main())
    assert (frame.reasoning, frame.acting, frame.queued, frame.done_total) == (1, 1, 1, 0)
    assert frame.capacity_tokens == 10_000
    assert frame.pressure_tokens == view.pressure_tokens
    assert 4500 <= frame.reasoning_tokens <= frame.pressure_tokens
    total = frame.reasoning_tokens + frame.acting_tokens + frame.faded_tokens
    assert total == pytest.approx(frame.reasoning_tokens + 1000), (
        "acting and fading are its context"
    )
    (waiting,) = frame.waiting
    assert (waiting.agent, waiting.state, waiting.waited_s) == ("waits", "queued", 30.0)
    assert waiting.why == "2 of 2 agents active"
    by_name = {row.agent: row for row in frame.active}
    assert (by_name["acts"].for_s, by_name["acts"].tokens, by_name["acts"].steps) == (29, 1000, 1)
    assert by_name["reasons"].state == "reasoning"


class Crowd:
    """A governor with one active agent and 30,000 that wait; it counts its reads."""

    def __init__(self):
        self.reads = Counter()
        self.regulator = Regulator(make_law("fixed", agents=1), order=self.order)
        self.regulator.arrive("a0", 0.0)
        self.regulator.begin_step("a0", 0.0)
        for n in range(1, 30_000):
            self.regulator.arrive(f"a{n}", float(n))

    def order(self, agent, warm):
        self.reads["order"] += 1
        return (agent.seq,)

    def snapshot(self):
        self.reads["snapshot"] += 1
        view = self.regulator.view(40_000.0)
        more = {"law": "fixed", "url": None, "engine": None, "last_reading": None, "closed": False}
        return GovernorSnapshot(
            **{item.name: getattr(view, item.name) for item in fields(view)},
            **more,
            poll_failures_total=0,
            poll_error=None,
            blind_s=0.0,
            alive=30_000,
            waiters=0,
        )

    def agents(self):
        self.reads["agents"] += 1
        return self.regulator.agents()

    def why(self, agent):
        self.reads["why"] += 1
        return self.regulator.why(agent, 40_000.0)


def test_a_frame_of_a_crowd_reads_reasons_for_its_rows_only():
    """Each reason takes the lock of the governor, which its agents wait for."""
    crowd = Crowd()
    crowd.reads.clear()
    frame = frame_of(crowd)
    assert [row.agent for row in frame.waiting] == [f"a{n}" for n in range(1, MOST_ROWS + 1)]
    assert frame.queued == 29_999
    assert crowd.reads == {"snapshot": 1, "agents": 1, "why": MOST_ROWS}, "and no comparison"


def test_a_closed_governor_has_no_rows_that_wait():
    """Every agent passes, so none has a reason to wait."""
    governor = Governor(limit=1)
    with governor.agent("a"):
        governor.close()
        assert frame_of(governor).waiting == []


def test_a_governor_reads_its_agents_a_few_hundred_at_a_time(monkeypatch):
    """The boundaries of all agents wait for the lock, and a list of 30,000 takes long."""
    governor = Governor(limit=1, background=False)
    regulator = governor._monitor.sessions.regulator
    for n in range(1200):
        regulator.arrive(f"a{n}", float(n))
    some, read = [], regulator.agents
    monkeypatch.setattr(regulator, "agents", lambda only: some.append(len(only)) or read(only))
    assert [who.agent for who in governor.agents()] == [f"a{n}" for n in range(1200)]
    assert some == [500, 500, 200]
