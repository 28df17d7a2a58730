"""Weight updates: holds and flushes said by one process."""

import importlib
import threading

from concur_agents import Governor
from concur_agents.adapters.http import http_client
from concur_agents.adapters.raising import IS_OPENAI_2

ONE, TWO = "http://127.0.0.1:9", "http://127.0.0.1:19"


def passing(worker, agent, until):
    """What knows the daemon's word in `worker`; returns once that is that agents may pass."""
    with agent.step():
        pass
    regulator = worker.monitor.sessions.regulator
    until(lambda: regulator._is_open)
    return regulator


def test_no_boundary_passes_in_any_process_while_one_holds(folder, serve, until):
    where = f"unix:{folder}/d/s"
    serve(where, limit=9)
    with (
        Governor(shared=where) as trainer,
        Governor(shared=where) as worker,
        trainer.agent("t"),
        worker.agent("a") as agent,
    ):
        regulator = passing(worker, agent, until)
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


def test_a_process_without_agents_holds_and_flushes_for_all(folder, serve, until):
    """A trainer has none: what it said was lost, because its connection begins with an agent."""
    where = f"unix:{folder}/d/s"
    daemon = serve(where, limit=9)._governor
    flushed = []
    daemon.on_event(lambda event: flushed.append(event.kind) if event.kind == "flushed" else None)
    with (
        Governor(shared=where) as trainer,
        Governor(shared=where) as worker,
        worker.agent("a") as agent,
    ):
        regulator = passing(worker, agent, until)
        with trainer.hold():
            until(lambda: not regulator._is_open)
            done = threading.Event()

            def step():
                with agent.step():
                    done.set()

            thread = threading.Thread(target=step)
            thread.start()
            until(lambda: (why := worker.why("a")) is not None and why.cause == "hold")
            trainer.flushed()
            until(lambda: flushed == ["flushed"])
            assert not done.is_set()
        thread.join(30)
        assert done.is_set()


def test_a_request_that_empties_one_engine_is_known_to_the_daemon(folder, serve, until):
    """It went through a governed client of a process that shares."""
    where = f"unix:{folder}/d/s"
    daemon = serve(where, url=[ONE, TWO], limit=9, background=False)._governor
    flushed = []
    daemon.on_event(lambda event: flushed.append(event.pool) if event.kind == "flushed" else None)
    library = importlib.import_module("httpx" if IS_OPENAI_2 else "httpx2")
    transport = library.MockTransport(lambda _: library.Response(200))
    with (
        Governor(shared=where) as governor,
        http_client(governor, "sync", transport=transport) as client,
        governor.agent(),
    ):
        until(lambda: len(governor.addresses) == 2)
        client.post(f"{TWO}/flush_cache")
        until(lambda: flushed)
        assert [daemon.addresses[name].url for name in flushed] == [TWO]
