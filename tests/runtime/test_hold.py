"""`gov.hold()` around a weight update, `step.aborted()`, and what they add up to in the stats."""

import asyncio
import logging

import pytest

from concur_agents.core import Usage
from concur_agents.errors import ConfigError
from concur_agents.governor import Governor
from concur_agents.recording import Recording, replay
from concur_agents.testing import run, virtual_governor

USAGE = Usage(1_000, 100, 900)


async def stand_at_boundary(agent):
    async with agent.step() as step:
        step.record(USAGE)


def test_agents_stop_at_their_boundaries_until_the_block_is_left():
    async def main():
        async with virtual_governor(limit=4) as gov, gov.agent("a") as agent:
            await stand_at_boundary(agent)
            async with gov.hold():
                waiting = asyncio.ensure_future(stand_at_boundary(agent))
                await asyncio.sleep(10)
                assert not waiting.done()
                reason = gov.why("a")
                assert reason.cause == "hold"
                assert "held, as during a weight update" in gov.explain("a")
            await waiting
            assert agent.stats.paused_s == 10
            assert agent.stats.steps == 2

    run(main())


def test_a_call_in_flight_goes_on_in_the_block():
    async def main():
        async with virtual_governor(limit=4) as gov, gov.agent("a") as agent:
            async with agent.step() as step:
                with gov.hold():
                    await asyncio.sleep(1)
                    step.record(USAGE)
            assert agent.stats.paused_s == 0

    run(main())


def test_an_update_that_hangs_stops_no_agent_for_ever(caplog):
    """The watchdog; and the block says afterwards that it came too late."""

    async def main():
        async with virtual_governor(limit=4) as gov, gov.agent("a") as agent:
            with gov.hold(timeout_s=300):
                waiting = asyncio.ensure_future(stand_at_boundary(agent))
                await asyncio.sleep(299)
                assert not waiting.done()
                await asyncio.sleep(1)
                await waiting
        assert agent.stats.paused_s == 300

    with caplog.at_level(logging.WARNING, "concur_agents"):
        run(main())
    assert "was over by itself after 300 s" in caplog.text


def test_the_governors_own_thread_ends_a_hold_that_is_forgotten():
    """In real time, because that thread has to be awake: no beat comes from elsewhere."""
    with Governor(limit=4) as gov, gov.agent("a") as agent:
        hold = gov.hold(timeout_s=0.05)
        hold.__enter__()
        with agent.step() as step:  # returns: the thread has let it go
            step.record(USAGE)
        assert agent.stats.pauses == 1


def test_blocks_may_overlap_and_a_closed_governor_holds_nothing():
    async def main():
        async with virtual_governor(limit=4) as gov, gov.agent("a") as agent:
            one, two = gov.hold(), gov.hold()
            one.__enter__()
            two.__enter__()
            waiting = asyncio.ensure_future(stand_at_boundary(agent))
            one.__exit__()
            await asyncio.sleep(1)
            assert not waiting.done()
            gov.close()
            await waiting
            two.__exit__()
            with gov.hold():
                await stand_at_boundary(agent)

    run(main())


@pytest.mark.parametrize("timeout_s", [0, -1, float("inf"), None, "soon"])
def test_a_hold_has_an_end(timeout_s):
    with Governor(limit=4) as gov, pytest.raises(ConfigError, match="timeout_s must be"):
        gov.hold(timeout_s=timeout_s)


def test_an_aborted_call_is_no_step_and_the_next_is_no_boundary():
    async def main():
        async with virtual_governor(limit=1) as gov, gov.agent("a") as agent:
            await stand_at_boundary(agent)
            async with agent.step() as step:
                other = asyncio.ensure_future(run_other(gov))
                await asyncio.sleep(0)
                step.record(Usage(1_100, 7, 1_000))
                step.aborted()
            await stand_at_boundary(agent)
            assert agent.stats.pauses == 0
            assert (agent.stats.steps, agent.stats.completion_tokens) == (2, 207)
        await other

    async def run_other(gov):
        async with gov.agent("other", priority=1, detached=True) as agent:
            await stand_at_boundary(agent)

    run(main())


def test_what_a_step_tries_again_after_an_abort_is_part_of_it():
    """The client sends the partial answer again within the step: one step, and a whole one."""

    async def main():
        async with virtual_governor(limit=1) as gov, gov.agent("a") as agent:
            async with agent.step():
                async with agent.step() as first:
                    first.record(Usage(1_000, 7))
                    first.aborted()
                async with agent.step() as second:
                    second.record(Usage(1_007, 93))
            assert (agent.stats.steps, agent.stats.completion_tokens) == (1, 93)

    run(main())


def test_a_recorded_hold_replays(tmp_path):
    async def main():
        record = tmp_path / "run.jsonl"
        async with (
            virtual_governor(limit=4, record=record) as gov,
            gov.agent("a", group="g") as agent,
        ):
            with gov.hold():
                waiting = asyncio.ensure_future(stand_at_boundary(agent))
                await asyncio.sleep(1)
            await waiting

    run(main())
    recording = Recording(tmp_path / "run.jsonl")
    assert {"hold", "end_hold"} <= {line.name for line in recording if hasattr(line, "name")}
    assert list(replay(recording)) == []
