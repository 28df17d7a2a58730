"""pydantic-ai asks a limiter once per run; ours makes each run an agent."""

import asyncio

from _endpoint import TASK, endpoint, look
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

import concur_agents as ca
from concur_agents.adapters.pydantic_ai import limiter
from concur_agents.openai import AsyncOpenAI


async def main() -> None:
    with endpoint() as (url, model):
        async with (
            ca.Governor(url) as gov,
            AsyncOpenAI(governor=gov, base_url=f"{url}/v1", api_key="-") as client,
        ):
            agent = Agent(
                OpenAIChatModel(model, provider=OpenAIProvider(openai_client=client)),
                tools=[look],
                max_concurrency=limiter(gov),  # was: max_concurrency=8
            )
            runs = await asyncio.gather(*(agent.run(TASK) for _ in range(4)))
            print(sum(run.usage.requests for run in runs), "requests;", gov)


asyncio.run(main())
