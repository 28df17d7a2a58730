"""The table of failures (docs/wire.md), row by row, in virtual time."""

import random

import pytest

from concur_agents.wire.messages import PoolAddress


@pytest.fixture
def world(make_world):
    """Two clients with three agents each, and four places, of which the first has two."""
    world = make_world(random.Random(0), clients=2, limit=4)
    for agent in "abc":
        for client in world.clients:
            client.arrive(agent)
        world.run(0.5)
    assert [client.inside for client in world.clients] == [2, 2]
    return world


def test_ids_need_not_be_unique_among_clients(world):
    assert sorted(world.regulator.ids()) == sorted(
        f"{client}/{agent}" for client in ("c0", "c1") for agent in "abc"
    )


def test_a_client_that_dies_frees_its_places(world):
    first, second = world.clients
    world.kill(first)
    world.run(0.5)
    assert second.inside == 3
    assert list(world.hub.sessions) == ["c1"]


def test_a_client_that_vanishes_frees_its_places_after_the_time_to_live(world):
    first, second = world.clients
    first.is_cut = True
    world.run(14.0)
    assert second.inside < 3
    world.run(5.0)
    assert second.inside == 3


def test_a_client_that_comes_back_keeps_what_is_inside_and_no_agent_is_blocked(world):
    first, second = world.clients
    first.is_cut = True
    world.run(20.0)
    inside = first.inside
    assert second.inside == 3
    assert inside >= 1
    first.is_cut = False
    world.run(20.0)
    assert first.inside >= inside
    for client in world.clients:
        for agent in client.agents:
            client.leave(agent)
    world.run(2.0)
    assert world.regulator.view(world.now).active == 0
    assert not world.regulator.ids()


def test_agents_inside_go_on_while_there_is_no_daemon(world):
    world.kill_daemon()
    for client in world.clients:
        for agent in client.agents:
            if agent not in client.entering:
                client.begin(agent)
                assert client.calls[agent] == 1
                client.end(agent)


def test_waiters_wait_five_seconds_for_the_daemon_and_then_go_by_what_was_inside(world):
    first, _ = world.clients
    inside = first.inside
    waits = next(iter(first.entering))
    inner = next(agent for agent in first.agents if agent not in first.entering)
    world.kill_daemon()
    first.leave(inner)
    world.run(4.5)
    assert waits in first.entering
    assert first.inside == inside - 1
    assert "daemon" in str(first.remote.explain(waits, world.now)), "not what it had said before"
    world.run(1.0)
    assert first.remote.reason == "local"
    assert first.inside == inside, "the place of the one that left is filled again"


def test_admission_goes_on_a_second_after_the_daemon_is_back(world):
    world.kill_daemon()
    world.run(0.5)
    world.start_daemon()
    world.run(1.0)
    first, _ = world.clients
    first.leave(next(agent for agent in first.agents if agent not in first.entering))
    world.run(1.5)
    assert world.inside == 4
    assert world.regulator.view(world.now).active == 4


def test_a_daemon_that_is_back_has_each_agent_in_the_pool_that_it_was_in(make_world):
    """There its context is, whatever room others have."""
    world = make_world(random.Random(0), clients=2, limit=4, pools=3)
    for client in world.clients:
        for agent in "abcde":
            client.arrive(agent)
    world.run(1.0)
    pools = {key: world.regulator.pool_of(key) for key in world.regulator.ids()}
    for client in world.clients:
        for agent in "abcde":
            if client.remote.pool_of(agent) != "p1":
                client.leave(agent)
    world.run(0.5)
    world.kill_daemon()
    world.start_daemon()
    world.run(3.0)
    after = {key: world.regulator.pool_of(key) for key in world.regulator.ids()}
    assert len(after) > 1
    assert after == {key: pools[key] for key in after}


def test_a_daemon_that_is_back_counts_what_went_in_meanwhile(world):
    world.kill_daemon()
    world.run(10.0)
    inside = world.inside
    world.start_daemon()
    world.run(3.0)
    assert world.inside == inside == world.regulator.view(world.now).active


def test_a_grant_that_crosses_its_withdrawal_is_ignored_and_the_place_is_free(world):
    first, _ = world.clients
    inner = next(agent for agent in first.agents if agent not in first.entering)
    first.begin(inner)
    first.withdraw(inner)
    first.begin(inner)
    first.withdraw(inner)
    world.run(1.0)
    assert first.calls[inner] == 0
    assert world.regulator.view(world.now).reasoning == 0


def test_below_the_knee_boundaries_pass_without_an_answer(make_world):
    """A network may cost nothing where all fits."""
    world = make_world(random.Random(0), clients=1, limit=10)
    (client,) = world.clients
    client.arrive("a")
    world.run(1.0)
    client.begin("a")
    assert client.calls["a"] == 1
    world.run(0.5)
    assert world.regulator.view(world.now).reasoning == 1


def test_a_client_that_only_reports_hears_that_the_daemon_lives(make_world):
    """Found by a benchmark: reports have no answer, and the daemon passed for silent."""
    world = make_world(random.Random(0), clients=1, limit=10)
    (client,) = world.clients
    client.arrive("a")
    world.run(1.0)
    for _ in range(30):
        client.begin("a")
        client.end("a")
        world.run(1.0)
    assert client.remote._epoch == 1, "it has never had to connect again"


def test_nested_agents_and_parallel_calls_need_no_answer(world):
    first, _ = world.clients
    inner = next(agent for agent in first.agents if agent not in first.entering)
    first.arrive("child", inner)
    first.begin("child")
    world.run(0.5)
    assert first.calls["child"] == 1
    first.begin(inner)
    assert first.calls[inner] == 1


class Router:
    """Answers name pools as they are called; None: they say nothing."""

    url = "http://router"

    def __init__(self):
        self.before = []

    def served(self, worker, token, before):
        self.before.append(before)
        return worker


def test_behind_a_router_an_agent_is_where_its_answer_came_from(make_world):
    world = make_world(random.Random(0), clients=2, limit=4, pools=2)
    router = world.hub._router = Router()
    first, second = world.clients
    first.arrive("a")
    first.arrive("child", "a")
    second.arrive("a")
    world.run(1.0)
    assert first.remote.router == "http://router"
    planned = first.remote.pool_of("a")
    (other,) = {"p0", "p1"} - {planned}
    first.begin("a")
    world.run(0.5)
    for name in (other, other, "elsewhere", None):
        first.remote.served("a", world.now, worker=name, token=None)
    world.run(0.5)
    assert router.before == [None, other, other, other]
    assert first.remote.pool_of("a") == first.remote.pool_of("child") == other
    assert world.regulator.pool_of("c0/a") == other
    first.remote.served("child", world.now, worker=planned, token=None)
    world.run(0.5)
    assert world.regulator.pool_of("c0/a") == other, "a child is where its family is"
    first.end("a")
    world.run(0.5)
    world.kill_daemon()
    world.start_daemon(settle_s=0.0)
    world.run(2.0)
    assert world.regulator.pool_of("c0/a") == other, "the roster says it"


def test_without_a_router_nothing_is_said_of_answers(world):
    """An older daemon would not know the word."""
    first, _ = world.clients
    before = first.remote.seq
    first.remote.served("a", world.now, worker="p0", token=None)
    assert first.remote.seq == before


def test_pools_that_are_one_after_all_are_so_for_the_clients(make_world):
    world = make_world(random.Random(0), clients=1, limit=4, pools=2)
    row = ("http://gpu", None, False, False)
    world.hub.set_pools([PoolAddress(name, *row) for name in ("p0", "p1")])
    (client,) = world.clients
    client.arrive("a")
    world.run(1.0)
    assert list(client.remote.addresses) == ["p0", "p1"]
    world.hub.set_pools([])
    world.run(0.5)
    assert client.remote.addresses == {}
    assert client.remote.are_pools_said


def test_a_message_of_another_kind_ends_the_connection(world):
    """A client that speaks nonsense is dropped and harms no other."""
    first, second = world.clients
    before = second.inside
    first.connection._at_hub(b'{"n":99,"kind":"ops","ops":[["shout","a",1,{}]]}\n')
    assert second.inside == before
    world.run(3.0)
    assert world.inside == 4


def test_ten_thousand_agents_of_which_a_third_is_cancelled_leave_nothing(make_world):
    world = make_world(random.Random(0), clients=8, limit=500)
    for client in world.clients:
        for number in range(1250):
            client.arrive(f"a{number}")
    world.run(1.0)
    assert world.inside == 500
    for client in world.clients:
        for agent in client.agents[::3]:  # queued, inside, or with a call that waits
            if agent not in client.entering:
                client.begin(agent)
            client.leave(agent)
    world.run(1.0)
    rounds = 0
    while any(client.agents for client in world.clients):
        for client in world.clients:
            for agent in client.agents:
                if agent not in client.entering:
                    client.leave(agent)
        world.run(0.25)
        rounds += 1
    assert rounds <= 30, "places pass on within two turns"
    assert world.regulator.ids() == []
    assert [len(client.remote.book) for client in world.clients] == [0] * 8
    assert all(len(session.book) == 0 for session in world.hub.sessions.values())
