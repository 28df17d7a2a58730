"""Agents, steps and tools as OpenTelemetry spans."""

import asyncio
import subprocess
import sys
import warnings

import pytest

from concur_agents import Governor
from concur_agents.core import Usage
from concur_agents.observe import otel
from concur_agents.observe.otel import trace
from concur_agents.testing import run, virtual_governor

pytest.importorskip("opentelemetry.sdk.trace")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind


@pytest.fixture
def spans():
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider, exporter.get_finished_spans
    provider.shutdown()


def test_a_run_is_a_tree_of_spans_with_its_waits(spans):
    provider, finished = spans

    async def first(governor):
        async with governor.agent("first") as agent:
            async with agent.step() as step:
                await asyncio.sleep(3)
                step.record(Usage(900, 50, 800))
            async with agent.tool("pytest"):
                await asyncio.sleep(2)
            async with governor.agent("child") as child, child.step():
                await asyncio.sleep(1)

    async def second(governor):
        await asyncio.sleep(1)
        async with governor.agent("second"):
            pass

    async def main():
        async with virtual_governor(limit=1) as governor:
            trace(governor, provider)
            await asyncio.gather(first(governor), second(governor))

    run(main())
    by_name = {(span.name, span.attributes.get("gen_ai.agent.id")): span for span in finished()}
    agent = by_name["invoke_agent", "first"]
    chat, child = by_name["chat", "first"], by_name["invoke_agent", "child"]
    tool = by_name["execute_tool pytest", None]
    assert {span.parent.span_id for span in (chat, child, tool)} == {agent.context.span_id}
    assert by_name["chat", "child"].parent.span_id == child.context.span_id
    assert agent.parent is None
    assert dict(chat.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.agent.id": "first",
        "gen_ai.provider.name": "openai",
        "gen_ai.usage.input_tokens": 900,
        "gen_ai.usage.output_tokens": 50,
        "gen_ai.usage.cache_read.input_tokens": 800,
    }
    assert agent.attributes["gen_ai.operation.name"] == "invoke_agent"
    assert agent.attributes["concur.law"] == "fixed"
    assert tool.attributes["gen_ai.tool.name"] == "pytest"
    assert chat.end_time - chat.start_time == pytest.approx(3e9, abs=1e3)
    assert (chat.kind, agent.kind) == (SpanKind.CLIENT, SpanKind.INTERNAL)
    second_agent = by_name["invoke_agent", "second"]
    events = [(event.name, dict(event.attributes)) for event in second_agent.events]
    assert events == [("concur.queued", {}), ("concur.admitted", {"concur.waited_s": 5.0})]
    assert second_agent.attributes["concur.waited_total_s"] == 5.0


def test_a_pause_and_its_end_are_events_of_the_agent(spans, tmp_path):
    provider, finished = spans

    async def life(governor, name):
        async with governor.agent(name) as agent:
            for _ in range(2):
                async with agent.step() as step:
                    await asyncio.sleep(4)
                    step.record(Usage(10, 1))

    async def main():
        async with virtual_governor(limit=1, max_wait_s=2.0) as governor:
            trace(governor, provider)
            await asyncio.gather(life(governor, "one"), life(governor, "two"))

    run(main())
    one = next(
        span
        for span in finished()
        if (span.name, span.attributes["gen_ai.agent.id"]) == ("invoke_agent", "one")
    )
    names = [event.name for event in one.events]
    assert names[:3] == ["concur.queued", "concur.admitted", "concur.paused"]
    assert "concur.resumed" in names
    assert one.attributes["concur.pauses"] == 1
    assert one.attributes["concur.waited_total_s"] > 0


def test_what_is_open_when_tracing_ends_is_ended(spans):
    """An exporter drops spans that never end, and with them the run that hung."""
    provider, finished = spans
    with Governor(limit=1) as governor:
        stop = trace(governor, provider, agent_name="coder")
        with governor.agent("a") as agent, agent.step(), agent.tool("t"):
            stop()
            assert sorted(span.name for span in finished()) == [
                "chat",
                "execute_tool t",
                "invoke_agent coder",
            ]
    with Governor(limit=1) as governor:
        trace(governor, provider)
        governor.agent("b").open_sync()
    ended = finished()[-1]
    assert (ended.name, ended.attributes["gen_ai.agent.id"]) == ("invoke_agent", "b")


def test_names_of_attributes_are_those_of_the_conventions():
    """They are written out, because the package that holds them marks them all as moved."""
    pytest.importorskip("opentelemetry.semconv._incubating.attributes.gen_ai_attributes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opentelemetry.semconv._incubating.attributes import gen_ai_attributes

        known = {value for value in vars(gen_ai_attributes).values() if isinstance(value, str)}
    ours = {
        value
        for value in vars(otel).values()
        if isinstance(value, str) and value.startswith("gen_ai.")
    }
    assert len(ours) >= 8
    assert ours <= known


def test_without_the_extra_it_says_what_to_install():
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from concur_agents import Governor\n"
        "from concur_agents.observe.otel import trace\n"
        "trace(Governor(limit=1))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert 'pip install "concur-agents[otel]"' in ran.stderr


def test_with_several_pools_a_span_says_which_one(spans):
    provider, finished = spans
    urls = ["http://gpu1:8000", "http://gpu2:8000"]

    async def life(governor):
        async with governor.agent() as agent, agent.step():
            await asyncio.sleep(3)

    async def main():
        async with virtual_governor(urls, limit=1) as governor:
            trace(governor, provider)
            await asyncio.gather(life(governor), life(governor))

    run(main())
    for name in ("invoke_agent", "chat"):
        pools = [span.attributes["concur.pool"] for span in finished() if span.name == name]
        assert sorted(pools) == urls
