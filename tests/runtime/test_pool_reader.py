"""What a page says of each of its pools, and of those that it does not show."""

from __future__ import annotations

import asyncio

import pytest

from concur_agents.probes import parse_page
from concur_agents.runtime.poller import EnginePoller
from concur_agents.testing import run, virtual_governor

URL = "http://gpu1:8000"


def page(*engines, model="m"):
    """A page of vLLM with these engines."""
    return "".join(
        f'vllm:cache_config_info{{engine="{engine}",num_gpu_blocks="100",block_size="16"}} 1\n'
        f'vllm:kv_cache_usage_perc{{engine="{engine}",model_name="{name}"}} 0.1\n'
        for engine in engines
        for name in model.split()
    )


class Page:
    """Reads a text, which a test may change."""

    url = URL

    def __init__(self, text, clock):
        self.text, self._clock, self.last_page = text, clock, None

    def read(self):
        self.last_page = parse_page(self.text, self._clock())
        return self.last_page.reading


@pytest.fixture
def reads(monkeypatch):
    """What the engine's page says from now on."""
    probes = []

    def say(text):
        if probes:
            probes[0].text = text
            return
        probes.append(Page(text, lambda: 0.0))

        def make(poller):
            probes[0]._clock = poller._clock
            return probes[0]

        monkeypatch.setattr(EnginePoller, "_make_probe", make)

    return say


def test_a_rank_that_the_page_does_not_show_is_down_with_the_reason_everywhere(reads, caplog):
    """ranks= larger than the engines there: its agents wait elsewhere, and the user learns why."""
    events = []

    async def main():
        reads(page(0, 1))
        async with virtual_governor(URL, ranks=3, limit=1) as governor:
            governor.on_event(events.append)
            agents = [governor.agent(f"a{number}") for number in range(6)]
            for agent in agents[:3]:
                await agent.open()
            by_pool = {agent.pool: agent for agent in agents[:3]}
            opening = [asyncio.ensure_future(agent.open()) for agent in agents[3:]]
            await asyncio.sleep(20)
            unread = governor.snapshot().endpoints[0].unread
            told = {pool: governor.explain(agent.id) for pool, agent in by_pool.items()}
            told[None] = next(governor.explain(agent.id) for agent in agents if agent.pool is None)
            reads(page(0, 1, 2))
            for agent in agents[:3]:
                agent.close()
            await asyncio.sleep(10)
            assert governor.snapshot().endpoints[0].unread == {}
            await asyncio.gather(*opening)
            for agent in agents[3:]:
                agent.close()
        return unread, told

    unread, told = run(main())
    why = "its page shows no rank 2, only 0, 1: ranks= is as many engines as it shows"
    assert unread == {f"{URL}#2": why}
    assert ": queued: waits for one of 3 pools" in told[None]
    down = f"; {URL}#2 is down: {why}"
    assert {pool for pool, text in told.items() if text.endswith(down)} == {None, f"{URL}#2"}
    assert not any("down" in told[f"{URL}#{rank}"] for rank in (0, 1)), "these pools are well"
    assert any(f"{URL}#2 is down: {why};" in line for line in caplog.messages)
    failed = [event for event in events if event.kind == "poll_failed"]
    assert {(event.pool, event.reason) for event in failed} == {(f"{URL}#2", why)}
    (down,) = [event for event in events if event.kind == "pool_down"]
    assert (down.pool, down.reason) == (f"{URL}#2", why)
    (found,) = [event for event in events if event.kind == "poll_recovered"]
    assert found.pool == f"{URL}#2"
    assert found.waited_s == pytest.approx(20, abs=2)


def test_ranks_that_are_named_by_model_are_down_with_the_reason(reads):
    async def main():
        reads(page(0, model="qwen llama"))
        async with virtual_governor(URL, ranks=2) as governor, governor.agent("a"):
            await asyncio.sleep(10)
            return governor.snapshot().endpoints[0].unread

    unread = run(main())
    assert list(unread) == [f"{URL}#0", f"{URL}#1"]
    assert (
        "only llama/0, qwen/0: they are named otherwise, so leave ranks= away"
        in (unread[f"{URL}#0"])
    )
