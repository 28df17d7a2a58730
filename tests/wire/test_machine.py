"""Any sequence of events, over any wire, with the daemon's death at any point (hypothesis)."""

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

pytestmark = pytest.mark.timeout(400)


class SharedMachine(RuleBasedStateMachine):
    """Three clients and a daemon."""

    def __init__(self, make_world, *, lossy):
        super().__init__()
        self.make_world, self.lossy = make_world, lossy

    @initialize(seed=st.integers(0, 2**16), limit=st.integers(1, 5), pools=st.integers(1, 2))
    def start(self, seed, limit, pools):
        rng = random.Random(seed)
        self.world = self.make_world(rng, clients=3, limit=limit, pools=pools, lossy=self.lossy)
        self.world.run(0.5)
        self.names = 0
        self.beyond = 0  # places that the table of failures allows beyond the limit
        self.is_excused = self.lossy

    def agents(self, where):
        return [
            (client, agent)
            for client in self.world.living
            for agent in client.agents
            if where(client, agent)
        ]

    def some(self, data, agents):
        return agents[data.draw(st.integers(0, len(agents) - 1))]

    @rule(which=st.integers(0, 2), count=st.integers(1, 3))
    def arrive(self, which, count):
        client = self.world.clients[which]
        for _ in range(0 if client.is_dead else count):
            self.names += 1
            client.arrive(f"a{self.names % 7}-{self.names // 7}")

    @precondition(lambda self: self.agents(lambda c, a: a not in c.entering))
    @rule(data=st.data())
    def child_arrives(self, data):
        client, parent = self.some(data, self.agents(lambda c, a: a not in c.entering))
        self.names += 1
        client.arrive(f"child{self.names}", parent)

    @precondition(lambda self: self.agents(lambda c, a: a not in c.entering))
    @rule(data=st.data())
    def begin(self, data):
        client, agent = self.some(data, self.agents(lambda c, a: a not in c.entering))
        client.begin(agent)

    @precondition(lambda self: self.agents(lambda c, a: c.calls[a]))
    @rule(data=st.data())
    def end(self, data):
        client, agent = self.some(data, self.agents(lambda c, a: c.calls[a]))
        client.end(agent)

    @precondition(lambda self: self.agents(lambda c, a: c.calls[a] or c.asked[a]))
    @rule(data=st.data())
    def withdraw(self, data):
        client, agent = self.some(data, self.agents(lambda c, a: c.calls[a] or c.asked[a]))
        client.withdraw(agent)

    @precondition(lambda self: self.agents(self.may_suspend))
    @rule(data=st.data())
    def suspend(self, data):
        client, agent = self.some(data, self.agents(self.may_suspend))
        client.suspend(agent)

    @staticmethod
    def may_suspend(client, agent):
        return agent not in client.entering and client.parents[agent] is None

    @precondition(lambda self: self.agents(lambda c, a: a in c.suspended))
    @rule(data=st.data())
    def resume(self, data):
        client, agent = self.some(data, self.agents(lambda c, a: a in c.suspended))
        client.resume(agent)

    @precondition(lambda self: self.agents(lambda c, a: True))
    @rule(data=st.data())
    def leave(self, data):
        client, agent = self.some(data, self.agents(lambda c, a: True))
        client.leave(agent)

    @rule(which=st.integers(0, 2), name=st.sampled_from("hi"))
    def hold(self, which, name):
        client = self.world.clients[which]
        if not client.is_dead:
            client.hear(client.remote.hold(name, self.world.now, 20.0))

    @rule(which=st.integers(0, 2), name=st.sampled_from("hi"))
    def end_hold(self, which, name):
        client = self.world.clients[which]
        if not client.is_dead:
            client.hear(client.remote.end_hold(name, self.world.now))

    @rule(seconds=st.sampled_from([0.05, 0.25, 0.5, 1.0, 3.0, 8.0]))
    def time_passes(self, seconds):
        self.world.run(seconds)

    @precondition(lambda self: self.world.hub is not None)
    @rule()
    def daemon_dies(self):
        self.world.kill_daemon()

    @precondition(lambda self: self.world.hub is None)
    @rule()
    def daemon_starts(self):
        self.world.start_daemon()

    @precondition(lambda self: len(self.world.living) > 1)
    @rule(which=st.integers(0, 2))
    def client_dies(self, which):
        if not self.world.clients[which].is_dead:
            self.world.kill(self.world.clients[which])

    @rule(which=st.integers(0, 2))
    def network_splits_or_heals(self, which):
        client = self.world.clients[which]
        client.is_cut = not client.is_cut
        self.is_excused = True

    @invariant()
    def the_books_agree(self):
        """With what the agents of a client have been told."""
        for client, agent in self.agents(lambda c, a: True) if hasattr(self, "world") else ():
            entry = client.remote.book.get(agent)
            assert entry.calls == client.calls[agent]
            assert len(entry.asks) == client.asked[agent]
            assert (entry.parent is None and entry.wants_place and not entry.entered) == (
                agent in client.entering
            )
            assert entry.root.has_place or not entry.calls

    @invariant()
    def the_limit_holds(self):
        """But where a client lives that the daemon takes for dead, or has no daemon."""
        if not hasattr(self, "world"):
            return
        world = self.world
        self.beyond += sum(client.remote.local is not None for client in world.living)
        if not self.is_excused and not self.beyond:
            assert world.inside <= world.limit

    def teardown(self):
        if not hasattr(self, "world"):
            return
        world = self.world
        world.wire.lossy = False
        for client in world.clients:
            client.is_cut = False
        if world.hub is None:
            world.start_daemon()
        world.run(40.0)
        for _ in range(200):  # agents go on: calls end, and one agent after the other leaves
            if not any(client.waits for client in world.living):
                break
            for client, agent in self.agents(lambda c, a: a not in c.entering):
                if client.calls[agent]:
                    client.end(agent)
                elif not client.asked[agent]:
                    client.leave(agent)
            world.run(1.0)
        assert not any(client.waits for client in world.living), "an agent was left behind"
        for client, agent in self.agents(lambda c, a: True):
            client.leave(agent)
        world.run(5.0)
        assert world.regulator.ids() == [], "an agent is left in the daemon"
        assert all(client.remote.is_reached for client in world.living)
        view = world.regulator.view(world.now)
        assert (view.active, view.paused, view.queued, view.suspended) == (0, 0, 0, 0)
        assert world.hub.alive == world.hub.waiting == 0
        check_stories(world.told)


NEXT = {
    None: ("arrived",),
    "arrived": ("admitted", "left"),
    "admitted": ("left",),
    "left": ("arrived",),
}


def check_stories(told):
    """What a daemon says of each agent is the story of a life: calls begin before they end."""
    stages, calls, paused = {}, {}, set()
    for kind, _, agent, details in told:
        if kind in ("arrived", "admitted", "left"):
            assert kind in NEXT[stages.get(agent)], (agent, stages.get(agent), kind)
            stages[agent] = kind
        else:
            assert stages[agent] == "admitted", (agent, kind)
        match kind:
            case "step_began":
                calls[agent] = calls.get(agent, 0) + 1
            case "step_ended" | "step_withdrawn":
                calls[agent] -= 1
                assert calls[agent] >= 0
            case "resumed":
                assert agent in paused
            case "left":
                assert not calls.pop(agent, 0)
        assert (details.get("waited_s") or 0.0) >= 0.0
        if kind == "paused":
            paused.add(agent)
        elif kind in ("resumed", "left"):
            paused.discard(agent)
    assert set(stages.values()) <= {"left"}
    assert not any(calls.values())


@pytest.mark.parametrize("lossy", [False, True], ids=["stream", "lossy"])
def test_no_agent_is_left_behind_and_the_limit_holds(make_world, lossy):
    run_state_machine_as_test(
        lambda: SharedMachine(make_world, lossy=lossy),
        settings=settings(max_examples=25, stateful_step_count=40),
    )
