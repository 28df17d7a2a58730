"""Sub-agents share the place of the agent that asked them: even a limit of 1 cannot dead-lock."""

import asyncio

from _endpoint import endpoint
from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

import concur_agents as ca


async def main() -> None:
    with endpoint() as (url, model), ca.Governor(limit=1) as gov:
        llm = ChatOpenAI(model=model, base_url=f"{url}/v1", api_key="-", max_tokens=50)
        expert = gov.wrap(create_agent(llm, tools=[], name="expert"))

        @tool
        async def ask_expert(question: str) -> str:
            """Asks an expert."""
            reply = await expert.ainvoke({"messages": [("user", question)]})
            return str(reply["messages"][-1].content)

        boss = gov.wrap(create_agent(llm, tools=[ask_expert], name="boss"))
        gov.on_event(
            lambda e: print(f"{e.agent} is part of {e.parent}") if e.kind == "arrived" else None
        )
        # The simulated model asks two experts at once when the text says so.
        question = 'CALL:ask_expert{"question": "why?"} CALL:ask_expert{"question": "how?"}'
        runs = [
            boss.ainvoke({"messages": [("user", question)]}, {"configurable": {"thread_id": name}})
            for name in ("boss-1", "boss-2")
        ]
        for reply in await asyncio.gather(*runs):
            print(len(reply["messages"]), "messages")


asyncio.run(main())
