"""The log: what changes, and not each tick; for people in words, for machines in values."""

import asyncio
import json
import logging

from concur_agents.core import Reading, make_law
from concur_agents.probes.page import PageReading
from concur_agents.testing import ScriptedProbe, run, virtual_governor


def test_a_limit_that_moves_for_another_reason_is_news_and_one_that_goes_on_is_not(caplog):
    """A night of ticks must not fill a disk, and the one that matters must be found in it."""
    caplog.set_level(logging.DEBUG, logger="concur_agents")

    def engine(now):
        thrashes = 30 <= now < 40
        hits = 0.0 if thrashes else 100 * now
        usage = 0.9 if thrashes else 0.1
        return Reading(
            at_s=now, kv_usage=usage, hit_tokens_total=hits, query_tokens_total=100 * now
        )

    async def main():
        probe = ScriptedProbe(engine, asyncio.get_running_loop().time)
        law = make_law("cache_aimd", start=4, interval_s=5.0)
        async with virtual_governor(probe=probe, law=law) as governor, governor.agent("a"):
            await asyncio.sleep(120)

    run(main())
    moves = [r for r in caplog.records if getattr(r, "concur", {}).get("event") == "limit_changed"]
    assert len(moves) > 10
    for record in moves:
        facts = record.concur
        assert json.dumps(facts), "a formatter for JSON has no trouble with it"
        assert facts["limit_tokens"] is None
        assert facts["limit_agents"] >= 1
        news = facts["reason"] != facts["former_reason"]
        assert record.levelno == (logging.INFO if news else logging.DEBUG)
        assert facts["reason"] in record.getMessage()
    spoken = [record for record in moves if record.levelno == logging.INFO]
    assert 1 <= len(spoken) <= 4 < len(moves)


def test_an_outage_is_said_when_it_begins_and_when_it_ends(caplog):
    caplog.set_level(logging.DEBUG, logger="concur_agents")

    def engine(now):
        return None if 10 <= now < 40 else Reading(at_s=now)

    async def main():
        probe = ScriptedProbe(engine, asyncio.get_running_loop().time)
        law = make_law("fixed", agents=1)
        async with virtual_governor(probe=probe, law=law) as governor, governor.agent("a"):
            await asyncio.sleep(60)

    run(main())
    facts = [record.concur for record in caplog.records if hasattr(record, "concur")]
    assert [fact["event"] for fact in facts] == ["poll_failed", "poll_recovered"]
    assert 29 <= facts[1]["waited_s"] <= 42


def test_a_pool_that_the_engines_own_usage_contradicts_is_warned_of_once(caplog):
    """A hybrid model reports 16,000 tokens for 528,000; one call of 20,000 uses 4 % of it."""

    def engine(now):
        return Reading(at_s=now, capacity_tokens=16_000.0, kv_usage=0.04)

    async def main():
        probe = ScriptedProbe(engine, asyncio.get_running_loop().time)
        async with (
            virtual_governor(probe=probe) as gov,
            gov.agent("a") as agent,
            agent.step(prompt_tokens=20_000),
        ):
            await asyncio.sleep(25)
            assert gov.snapshot().capacity_tokens > 400_000
            assert gov.snapshot().reported_tokens == 16_000

    run(main())
    lines = [line for line in caplog.messages if "reports a pool of 16000 tokens" in line]
    assert len(lines) == 1


def test_a_tier_that_the_page_tells_of_does_not_contradict_its_pool(caplog):
    """A pool of 10,000 tokens with 40,000 behind it: both are governed, and that is no surprise."""

    def engine(now):
        behind = 40_000.0 if now < 10 else 38_000.0  # as told by bytes, which waver
        return Reading(at_s=now, capacity_tokens=10_000.0, host_capacity_tokens=behind)

    async def main():
        probe = ScriptedProbe(engine, asyncio.get_running_loop().time)
        async with virtual_governor(probe=probe) as gov, gov.agent("a"):
            await asyncio.sleep(25)
            assert gov.snapshot().capacity_tokens == 38_000

    run(main())
    assert not [line for line in caplog.messages if "reports a pool of" in line]


def test_a_pool_that_is_down_and_back_is_logged_and_an_event(caplog, scripted_engines):
    caplog.set_level("INFO", "concur_agents")
    urls = ["http://gpu1:8000", "http://gpu2:8000"]
    events = []

    def good(now):
        return Reading(at_s=now, capacity_tokens=9000)

    async def main():
        scripted_engines({urls[0]: good, urls[1]: lambda now: None if 5 < now < 20 else good(now)})
        async with virtual_governor(urls) as governor:
            governor.on_event(events.append)
            async with governor.agent():
                await asyncio.sleep(60)

    run(main())
    limits = [event.pool for event in events if event.kind == "limit_changed"]
    assert set(limits) == set(urls), "each pool's first limit is a change, also if they are equal"
    moves = [(event.kind, event.pool) for event in events if event.kind.startswith("pool_")]
    assert moves == [("pool_down", urls[1]), ("pool_up", urls[1])]
    facts = [getattr(line, "concur", {}) for line in caplog.records]
    error = "the script says that this reading fails"
    assert {"event": "pool_down", "pool": urls[1], "error": error} in facts
    assert [event.reason for event in events if event.kind == "pool_down"] == [error]
    assert {"event": "pool_up", "pool": urls[1]} in facts


def test_a_page_of_several_engines_that_are_one_pool_is_said_once(caplog):
    """A governor on their sum does not keep an agent where its prefix is."""

    class Page:
        url = "http://gpu1:8000"
        last_page = None

        def read(self):
            parts = {str(rank): Reading(at_s=0.0, capacity_tokens=9000) for rank in range(4)}
            self.last_page = PageReading(engine="vllm", reading=parts["0"], readings=parts)
            return Reading(at_s=0.0, capacity_tokens=36_000)

    async def main():
        async with virtual_governor(probe=Page()) as governor, governor.agent():
            await asyncio.sleep(10)

    run(main())
    said = [line for line in caplog.messages if "ranks=4" in line]
    assert len(said) == 1
    assert "shows 4 engines" in said[0]
