"""AgentPool: many agents, few places, and nothing lost. Virtual time, save where threads run."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

import concur_agents as ca
from concur_agents import AgentPool, Governor, run_agents
from concur_agents.batch.progress import PlainReporter, Progress
from concur_agents.testing import run, virtual_governor


async def work(item):
    await asyncio.sleep(1)
    if isinstance(item, str) and item.startswith("bad"):
        raise ValueError(item)
    return f"{item} done"


async def collect(pool, fn, items):
    return {o.key: o async for o in pool.as_completed(fn, items)}


# Batches


def test_a_batch_comes_out_as_it_ends_and_one_failure_concerns_nobody_else():
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


def test_a_duplicate_key_is_that_agents_error_and_nobody_elses():
    async def main():
        async with virtual_governor(limit=2) as gov, AgentPool(gov) as pool:
            one, two = pool.submit(work, "same"), pool.submit(work, "same")
            assert await one == "same done"
            with pytest.raises(ca.ConfigError, match="'same' is alive already"):
                await two

    run(main())


# Time limits


def test_the_time_limit_counts_running_time_and_neither_queue_nor_pause():
    async def main():
        async with virtual_governor(limit=1) as gov, AgentPool(gov, timeout_s=10) as pool:

            async def exact(item, agent):
                await asyncio.sleep(9)
                return item

            outcomes = await collect(pool, exact, ["a", "b", "c"])  # the last one queues for 18 s
            assert {o.status for o in outcomes.values()} == {"ok"}

            async def too_long(item):
                await asyncio.sleep(11)

            outcome = await pool.submit(too_long, "d").outcome()
            assert isinstance(outcome.error, TimeoutError)
            assert "'d' ran for more than 10 s (queue and pauses not" in str(outcome.error)
            assert outcome.stats.running_s == pytest.approx(10, abs=0.06)
            assert gov.snapshot().active == 0

    run(main())


def test_the_time_limit_does_not_count_a_pause(timetable):
    async def main():
        law = timetable((0, 2), (5, 1), (100, 2))
        async with virtual_governor(law=law) as gov, AgentPool(gov, timeout_s=30) as pool:

            async def hog(item):
                await asyncio.sleep(25)

            async def paused(item, agent):
                await asyncio.sleep(10)
                async with agent.suspended():
                    pass
                async with agent.step():
                    await asyncio.sleep(10)
                return agent.stats.paused_s

            pool.submit(hog, "hog")
            paused_s = await pool.submit(paused, "paused")
            assert paused_s == pytest.approx(15)

    run(main())


def test_an_agents_own_timeout_error_is_its_own():
    async def main():
        async with virtual_governor(limit=1) as gov, AgentPool(gov, timeout_s=10) as pool:

            async def own(item):
                raise TimeoutError("mine")

            outcome = await pool.submit(own, "a").outcome()
            assert str(outcome.error) == "mine"

    run(main())


# Threads


def test_plain_functions_run_in_threads_of_their_own_once_they_are_let_in():
    marker = contextvars.ContextVar("marker", default="unset")
    inside = peak = 0
    lock = threading.Lock()

    def solve(item):
        nonlocal inside, peak
        assert threading.current_thread().name == f"agent {item}"
        assert ca.current_agent().id == str(item)
        with lock:
            inside += 1
            peak = max(peak, inside)
        with ca.current_agent().step():
            time.sleep(0.005)
        with lock:
            inside -= 1
        return marker.get()

    async def main():
        marker.set("carried")
        before = threading.active_count()
        with Governor(limit=3) as gov:
            async with AgentPool(gov, look_ahead=50) as pool:
                results = await pool.map(solve, range(40))
                assert threading.active_count() <= before + 3 + 1
            assert gov.snapshot().active == 0
        assert results == ["carried"] * 40
        assert peak <= 3

    asyncio.run(main())


def test_a_plain_function_that_returns_a_coroutine_is_an_agent_too():
    async def main():
        with Governor(limit=1) as gov:
            async with AgentPool(gov) as pool:
                assert await pool.map(lambda x: work(x + x), ["a"]) == ["aa done"]

    asyncio.run(main())


def test_a_cancelled_agent_in_a_thread_ends_at_its_next_boundary_and_keeps_its_place_till_then():
    go_on, ended, swallowed = threading.Event(), threading.Event(), []

    def stubborn(item):
        agent = ca.current_agent()
        try:
            with agent.step():
                go_on.wait(10)  # a call in flight, which nothing can interrupt
            try:
                with agent.step():
                    swallowed.append("went on")
            except Exception:
                swallowed.append("caught")
        finally:
            ended.set()

    async def main():
        with Governor(limit=1) as gov:
            async with AgentPool(gov) as pool:
                task = pool.submit(stubborn, "a")
                while task.status != "reasoning":
                    await asyncio.sleep(0.005)
                task.cancel()
                assert (await task.outcome()).status == "cancelled"
                assert gov.snapshot().active == 1
                go_on.set()
                assert await asyncio.to_thread(ended.wait, 10)
                while gov.snapshot().active:
                    await asyncio.sleep(0.005)
        assert not swallowed

    asyncio.run(main())


def test_a_cancelled_agent_that_waits_in_a_thread_wakes_up_and_goes():
    async def main():
        with Governor(limit=1) as gov:
            ended = threading.Event()

            def at_the_gate(item):
                agent = ca.current_agent()
                try:
                    with agent.suspended():
                        other.open_sync()
                    agent.checkpoint_sync()
                finally:
                    ended.set()

            other = gov.agent("other", detached=True)
            async with AgentPool(gov) as pool:
                task = pool.submit(at_the_gate, "a")
                while gov.explain("a").split(": ")[1] != "queued":
                    await asyncio.sleep(0.005)
                task.cancel()
                await task.outcome()
                assert await asyncio.to_thread(ended.wait, 10)
                other.close()
                while gov.snapshot().active or gov.snapshot().queued:
                    await asyncio.sleep(0.005)

    asyncio.run(main())


def test_system_exit_in_one_agents_thread_is_its_error_and_ends_nobody_else():
    async def main():
        with Governor(limit=2) as gov:
            async with AgentPool(gov) as pool:
                outcomes = await collect(pool, lambda x: sys.exit(3) if x == "a" else x, "ab")
                assert outcomes["a"].status == "error"
                assert "SystemExit(3)" in str(outcomes["a"].error)
                assert outcomes["b"].value == "b"

    asyncio.run(main())


def test_run_agents_needs_no_event_loop_and_keeps_the_order():
    outcomes = run_agents(lambda x: x * 2, [3, 1, 2], limit=2)
    assert [(o.key, o.value) for o in outcomes] == [("3", 6), ("1", 2), ("2", 4)]
    with Governor(limit=1) as gov:
        outcomes = run_agents(work, ["bad"], governor=gov)
        assert outcomes[0].status == "error"
        assert not gov.snapshot().closed


def test_run_agents_says_what_to_do_where_it_cannot_run():
    async def main():
        run_agents(work, [], limit=1)

    with pytest.raises(ca.ConfigError, match="use `async with AgentPool"):
        asyncio.run(main())
    with pytest.raises(ca.ConfigError, match="not both"):
        run_agents(work, [], governor=Governor(limit=1), limit=2)


# Draining and Ctrl-C


def test_draining_finishes_the_running_and_starts_nobody():
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


CTRL_C = """
    import asyncio, os, signal, sys, threading, time
    import concur_agents as ca

    def press():                        # when two agents have begun, and again if told to
        while len(begun) < 2:
            time.sleep(0.005)
        for _ in range(int(sys.argv[1])):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
        hurry.set()

    begun, hurry = [], threading.Event()

    async def solve(i):
        begun.append(i)
        while not hurry.is_set():
            await asyncio.sleep(0.005)
        return i

    async def main():
        threading.Thread(target=press, daemon=True).start()
        with ca.Governor(limit=2) as gov:
            async with ca.AgentPool(gov, journal=sys.argv[2]) as pool:
                async for outcome in pool.as_completed(solve, range(100)):
                    print(outcome.key, outcome.status, flush=True)
            print("interrupted", pool.interrupted, flush=True)

    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        print("KeyboardInterrupt")
"""


def press_ctrl_c(times, path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CTRL_C), str(times), str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


def test_the_first_ctrl_c_finishes_what_runs_and_keeps_it(tmp_path):
    lines, errors = press_ctrl_c(1, tmp_path / "runs.jsonl")
    assert {"0 ok", "1 ok", "interrupted True"} <= set(lines)
    assert "KeyboardInterrupt" not in lines
    assert "the 2 running agents finish" in errors
    kept = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()[1:]]
    assert {line["key"] for line in kept if line["status"] == "ok"} == {"0", "1"}


def test_the_second_ctrl_c_cancels(tmp_path):
    lines, _ = press_ctrl_c(2, tmp_path / "runs.jsonl")
    assert {"0 cancelled", "1 cancelled"} <= set(lines)
    assert lines[-1] == "KeyboardInterrupt"


def test_an_idle_pool_leaves_ctrl_c_alone_and_puts_the_old_handler_back():
    async def main():
        before = signal.getsignal(signal.SIGINT)
        async with virtual_governor(limit=1) as gov, AgentPool(gov):
            assert signal.getsignal(signal.SIGINT) != before
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(1)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(main())
    assert signal.getsignal(signal.SIGINT) == before


# Progress


def test_progress_counts_everybody_once():
    async def main():
        async with virtual_governor(limit=2) as gov:

            class Reporter:
                seen: list[Progress] = []  # noqa: RUF012
                closed = 0

                def update(self, progress):
                    self.seen.append(progress)

                def close(self):
                    self.closed += 1

            reporter = Reporter()
            async with AgentPool(gov, progress=reporter) as pool:
                await collect(pool, work, ["a", "bad", "c", "d", "e"])
            middle = [p for p in reporter.seen if p.running]
            assert (middle[0].running, middle[0].queued, middle[0].total) == (2, 3, 5)
            last = reporter.seen[-1]
            assert (last.done, last.ok, last.errors, last.running) == (5, 4, 1, 0)
            assert str(last) == "5 of 5 done, 0 running, 1 errors"
            assert reporter.closed == 1
            assert repr(pool) == "<AgentPool closed: 5 of 5 done, 0 running, 1 errors>"

    run(main())


def test_a_reporter_that_fails_stops_no_agent(caplog):
    async def main():
        class Reporter:
            def update(self, progress):
                raise RuntimeError("no terminal")

            def close(self):
                pass

        async with virtual_governor(limit=2) as gov, AgentPool(gov, progress=Reporter()) as pool:
            assert await pool.map(work, ["a"]) == ["a done"]

    run(main())
    assert "the reporter failed" in caplog.text


def test_without_a_terminal_progress_is_a_line_now_and_then():
    stream = io.StringIO()
    reporter = PlainReporter(stream, every_s=1e9)
    reporter.update(Progress(total=3, running=2))
    reporter.update(Progress(total=3, ok=3))
    assert stream.getvalue() == ""
    reporter.close()
    assert stream.getvalue() == "agents: 3 of 3 done, 0 running\n"


def test_on_a_terminal_progress_is_a_bar():
    pytest.importorskip("rich")
    from concur_agents.batch.progress import BarReporter, default_reporter

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    reporter = default_reporter(terminal)
    assert isinstance(reporter, BarReporter)
    reporter.update(Progress(total=4, ok=1, running=2, queued=1))
    reporter.close()
    assert "1 of 4 done, 2 running, 1 queued" in terminal.getvalue()
    assert isinstance(default_reporter(io.StringIO()), PlainReporter)


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


def test_a_key_that_is_no_string_ends_the_batch_with_the_reason():
    async def main():
        async with virtual_governor(limit=1) as gov, AgentPool(gov, key=len) as pool:
            with pytest.raises(ca.ConfigError, match="key must return a string, got 1"):
                await collect(pool, work, ["a"])

    run(main())
