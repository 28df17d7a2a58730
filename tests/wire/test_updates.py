"""Weight updates, groups, priorities, and engines that are down, with several processes."""

import random

import pytest

from concur_agents.core import Reading, Regulator, Usage, make_law
from concur_agents.wire.messages import PoolAddress


def reading(world, **more):
    let_in = world.regulator.tick(Reading(at_s=world.now, **more), world.now)
    world.hub.let_in(let_in, world.now)
    world.flush()


def all_return(world, agents, cached):
    """All come back with 10,000 tokens, and find so much cached."""
    for client, agent in agents:
        client.begin(agent)
    world.run(1.0)
    for client, agent in agents:
        assert client.calls[agent] == 1
        client.end(agent, Usage(10_000, 0, cached))
    world.run(1.0)


@pytest.fixture
def batch(make_world):
    """Two clients with four agents each, which have hit four times in a pool of 500,000 tokens."""
    world = make_world(random.Random(0), clients=2, limit=9)
    world.regulator = Regulator(make_law("working_set"), world.now)
    agents = [(client, agent) for client in world.clients for agent in "abcd"]
    for client, agent in agents:
        client.arrive(agent)
    world.run(1.0)
    for round_ in range(4):
        all_return(world, agents, 10_000 if round_ else 0)
        reading(world, capacity_tokens=500_000.0)
        world.run(5.0)
    return world, agents


@pytest.mark.parametrize("flushed", [False, True])
def test_a_flush_said_by_one_process_keeps_misses_in_all_from_teaching_a_pool(batch, flushed):
    """Else the limit fell, as if the pool were as small as the first context that was gone."""
    world, agents = batch
    before = world.regulator.state.limit.tokens
    if flushed:
        world.clients[0].remote.flushed(world.now)
        world.run(0.5)
    all_return(world, agents, 0)
    reading(world, capacity_tokens=500_000.0)
    assert (world.regulator.last_snapshot.learned_tokens is None) is flushed
    assert (world.regulator.state.limit.tokens >= before) is flushed
    assert [kind for kind, *_ in world.told].count("flushed") == flushed


def test_a_flush_that_was_said_while_the_daemon_was_away_is_said_to_the_next(batch):
    """Its roster says what was cached, and after it that it no longer is."""
    world, agents = batch
    world.kill_daemon()
    world.clients[0].remote.flushed(world.now)
    world.run(0.5)
    assert "flushed" not in [kind for kind, *_ in world.told]
    world.start_daemon()
    world.regulator = Regulator(make_law("working_set"), world.now)
    world.hub._known = world.regulator
    reading(world, capacity_tokens=500_000.0)
    world.run(2.0)
    assert [kind for kind, *_ in world.told].count("flushed") == 1
    all_return(world, agents, 0)
    reading(world, capacity_tokens=500_000.0)
    assert world.regulator.last_snapshot.learned_tokens is None


def test_a_flush_of_a_pool_that_is_gone_harms_nobody(make_world):
    world = make_world(random.Random(0), clients=1, limit=4, pools=2)
    (client,) = world.clients
    client.arrive("a")
    world.run(0.5)
    client.remote.flushed(world.now, "p1")
    client.remote.flushed(world.now, "removed")
    world.run(0.5)
    told = [said["pool"] for kind, _, _, said in world.told if kind == "flushed"]
    assert told == ["p1"]
    assert client.remote._epoch == 1, "it has never had to connect again"


def test_a_hold_stops_the_boundaries_of_all_processes_until_it_is_over(make_world):
    """Calls in flight go on, agents keep their place, and none is let in."""
    world = make_world(random.Random(0), clients=3, limit=2)
    trainer, first, second = world.clients
    first.arrive("a")
    second.arrive("b")
    world.run(0.5)
    first.begin("a")
    world.run(0.5)
    trainer.hear(trainer.remote.hold("update", world.now, 300.0))
    world.run(0.5)
    first.end("a")
    first.begin("a")
    second.begin("b")
    second.leave("b")
    second.arrive("c")
    world.run(60.0)
    assert (first.calls["a"], first.asked["a"]) == (0, 1)
    assert "c" in second.entering
    assert first.remote.why("a", world.now).cause == "hold"
    trainer.hear(trainer.remote.end_hold("update", world.now))
    world.run(0.5)
    assert first.calls["a"] == 1
    assert "c" not in second.entering


def test_a_hold_outlives_the_daemon_and_ends_with_its_process(make_world):
    world = make_world(random.Random(0), clients=2, limit=2)
    trainer, worker = world.clients
    worker.arrive("a")
    world.run(0.5)
    trainer.hear(trainer.remote.hold("update", world.now, 300.0))
    world.run(0.5)
    world.kill_daemon()
    world.start_daemon()
    world.run(3.0)
    worker.begin("a")
    world.run(30.0)
    assert worker.calls["a"] == 0
    world.kill(trainer)
    world.run(0.5)
    assert worker.calls["a"] == 1


def test_a_hold_that_is_never_ended_is_over_by_itself(make_world):
    world = make_world(random.Random(0), clients=2, limit=2)
    trainer, worker = world.clients
    worker.arrive("a")
    world.run(0.5)
    trainer.hear(trainer.remote.hold("update", world.now, 300.0))
    world.run(0.5)
    worker.begin("a")
    world.run(298.0)
    assert worker.calls["a"] == 0
    world.run(3.0)
    assert worker.calls["a"] == 1


def test_an_agent_gives_its_place_to_one_of_a_higher_priority_in_another_process(make_world):
    world = make_world(random.Random(0), clients=2, limit=1)
    first, second = world.clients
    first.arrive("old")
    world.run(0.5)
    first.begin("old")
    world.run(0.5)
    first.end("old")
    second.parents["fresh"], second.asked["fresh"], second.calls["fresh"] = None, 0, 0
    second.entering.add("fresh")
    second.remote.arrive("fresh", world.now, priority=1)
    world.run(0.5)
    first.begin("old")
    world.run(0.5)
    assert "fresh" not in second.entering
    assert (first.calls["old"], first.asked["old"]) == (0, 1)


def test_a_group_is_one_in_all_processes_and_its_prompt_is_charged_once(make_world):
    world = make_world(random.Random(0), clients=2, limit=8)
    for client in world.clients:
        for agent in "ab":
            client.parents[agent], client.asked[agent], client.calls[agent] = None, 0, 0
            client.entering.add(agent)
            client.remote.arrive(agent, world.now, prompt_tokens=10_000, group="g")
    world.run(1.0)
    for client in world.clients:
        for agent in "ab":
            client.begin(agent)
    world.run(1.0)
    for client in world.clients:
        for agent in "ab":
            client.end(agent, Usage(10_000, 100, 0))
    world.run(0.5)
    assert world.regulator.view(world.now).pressure_tokens == pytest.approx(10_400, rel=0.02)


def test_agents_of_an_engine_that_is_down_move_at_their_next_boundary(make_world):
    """Those that are in keep their calls, new ones go elsewhere, and back is not moved."""
    world = make_world(random.Random(0), clients=2, limit=6, pools=2)

    def look(*down):
        for pool in ("p0", "p1"):
            found = None if pool in down else Reading(at_s=world.now, capacity_tokens=1e6)
            world.hub.let_in(world.regulator.tick(found, world.now, pool), world.now)
        world.hub.set_pools(
            PoolAddress(pool, f"http://{pool}", None, False, world.regulator.is_down(pool))
            for pool in ("p0", "p1")
        )
        world.flush()
        world.run(1.0)

    look()
    for client in world.clients:
        for agent in "ab":
            client.arrive(agent)
            look()
    agents = [(client, agent) for client in world.clients for agent in "ab"]
    there = [(c, a) for c, a in agents if c.remote.pool_of(a) == "p0"]
    assert len(there) == 2
    for _ in range(10):
        look("p0")
    assert all(client.remote.is_down("p0") for client in world.clients)
    for client, agent in there:
        assert client.remote.must_move(agent)
        client.begin(agent)
        look("p0")
        assert (client.calls[agent], client.remote.pool_of(agent)) == (1, "p1")
    world.clients[0].arrive("new")
    look("p0")
    assert world.clients[0].remote.pool_of("new") == "p1"
    look()
    assert not world.clients[0].remote.is_down("p0")
    for client, agent in there:
        client.end(agent)
        client.begin(agent)
        look()
        assert client.remote.pool_of(agent) == "p1"
