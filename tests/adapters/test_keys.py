"""What a `key` function may return: it never makes a run fail."""

from typing import Any
from uuid import UUID

import pytest

import concur_agents as ca


class Nameless:
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("said", "name"), [(7, "7"), (UUID(int=7), str(UUID(int=7))), (None, "agent-1"),
                       (Nameless(), "agent-1")]
)  # fmt: skip
def test_a_key_is_read_as_an_id_is(said: Any, name: str) -> None:
    """None named all agents "None", and what has no text failed the call."""
    gov = ca.Governor(limit=1)

    @ca.governed(gov, key=lambda: said)
    def solve() -> str:
        agent = gov.current_agent()
        assert agent is not None
        return agent.id

    assert solve() == name


@pytest.mark.parametrize(("said", "name"), [(7, "7"), (None, "agent-1"), (Nameless(), "agent-1")])
def test_a_key_of_a_graph_too(said: Any, name: str) -> None:
    graphs = pytest.importorskip("langgraph.graph")
    gov = ca.Governor(limit=1)
    ids: list[str] = []

    def note(state: Any) -> Any:
        agent = gov.current_agent()
        assert agent is not None
        ids.append(agent.id)
        return state

    builder = graphs.StateGraph(graphs.MessagesState)
    builder.add_node("note", note)
    builder.add_edge(graphs.START, "note")
    graph = gov.wrap(builder.compile(), key=lambda config: said)
    graph.invoke({"messages": []})
    assert ids == [name]
