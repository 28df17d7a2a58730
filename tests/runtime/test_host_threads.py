"""The governor in real threads and several event loops, and what happens when they end badly."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

import concur_agents as ca
from concur_agents.core import Reading
from concur_agents.testing import ScriptedProbe, assert_idle


class Counter:
    """How many are inside at once."""

    def __init__(self):
        self.lock = threading.Lock()
        self.inside = self.peak = self.entries = 0

    def __enter__(self):
        with self.lock:
            self.inside += 1
            self.entries += 1
            self.peak = max(self.peak, self.inside)

    def __exit__(self, *exc):
        with self.lock:
            self.inside -= 1


def wait_until(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def in_thread(fn, *args):
    thread = threading.Thread(target=fn, args=args, daemon=True)
    thread.start()
    return thread


def test_threads_and_two_event_loops_share_one_limit():
    """An asyncio primitive inside the governor would be bound to one of the loops."""
    gov = ca.Governor(limit=3)
    counter = Counter()

    def sync_agent(i):
        with gov.agent(f"t{i}") as agent:
            for _ in range(3):
                with agent.step(), counter:
                    time.sleep(0.001)

    async def async_agent(name):
        async with gov.agent(name) as agent:
            for _ in range(3):
                async with agent.step():
                    with counter:
                        await asyncio.sleep(0.001)

    def loop(prefix):
        async def main():
            await asyncio.gather(*(async_agent(f"{prefix}{i}") for i in range(20)))

        asyncio.run(main())

    threads = [in_thread(sync_agent, i) for i in range(20)]
    threads += [in_thread(loop, prefix) for prefix in ("x", "y")]
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert counter.entries == 180
    assert counter.peak <= 3
    assert_idle(gov)
    gov.close()


def test_limits_that_jump_about_under_threads_never_over_admit_or_strand_anybody(timetable):
    rows = [(t / 100, 1 + (t * 7) % 5) for t in range(0, 100, 5)]
    start_s = time.monotonic()
    gov = ca.Governor(
        law=timetable(*rows, (1.0, 4)),
        poll_interval_s=0.01,
        clock=lambda: time.monotonic() - start_s,
    )
    counter = Counter()

    def agent(i):
        with gov.agent(f"t{i}") as agent:
            for _ in range(10):
                with agent.step(), counter:
                    time.sleep(0.002)

    threads = [in_thread(agent, i) for i in range(30)]
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert counter.entries == 300
    assert counter.peak <= 5
    assert_idle(gov)
    gov.close()


def test_a_sync_wait_on_an_event_loop_thread_raises_and_stops_nobody():
    async def main():
        gov = ca.Governor(limit=1)
        async with gov.agent("a"):
            with (
                pytest.raises(ca.GateError, match="use `async with`"),
                gov.agent("b", detached=True),
            ):
                pass
        with gov.agent("c") as agent:  # no need to wait: fine
            agent.checkpoint_sync()
        assert_idle(gov)
        gov.close()

    asyncio.run(main())


def test_a_sync_gate_on_a_loop_thread_leaves_the_agent_paused_and_not_lost(timetable):
    async def main():
        now = 0.0
        gov = ca.Governor(
            law=timetable((0, 2), (5, 1), (20, 2)), background=False, clock=lambda: now
        )
        async with gov.agent("a"), gov.agent("b", detached=True) as agent:
            now = 10.0
            gov.beat()
            with pytest.raises(ca.GateError, match="'b' has to wait"):
                agent.gate_sync()
            now = 30.0
            gov.beat()
            assert agent.state == "acting"
            agent.gate_sync()
            assert agent.state == "reasoning"
        assert_idle(gov)

    asyncio.run(main())


def test_agents_paused_in_asyncios_few_threads_do_not_keep_them_from_those_they_wait_for(
    timetable, caplog
):
    """Synchronous nodes and tools of asynchronous agents run there. Found so: two threads, both
    of agents that are paused, and an active one that waits for a thread, all of them for ever.
    """

    async def main():
        now = 0.0
        gov = ca.Governor(law=timetable((0, 3), (5, 1)), background=False, clock=lambda: now)
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(2, thread_name_prefix="asyncio"))
        ended = 0

        def step(agent):
            with agent.step():
                pass

        async def life(name, gone):
            nonlocal ended
            async with gov.agent(name) as agent:
                await gone.wait()
                await asyncio.to_thread(step, agent)
            ended += 1

        first, others = asyncio.Event(), asyncio.Event()
        lives = [asyncio.create_task(life("active", first))]
        lives += [asyncio.create_task(life(name, others)) for name in ("paused 1", "paused 2")]
        await asyncio.sleep(0)
        now = 10.0
        gov.beat()
        others.set()
        while gov.snapshot().active > 1:
            await asyncio.sleep(0.01)
        await asyncio.sleep(1.2)
        assert ended == 0, "nobody needs their threads yet, so they wait like anybody"
        first.set()
        await asyncio.gather(*lives)
        assert_idle(gov)
        gov.close()

    with caplog.at_level("WARNING", "concur_agents"):
        asyncio.run(main())
    (said,) = [record for record in caplog.records if "default executor" in record.getMessage()]
    assert "paused" in said.getMessage()


def test_agents_inherit_nothing_in_bare_threads_and_their_agent_through_bind():
    gov = ca.Governor(limit=1)
    with ThreadPoolExecutor(1) as pool, gov.agent("a") as agent:
        assert pool.submit(ca.current_agent).result() is None
        assert pool.submit(ca.bind(ca.current_agent)).result() is agent

        def call():
            with gov.current_agent().step():
                return agent.state

        bound = ca.bind(call)
        assert pool.submit(bound).result() == "reasoning"
        with ThreadPoolExecutor(4) as many:  # the same bound function in parallel
            assert set(many.map(lambda _: bound(), range(8))) == {"reasoning"}

        async def acall():
            return ca.current_agent()

        def another_loop():
            return asyncio.run(ca.bind(acall)())

        assert another_loop() is agent
        carried = ca.bind(acall)
    assert asyncio.run(carried()) is None  # the agent has left


def test_the_thread_starts_with_the_first_agent_and_ends_with_close():
    probe = ScriptedProbe(lambda s: Reading(at_s=s, kv_usage=0.1), time.monotonic)
    gov = ca.Governor(probe=probe, law=ca.make_law("cache_aimd"), poll_interval_s=0.01)
    assert gov._poll_thread.thread is None
    assert probe.reads == 0
    with gov, gov.agent("a"):
        wait_until(lambda: probe.reads > 2)
    assert not gov._poll_thread.thread.is_alive()


def test_agents_that_come_at_once_start_one_thread():
    """Each used to start one if the first had not yet got so far, and only one of them ended."""
    before = set(threading.enumerate())
    for _ in range(20):
        probe = ScriptedProbe(lambda s: Reading(at_s=s, kv_usage=0.1), time.monotonic)
        gov, together = ca.Governor(probe=probe), threading.Barrier(8)

        def life(gov=gov, together=together):
            together.wait()
            with gov.agent():
                pass

        threads = [in_thread(life) for _ in range(8)]
        for thread in threads:
            thread.join(20)
        pollers = {t for t in threading.enumerate() if t.name == "concur-poller"} - before
        gov.close()
        assert pollers <= {gov._poll_thread.thread}
    wait_until(lambda: not gov._poll_thread.thread.is_alive())


def test_a_fixed_cap_that_nobody_waits_for_needs_no_thread():
    gov = ca.Governor(limit=2)
    with gov.agent("a"), gov.agent("b", detached=True):
        assert gov._poll_thread.thread is None


def test_a_dropped_governor_is_collected_and_its_thread_ends():
    probe = ScriptedProbe(lambda s: Reading(at_s=s, kv_usage=0.1), time.monotonic)
    gov = ca.Governor(probe=probe, law=ca.make_law("cache_aimd"), poll_interval_s=30)
    with gov.agent("a") as agent:
        pass
    thread, ref = gov._poll_thread.thread, weakref.ref(gov)
    wait_until(lambda: probe.reads)
    del gov, agent
    wait_until(lambda: gc.collect() >= 0 and ref() is None)
    thread.join(5)
    assert not thread.is_alive()


def test_the_own_thread_lets_in_whom_time_lets_in_long_before_the_next_reading():
    """A nudge wakes the poller when something has become due earlier than its next reading."""
    gov = ca.Governor(limit=2, max_wait_s=0.1, poll_interval_s=60)
    done = threading.Event()

    def hog(name):
        with gov.agent(name) as agent:
            while not done.is_set():
                with agent.step():
                    time.sleep(0.005)

    threads = [in_thread(hog, name) for name in "ab"]
    wait_until(lambda: gov.snapshot().active == 2)
    with gov.agent("late") as agent:
        waited_s = agent.stats.queued_s
    done.set()
    for thread in threads:
        thread.join(10)
    assert waited_s < 5
    gov.close()


def test_an_agent_dropped_while_the_lock_is_held_leaves_and_does_not_dead_lock():
    """The collector may strike anywhere, also inside our own lock."""
    gov = ca.Governor(limit=1)
    agent = gov.agent("dropped")
    agent.open_sync()

    def under_the_lock(now):
        nonlocal agent
        agent = None  # its finaliser runs here and now
        return ()

    gov._monitor.decide(under_the_lock)
    assert_idle(gov)


def test_an_agent_dropped_in_the_first_moment_of_the_lock_does_not_dead_lock():
    """Found by reading: from Python 3.12 on the collector strikes at calls, the clock's included,
    and that one was made before the lock knew who held it.
    """
    dropped = []

    def clock():
        dropped.clear()  # its finaliser runs here and now
        return time.monotonic()

    gov = ca.Governor(limit=1, clock=clock)
    agent = gov.agent("dropped")
    agent.open_sync()
    dropped.append(agent)
    del agent
    in_thread(lambda: gov._monitor.decide(lambda _: ())).join(10)
    assert not dropped
    assert gov._monitor._lock.acquire(timeout=1)
    gov._monitor._lock.release()
    assert_idle(gov)


def test_an_agent_dropped_while_another_is_refused_leaves_at_once():
    """Found by reading: it stayed until the next decision, whenever that was."""
    gov = ca.Governor(limit=1)
    agent = gov.agent("dropped")
    agent.open_sync()

    def refuse(now):
        nonlocal agent
        agent = None
        raise ca.ConfigError("no")

    with pytest.raises(ca.ConfigError, match="no"):
        gov._monitor.decide(refuse)
    assert_idle(gov)


def test_an_agent_dropped_while_somebody_looks_leaves_at_once():
    """Found by reading, as the one before."""
    gov = ca.Governor(limit=1)
    agent = gov.agent("dropped")
    agent.open_sync()

    def look(now):
        nonlocal agent
        agent = None

    gov._monitor.look(look)
    assert_idle(gov)


def test_a_waiter_whose_loop_was_closed_is_passed_over():
    gov = ca.Governor(limit=1)
    holder = gov.agent("holder")
    holder.open_sync()
    loop = asyncio.new_event_loop()
    task = loop.create_task(gov.agent("stranded").open())
    loop.run_until_complete(asyncio.sleep(0.01))
    task._log_destroy_pending = False  # it is left pending on purpose
    loop.close()
    entered = threading.Event()

    def follower():
        with gov.agent("follower"):
            entered.set()

    thread = in_thread(follower)
    wait_until(lambda: gov.snapshot().queued == 2)
    holder.close()
    thread.join(10)
    assert entered.is_set()
    assert_idle(gov)
    del task
    gov.close()


def test_ctrl_c_in_a_thread_that_waits_gives_its_turn_up():
    gov = ca.Governor(limit=1)
    with gov.agent("holder"):
        agent = gov.agent("waiter", detached=True)
        here = threading.get_ident()
        timer = threading.Timer(0.1, lambda: signal.pthread_kill(here, signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            agent.open_sync()
        timer.join()
        assert agent.left
    assert_idle(gov)
    gov.close()


def test_closing_wakes_threads_that_wait():
    gov = ca.Governor(limit=1)
    done = []

    def waiter(i):
        with gov.agent(f"w{i}") as agent, agent.step():
            done.append(i)

    with gov.agent("holder"):
        threads = [in_thread(waiter, i) for i in range(3)]
        wait_until(lambda: gov.snapshot().queued == 3)
        gov.close()
        for thread in threads:
            thread.join(10)
    assert sorted(done) == [0, 1, 2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_after_a_fork_the_child_has_a_governor_of_its_own_and_no_inherited_agents():
    """A lock that another thread held at the fork would stay locked in the child for ever."""
    script = """
        import os, sys, threading, time, warnings
        warnings.simplefilter("ignore")           # forking with threads is what is tested
        import concur_agents as ca
        gov = ca.Governor(limit=1)
        stop = False

        def busy():                               # holds the lock much of the time
            while not stop:
                gov.snapshot()

        thread = threading.Thread(target=busy)
        thread.start()
        with gov.agent("parent") as agent:
            for _ in range(20):
                pid = os.fork()
                if pid == 0:
                    assert agent.left and ca.current_agent() is None
                    agent.checkpoint_sync()       # an inherited agent's gates pass
                    assert gov.snapshot().active == 0
                    with gov.agent("child") as own, own.step():
                        assert gov.snapshot().active == 1
                    os._exit(7)
                _, status = os.waitpid(pid, 0)
                assert os.waitstatus_to_exitcode(status) == 7, status
            assert gov.snapshot().active == 1
        stop = True
        thread.join()
        print("fine")
    """
    assert run_script(script) == "fine"


@pytest.mark.parametrize("daemon", [True, False])
def test_the_interpreter_exits_with_a_poller_running_and_agents_waiting(daemon):
    script = f"""
        import threading, time
        import concur_agents as ca
        from concur_agents.core import Reading
        from concur_agents.testing import ScriptedProbe
        probe = ScriptedProbe(lambda s: Reading(at_s=s, kv_usage=0.1), time.monotonic)
        gov = ca.Governor(probe=probe, law=ca.make_law("cache_aimd", start=1), poll_interval_s=0.01)

        def agent(i):
            with gov.agent(str(i)) as a:
                for _ in range(3):
                    with a.step():
                        time.sleep(0.01)
            if i == 4:
                print("fine", flush=True)

        for i in range(5):
            threading.Thread(target=agent, args=(i,), daemon={daemon}).start()
        time.sleep(0.02)
        if {daemon}:
            print("fine")
    """
    assert "fine" in run_script(script)


def test_importing_the_package_loads_next_to_nothing():
    script = """
        import sys
        import concur_agents
        heavy = {"openai", "httpx", "asyncio", "tenacity", "prometheus_client", "rich", "typer"}
        print(sorted(heavy & set(sys.modules)), "concur_agents.core" in sys.modules)
        assert set(dir(concur_agents)) >= {"Governor", "current_agent", "bind"}
        try:
            concur_agents.Govenor
        except AttributeError as error:
            assert "Govenor" in str(error)
    """
    assert run_script(script) == "[] False"


def test_every_public_name_can_be_had():
    for name in ca.__all__:
        assert getattr(ca, name) is not None


def run_script(script):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
