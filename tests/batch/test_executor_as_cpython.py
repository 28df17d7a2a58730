"""What CPython's own tests ask of a `ThreadPoolExecutor`, asked of `gov.executor()` (fault L).

After Lib/test/test_concurrent_futures, written anew: shutdown, map, cancelling, initializers,
names of threads, garbage, the end of the interpreter. What differs on purpose: without
`max_workers` the governor is the bound, and not the number of CPUs.
"""

from __future__ import annotations

import asyncio
import gc
import re
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
import weakref
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    ThreadPoolExecutor,
    as_completed,
    wait,
)

import pytest

import concur_agents as ca
from concur_agents.testing import assert_idle


@pytest.fixture
def gov():
    with ca.Governor(limit=50) as governor:
        yield governor
        assert_idle(governor)


@pytest.fixture
def pool(gov):
    with gov.executor(max_workers=5) as executor:
        yield executor


def until(is_true):
    end_s = time.monotonic() + 10
    while not is_true():
        assert time.monotonic() < end_s
        time.sleep(0.001)


def python(script):
    """Runs a program to its end; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", "import concur_agents as ca\n" + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout.split(), done.stderr


# Shutdown


def test_after_shutdown_a_submit_is_a_runtime_error(pool):
    assert isinstance(pool, ThreadPoolExecutor)
    pool.shutdown()
    pool.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.submit(pow, 2, 5)
    with pytest.raises(RuntimeError):
        pool.map(str, [1])


def test_shutdown_ends_all_threads_and_lets_what_was_submitted_finish(gov):
    executor = gov.executor(max_workers=3)
    go = threading.Event()
    futures = [executor.submit(go.wait, 10) for _ in range(9)]
    until(lambda: len(executor._threads) == 3)
    executor.shutdown(wait=False)
    go.set()
    for thread in list(executor._threads):
        thread.join(10)
        assert not thread.is_alive()
    assert all(future.result(0) for future in futures)


def test_an_executor_that_is_dropped_finishes_its_tasks_and_ends_its_threads(gov):
    executor = gov.executor(max_workers=5)
    results = executor.map(abs, range(-5, 5))
    threads = executor._threads
    gone = weakref.ref(executor)
    del executor
    assert list(results) == [5, 4, 3, 2, 1, 0, 1, 2, 3, 4]
    until(lambda: gc.collect() is not None and gone() is None)
    for thread in list(threads):
        thread.join(10)
        assert not thread.is_alive()


def test_a_future_that_is_cancelled_just_before_shutdown_does_not_hang_it(gov):
    for _ in range(20):
        with gov.executor(max_workers=1) as executor:
            executor.submit(int).result()
            executor.submit(int).cancel()
            executor.shutdown(wait=True)


def test_shutdown_right_after_map_loses_nothing(gov):
    for _ in range(20):
        executor = gov.executor(max_workers=5)
        results = executor.map(str, [2] * 6)
        executor.shutdown()
        assert list(results) == ["2"] * 6


@pytest.mark.parametrize("ending", ["", "t.shutdown(wait=False)", "del t"])
def test_the_interpreter_ends_only_when_all_tasks_are_done(ending):
    out, err = python(
        f"""
        import time
        def say(word):
            time.sleep(0.02)
            print(word + chr(10), end="", flush=True)
        t = ca.Governor(limit=2).executor(3)
        for i in range(9):
            t.submit(say, f"task-{{i}}")
        {ending}
        """
    )
    assert err == ""
    assert sorted(out) == [f"task-{i}" for i in range(9)]


def test_after_the_end_of_the_interpreter_has_begun_a_submit_is_a_runtime_error():
    out, err = python(
        """
        import atexit
        @atexit.register
        def last():
            try:
                t.submit(id, None)
            except RuntimeError:
                print("runtime-error", flush=True)
        t = ca.Governor(limit=5).executor(5)
        t.submit(id, 42).result()
        """
    )
    assert (out, err) == (["runtime-error"], "")


def test_what_is_cancelled_at_shutdown_does_not_run_and_the_rest_does():
    out, err = python(
        """
        import time
        t = ca.Governor(limit=1).executor()
        def say(word):
            time.sleep(0.1)
            print(word + chr(10), end="", flush=True)
        t.submit(say, "apple")
        t.submit(say, "pear")
        t.shutdown(wait=False, cancel_futures=True)
        """
    )
    assert (out, err) == (["apple"], "")


# Tasks


def test_submit_passes_what_it_is_given(pool):
    def capture(*args, **kwargs):
        return args, kwargs

    assert pool.submit(pow, 2, 8).result() == 256
    assert pool.submit(capture, 1, self=2, fn=3).result() == ((1,), {"self": 2, "fn": 3})
    with pytest.raises(TypeError):
        pool.submit()


def test_map_is_submitted_at_once_in_order_and_raises_where_it_failed(pool):
    done = []
    assert list(pool.map(pow, range(10), range(10))) == [n**n for n in range(10)]
    results = pool.map(divmod, [1, 1, 1], [2, 3, 0])
    assert (next(results), next(results)) == ((0, 1), (0, 1))
    with pytest.raises(ZeroDivisionError):
        next(results)
    pool.map(done.append, range(10))
    until(lambda: sorted(done) == list(range(10)))


def test_map_has_a_timeout_that_cancels_what_has_not_begun(gov):
    go = threading.Event()
    with gov.executor(max_workers=1) as executor:
        results = executor.map(go.wait, [0, 10, 10], timeout=0.05)
        assert next(results) is False
        with pytest.raises(TimeoutError):
            next(results)
        go.set()


def test_wait_and_as_completed_take_its_futures(pool):
    go = threading.Event()
    first, second = pool.submit(int), pool.submit(go.wait, 10)
    done, not_done = wait([first, second], return_when=FIRST_COMPLETED)
    assert (done, not_done) == ({first}, {second})
    go.set()
    assert set(as_completed([first, second])) == {first, second}


def test_callbacks_are_called_once_also_for_what_is_cancelled(gov):
    go, seen = threading.Event(), []
    with gov.executor(max_workers=1) as executor:
        running, waiting = executor.submit(go.wait, 10), executor.submit(int)
        for future in (running, waiting):
            future.add_done_callback(seen.append)
        waiting.cancel()
        go.set()
    assert seen == [waiting, running]
    with pytest.raises(CancelledError):
        waiting.result()


def test_an_exception_that_is_false_is_still_an_exception(pool):
    class FalseError(Exception):
        def __bool__(self):
            return False

    def fail():
        raise FalseError("foo")

    assert isinstance(pool.submit(fail).exception(), FalseError)
    assert isinstance(pool.submit(sys.exit).exception(), SystemExit)


# Threads


def test_threads_are_reused_and_never_more_than_max_workers(gov):
    with gov.executor(max_workers=4) as executor:
        for _ in range(20):
            executor.submit(pow, 21, 2).result()
        assert len(executor._threads) <= 2
        go = threading.Semaphore(0)
        for _ in range(60):
            executor.submit(go.acquire)
        until(lambda: len(executor._threads) == 4)
        go.release(60)
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="max_workers must be greater than 0"):
            gov.executor(max_workers=wrong)


@pytest.mark.parametrize("prefix", ["SpecialPool", ""])
def test_threads_have_names(gov, prefix):
    with gov.executor(max_workers=5, thread_name_prefix=prefix) as executor:
        names = set(executor.map(lambda _: threading.current_thread().name, range(10)))
    pattern = rf"{prefix or r'ThreadPoolExecutor-[0-9]+'}_[0-4]"
    assert all(re.fullmatch(pattern, name) for name in names)


def test_the_initializer_runs_once_in_each_thread(gov):
    local, made = threading.local(), []

    def initialize(word):
        local.word = word
        made.append(threading.get_ident())

    with gov.executor(3, initializer=initialize, initargs=("ready",)) as executor:
        assert set(executor.map(lambda _: local.word, range(30))) == {"ready"}
    assert len(made) == len(set(made)) <= 3
    with pytest.raises(TypeError, match="initializer must be a callable"):
        gov.executor(initializer=1)


@pytest.mark.parametrize("max_workers", [None, 1])
def test_an_initializer_that_fails_breaks_the_executor_and_hangs_nothing(gov, max_workers):
    def initialize():
        time.sleep(0.01)
        raise ValueError("error in initializer")

    executor = gov.executor(max_workers, initializer=initialize)
    futures = []
    try:
        futures.extend(executor.submit(int) for _ in range(200))
    except BrokenExecutor:
        assert futures
    for future in futures:
        with pytest.raises(BrokenExecutor):
            future.result(10)
    with pytest.raises(BrokenExecutor):
        executor.submit(int)
    executor.shutdown()


# Garbage


def test_what_ran_is_not_kept_although_its_futures_are(gov):
    class Thing:
        def method(self):
            return None

        def fail(self):
            raise ValueError("x")

    with gov.executor(max_workers=2) as executor:
        thing = Thing()
        gone = weakref.ref(thing)
        futures = [executor.submit(thing.method), executor.submit(len, [thing])]
        wait(futures)
        del thing
        until(lambda: gone() is None)
        assert [future.result() for future in futures] == [None, 1]


def test_a_result_lives_no_longer_than_its_future(pool):
    class Thing:
        pass

    gc.disable()
    try:
        for thing in pool.map(lambda _: Thing(), range(10)):
            gone = weakref.ref(thing)
            del thing
            until(lambda: gone() is None)  # noqa: B023

        class OwnError(Exception):
            pass

        def fail():
            raise OwnError

        future = pool.submit(fail)
        error = weakref.ref(future.exception())
        del future
        until(lambda: error() is None)
    finally:
        gc.enable()


def test_300_tasks_of_1_mb_hold_no_memory_when_they_are_done(gov):
    tracemalloc.start()
    try:
        with gov.executor(max_workers=2) as executor:
            futures = [executor.submit(len, bytearray(10**6)) for _ in range(300)]
            assert sum(future.result() for future in futures) == 300 * 10**6
            until(lambda: tracemalloc.get_traced_memory()[0] < 5 * 10**6)
    finally:
        tracemalloc.stop()
    assert len(futures) == 300


# Beside the governor


def test_it_can_be_the_default_executor_of_a_loop(gov):
    async def main():
        loop = asyncio.get_running_loop()
        loop.set_default_executor(gov.executor(2))
        assert await asyncio.to_thread(int) == 0
        ids = [loop.run_in_executor(None, lambda: ca.current_agent().id) for _ in range(10)]
        return await asyncio.gather(*ids)

    assert len(set(asyncio.run(main()))) == 10


def test_a_long_backlog_of_a_closed_governor_fails_to_its_end():
    gov = ca.Governor(limit=1)
    go = threading.Event()
    executor = gov.executor(max_workers=1)
    first = executor.submit(go.wait, 10)
    rest = [executor.submit(int) for _ in range(3_000)]
    gov.close()
    go.set()
    assert first.result(10)
    assert all(isinstance(future.exception(10), ca.ClosedError) for future in rest)
    executor.shutdown()
