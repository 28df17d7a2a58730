"""Deep agents: their sub-agents are part of them."""

from typing import Any

import pytest

pytest.importorskip("deepagents")
pytest.importorskip("langchain_openai")
pytest.importorskip("uvicorn")

import openai
from deepagents import create_deep_agent
from langchain_openai import ChatOpenAI

from concur_agents.governor import Governor
from concur_agents.runtime.events import Event
from concur_agents.sim.server import EmbeddedServer

# The simulated model does what the text says: here, it hands two tasks to sub-agents at once.
TASK = " ".join(
    f'CALL:task{{"description": "{what}", "subagent_type": "general-purpose"}}'
    for what in ("look left", "look right")
)


async def test_sub_agents_share_the_place_of_their_agent_at_limit_one(
    server: EmbeddedServer,
) -> None:
    gov = Governor(limit=1)
    events: list[Event] = []
    gov.on_event(events.append)
    async with openai.DefaultAsyncHttpxClient() as http:
        model = ChatOpenAI(
            model="looker",
            base_url=f"{server.url}/v1",
            api_key="-",  # type: ignore[arg-type]
            max_completion_tokens=20,
            http_async_client=http,
        )
        graph = gov.wrap(create_deep_agent(model=model))
        given: Any = {"messages": [("user", TASK)]}
        reply = await graph.ainvoke(given, {"configurable": {"thread_id": "boss"}})
    assert reply["messages"][-1].content
    assert server.stats.calls == 4, "the boss twice, and each of its two sub-agents once"
    ended = [event for event in events if event.kind == "step_ended"]
    assert len(ended) == 4
