"""Governors of a Ray cluster: `scripts/stacks ray` runs this with the real one, on this machine."""

import asyncio
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ray = pytest.importorskip("ray", reason="scripts/stacks ray has it")

from ray import cloudpickle  # noqa: E402

import concur_agents.ray  # noqa: E402
from concur_agents import ConfigError  # noqa: E402
from concur_agents.daemon.locks import take_locks  # noqa: E402
from concur_agents.ray import NAMESPACE  # noqa: E402
from concur_agents.runtime.daemon_start import DaemonError  # noqa: E402
from concur_agents.sim.server import EmbeddedServer  # noqa: E402
from concur_agents.wire import remote_link  # noqa: E402

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(300),
    # Its own files and sockets, and what it calls that is deprecated.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
]

EXAMPLES = Path(__file__).parents[2] / "examples"
workers = []
WAITERS = 1300  # more than the thousand calls that an actor has room for

SECOND_DRIVER = """
import sys, time
import ray, concur_agents.ray
ray.init(address=sys.argv[1], log_to_driver=False)
with concur_agents.ray.governor(limit=1) as gov:
    print("ready", flush=True)
    with gov.agent("second", timeout_s=60):
        print(time.monotonic(), flush=True)
"""


@pytest.fixture(scope="session")
def cluster():
    """One cluster for all tests: its start takes seconds."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(autouse=True)
def apart(cluster, monkeypatch):
    """Each test begins with no daemon; a busy machine may take long to start one."""
    monkeypatch.setattr(remote_link, "AWAY_S", 60.0)
    yield
    for actor in [*workers, *hosts()]:  # a worker that is left would start another daemon
        ray.kill(actor)
    workers.clear()
    until(lambda: not hosts())


def start_worker(*arguments, **options):
    workers.append(Worker.remote(*arguments, **options))
    return workers[-1]


def hosts():
    found = ray.util.list_named_actors(all_namespaces=True)
    names = [each["name"] for each in found if each["namespace"] == NAMESPACE]
    return [ray.get_actor(name, namespace=NAMESPACE) for name in names]


def until(holds, most_s=90.0):
    ends_s = time.monotonic() + most_s
    while not holds():
        assert time.monotonic() < ends_s, "it did not come to be in time"
        time.sleep(0.01)


def peak(spans):
    """How many of these (from, to) there were at once, at most."""
    edges = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    most = inside = 0
    for _, step in edges:
        inside += step
        most = max(most, inside)
    return most


@ray.remote(num_cpus=0)
def task(gov, name):
    with gov.agent(name, timeout_s=120) as agent:
        began_s = time.monotonic()
        for _ in range(3):
            with agent.step():
                time.sleep(0.02)
        return began_s, time.monotonic()


@ray.remote(num_cpus=0)
class Worker:
    """Runs agents in its event loop."""

    def __init__(self, gov=None, **options):
        self.gov = gov or concur_agents.ray.governor(**options)
        self.tasks = []
        self.spans = []

    async def start(self, count, rest_s=0.0):
        remote_link.AWAY_S = 60.0

        async def work(name):
            async with self.gov.agent(name):
                began_s = time.monotonic()
                await asyncio.sleep(rest_s)
                self.spans.append((began_s, time.monotonic()))

        self.tasks += [asyncio.ensure_future(work(f"a{n}")) for n in range(count)]

    async def queued(self):
        return self.gov.snapshot().queued

    async def inside(self):
        return self.gov.snapshot().active

    async def finish(self):
        await asyncio.gather(*self.tasks)
        return self.spans

    async def pid(self):
        return os.getpid()


def total(workers, what):
    return sum(ray.get([getattr(worker, what).remote() for worker in workers]))


def test_agents_of_tasks_and_actors_share_one_cap():
    with concur_agents.ray.governor(limit=3) as gov:
        start_worker(gov)
        start_worker(limit=3)
        ray.get([worker.start.remote(8, 0.05) for worker in workers])
        spans = ray.get([task.remote(gov, f"t{n}") for n in range(8)])
        for found in ray.get([worker.finish.remote() for worker in workers]):
            spans += found
        assert len(spans) == 24
        assert 1 < peak(spans) <= 3
        assert len(hosts()) == 1


def test_a_worker_that_is_killed_frees_its_places():
    """FLEET: in half a second; the bound here is for a busy machine."""
    with concur_agents.ray.governor(limit=2) as gov:
        worker = start_worker(gov)
        ray.get(worker.start.remote(2, 600.0))
        until(lambda: total([worker], "inside") == 2)
        pid = ray.get(worker.pid.remote())
        waiting = threading.Thread(target=gov.agent("b").open_sync)
        waiting.start()
        until(lambda: gov.snapshot().queued == 1)
        os.kill(pid, signal.SIGKILL)
        killed_s = time.monotonic()
        waiting.join(30)
        print(f"places free after {time.monotonic() - killed_s:.3f} s")
        assert not waiting.is_alive()


@pytest.mark.parametrize("for_good", [False, True], ids=["by accident", "for good"])
def test_an_actor_that_is_killed_comes_back_and_no_agent_fails(for_good):
    """FLEET: admission goes on after three seconds; the bound here is for a busy machine."""
    with concur_agents.ray.governor(limit=2) as gov:
        worker = start_worker(gov)
        ray.get(worker.start.remote(1, 600.0))
        until(lambda: total([worker], "inside") == 1)
        with gov.agent("mine") as mine:
            waiting = threading.Thread(target=gov.agent("b", detached=True).open_sync)
            waiting.start()
            until(lambda: gov.snapshot().queued == 1)
            (host,) = hosts()
            ray.kill(host, no_restart=for_good)
            killed_s = time.monotonic()
            until(lambda: gov.snapshot().reason == "away")
            with mine.step():
                pass  # who is in goes on
            until(lambda: gov.snapshot().reason == "shared")
            print(f"back after {time.monotonic() - killed_s:.3f} s")
            assert waiting.is_alive(), "two are in"
        waiting.join(60)
        print(f"let in after {time.monotonic() - killed_s:.3f} s")
        assert not waiting.is_alive()
        assert total([worker], "inside") == 1


def test_more_waiters_than_an_actor_has_room_for_all_finish():
    with concur_agents.ray.governor(limit=10) as gov:
        first = [gov.agent(f"first-{n}", detached=True) for n in range(10)]
        for agent in first:
            agent.open_sync()
        for _ in range(2):
            start_worker(gov)
        ray.get([worker.start.remote(WAITERS // 2) for worker in workers])
        until(lambda: total(workers, "queued") == WAITERS)
        for agent in first:
            agent.close()
        spans = [span for found in ray.get([w.finish.remote() for w in workers]) for span in found]
        assert len(spans) == WAITERS
        assert peak(spans) <= 10


@ray.remote(num_cpus=0)
def pool_of(gov, name):
    with gov.agent(name) as agent:
        time.sleep(0.1)
        return agent.pool


def test_tasks_are_spread_over_the_engines():
    servers = [EmbeddedServer("h100-qwen3-8b", time_scale=math.inf) for _ in range(2)]
    with servers[0] as first, servers[1] as second:
        urls = [first.url, second.url]
        with concur_agents.ray.governor(urls, ranks=1) as gov:
            pools = ray.get([pool_of.remote(gov, f"t{n}") for n in range(8)])
            assert len(set(pools)) == 2
            concur_agents.ray.governor(urls[::-1], ranks=1).close()
        assert len(hosts()) == 1


def test_two_drivers_find_one_daemon(cluster):
    with concur_agents.ray.governor(limit=1) as gov:
        command = [sys.executable, "-c", SECOND_DRIVER, cluster]
        with gov.agent("first"):
            second = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert second.stdout.readline() == "ready\n"
            time.sleep(0.5)
            left_s = time.monotonic()
        said, _ = second.communicate(timeout=120)
        assert float(said) >= left_s, "it was let in beside the other"
        assert len(hosts()) == 1


def test_options_that_differ_from_those_in_force_are_told(caplog):
    with concur_agents.ray.governor(limit=2, max_wait_s=60):
        concur_agents.ray.governor(limit=2).close()
        assert not caplog.records
        concur_agents.ray.governor(limit=3, max_wait_s=60).close()
    (record,) = caplog.records
    assert "started with another limit, which stays in force" in record.message


def test_options_that_are_wrong_are_the_callers_error_and_start_nothing():
    for options in ({"limt": 2}, {"shared": "auto"}, {"limit": 0}, {"max_open": 0}):
        with pytest.raises(ConfigError):
            concur_agents.ray.governor(**options)
    assert not hosts()


def test_a_daemon_beside_another_one_of_its_engine_is_refused():
    url = "http://127.0.0.1:9"
    locks = take_locks([url], "unix:/elsewhere")
    try:
        with pytest.raises(DaemonError, match=f"a daemon decides about {url} already"):
            concur_agents.ray.governor(url)
    finally:
        for lock in locks:
            lock.close()


def test_without_ray_connected_there_is_no_governor():
    code = "import concur_agents.ray as cr; cr.governor(limit=1)"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert "call ray.init()" in ran.stderr.splitlines()[-1]


@pytest.mark.parametrize(("name", "lines"), [("ray_tasks.py", 8), ("ray_actors.py", 16)])
def test_the_example_runs(cluster, tmp_path, name, lines):
    ran = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "RAY_ADDRESS": cluster},
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("tokens asked, by shared") == lines


@pytest.mark.slow
def test_the_daemon_ends_some_time_after_its_last_client():
    with concur_agents.ray.governor(limit=1) as gov, gov.agent("a"):
        assert len(hosts()) == 1
    until(lambda: not hosts())
    with concur_agents.ray.governor(limit=2) as gov, gov.agent("a"):
        assert len(hosts()) == 1
