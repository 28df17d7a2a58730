"""Clients, a daemon, and a wire between them that loses, delays and doubles, in virtual time."""

import heapq
import itertools

import pytest

from concur_agents.core import Fleet, Regulator, Usage, make_law
from concur_agents.wire import Frames, Hub, Receiver, RemoteRegulator, Sender, WireError

TURN_S = 0.25
"""Time between two looks of a link."""


class Wire:
    """What happens to a frame."""

    def __init__(self, rng, lossy):
        self.rng, self.lossy = rng, lossy

    def arrivals(self):
        """When a frame arrives [s from now], perhaps never or twice."""
        if not self.lossy:
            return [0.01]
        fate = self.rng.random()
        if fate < 0.1:
            return []
        times = [self.rng.random() * 0.3]
        return times * 2 if fate < 0.2 else times


class Connection:
    def __init__(self, world, client):
        self.world, self.client = world, client
        self.hub = world.hub
        self.up, self.down = Sender(), Sender()
        self.at_hub, self.at_client = Receiver(), Receiver()
        self.is_open = True
        self.hub.connect(self)

    def send(self, message):
        frame = self.up.frame(message)
        for delay_s in self.world.wire.arrivals():
            self.world.later(delay_s, lambda: self._at_hub(frame))

    def answer(self, message):
        frame = self.down.frame(message)
        for delay_s in self.world.wire.arrivals():
            self.world.later(delay_s, lambda: self._at_client(frame))

    def _at_hub(self, frame):
        world = self.world
        if world.hub is not self.hub or not self.is_open or self.client.is_cut:
            return
        try:
            for line in Frames().cut(frame):
                message = self.at_hub.message(line)
                if message is not None:
                    self.hub.receive(self, message, world.now)
        except WireError:
            self.hub.drop(self)
            self.hang_up()
        world.flush()

    def _at_client(self, frame):
        client = self.client
        if client.connection is not self or client.is_dead or client.is_cut:
            return
        try:
            message = self.at_client.message(frame.rstrip(b"\n"))
            if message is not None:
                client.remote.deliver(message, self.world.now)
                client.hear(client.remote.advance(self.world.now))
        except WireError:
            client.lose()

    def hang_up(self):
        """The server closes it, and the client sees that."""
        self.is_open = False
        if self.client.connection is self and not self.client.is_dead:
            self.world.later(0.01, lambda: self.client.connection is self and self.client.lose())


class Client:
    """A process: its agents, and the link that tries to connect."""

    def __init__(self, world, name):
        self.world, self.name = world, name
        self.remote = RemoteRegulator(name, world.now)
        self.connection = None
        self.is_dead = self.is_cut = False
        self.entering, self.asked, self.calls, self.parents = set(), {}, {}, {}
        self.suspended = set()

    @property
    def agents(self):
        return [*self.parents]

    def hear(self, let_in):
        """As `Sessions` does: the agents that are let in go on."""
        for agent in let_in:
            if agent in self.entering:
                self.entering.discard(agent)
            elif self.asked.get(agent):
                self.calls[agent] += self.asked[agent]
                self.asked[agent] = 0

    def arrive(self, agent, parent=None):
        self.parents[agent], self.asked[agent], self.calls[agent] = parent, 0, 0
        self.entering.add(agent)
        self.hear(self.remote.arrive(agent, self.world.now, parent=parent))
        if parent is not None:
            assert agent not in self.entering, "a nested agent waits for its parent's place"

    def begin(self, agent):
        self.suspended.discard(agent)
        self.asked[agent] += 1
        self.hear(self.remote.begin_step(agent, self.world.now))

    def end(self, agent, usage=None):
        self.calls[agent] -= 1
        self.hear(self.remote.end_step(agent, self.world.now, usage or Usage(100, 10)))

    def withdraw(self, agent):
        book = self.calls if self.calls[agent] else self.asked
        book[agent] -= 1
        self.hear(self.remote.withdraw_step(agent, self.world.now))

    def suspend(self, agent):
        self.suspended.add(agent)
        self.hear(self.remote.suspend(agent, self.world.now))

    def resume(self, agent):
        self.suspended.discard(agent)
        self.hear(self.remote.resume(agent, self.world.now))

    def leave(self, agent):
        for _ in range(self.calls[agent]):
            self.hear(self.remote.end_step(agent, self.world.now, None))
        for book in (self.parents, self.asked, self.calls):
            del book[agent]
        self.entering.discard(agent)
        self.suspended.discard(agent)
        self.hear(self.remote.leave(agent, self.world.now))

    @property
    def inside(self):
        """Places that this process holds."""
        return sum(root.has_place for root in self.remote.book.roots)

    @property
    def waits(self):
        return self.entering or any(self.asked.values())

    def lose(self):
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.is_open = False
            hub = connection.hub
            if not self.is_cut and self.world.hub is hub:
                self.world.later(0.02, lambda: self.world.gone(connection))
            self.remote.disconnected(self.world.now)
            self.hear(self.remote.advance(self.world.now))

    def turn(self):
        world = self.world
        if self.is_dead:
            return
        if self.connection is None and world.hub is not None and not self.is_cut:
            self.connection = Connection(world, self)
            self.remote.connected(world.now)
        self.pump()
        self.hear(self.remote.advance(world.now))

    def pump(self):
        if self.connection is None:
            return
        try:
            for message in self.remote.take(self.world.now):
                self.connection.send(message)
        except WireError:
            self.lose()


class World:
    def __init__(self, rng, *, clients, limit, pools=1, lossy=False):
        self.now, self.limit, self.pools = 0.0, limit * pools, pools
        self.wire = Wire(rng, lossy)
        self.events, self.ids = [], itertools.count()
        self.hub = self.regulator = None
        self.told = []
        self.start_daemon(settle_s=0.0)
        self.clients = [Client(self, f"c{n}") for n in range(clients)]

    def later(self, delay_s, act):
        heapq.heappush(self.events, (self.now + delay_s, next(self.ids), act))

    def start_daemon(self, settle_s=1.0):
        law = make_law("fixed", agents=self.limit / self.pools)
        names = [f"p{n}" for n in range(self.pools)]
        self.regulator = Regulator(law, self.now)
        if self.pools > 1:
            self.regulator = Fleet(law, names, self.now)
        told = self.told = []  # (kind, time, agent, details) by this daemon
        self.hub = Hub(
            lambda: self.regulator,
            self.now,
            settle_s=settle_s,
            tell=lambda kind, now, agent, **details: told.append((kind, now, agent, details)),
        )

    def kill_daemon(self):
        self.hub = None
        for client in self.clients:
            if client.connection is not None and not client.is_cut:
                client.lose()

    def kill(self, client):
        client.is_dead = True
        connection = client.connection
        if connection is not None and self.hub is connection.hub and not client.is_cut:
            self.later(0.02, lambda: self.gone(connection))

    def gone(self, connection):
        if self.hub is connection.hub:
            self.hub.disconnect(connection, self.now)
            self.flush()

    def flush(self):
        for connection, message in self.hub.take():
            connection.answer(message)
        closing, self.hub.closing = self.hub.closing, []
        for connection in closing:
            connection.hang_up()

    def run(self, seconds):
        """Time passes."""
        end_s = self.now + seconds
        while self.now < end_s:
            turn_s = min(end_s, self.now + TURN_S)
            while self.events and self.events[0][0] <= turn_s:
                self.now, _, act = heapq.heappop(self.events)
                act()
                self.pump()
            self.now = turn_s
            for client in self.clients:
                client.turn()
            if self.hub is not None:
                self.hub.advance(self.now)
                self.flush()

    def pump(self):
        for client in self.clients:
            if not client.is_dead:
                client.pump()

    @property
    def living(self):
        return [client for client in self.clients if not client.is_dead]

    @property
    def inside(self):
        return sum(client.inside for client in self.living)


@pytest.fixture
def make_world():
    """`make_world(rng, clients=2, limit=4)`; `lossy=True`: the wire loses, doubles and reorders."""
    return World
