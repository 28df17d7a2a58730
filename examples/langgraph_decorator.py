"""A LangGraph agent, governed by one line: each of its runs waits, and is paused, as a whole."""

import asyncio

from _endpoint import TASK, endpoint, look
from langchain.agents import create_agent
from langchain_openai import ChatOpenAI
from langgraph.graph.state import CompiledStateGraph

import concur_agents as ca


async def main() -> None:
    with endpoint() as (url, model):
        gov = ca.Governor(url)

        @ca.governed(gov)  # this line is new
        def make_graph() -> CompiledStateGraph:
            llm = ChatOpenAI(model=model, base_url=f"{url}/v1", api_key="-", max_tokens=100)
            return create_agent(llm, tools=[look])

        graph = make_graph()
        gov.on_event(lambda event: print(event.kind, event.agent) if event.agent else None)
        task = {"messages": [("user", TASK)]}
        runs = [
            graph.ainvoke(task, {"configurable": {"thread_id": f"issue-{n}"}}) for n in range(4)
        ]
        for reply in await asyncio.gather(*runs):
            print(len(reply["messages"]), "messages")
        gov.close()


asyncio.run(main())
