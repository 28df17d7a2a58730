"""`gov.executor()` in the place of a `ThreadPoolExecutor`."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, Executor, as_completed, wait

import pytest

import concur_agents as ca
from concur_agents.testing import assert_idle


def test_each_task_is_an_agent_and_gets_its_thread_when_it_is_let_in():
    inside = peak = 0
    lock = threading.Lock()

    def solve(i):
        nonlocal inside, peak
        with lock:
            inside += 1
            peak = max(peak, inside)
        agent = ca.current_agent()
        with agent.step():
            time.sleep(0.002)
        with lock:
            inside -= 1
        return i, agent.id

    before = threading.active_count()
    with ca.Governor(limit=3) as gov:
        with gov.executor() as pool:
            assert isinstance(pool, Executor)
            futures = [pool.submit(solve, i) for i in range(100)]
            assert threading.active_count() < before + 20  # some are still on their way out
            results = [future.result() for future in as_completed(futures)]
        assert sorted(i for i, _ in results) == list(range(100))
        assert len({name for _, name in results}) == 100
        assert peak <= 3
        assert gov.snapshot().active == 0
        assert gov.snapshot().done_total == 100


def test_map_keeps_the_order_and_errors_are_the_tasks_own():
    with ca.Governor(limit=2) as gov, gov.executor() as pool:
        assert list(pool.map(lambda x: x * x, range(5))) == [0, 1, 4, 9, 16]
        with pytest.raises(ZeroDivisionError):
            pool.submit(lambda: 1 / 0).result()


def test_max_workers_bounds_threads_beyond_what_the_governor_allows():
    threads = set()

    def note(_):
        threads.add(threading.active_count())
        time.sleep(0.001)

    before = threading.active_count()
    with ca.Governor(limit=50) as gov, gov.executor(max_workers=2) as pool:
        list(pool.map(note, range(30)))
        assert max(threads) <= before + 2
    with pytest.raises(ca.ConfigError, match="at least 1 thread, got 0"):
        gov.executor(max_workers=0)


@pytest.mark.parametrize("max_workers", [None, 1])
def test_a_cancelled_task_leaves_the_queue_and_the_next_one_goes(max_workers):
    release = threading.Event()
    with ca.Governor(limit=1) as gov, gov.executor(max_workers) as pool:
        first = pool.submit(release.wait, 10)
        second, third = pool.submit(str, 2), pool.submit(str, 3)
        assert second.cancel()
        assert second.cancel()
        assert second.cancelled()
        assert not first.cancel()
        release.set()
        assert third.result(10) == "3"
        with pytest.raises(CancelledError):
            second.result()
    assert_idle(gov)


def test_shutdown_can_cancel_what_has_not_begun():
    release = threading.Event()
    with ca.Governor(limit=1) as gov:
        pool = gov.executor(max_workers=1)
        futures = [pool.submit(release.wait, 10) for _ in range(5)]
        pool.shutdown(wait=False, cancel_futures=True)
        release.set()
        pool.shutdown()
        _, not_done = wait(futures, 10)
        assert not not_done
        assert [future.cancelled() for future in futures] == [False, True, True, True, True]
        with pytest.raises(ca.ClosedError, match="shut down"):
            pool.submit(str, 1)
        assert_idle(gov)


def test_tasks_submitted_by_an_agent_share_its_place_and_cannot_dead_lock_it():
    with ca.Governor(limit=1) as gov, gov.agent("parent"), gov.executor() as pool:
        assert list(pool.map(lambda x: x, range(4))) == [0, 1, 2, 3]


def test_a_closed_governor_fails_the_task_and_not_the_caller():
    gov = ca.Governor(limit=1)
    gov.close()
    with gov.executor() as pool, pytest.raises(ca.ClosedError):
        pool.submit(str, 1).result(10)
