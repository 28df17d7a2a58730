"""Sandboxes of the next few agents are made while they wait, and never more than that."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

import concur_agents as ca
from concur_agents.testing import assert_idle, run, virtual_governor


class Hosted:
    """Where sandboxes are made, in 5 s each, and taken down in 1 s; it counts them."""

    def __init__(self, governor, fails=()):
        self.governor, self.fails = governor, fails
        self.alive, self.log = set(), []
        self.most_beyond = 0

    async def prepare(self, item):
        self.alive.add(item)
        self.log.append(f"+{item}")
        self.count()
        try:
            await asyncio.sleep(5)
            if item in self.fails:
                raise OSError(f"no room for {item}")
        except BaseException:
            self.alive.discard(item)
            raise
        return f"box of {item}"

    async def cleanup(self, sandbox):
        await asyncio.sleep(1)
        item = sandbox.removeprefix("box of ")
        self.alive.remove(item)
        self.log.append(f"-{item}")

    def count(self):
        open_agents = len(self.governor.agents()) - self.governor.snapshot().queued
        self.most_beyond = max(self.most_beyond, len(self.alive) - open_agents)


async def work(item, sandbox):
    assert sandbox == f"box of {item}"
    await asyncio.sleep(10)
    return sandbox


def pool_of(governor, hosted, **options):
    return ca.AgentPool(governor, prepare=hosted.prepare, cleanup=hosted.cleanup, **options)


def test_the_next_two_are_ready_when_they_are_let_in():
    """One after the other they took 16 s each; only the first waits for its sandbox now."""

    async def main():
        async with virtual_governor(limit=1) as gov:
            hosted = Hosted(gov)
            async with pool_of(gov, hosted) as pool:
                assert await pool.map(work, "abcd") == [f"box of {item}" for item in "abcd"]
            assert asyncio.get_running_loop().time() == pytest.approx(5 + 4 * 10 + 1)
            assert hosted.most_beyond == 2
            assert not hosted.alive
            assert_idle(gov)

    run(main())


@pytest.mark.parametrize("prepared", [0, 1, 3])
def test_there_are_never_more_than_open_agents_and_so_many(prepared):
    async def main():
        async with virtual_governor(limit=2) as gov:
            hosted = Hosted(gov)
            async with pool_of(gov, hosted, prepared=prepared) as pool:
                outcomes = await pool.in_order(work_number, [str(n) for n in range(8)])
            assert [outcome.status for outcome in outcomes] == ["ok"] * 8
            assert hosted.most_beyond == prepared

    async def work_number(item, sandbox):
        await asyncio.sleep(10)

    run(main())


def test_what_prepare_raises_is_that_agents_error_and_the_others_go_on():
    async def main():
        async with virtual_governor(limit=1) as gov:
            hosted = Hosted(gov, fails="b")
            async with pool_of(gov, hosted) as pool:
                outcomes = await pool.in_order(work, "abc")
            assert [outcome.status for outcome in outcomes] == ["ok", "error", "ok"]
            assert repr(outcomes[1].error) == "OSError('no room for b')"
            assert not hosted.alive
            assert_idle(gov)

    run(main())


def test_what_cleanup_raises_is_reported_too():
    async def main():
        async def cleanup(sandbox):
            raise OSError("still mounted")

        async def prepare(item):
            return item

        async def solve(item):
            return item

        async with virtual_governor(limit=1) as gov:
            async with ca.AgentPool(gov, prepare=prepare, cleanup=cleanup) as pool:
                (outcome,) = await pool.in_order(solve, "a")
            assert repr(outcome.error) == "OSError('still mounted')"
            assert_idle(gov)

    run(main())


def test_cancelling_in_the_queue_takes_down_what_was_made_ahead():
    """Also half-way: a container that no agent will use must not stay."""

    async def main():
        async with virtual_governor(limit=1) as gov:
            hosted = Hosted(gov)
            async with pool_of(gov, hosted) as pool:
                tasks = [pool.submit(work, item) for item in "abcd"]
                await asyncio.sleep(7)
                assert hosted.alive == {"a", "b", "c"}
                for task in tasks[1:]:
                    task.cancel()
            assert not hosted.alive
            assert tasks[0].status == "ok"
            assert "+d" not in hosted.log
            assert_idle(gov)

    run(main())


async def a_block_that_fails(gov, hosted):
    async with pool_of(gov, hosted) as pool:
        for item in "abcd":
            pool.submit(work, item)
        await asyncio.sleep(6)
        raise ValueError("mine")


def test_an_error_in_the_block_leaves_no_sandbox():
    async def main():
        async with virtual_governor(limit=2) as gov:
            hosted = Hosted(gov)
            with pytest.raises(ValueError, match="mine"):
                await a_block_that_fails(gov, hosted)
            assert not hosted.alive
            assert_idle(gov)

    run(main())


def test_the_place_is_free_while_a_sandbox_is_taken_down():
    """The next agent is let in then; the first one still counts as open, with its sandbox."""

    async def main():
        began = {}

        async def prepare(item):
            return item

        async def cleanup(sandbox):
            await asyncio.sleep(100)

        async def solve(item, sandbox):
            began[item] = asyncio.get_running_loop().time()
            await asyncio.sleep(10)

        async with (
            virtual_governor(limit=1) as gov,
            ca.AgentPool(gov, prepare=prepare, cleanup=cleanup) as pool,
        ):
            await pool.map(solve, "ab")
        assert began == {"a": 0, "b": 10}

    run(main())


def test_plain_functions_make_sandboxes_in_threads():
    """A client of a container service blocks, and must not stop the event loop."""

    async def main():
        threads = set()

        def prepare(item):
            threads.add(threading.current_thread())
            return item.upper()

        def cleanup(sandbox):
            threads.add(threading.current_thread())

        def solve(item, sandbox):
            return sandbox

        with ca.Governor(limit=1) as gov:
            async with ca.AgentPool(gov, prepare=prepare, cleanup=cleanup) as pool:
                assert await pool.map(solve, "ab") == ["A", "B"]
        assert threading.main_thread() not in threads

    asyncio.run(main())


def test_higher_priorities_get_their_sandboxes_first():
    async def main():
        async with virtual_governor(limit=1) as gov:
            hosted = Hosted(gov)
            async with pool_of(gov, hosted, prepared=1) as pool:
                for priority, item in enumerate("abcd"):
                    pool.submit(work, item, priority=priority)
            assert [line for line in hosted.log if line[0] == "+"] == ["+a", "+b", "+d", "+c"]

    run(main())


def test_without_the_pool_it_is_a_block():
    async def main():
        async with virtual_governor(limit=1) as gov:
            hosted = Hosted(gov)
            sandboxes = ca.Sandboxes(hosted.prepare, hosted.cleanup, prepared=1)

            async def one(item):
                async with sandboxes.agent(gov, item, id=item) as (agent, sandbox):
                    assert ca.current_agent() is agent
                    return await work(item, sandbox)

            made = await asyncio.gather(*map(one, "abc"))
            assert made == ["box of a", "box of b", "box of c"]
            assert hosted.most_beyond == 1
            assert not hosted.alive
            assert_idle(gov)

    run(main())


def test_an_error_of_the_block_passes_and_its_sandbox_goes():
    async def main():
        async with virtual_governor(limit=1) as gov:
            hosted = Hosted(gov, fails="b")
            sandboxes = ca.Sandboxes(hosted.prepare, hosted.cleanup)
            with pytest.raises(KeyError, match="mine"):
                async with sandboxes.agent(gov, "a"):
                    raise KeyError("mine")
            with pytest.raises(OSError, match="no room for b"):
                async with sandboxes.agent(gov, "b"):
                    pass
            assert not hosted.alive
            assert_idle(gov)

    run(main())


def test_options_that_cannot_be_used_say_what_is_wrong():
    with ca.Governor(limit=1) as gov:
        with pytest.raises(ca.ConfigError, match="prepared must be at least 0 sandboxes, got -1"):
            ca.AgentPool(gov, prepare=str, prepared=-1)
        with pytest.raises(ca.ConfigError, match="there is no prepare"):
            ca.AgentPool(gov, cleanup=print)


def test_nothing_is_logged_of_an_error_that_an_agent_has_reported(caplog):
    async def main():
        async with virtual_governor(limit=1) as gov:
            hosted = Hosted(gov, fails="a")
            async with pool_of(gov, hosted) as pool:
                await pool.in_order(work, "a")

    with caplog.at_level(logging.DEBUG, "asyncio"):
        run(main())
    assert "never retrieved" not in caplog.text
