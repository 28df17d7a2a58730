"""A client or the daemon ends, vanishes or hangs, over real sockets: the table of failures."""

import asyncio
import contextlib
import os
import signal
import threading
import time

import pytest

from concur_agents import Governor
from concur_agents.runtime import link
from concur_agents.runtime.daemon_start import DaemonError
from concur_agents.wire import remote_link


def test_a_client_that_is_killed_frees_its_places_at_once(folder, serve, client_process, until):
    """FLEET: a SIGKILL frees the places in half a second."""
    where = f"unix:{folder}/d/s"
    daemon = serve(where, limit=3)
    process = client_process(where, 3)
    assert daemon._governor.snapshot().active == 3
    with Governor(shared=where) as governor:
        agent = governor.agent("b")
        waiting = threading.Thread(target=agent.open_sync)
        waiting.start()
        until(lambda: daemon._governor.snapshot().queued == 1)
        process.kill()
        waiting.join(10)
        assert not waiting.is_alive()
        until(lambda: daemon._governor.snapshot().active == 1)
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
            assert daemon._governor.snapshot().active == 1
            assert len(daemon.hub.sessions) == 1
            process.send_signal(signal.SIGCONT)
            until(
                lambda: daemon._governor.snapshot().active == 3
            )  # for a moment more than the limit
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
                assert daemon._governor.snapshot().active == 1
                assert len(daemon.hub.sessions) == 1

    asyncio.run(main())


def test_a_daemon_that_is_elsewhere_after_its_restart_is_found_with_its_new_token(
    folder, serve, until, patient, free_port
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
        assert (governor.snapshot().reason, first._governor.snapshot().active) == ("shared", 1)
        del places[0]
        second = start(*places[0])
        found, places[:] = list(places), []
        first.end()
        until(lambda: governor.snapshot().reason == "away")
        places[:] = found
        until(lambda: governor.snapshot().reason == "shared")
        assert second._governor.snapshot().active == 1


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
            until(lambda: daemon._governor.snapshot().active == 2)
            assert thread.is_alive()
        second.close()
        thread.join(20)
        assert not thread.is_alive()
        waiting.close()
    until(lambda: not daemon.hub.sessions)
