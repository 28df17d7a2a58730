"""A daemon and its clients over real sockets.  Governors of one process are clients like others."""

import asyncio
import contextlib
import os
import pickle
import signal
import socket
import stat
import subprocess
import sys
import threading
import time

import pytest

from concur_agents import ConfigError, Governor
from concur_agents.daemon.locks import locked_urls, take_locks
from concur_agents.errors import WatchError
from concur_agents.recording import Recording
from concur_agents.recording.replay import replay
from concur_agents.runtime import link
from concur_agents.runtime.daemon_address import daemon_address
from concur_agents.runtime.daemon_start import DaemonError
from concur_agents.wire import MOST_BYTES, remote_link

CLIENT = """
import sys, time
import concur_agents as ca
gov = ca.Governor(shared=sys.argv[1])
agents = [gov.agent(f"a{n}") for n in range(int(sys.argv[2]))]
for agent in agents:
    agent.__enter__()
print("in", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def client_process():
    """`client_process(address, 3)`: a process with so many agents inside."""
    started = []

    def start(where, agents):
        process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, where, str(agents)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        started.append(process)
        assert process.stdout.readline() == b"in\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=30)


def active(daemon):
    return daemon._governor.snapshot().active


def test_clients_share_one_limit_and_no_agent_is_left(folder, serve, until):
    """The batch of three processes never has more inside than one would."""
    daemon = serve(f"unix:{folder}/d/s", limit=4)
    inside, peak = [], []

    async def work(governor, name):
        async with governor.agent(name) as agent:
            for _ in range(3):
                async with agent.step() as step:
                    inside.append(name)
                    peak.append(len(inside))
                    await asyncio.sleep(0.002)
                    inside.remove(name)
                    step.record({"prompt_tokens": 100, "completion_tokens": 10})

    async def batch(governor):
        await asyncio.gather(*(work(governor, f"a{n}") for n in range(20)))

    with contextlib.ExitStack() as stack:
        governors = [stack.enter_context(Governor(shared=f"unix:{folder}/d/s")) for _ in range(3)]
        threads = [threading.Thread(target=asyncio.run, args=(batch(g),)) for g in governors]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert 1 < max(peak) <= 4
        until(lambda: not daemon._governor.agents())
        assert [governor.snapshot().alive for governor in governors] == [0, 0, 0]
    until(lambda: not daemon.hub.sessions)


def test_a_client_that_is_killed_frees_its_places_at_once(folder, serve, client_process, until):
    """FLEET: a SIGKILL frees the places in half a second."""
    where = f"unix:{folder}/d/s"
    daemon = serve(where, limit=3)
    process = client_process(where, 3)
    assert active(daemon) == 3
    with Governor(shared=where) as governor:
        agent = governor.agent("b")
        waiting = threading.Thread(target=agent.open_sync)
        waiting.start()
        until(lambda: daemon._governor.snapshot().queued == 1)
        process.kill()
        waiting.join(10)
        assert not waiting.is_alive()
        until(lambda: active(daemon) == 1)
        agent.close()


def test_a_client_that_vanishes_loses_its_places_and_comes_back_with_what_it_holds(
    folder, serve, client_process, until, patient
):
    """A stopped process sends no end of file, as a machine that has lost its network."""
    where = f"unix:{folder}/d/s"
    daemon = serve(where, limit=2)
    daemon.hub._ttl_s = 5.0  # the client has said hello before, and sends its signs every 3 s
    process = client_process(where, 2)
    process.send_signal(signal.SIGSTOP)
    try:
        with Governor(shared=where) as governor, governor.agent("b"):
            assert active(daemon) == 1
            assert len(daemon.hub.sessions) == 1
            process.send_signal(signal.SIGCONT)
            until(lambda: active(daemon) == 3)  # for a moment more than the limit
            assert governor.snapshot().active == 1
            assert len(daemon.hub.sessions) == 2
    finally:
        process.send_signal(signal.SIGCONT)
    process.communicate(timeout=30)
    until(lambda: not daemon.hub.sessions)


def test_a_daemon_that_is_killed_and_started_again_fails_no_agent(
    folder, serve_process, until, patient
):
    """Agents that are in go on meanwhile, and admission goes on with what the clients know."""
    where = f"unix:{folder}/d/s"
    daemon = serve_process(where, "--limit", "2")
    with Governor(shared=where) as governor, governor.agent("a") as first:
        with governor.agent("b", detached=True):
            waiting = threading.Thread(target=lambda: governor.agent("c").open_sync())
            waiting.start()
            until(lambda: governor.snapshot().queued == 1)
            daemon.kill()
            daemon.wait(30)
            until(lambda: governor.snapshot().reason == "away")
            with first.step():
                pass
            assert waiting.is_alive()
            serve_process(where, "--limit", "2")
            until(lambda: governor.snapshot().reason == "shared")
            assert waiting.is_alive(), "two are in"
        waiting.join(20)
        assert not waiting.is_alive()


def test_without_a_daemon_waiters_go_on_as_many_as_were_in_here(
    folder, serve, until, caplog, monkeypatch
):
    monkeypatch.setattr(remote_link, "AWAY_S", 1.0)
    where = f"unix:{folder}/d/s"
    daemon = serve(where, limit=1)
    with Governor(shared=where) as governor, governor.agent("a"):
        waiting = threading.Thread(target=lambda: governor.agent("b").open_sync())
        waiting.start()
        until(lambda: governor.snapshot().queued == 1)
        daemon.end()
        until(lambda: governor.snapshot().reason == "local")
        assert governor.snapshot().limit.agents == 1
        assert "for the daemon" in governor.explain("b") or "1 of 1 agents" in governor.explain("b")
    waiting.join(20)
    assert not waiting.is_alive()
    assert sum("cannot reach the daemon" in line for line in caplog.messages) == 1


def test_a_loop_that_is_blocked_loses_nothing(folder, serve, until, monkeypatch):
    """The signs of life come from a thread of their own."""
    monkeypatch.setattr(remote_link, "BEAT_S", 0.1)
    monkeypatch.setattr(link, "TURN_S", 0.1)
    where = f"unix:{folder}/d/s"
    daemon = serve(where, limit=2)
    daemon.hub._ttl_s = 2.0  # much longer than a turn of the link, shorter than the block

    async def main():
        with Governor(shared=where) as governor:
            async with governor.agent("a"):
                time.sleep(3.0)
                assert active(daemon) == 1
                assert len(daemon.hub.sessions) == 1

    asyncio.run(main())


def test_a_forked_child_is_a_client_of_its_own_and_the_parent_stays(folder, serve, until):
    where = f"unix:{folder}/d/s"
    daemon = serve(where, limit=4)
    code = f"""
import os, concur_agents as ca
gov = ca.Governor(shared={where!r})
with gov.agent("a"):
    child = os.fork()
    if not child:
        with gov.agent("a"):
            os._exit(7 if gov.snapshot().reason == "shared" else 8)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    print(gov.snapshot().active, gov.snapshot().reason)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.stdout == "1 shared\n", ran.stderr
    until(lambda: not daemon.hub.sessions)


def test_a_pickled_governor_connects_to_the_same_daemon(folder, serve):
    where = f"unix:{folder}/d/s"
    daemon = serve(where, limit=4)
    with (
        Governor(shared=where, ungoverned="error") as governor,
        governor.agent("a"),
        pickle.loads(pickle.dumps(governor)) as other,
        other.agent("a"),
    ):
        assert other.ungoverned == "error"
        assert len(daemon.hub.sessions) == 2
        assert active(daemon) == 2


def test_a_governor_without_an_agent_leaves_nothing_open(no_descriptor_left, folder):
    Governor(shared=f"unix:{folder}/d/s").close()


def test_tcp_needs_the_token(folder, serve, until, caplog):
    with pytest.raises(ConfigError, match="token"):
        serve("tcp://127.0.0.1:0", limit=4)
    port = free_port()
    where = f"tcp://127.0.0.1:{port}"
    daemon = serve(where, limit=4, token="s3cret")
    with Governor(shared=where, token="s3cret") as governor, governor.agent("a"):
        assert governor.snapshot().reason == "shared"
    with Governor(shared=where, token="wrong") as governor:
        threading.Thread(target=lambda: governor.agent("b").open_sync(), daemon=True).start()
        until(lambda: any("token is not that" in line for line in caplog.messages))
    assert active(daemon) == 0
    assert "s3cret" not in caplog.text
    assert "wrong" not in caplog.text


def test_a_daemon_that_is_elsewhere_after_its_restart_is_found_with_its_new_token(
    folder, serve, until, patient
):
    """As with Ray, which starts it on a machine that it chooses."""
    places = [(f"tcp://127.0.0.1:{free_port()}", f"s3cret-{n}") for n in range(2)]

    class Finder:
        def find(self):
            if not places:
                raise DaemonError("it is starting")
            return places[0]

        def __str__(self):
            return "the daemon of this test"

    def start(where, token):
        return serve(where, limit=2, token=token)

    first = start(*places[0])
    with Governor(shared=Finder()) as governor, governor.agent("a"):
        assert (governor.snapshot().reason, active(first)) == ("shared", 1)
        del places[0]
        second = start(*places[0])
        found, places[:] = list(places), []
        first.end()
        until(lambda: governor.snapshot().reason == "away")
        places[:] = found
        until(lambda: governor.snapshot().reason == "shared")
        assert active(second) == 1


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


@pytest.mark.parametrize(
    "nonsense",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b'{"n":1,"kind":"ops","ops":[]}\n',
        b'{"n":1,"kind":"hello","version":9,"session":"x","epoch":1,"seq":0,"agents":0}\n',
        b"[" * 100_000 + b"\n",
        b"x" * (MOST_BYTES + 1),
    ],
    ids=["http", "no hello", "version", "deep", "long"],
)
def test_a_client_that_speaks_nonsense_is_dropped_with_one_line(
    folder, serve, until, caplog, nonsense
):
    where = f"unix:{folder}/d/s"
    daemon = serve(where, limit=1)
    with Governor(shared=where) as governor, governor.agent("a") as agent:
        with socket.socket(socket.AF_UNIX) as foreign:
            foreign.connect(f"{folder}/d/s")
            foreign.settimeout(10)
            with contextlib.suppress(OSError):
                foreign.sendall(nonsense)
            with contextlib.suppress(ConnectionResetError):
                while foreign.recv(4096):
                    pass
        assert sum("was dropped" in line for line in caplog.messages) == 1
        assert max(map(len, caplog.messages)) < 500
        with agent.step():
            assert active(daemon) == 1


def test_the_socket_is_its_owners_alone(folder, serve):
    daemon_folder = folder / "d"
    serve(f"unix:{daemon_folder}/s", limit=1)
    assert stat.S_IMODE((daemon_folder / "s").stat().st_mode) == 0o600
    assert stat.S_IMODE(daemon_folder.stat().st_mode) == 0o700
    daemon_folder.chmod(0o755)
    with pytest.raises(ConfigError, match="other users"):
        serve(f"unix:{daemon_folder}/t", limit=1)


def test_a_second_daemon_for_an_engine_is_refused_with_the_address_of_the_first(
    folder, serve_process
):
    """Whatever else it serves, and wherever it listens; the lock ends with its process."""
    one, two = "http://127.0.0.1:9", "http://127.0.0.1:19"
    first = serve_process(f"unix:{folder}/d/s", "--engine", one, "--engine", two)
    words = ["serve", "--listen", f"unix:{folder}/d/t", "--engine", two]

    def second():
        command = [sys.executable, "-c", "from concur_agents.cli.app import main; main()", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    ran = second()
    assert ran.returncode == 2
    assert f"decides about {two} already" in ran.stderr.replace("\n", " ")
    assert f"process {first.pid}" in ran.stderr
    assert not (folder / "d" / "t").exists()
    first.kill()
    first.wait(30)
    serve_process(*words[2:])


def test_the_engines_behind_a_router_have_one_daemon_too(folder):
    urls = locked_urls("http://router", ["http://gpu1", "http://gpu2"])
    assert urls == ["http://router", "http://gpu1", "http://gpu2"]
    assert locked_urls(["http://a", "http://b"], None) == ["http://a", "http://b"]
    assert locked_urls("http://router", {"one": "http://gpu1"}) == ["http://router", "http://gpu1"]
    assert locked_urls(None, None) == []
    taken = take_locks(urls, "here")
    with pytest.raises(ConfigError, match="decides about http://gpu2 already"):
        take_locks(["http://gpu2"], "there")
    for each in taken:
        each.close()


def test_a_socket_of_another_user_is_not_connected_to(folder, serve, monkeypatch):
    serve(f"unix:{folder}/d/s", limit=1)
    with daemon_address(f"unix:{folder}/d/s").connect():
        pass
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    with pytest.raises(WatchError, match="owned by another user"):
        daemon_address(f"unix:{folder}/d/s").connect()


def test_a_client_does_not_connect_where_others_may_put_a_socket(folder, serve, until, caplog):
    serve(f"unix:{folder}/d/s", limit=1)
    (folder / "d").chmod(0o777)
    with Governor(shared=f"unix:{folder}/d/s") as governor:
        threading.Thread(target=lambda: governor.agent("b").open_sync(), daemon=True).start()
        until(lambda: any("may write there" in line for line in caplog.messages))


def test_the_first_process_starts_the_daemon_of_auto_and_others_find_it(folder, until, patient):
    with (
        Governor(limit=1, shared="auto") as first,
        first.agent("a"),
        Governor(limit=1, shared="auto") as second,
    ):
        waiting = threading.Thread(target=lambda: second.agent("b").open_sync())
        waiting.start()
        until(lambda: second.snapshot().reason == "shared")
        assert waiting.is_alive()
        sockets = list((folder / "concur-agents").glob("*.sock"))
        regulators = [each.monitor.sessions.regulator for each in (first, second)]
        os.kill(int(sockets[0].name.partition("-")[0]), signal.SIGKILL)
        until(lambda: all(each._epoch > 1 and each.is_reached for each in regulators))
        assert waiting.is_alive(), "one is in"
        first.close()
        waiting.join(20)
        assert not waiting.is_alive()
    for path in (folder / "concur-agents").glob("*.sock"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(path.name.partition("-")[0]), signal.SIGTERM)
    until(lambda: not list((folder / "concur-agents").glob("*.daemon")))


def test_a_decision_that_a_signal_cut_off_is_put_in_order_by_a_new_connection(folder, serve, until):
    """The agents are counted anew here, and the daemon hears the whole roster again."""
    where = f"unix:{folder}/d/s"
    daemon = serve(where, limit=2)
    with Governor(shared=where) as governor, governor.agent("a") as first:
        second = governor.agent("b", detached=True)
        second.open_sync()
        waiting = governor.agent("c", detached=True)
        thread = threading.Thread(target=waiting.open_sync)
        thread.start()
        until(lambda: daemon._governor.snapshot().queued == 1)

        def cut_off(now):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            governor.monitor.decide(cut_off)
        with first.step():
            until(lambda: governor.snapshot().reason == "shared")
            until(lambda: active(daemon) == 2)
            assert thread.is_alive()
        second.close()
        thread.join(20)
        assert not thread.is_alive()
        waiting.close()
    until(lambda: not daemon.hub.sessions)


def test_no_boundary_passes_in_any_process_while_one_holds(folder, serve, until):
    where = f"unix:{folder}/d/s"
    serve(where, limit=9)
    with (
        Governor(shared=where) as trainer,
        Governor(shared=where) as worker,
        trainer.agent("t"),
        worker.agent("a") as agent,
    ):
        with agent.step():
            pass
        regulator = worker.monitor.sessions.regulator
        until(lambda: regulator._is_open)
        with trainer.hold():
            until(lambda: not regulator._is_open)
            done = threading.Event()

            def step():
                with agent.step():
                    done.set()

            thread = threading.Thread(target=step)
            thread.start()
            until(lambda: "hold" in worker.explain("a") or "update" in worker.explain("a"))
            assert not done.is_set()
        thread.join(20)
        assert done.is_set()


def test_the_recording_of_a_daemon_has_all_processes_and_replays(folder, serve, until):
    where = f"unix:{folder}/d/s"
    path = folder / "run.jsonl"
    daemon = serve(where, limit=1, record=path)
    with Governor(shared=where) as first, Governor(shared=where) as second:
        with first.agent("a") as agent, agent.step():
            other = second.agent("a")
            thread = threading.Thread(target=other.open_sync)
            thread.start()
            until(lambda: daemon._governor.snapshot().queued == 1)
        thread.join(20)
        other.close()
        until(lambda: not daemon._governor.agents())
    daemon._governor.close()
    recording = Recording(path)
    assert list(replay(recording)) == []
    ids = {line.agent for line in recording if getattr(line, "name", "") == "arrive"}
    assert len(ids) == 2
    assert {name.rpartition("/")[2] for name in ids} == {"a"}


def test_options_that_are_the_daemons_are_refused(folder):
    with pytest.raises(ConfigError, match="concur serve"):
        Governor(limit=4, shared=f"unix:{folder}/s")
    with pytest.raises(ConfigError, match="unix:PATH"):
        Governor(shared="http://head:7070")
    with pytest.raises(ConfigError, match="shared says"):
        Governor(limit=4, token="x")
