"""Warm agents that find nothing cached, though all contexts fit, show that calls go elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from concur_agents.core import Reading
from concur_agents.governor import Governor
from concur_agents.probes import PageReading
from concur_agents.testing import ManualClock

URL = "http://127.0.0.1:1"


class Page:
    """Stands for a page of two ranks."""

    engine, timeout_s = "vllm", 1.0

    def __init__(self, clock: ManualClock, tokens: int) -> None:
        self.clock, self.tokens = clock, tokens
        self.last_page: PageReading | None = None

    def read(self) -> Reading:
        one = Reading(at_s=self.clock(), capacity_tokens=self.tokens, kv_usage=0.1)
        both = Reading(at_s=self.clock(), capacity_tokens=2 * self.tokens, kv_usage=0.1)
        self.last_page = PageReading(engine="vllm", reading=both, readings={"0": one, "1": one})
        return both

    def close(self) -> None: ...


class Story:
    """A governor of two ranks, whose agents make two calls each."""

    def __init__(self, tokens: int = 1_000_000, *, ranks: int = 2, **options: Any) -> None:
        self.clock = ManualClock()
        self.gov = Governor(URL, ranks=ranks, background=False, clock=self.clock, **options)
        self.gov._endpoints.first.probe = Page(self.clock, tokens)  # type: ignore[assignment]
        self.agents: list[Any] = []
        self.beat()

    def beat(self) -> None:
        self.clock.advance(1)
        self.gov.beat()

    def agent(self, first: int = 0, second: int = 0, *, rest_s: float = 1.0) -> None:
        """It comes back once, and finds so much cached [tokens]."""
        agent = self.gov.agent(f"a{len(self.agents)}", detached=True)
        self.agents.append(agent)
        agent.open_sync()
        self.call(agent, 4_000, first)
        self.clock.advance(rest_s)
        self.call(agent, 4_500, second)

    def call(self, agent: Any, prompt: int, cached: int) -> None:
        with agent.step() as step:
            usage = {"prompt_tokens": prompt, "completion_tokens": 10}
            step.record({**usage, "prompt_tokens_details": {"cached_tokens": cached}})

    @property
    def pools(self) -> int:
        self.beat()
        return len(self.gov.addresses)


def test_six_warm_agents_that_find_nothing_are_a_wrong_pin(caplog: Any) -> None:
    story = Story()
    for _ in range(5):
        story.agent()
    assert story.pools == 2
    story.agent()
    assert story.pools == 0
    assert story.gov.snapshot().capacity_tokens == 2_000_000
    assert story.gov.snapshot().active == 6, "each keeps its place"
    (said,) = [text for text in caplog.messages if "found nothing" in text]
    assert said.startswith(f"6 of 6 agents that came back to {URL}")


def test_half_of_them_are_enough_as_with_two_ranks_in_turn() -> None:
    story = Story()
    for n in range(12):
        story.agent(second=4_000 * (n % 2))
    assert story.pools == 0


@pytest.mark.parametrize(
    ("what", "each"),
    [
        ("they find their context", {"second": 4_000}),
        ("the engine does not report it", {"second": None}),
        ("they were away for long", {"rest_s": 120.0}),
        ("newcomers find as much", {"first": 2_000, "second": 1_500}),
    ],
)
def test_what_says_nothing_about_the_pin(what: str, each: dict[str, Any]) -> None:
    story = Story()
    for _ in range(12):
        story.agent(**each)
    assert story.pools == 2, what


def test_misses_in_a_full_pool_say_nothing() -> None:
    """They may have been evicted."""
    story = Story(tokens=20_000)
    for _ in range(4):
        story.agent(second=4_000)
    for _ in range(12):
        story.agent()
        story.agents[-1].close()
    assert story.pools == 2


def test_misses_after_a_flush_say_nothing() -> None:
    story = Story()
    for _ in range(12):
        agent = story.gov.agent(detached=True)
        agent.open_sync()
        story.call(agent, 4_000, 0)
        story.gov.flushed()
        story.call(agent, 4_500, 0)
        story.agents.append(agent)
    assert story.pools == 2


def test_nothing_is_watched_where_there_is_nothing_to_find() -> None:
    """Events cost time, so that one pool and a pin that is believed have none."""
    assert not Story(ranks=1).gov._dispatcher.watched
    story = Story(tokens=10_000_000)
    assert story.gov._dispatcher.watched
    for _ in range(64):
        story.agent(second=4_000)
    assert not story.gov._dispatcher.watched
