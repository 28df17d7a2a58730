"""A client and a daemon of other releases that speak the same version of the protocol, or not."""

import json
import random
import socket
import threading

import pytest

from concur_agents import Governor
from concur_agents.wire.codec import decode, encode
from concur_agents.wire.messages import (
    Granted,
    Hello,
    Moved,
    Op,
    Open,
    Ops,
    Ping,
    Pong,
    PoolAddress,
    Pools,
    Refused,
    Roster,
    Standing,
    Waits,
    Welcome,
    WireError,
)

ROW = ("a", None, True, True, False, False, 0, 0, False, 0, None, None, None, None)
MESSAGES = [
    Hello(1, "s", 1, 0, 0, "t"),
    Roster((Standing(*ROW),)),
    Ops((Op("leave", "a", 1, {}),)),
    Ping(),
    Welcome(1, "fixed", 3.0, 15.0, "http://router"),
    Granted((("a", 1, None),)),
    Waits((("a", 1, {"cause": "agents"}),)),
    Open(True),
    Moved((("a", "p0"),)),
    Pools((PoolAddress("p0", "http://a", None, False, False),)),
    Pong(),
    Refused("no"),
]


def frame(message, **more):
    return json.dumps({**json.loads(encode(message, 1)), **more}).encode()


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.kind)
def test_a_field_that_a_later_release_adds_is_ignored(message):
    assert decode(frame(message, later={"x": [1]})) == (1, message)


def test_what_an_older_release_leaves_out_has_its_old_meaning():
    """A daemon from before routers, a client without a token, a refusal without a reason."""
    older = {"n": 1, "kind": "welcome", "version": 1, "law": "x", "beat_s": 3.0, "ttl_s": 15.0}
    assert decode(json.dumps(older).encode())[1] == Welcome(1, "x", 3.0, 15.0, None)
    hello = {"n": 1, "kind": "hello", "version": 1, "session": "s", "epoch": 1, "seq": 0}
    assert decode(json.dumps({**hello, "agents": 0}).encode())[1] == Hello(1, "s", 1, 0, 0, "")
    assert decode(b'{"n":1,"kind":"refused"}')[1] == Refused("")


def test_a_client_of_a_daemon_from_before_routers_says_nothing_of_them(make_world):
    """The daemon would refuse the word."""
    world = make_world(random.Random(0), clients=1, limit=2)
    (client,) = world.clients
    client.arrive("a")
    world.run(0.5)
    assert client.remote.router is None
    client.begin("a")
    client.remote.served("a", world.now, worker="w", token="t")
    world.run(0.5)
    client.end("a")
    assert [op.method for message in client.remote.take(world.now) for op in message.ops] == [
        "end_step"
    ]
    assert client.remote._epoch == 1


@pytest.mark.parametrize(
    "line",
    [
        {"kind": "shout"},
        {"kind": "ops", "ops": [["shout", "a", 1, {}]]},
        {"kind": "ops", "ops": [["leave", "a", 1, {"loudly": True}]]},
        {"kind": "granted", "agents": [["a", 1, None, "more"]]},
    ],
    ids=["kind", "method", "argument", "column"],
)
def test_a_word_that_a_later_release_adds_is_refused(line):
    """It would change what is meant, so a field of `hello` or `welcome` has to announce it."""
    with pytest.raises(WireError):
        decode(json.dumps({"n": 1, **line}).encode())


@pytest.mark.parametrize(
    ("why", "words"),
    [
        ({"cause": "agents", "count": 2, "most": 2, "later": [1]}, "2 of 2 agents active"),
        ({"cause": "weather"}, "as the daemon decides"),
        ({"cause": "agents", "count": "many"}, "about to be let in"),
        ({}, "about to be let in"),
    ],
)
def test_a_reason_of_a_later_release_is_shown_as_far_as_it_is_understood(make_world, why, words):
    world = make_world(random.Random(0), clients=1, limit=1)
    (client,) = world.clients
    client.arrive("a")
    client.arrive("b")
    world.run(0.5)
    client.remote.deliver(Waits((("b", client.remote.seq, why),)), world.now)
    client.hear(client.remote.advance(world.now))
    assert words in str(client.remote.why("b", world.now))


def test_a_daemon_refuses_a_client_of_another_version_and_says_what_to_do(make_world):
    world = make_world(random.Random(0), clients=0, limit=1)
    world.hub.connect("later")
    with pytest.raises(WireError, match="install the same concur-agents on both sides"):
        world.hub.receive("later", Hello(2, "s", 1, 0, 0), world.now)


@pytest.mark.parametrize(
    "answer",
    [
        {"kind": "welcome", "version": 2, "law": "x", "beat_s": 3.0, "ttl_s": 15.0},
        {"kind": "refused", "why": "this daemon speaks version 2"},
    ],
    ids=["welcome", "refused"],
)
def test_a_client_of_a_daemon_of_another_version_says_so_and_its_agents_run(
    answer, caplog, monkeypatch
):
    monkeypatch.setattr("concur_agents.wire.remote_link.AWAY_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(json.dumps({"n": 1, **answer}).encode() + b"\n")

        threading.Thread(target=serve, daemon=True).start()
        where = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        with Governor(shared=where, token="t") as governor, governor.agent("a") as agent:
            with agent.step():
                pass
            assert governor.snapshot().reason == "local"
        listener.shutdown(socket.SHUT_RDWR)
    assert sum("version 2" in line for line in caplog.messages) == 1
