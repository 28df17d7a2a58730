"""Ray actors with many agents in each: they find one governor by the address of the engine."""

import ray
from _endpoint import endpoint

import concur_agents as ca
import concur_agents.ray
from concur_agents.openai import AsyncOpenAI


@ray.remote(num_cpus=0.5)
class Worker:
    """Many agents in one process."""

    def __init__(self, url: str, model: str) -> None:
        self.gov = concur_agents.ray.governor(url)
        self.client = AsyncOpenAI(governor=self.gov, base_url=f"{url}/v1", api_key="-")
        self.model = model

    async def run(self, issues: list[str]) -> list[str]:
        """All of a list by one call: an actor has room for a thousand, and agents wait long."""
        async with ca.AgentPool(self.gov) as pool:
            return [outcome.value async for outcome in pool.as_completed(self.solve, issues)]

    async def solve(self, issue: str, agent: ca.Agent) -> str:
        """One agent, which was let in before."""
        messages = [{"role": "user", "content": f"Think about {issue}."}]
        for _ in range(3):
            reply = await self.client.chat.completions.create(
                model=self.model, messages=messages, max_tokens=100
            )
            messages.append({"role": "assistant", "content": reply.choices[0].message.content})
            messages.append({"role": "user", "content": "Go on."})
        return f"{issue}: {agent.stats.prompt_tokens} tokens asked, by {self.gov.snapshot().reason}"


def main() -> None:
    ray.init(log_to_driver=False)  # or the cluster that RAY_ADDRESS names
    with endpoint() as (url, model):
        workers = [Worker.remote(url, model) for _ in range(2)]
        issues = [f"issue-{n}" for n in range(16)]
        parts = [w.run.remote(issues[n::2]) for n, w in enumerate(workers)]
        for lines in ray.get(parts):
            print(*lines, sep="\n")


main()
