"""A governor that takes tasks and threads for agents (as a program: tests/cli/test_run.py)."""

import asyncio

from concur_agents.adapters import call as calls
from concur_agents.autorun.implicit import IDLE_S, ImplicitGovernor
from concur_agents.testing import run as run_virtual


def test_a_worker_that_waits_for_work_gives_its_place_to_one_that_has_some():
    """Workers at a queue: those who hold the places wait for those who hold the work."""

    async def main():
        loop = asyncio.get_running_loop()
        governor = ImplicitGovernor(limit=1, ungoverned="agent", clock=loop.time, background=False)
        todo: asyncio.Queue[int] = asyncio.Queue()
        done = []

        async def worker():
            while True:
                item = await todo.get()
                call = await calls.begin(governor, "a call")
                await asyncio.sleep(1)
                call.end()
                done.append(item)
                todo.task_done()

        async def beat():
            while True:
                await asyncio.sleep(governor.beat() or 1.0)

        tasks = [asyncio.ensure_future(worker()) for _ in range(3)]
        beating = asyncio.ensure_future(beat())
        for item in range(9):
            todo.put_nowait(item)
        await todo.join()
        for task in (*tasks, beating):
            task.cancel()
        await asyncio.gather(*tasks, beating, return_exceptions=True)
        assert sorted(done) == list(range(9))
        assert governor.snapshot().active == 0, "cancelled tasks are gone"
        governor.close()
        return loop.time()

    assert run_virtual(main()) < 9 + 3 * IDLE_S
