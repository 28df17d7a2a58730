"""What a daemon says of its clients' agents is what a governor says of its own."""

import asyncio
import random

from concur_agents.core import Usage
from concur_agents.testing import run, virtual_governor


def test_the_life_of_an_agent_is_said_as_a_governor_says_it(make_world):
    world = make_world(random.Random(0), clients=2, limit=1)
    first, second = world.clients
    first.arrive("a")
    world.run(1.0)
    second.arrive("b")
    world.run(1.0)
    first.begin("a")
    world.run(2.0)
    first.end("a", Usage(100, 10, 50))
    first.leave("a")
    world.run(1.0)
    second.begin("b")
    world.run(1.0)
    second.end("b")
    second.leave("b")
    world.run(1.0)
    told = world.told

    async def locally():
        found = []
        async with virtual_governor(limit=1) as governor:
            governor.on_event(found.append)

            async def one():
                async with governor.agent("a") as agent:
                    await asyncio.sleep(2.0)
                    async with agent.step() as step:
                        await asyncio.sleep(2.0)
                        step.record(Usage(100, 10, 50))

            async def other():
                await asyncio.sleep(1.0)
                async with governor.agent("b") as agent:
                    await asyncio.sleep(1.0)
                    async with agent.step() as step:
                        await asyncio.sleep(1.0)
                        step.record(Usage(100, 10))

            await asyncio.gather(one(), other())
        return found

    events = [each for each in run(locally()) if each.agent is not None]
    for agent in "ab":
        ours = [(kind, said) for kind, _, key, said in told if key.endswith(f"/{agent}")]
        theirs = [event for event in events if event.agent == agent]
        assert [kind for kind, _ in ours] == [event.kind for event in theirs]
        for (_, said), event in zip(ours, theirs, strict=True):
            assert said.get("usage") == event.usage
            assert abs((said.get("waited_s") or 0.0) - (event.waited_s or 0.0)) <= 0.5


def test_a_pause_and_its_length_are_said(make_world):
    world = make_world(random.Random(0), clients=2, limit=1)
    first, second = world.clients
    first.arrive("a")
    world.run(0.5)
    first.suspend("a")
    second.arrive("b")
    world.run(0.5)
    first.begin("a")
    world.run(4.0)
    second.leave("b")
    world.run(0.5)
    story = [(kind, said) for kind, _, key, said in world.told if key == "c0/a"]
    assert [kind for kind, _ in story] == [
        "arrived", "admitted", "suspended", "resume_asked", "paused", "resumed", "step_began",
    ]  # fmt: skip
    assert 3.9 < story[5][1]["waited_s"] < 4.2


def test_the_calls_of_a_client_that_dies_end_without_usage(make_world):
    world = make_world(random.Random(0), clients=1, limit=1)
    (client,) = world.clients
    client.arrive("a")
    world.run(0.5)
    client.begin("a")
    world.run(3.0)
    assert world.hub.alive == 1
    world.kill(client)
    world.run(0.5)
    *_, ended, left = world.told
    assert (ended[0], ended[3]["usage"], left[0]) == ("step_ended", None, "left")
    assert 2.9 < ended[3]["waited_s"] < 3.2
    assert world.hub.alive == 0


def test_a_call_that_began_before_the_daemon_has_no_length(make_world):
    """None, and not the time since the daemon knows of it."""
    world = make_world(random.Random(0), clients=1, limit=1)
    (client,) = world.clients
    client.arrive("a")
    world.run(0.5)
    client.begin("a")
    world.run(0.5)
    world.kill_daemon()
    world.start_daemon()
    world.run(5.0)
    client.end("a")
    client.begin("a")
    world.run(1.0)
    client.end("a")
    client.leave("a")
    world.run(0.5)
    ended = [said["waited_s"] for kind, _, _, said in world.told if kind == "step_ended"]
    assert ended[0] is None
    assert 0.9 < ended[1] < 1.2
    kinds = [kind for kind, *_ in world.told]
    assert kinds[:3] == ["arrived", "admitted", "step_began"]
