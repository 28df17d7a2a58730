"""Virtual time that waits for real clients."""

import asyncio

import pytest

from concur_agents.errors import ConcurError, ConfigError
from concur_agents.sim.client_clock import Alarm, ClientClock
from concur_agents.sim.server import EmbeddedServer


async def passing(clock, *clients):
    """Run the clients while time passes."""
    running = asyncio.create_task(clock.run())
    try:
        return await asyncio.gather(*clients)
    finally:
        running.cancel()


async def test_an_hour_passes_at_once_when_every_client_sleeps():
    clock = ClientClock()

    async def client(delay_s):
        with clock.client():
            await clock.sleep(delay_s)
            return clock()

    assert await passing(clock, client(3600.0), client(10.0)) == [3600.0, 10.0]


async def test_time_stands_still_while_one_client_computes():
    clock = ClientClock()

    async def sleeper():
        with clock.client():
            await clock.sleep(10.0)

    async def computer():
        with clock.client():
            await asyncio.sleep(0.02)
            return clock()

    assert (await passing(clock, sleeper(), computer()))[1] == 0.0
    assert clock() == 10.0


async def test_clients_that_are_held_at_a_gate_do_not_hold_up_time():
    clock = ClientClock()
    opened = asyncio.Event()
    held = 1
    clock.held = lambda: held

    async def waits():
        with clock.client():
            await opened.wait()
            return clock()

    async def opens():
        nonlocal held
        with clock.client():
            await clock.sleep(5.0)
            held = 0
            opened.set()

    assert (await passing(clock, waits(), opens()))[0] == 5.0


async def test_clients_that_wake_at_one_instant_run_one_after_the_other():
    clock = ClientClock()
    seen = []

    async def client(name):
        with clock.client():
            await clock.sleep(1.0)
            for _ in range(3):
                seen.append(name)
                await asyncio.sleep(0)

    await passing(clock, client("a"), client("b"))
    assert "".join(seen) == "aaabbb"


async def test_an_alarm_ends_a_sleep_early_and_after_all_others_of_that_instant():
    clock = ClientClock()
    alarm = Alarm(clock)
    seen = []

    async def sleeper():
        with clock.client():
            await alarm.sleep(None)
            seen.append(("alarm", clock()))

    async def ringer():
        with clock.client():
            await clock.sleep(2.0)
            alarm.ring()
            await clock.sleep(0.0)
            seen.append(("other", clock()))

    await passing(clock, sleeper(), ringer())
    assert seen == [("other", 2.0), ("alarm", 2.0)]


async def test_an_alarm_that_rings_before_the_sleep_ends_it_at_once():
    clock = ClientClock()
    alarm = Alarm(clock)

    async def sleeper():
        with clock.client():
            alarm.ring()
            await alarm.sleep(60.0)
            return clock()

    assert await passing(clock, sleeper()) == [0.0]


async def test_a_cancelled_sleep_holds_up_nothing():
    clock = ClientClock()

    async def client(delay_s):
        with clock.client():
            await clock.sleep(delay_s)
            return clock()

    given_up = asyncio.create_task(client(1.0))
    await asyncio.sleep(0)
    given_up.cancel()
    assert await passing(clock, client(5.0)) == [5.0]


async def test_a_server_with_a_clock_is_entered_on_its_clients_loop():
    with pytest.raises(ConfigError, match="takes the place"):
        EmbeddedServer("h100-qwen3-8b", clock=ClientClock(), process=True)
    with pytest.raises(ConcurError, match="async with"):
        EmbeddedServer("h100-qwen3-8b", clock=ClientClock()).start()
    with pytest.raises(ConcurError, match="use `with`"):
        async with EmbeddedServer("h100-qwen3-8b"):
            pass
