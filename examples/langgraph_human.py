"""A graph that asks a human: it holds no place meanwhile, and the answer goes before new agents."""

from _endpoint import endpoint
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

import concur_agents as ca


def main() -> None:
    with endpoint() as (url, model), ca.Governor(url) as gov:
        llm = ChatOpenAI(model=model, base_url=f"{url}/v1", api_key="-", max_tokens=50)

        def propose(state: MessagesState) -> MessagesState:
            return {"messages": [llm.invoke(state["messages"])]}

        def ask(state: MessagesState) -> MessagesState:
            answer = interrupt("Shall I?")  # ends the run; with a server it may be for days
            return {"messages": [("user", answer)]}

        builder = StateGraph(MessagesState)
        builder.add_sequence([propose, ask, ("act", propose)])
        builder.add_edge(START, "propose")
        graph = gov.wrap(builder.compile(checkpointer=InMemorySaver()))  # this call is new

        thread = {"configurable": {"thread_id": "issue-17"}}
        graph.invoke({"messages": [("user", "Fix issue 17.")]}, thread)
        print(gov.snapshot().active, "agents active while the human thinks")
        reply = graph.invoke(Command(resume="Yes, go on."), thread)
        print(len(reply["messages"]), "messages, and", gov.snapshot().done_total, "runs")


main()
