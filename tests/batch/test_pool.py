"""AgentPool: many agents, few places, and nothing lost. Virtual time, save where threads run."""

from __future__ import annotations

import asyncio
import functools
from pathlib import PurePosixPath
from uuid import UUID

import pytest

import concur_agents as ca
from concur_agents import AgentPool, Governor
from concur_agents.testing import run, virtual_governor


async def work(item):
    await asyncio.sleep(1)
    if isinstance(item, str) and item.startswith("bad"):
        raise ValueError(item)
    return f"{item} done"


async def collect(pool, fn, items):
    return {o.key: o async for o in pool.as_completed(fn, items)}


# Batches


def test_a_batch_comes_out_as_it_ends_and_one_failure_does_not_affect_the_others():
    async def main():
        async with virtual_governor(limit=2) as gov, AgentPool(gov) as pool:
            outcomes = await collect(pool, work, ["a", "bad", "c", "d"])
            assert {k: o.status for k, o in outcomes.items()} == {
                "a": "ok",
                "bad": "error",
                "c": "ok",
                "d": "ok",
            }
            assert outcomes["a"].result() == "a done"
            assert repr(outcomes["bad"].error) == "ValueError('bad')"
            with pytest.raises(ValueError, match="bad"):
                outcomes["bad"].result()
            assert asyncio.get_running_loop().time() == 2.0
            assert outcomes["d"].stats.queued_s == 1.0
            assert gov.snapshot().done_total == 4

    run(main())


def test_map_keeps_the_order_of_the_items_and_raises_when_all_have_ended():
    async def main():
        async with virtual_governor(limit=3) as gov:

            async def slow_first(n):
                await asyncio.sleep(10 - n)
                if n in (2, 4):
                    raise ValueError(n)
                return n * n

            async with AgentPool(gov) as pool:
                assert await pool.map(slow_first, [0, 1, 3]) == [0, 1, 9]
            async with AgentPool(gov) as pool:
                with pytest.raises(ValueError, match="2"):
                    await pool.map(slow_first, range(6))
                assert pool.progress().ok == 4
            async with AgentPool(gov) as pool:
                results = await pool.map(slow_first, range(6), return_exceptions=True)
                assert [r for r in results if isinstance(r, int)] == [0, 1, 9, 25]
                assert isinstance(results[2], ValueError)

    run(main())


def test_items_that_need_no_key_may_be_the_same_twice():
    async def main():
        async with virtual_governor(limit=1) as gov, AgentPool(gov) as pool:
            assert await pool.map(work, [{"x": 1}, {"x": 1}]) == ["{'x': 1} done"] * 2

    run(main())


def test_items_are_pulled_as_they_can_be_used_and_not_before():
    async def main():
        pulled = 0

        def endless():
            nonlocal pulled
            while True:
                pulled += 1
                yield pulled

        async with virtual_governor(limit=4) as gov, AgentPool(gov, look_ahead=5) as pool:
            ended = 0
            async for outcome in pool.as_completed(work, endless()):
                assert outcome.status == "ok"
                ended += 1
                assert pulled <= ended + 4 + 5 + 1
                if ended == 100:
                    break
            assert pool.progress().total is None

    run(main())


def test_a_consumer_that_lags_behind_holds_the_batch_up_and_not_the_memory():
    async def main():
        async with virtual_governor(limit=50) as gov, AgentPool(gov) as pool:
            stream = pool.as_completed(work, range(10**6))
            await anext(stream)
            await asyncio.sleep(1000)
            assert pool.progress().done < 256 + 50 + 16 + 1
            assert await anext(stream)
            await stream.aclose()

    run(main())


def test_items_may_come_from_an_async_source_and_end_with_its_error():
    async def main():
        async def source():
            yield "a"
            await asyncio.sleep(5)
            yield "b"
            raise OSError("the source broke")

        async with virtual_governor(limit=1) as gov, AgentPool(gov) as pool:
            with pytest.raises(OSError, match="the source broke"):
                await collect(pool, work, source())
            assert pool.progress().ok == 2

    run(main())


def test_leaving_the_loop_early_cancels_the_rest_and_frees_their_places():
    async def main():
        async with virtual_governor(limit=2) as gov:
            async with AgentPool(gov) as pool:
                async for outcome in pool.as_completed(work, ["a", "b", "c", "d"]):
                    assert outcome.value
                    break
            assert asyncio.get_running_loop().time() == 1.0
            assert gov.snapshot().active == gov.snapshot().queued == 0

    run(main())


def test_on_error_raise_stops_at_the_first_error():
    async def main():
        async with virtual_governor(limit=1) as gov, AgentPool(gov, on_error="raise") as pool:
            with pytest.raises(ValueError, match="bad"):
                await collect(pool, work, ["a", "bad", "never"])
            assert pool.progress().ok == 1
            assert gov.snapshot().active == 0

    run(main())


def test_an_error_in_the_users_block_cancels_what_was_submitted():
    async def main():
        async with virtual_governor(limit=1) as gov:
            tasks = []

            async def users_block():
                async with AgentPool(gov) as pool:
                    tasks.append(pool.submit(work, "a"))
                    await asyncio.sleep(0.5)
                    raise KeyError("mine")

            with pytest.raises(KeyError, match="mine"):
                await users_block()
            assert tasks[0].status == "cancelled"
            assert gov.snapshot().active == 0

    run(main())


# Single agents


def test_submitted_agents_can_be_awaited_watched_and_cancelled():
    async def main():
        async with virtual_governor(limit=1) as gov, AgentPool(gov) as pool:
            first, second, third = (pool.submit(work, name) for name in ("a", "b", "c"))
            assert first.status == "queued"
            await asyncio.sleep(0.5)
            assert (first.status, second.status) == ("acting", "queued")
            second.cancel()
            assert await first == "a done"
            with pytest.raises(asyncio.CancelledError):
                await second
            assert (await second.outcome()).status == "cancelled"
            assert await third == "c done"
            assert asyncio.get_running_loop().time() == 2.0
            assert repr(third) == "<AgentTask 'c' ok>"

    run(main())


def test_an_agent_cancelled_before_its_first_line_is_counted_like_any_other():
    async def main():
        async with virtual_governor(limit=1) as gov, AgentPool(gov) as pool:
            task = pool.submit(work, "a")
            task.cancel()
            assert (await task.outcome()).status == "cancelled"
            assert task.status == "cancelled"
            with pytest.raises(asyncio.CancelledError):
                await task
            progress = pool.progress()
            assert (progress.cancelled, progress.queued, progress.running) == (1, 0, 0)

    run(main())


def test_leaving_the_block_waits_for_what_was_submitted():
    async def main():
        async with virtual_governor(limit=1) as gov:
            async with AgentPool(gov) as pool:
                tasks = [pool.submit(work, i, priority=i) for i in range(3)]
            assert [t.status for t in tasks] == ["ok"] * 3
            assert asyncio.get_running_loop().time() == 3.0

    run(main())


def test_an_agent_that_asks_for_its_handle_gets_it_and_others_find_it():
    async def main():
        async with virtual_governor(limit=1) as gov, AgentPool(gov) as pool:

            async def with_handle(item, agent):
                assert agent is ca.current_agent()
                async with agent.step() as step:
                    step.record({"prompt_tokens": 3, "completion_tokens": 1})
                return agent.id

            async def without(item):
                return ca.current_agent().id

            def agent_is_its_item(agent):
                return agent

            assert await pool.submit(with_handle, "x") == "x"
            assert await pool.submit(without, "y") == "y"
            assert await pool.submit(agent_is_its_item, "z") == "z"
            assert await pool.submit(functools.partial(with_handle, "w"), key="w") == "w"
            outcome = await pool.submit(with_handle, "v").outcome()
            assert outcome.stats.steps == 1

    run(main())


# Draining


def test_draining_finishes_the_running_agents_and_starts_no_others():
    async def main():
        async with virtual_governor(limit=2) as gov, AgentPool(gov) as pool:
            batch = asyncio.ensure_future(collect(pool, work, list("abcdefgh")))
            await asyncio.sleep(1.5)
            await pool.drain()
            outcomes = await batch
            assert asyncio.get_running_loop().time() == 2.0
            assert sum(o.status == "ok" for o in outcomes.values()) == 4
            assert {o.status for o in outcomes.values()} == {"ok", "cancelled"}
            with pytest.raises(ca.ClosedError, match="draining"):
                pool.submit(work, "late")

    run(main())


# Misuse


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"timeout_s": 0}, "timeout_s must be above 0 s, got 0"),
        ({"on_error": "ignore"}, "'collect' or 'raise', got 'ignore'"),
        ({"look_ahead": 0}, "at least 1 agent, got 0"),
    ],
)
def test_options_that_cannot_be_used_say_what_is_wrong(options, says):
    with pytest.raises(ca.ConfigError, match=says):
        AgentPool(Governor(limit=1), **options)


def test_a_pool_is_used_once_and_inside_its_block():
    async def main():
        async with virtual_governor(limit=1) as gov:
            pool = AgentPool(gov)
            with pytest.raises(ca.ClosedError, match="inside `async with"):
                pool.submit(work, "a")
            async with pool:
                pass
            with pytest.raises(ca.ClosedError, match="is closed"):
                pool.submit(work, "a")
            with pytest.raises(ca.ClosedError, match="used before"):
                await pool.__aenter__()

    run(main())


def test_a_key_that_is_no_name_ends_the_batch_with_the_reason():
    async def main():
        async with virtual_governor(limit=1) as gov, AgentPool(gov, key=list) as pool:
            with pytest.raises(ca.ConfigError, match=r"key must return a string, .* got \['a'\]"):
                await collect(pool, work, ["a"])

    run(main())


def test_ints_uuids_and_paths_name_items():
    names = [7, UUID(int=7), PurePosixPath("a/b")]

    async def main():
        async with virtual_governor(limit=1) as gov:
            async with AgentPool(gov) as pool:
                assert set(await collect(pool, work, names)) == {str(name) for name in names}
            async with AgentPool(gov, key=lambda item: item["row"]) as pool:
                assert list(await collect(pool, work, [{"row": names[1]}])) == [str(names[1])]

    run(main())
