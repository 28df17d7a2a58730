"""A long tool: the agent gives its place back meanwhile, and then goes before new agents.

Short tools need nothing: an agent keeps its place, and its claim on the cache fades.
"""

import asyncio

from _endpoint import endpoint

import concur_agents as ca
from concur_agents.openai import AsyncOpenAI


async def main() -> None:
    with endpoint() as (url, model):
        gov = ca.Governor(limit=2)  # small, so that there is something to see
        client = AsyncOpenAI(governor=gov, base_url=f"{url}/v1", api_key="-")
        gov.on_event(lambda event: print(f"{event.kind:9} {event.agent}") if event.agent else None)

        async def solve(issue: str) -> None:
            async with gov.agent(issue) as agent:
                messages = [{"role": "user", "content": f"Fix {issue}."}]
                for _ in range(2):
                    await client.chat.completions.create(
                        model=model, messages=messages, max_tokens=50
                    )
                    # Its place is free meanwhile.
                    async with agent.suspended(), agent.tool("build"):
                        await asyncio.sleep(0.2)

        async with gov, client:
            await asyncio.gather(*(solve(f"issue-{n}") for n in range(4)))
            print(gov.tool_times())


asyncio.run(main())
