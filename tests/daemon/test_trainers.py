"""What trainers say, over the wire: a flush, a group, a priority, a hold whose process dies."""

import threading

import pytest

from concur_agents import Governor


@pytest.fixture
def where(folder):
    return f"unix:{folder}/d/s"


def test_a_flush_reaches_the_daemons_law(where, serve, until):
    daemon = serve(where, law="working_set")
    residency = daemon._governor.monitor.sessions.regulator._sizes.residency
    before = residency.generation
    with Governor(shared=where) as trainer:  # it has no agents: they are elsewhere
        trainer.flushed()
        until(lambda: residency.generation == before + 1)


def test_a_group_and_a_priority_count_across_processes(where, serve, until):
    """Members of a group stay together, and a higher priority goes first."""
    daemon = serve(where, limit=1)
    order, threads = [], []

    def rollout(gov, name, **options):
        def run():
            with gov.agent(name, detached=True, **options):
                order.append(name)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        until(lambda: daemon._governor.snapshot().queued == len(threads))

    with Governor(shared=where) as one, Governor(shared=where) as other:
        with one.agent("first"):
            rollout(one, "g0", group="g")
            rollout(one, "alone")
            rollout(other, "g1", group="g")
            rollout(other, "old", priority=1)
        for thread in threads:
            thread.join(30)
    assert order == ["old", "g0", "g1", "alone"]


def test_the_hold_of_a_process_that_goes_away_ends_with_it(where, serve, until):
    """It has no agents either; such a hold never reached the daemon."""
    serve(where, limit=9)
    with Governor(shared=where) as worker, worker.agent("a") as agent:
        regulator = worker.monitor.sessions.regulator
        until(lambda: regulator._is_open)
        trainer = Governor(shared=where)
        trainer.hold(timeout_s=600).__enter__()
        until(lambda: not regulator._is_open)
        trainer.close()
        with agent.step():  # returns: nothing holds it any more
            pass


def test_a_hold_is_over_by_itself_over_the_wire_too(where, serve, until):
    serve(where, limit=9)
    with (
        Governor(shared=where) as trainer,
        Governor(shared=where) as worker,
        worker.agent("a") as agent,
    ):
        regulator = worker.monitor.sessions.regulator
        until(lambda: regulator._is_open)
        hold = trainer.hold(timeout_s=0.3)
        hold.__enter__()
        with agent.step():
            pass
        hold.__exit__()
