"""OpenAI's agents SDK on a governed client."""

import asyncio

from _endpoint import TASK, endpoint, look
from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled

import concur_agents as ca
from concur_agents.openai import AsyncOpenAI


async def main() -> None:
    set_tracing_disabled(True)
    with endpoint() as (url, model):
        async with (
            ca.Governor(url) as gov,
            AsyncOpenAI(governor=gov, base_url=f"{url}/v1", api_key="-") as client,
        ):
            agent = Agent(
                name="looker",
                tools=[function_tool(look)],
                model=OpenAIChatCompletionsModel(model=model, openai_client=client),
            )

            @ca.governed(gov, key=lambda issue: issue)  # each call is one agent
            async def solve(issue: str) -> str:
                return str((await Runner.run(agent, TASK)).final_output)

            answers = await asyncio.gather(*(solve(f"issue-{n}") for n in range(4)))
            print(len(answers), "answers;", gov)


asyncio.run(main())
