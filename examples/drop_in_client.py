"""A loop around openai's client, governed by two lines: the import and the block."""

import asyncio

from _endpoint import endpoint

import concur_agents as ca
from concur_agents.openai import AsyncOpenAI  # was: from openai import AsyncOpenAI


async def solve(gov: ca.Governor, client: AsyncOpenAI, model: str, issue: str) -> str:
    async with gov.agent(issue) as agent:  # waits here until the agent is let in
        messages = [{"role": "user", "content": f"Think about {issue}."}]
        for _ in range(3):
            # Waits here while the cache is full.
            reply = await client.chat.completions.create(
                model=model, messages=messages, max_tokens=100
            )
            messages.append({"role": "assistant", "content": reply.choices[0].message.content})
            messages.append({"role": "user", "content": "Go on."})
        return f"{issue}: {agent.stats.prompt_tokens} tokens asked, paused {agent.stats.pauses}x"


async def main() -> None:
    with endpoint() as (url, model):
        async with (
            ca.Governor(url) as gov,
            AsyncOpenAI(governor=gov, base_url=f"{url}/v1", api_key="-") as client,
        ):
            issues = [f"issue-{n}" for n in range(8)]
            for line in await asyncio.gather(*(solve(gov, client, model, i) for i in issues)):
                print(line)
            print(gov)


asyncio.run(main())
