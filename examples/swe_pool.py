"""A batch of SWE-style agents: bash in a loop, one agent per issue, resumable, with progress."""

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

from _endpoint import endpoint

import concur_agents as ca
from concur_agents.openai import AsyncOpenAI


async def main() -> None:
    with endpoint() as (url, model), tempfile.TemporaryDirectory() as folder:
        gov = ca.Governor(url)
        client = AsyncOpenAI(governor=gov, base_url=f"{url}/v1", api_key="-")

        async def solve(issue: str, agent: ca.Agent) -> str:
            history = [{"role": "user", "content": f"Fix {issue}. Answer with a shell command."}]
            for _ in range(3):
                reply = await client.chat.completions.create(
                    model=model, messages=history, max_tokens=80
                )
                said = reply.choices[0].message.content
                async with agent.tool("bash"):  # how long tools take is learned
                    command = [sys.executable, "-c", "print('tests passed')"]
                    ran = await asyncio.to_thread(
                        subprocess.run, command, capture_output=True, text=True, check=False
                    )
                history.append({"role": "assistant", "content": said})
                history.append({"role": "user", "content": ran.stdout})
            return ran.stdout.strip()

        journal = Path(folder) / "runs.jsonl"  # run it again, and only unfinished issues run
        async with gov, client, ca.AgentPool(gov, journal=journal) as pool:
            issues = [f"issue-{n}" for n in range(6)]
            async for outcome in pool.as_completed(solve, issues):
                print(outcome.key, outcome.status, outcome.value)
        print(gov.tool_times())


asyncio.run(main())
