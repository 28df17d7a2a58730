"""mini-swe-agent on many issues: its thread pool becomes the governor's, and nothing else changes.

Needs `pip install mini-swe-agent mcp`, which bring litellm.
"""

from _endpoint import endpoint
from minisweagent.agents.default import DefaultAgent
from minisweagent.environments.local import LocalEnvironment
from minisweagent.models.litellm_model import LitellmModel

import concur_agents as ca

# The simulated model runs the command in the text; a real one finds out what to do.
SUBMIT = 'CALL:bash{"command": "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"}'


def solve(url: str, model: str, issue: str) -> str:
    llm = LitellmModel(
        model_name=f"hosted_vllm/{model}",
        model_kwargs={"api_base": f"{url}/v1", "api_key": "-", "max_tokens": 100},
        cost_tracking="ignore_errors",
    )
    agent = DefaultAgent(
        llm,
        LocalEnvironment(),
        system_template="You fix issues.",
        instance_template="{{task}}",
        step_limit=5,
    )
    return f"{issue}: {agent.run(f'Fix {issue}. {SUBMIT}')['exit_status']}"


def main() -> None:
    with endpoint() as (url, model), ca.Governor(url) as gov:
        ca.install("litellm")  # its calls now wait for their agent's turn
        with gov.executor() as pool:  # was: ThreadPoolExecutor(8)
            futures = [pool.submit(solve, url, model, f"issue-{n}") for n in range(6)]
            for future in futures:
                print(future.result())
        print(gov)


main()
