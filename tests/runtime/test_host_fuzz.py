"""Random lives against a few places: places are kept, passed on and given back, come what may."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

import pytest

from concur_agents.core import Limit, Usage
from concur_agents.testing import assert_idle, run, virtual_governor


class Lives:
    """Agents that step, fan out, nest, go off, fail, time out and are cancelled, by dice."""

    def __init__(self, governor, rng):
        self.governor = governor
        self.rng = rng
        self.calling: dict[str, int] = {}
        self.peak = 0

    async def call(self, agent, family):
        async with agent.step(self.rng.choice([None, 100])) as step:
            self.calling[family] = self.calling.get(family, 0) + 1
            self.peak = max(self.peak, len(self.calling))
            try:
                await asyncio.sleep(self.rng.random())
                if self.rng.random() < 0.05:
                    raise ValueError("mine")
            finally:
                self.calling[family] -= 1
                if not self.calling[family]:
                    del self.calling[family]
            if self.rng.random() < 0.9:
                step.record(Usage(self.rng.randint(10, 500), self.rng.randint(1, 50), None))

    async def live(self, name):
        async with self.governor.agent(name, priority=self.rng.randint(0, 1)) as agent:
            for _ in range(self.rng.randint(0, 5)):
                await self.do_something(agent, name, depth=0)

    async def do_something(self, agent, family, depth):
        what = self.rng.randint(0, 6)
        if what == 0:
            async with asyncio.TaskGroup() as group:  # so that no branch outlives its agent
                for _ in range(3):
                    group.create_task(self.call(agent, family))
        elif what == 1 and depth < 2:
            async with self.governor.agent() as child:
                await self.do_something(child, family, depth + 1)
        elif what == 2 and depth == 0:
            async with agent.suspended():
                await asyncio.sleep(self.rng.random() * 3)
                if self.rng.random() < 0.4:  # what needs the place takes it again
                    await self.do_something(agent, family, self.rng.randint(0, 1))
                    await asyncio.sleep(self.rng.random())
        elif what == 3:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.call(agent, family), self.rng.random())
        elif what == 4:
            await agent.checkpoint()
        else:
            await self.call(agent, family)
            await asyncio.sleep(self.rng.random() * 2)


async def drive(governor, seed):
    rng = random.Random(seed)
    lives = Lives(governor, rng)
    tasks = []
    for i in range(25):
        tasks.append(asyncio.ensure_future(lives.live(f"a{i}")))
        await asyncio.sleep(rng.random() * 0.5)
        if rng.random() < 0.2:
            rng.choice(tasks).cancel()
    async with asyncio.timeout(3600):  # nobody is stranded
        results = await asyncio.gather(*tasks, return_exceptions=True)
    unexpected = [
        result
        for result in results
        if result is not None
        and not isinstance(result, ValueError | ExceptionGroup | asyncio.CancelledError)
    ]
    assert not unexpected
    return lives


@pytest.mark.parametrize("seed", range(40))
def test_never_more_families_call_than_there_are_places(seed):
    async def main():
        async with virtual_governor(
            limit=3, max_wait_s=random.Random(seed).choice([None, 4])
        ) as gov:
            lives = await drive(gov, seed)
            assert lives.peak == 3
            assert_idle(gov)

    run(main())


@pytest.mark.parametrize("seed", range(40))
def test_under_a_limit_that_jumps_and_fades_nobody_is_stranded(seed, timetable):
    rng = random.Random(seed)
    rows = [
        (
            s,
            Limit(
                agents=rng.choice([1, 2, 5]),
                tokens=rng.choice([400, 2000, 5000]),
                hold_s_per_token=rng.choice([0.0, 0.001, 0.01]),
            ),
        )
        for s in range(0, 30, 3)
    ]

    async def main():
        law = timetable(*rows)
        async with virtual_governor(law=law, poll_interval_s=rng.choice([0.5, 5.0])) as gov:
            await drive(gov, seed)
            assert_idle(gov)

    run(main())
