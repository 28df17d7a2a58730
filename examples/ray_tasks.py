"""Ray tasks as agents: one governor for all of them, whichever process or machine they run on."""

import ray
from _endpoint import endpoint

import concur_agents as ca
import concur_agents.ray
from concur_agents.openai import OpenAI


@ray.remote(num_cpus=0.2)  # it mostly waits for the engine
def solve(gov: ca.Governor, url: str, model: str, issue: str) -> str:
    client = OpenAI(governor=gov, base_url=f"{url}/v1", api_key="-")
    with client, gov, gov.agent(issue) as agent:  # waits here until the agent is let in
        messages = [{"role": "user", "content": f"Think about {issue}."}]
        for _ in range(3):
            # Waits here while the cache is full, with agents of all processes in it.
            reply = client.chat.completions.create(model=model, messages=messages, max_tokens=100)
            messages.append({"role": "assistant", "content": reply.choices[0].message.content})
            messages.append({"role": "user", "content": "Go on."})
        return f"{issue}: {agent.stats.prompt_tokens} tokens asked, by {gov.snapshot().reason}"


def main() -> None:
    ray.init(log_to_driver=False)  # or the cluster that RAY_ADDRESS names
    with endpoint() as (url, model), concur_agents.ray.governor(url) as gov:
        issues = [f"issue-{n}" for n in range(8)]
        for line in ray.get([solve.remote(gov, url, model, issue) for issue in issues]):
            print(line)


main()
