"""The stacks that train and grade agents: which hook, which flags, and what several processes need.

Facts from their documentation and code, each with a page in docs/frameworks/.
"""

from __future__ import annotations

from typing import NamedTuple


class Stack(NamedTuple):
    """One stack, as `concur doctor --stack` shows it."""

    name: str
    version: str
    """What the hook was written against."""
    page: str
    """In docs/frameworks/."""
    agent: str
    """What becomes an agent."""
    step: str
    """What becomes a step; '': the governed client sees it."""
    flags: tuple[str, ...]
    """Flags of the stack and of its engines."""
    update: str
    """What a weight update needs."""
    replicas: str
    """With several engines."""
    processes: str
    """With several processes that run rollouts."""


_HOLD = "async with gov.hold(): ...; gov.flushed()"
_LIST = "Governor([url, url]): a pool for each engine"
_SHARED = 'Governor(shared="auto") in each'
_LITELLM = 'each call that LiteLLM makes in this process, by ca.install("litellm")'

STACKS = {
    stack.name: stack
    for stack in (
        Stack(
            "verl",
            "0.9",
            "verl.md",
            "the run of an agent loop, such as ToolAgentLoop.run",
            "LLMServerClient.generate",
            (
                "actor_rollout_ref.rollout.agent.agent_loop_config_path=governed.yaml",
                "actor_rollout_ref.rollout.prometheus.enable=True, disable_log_stats=False",
            ),
            f"{_HOLD}: the cache is emptied unless told otherwise",
            _LIST,
            f"agent.num_workers actors: {_SHARED}",
        ),
        Stack(
            "slime",
            "0.3.1",
            "slime.md",
            "the function of --custom-generate-function-path",
            "slime.rollout.sglang_rollout.post",
            (
                "--custom-generate-function-path governed.generate",
                "--sglang-server-concurrency large: it is a semaphore around samples",
                "SGLang: --enable-metrics --enable-cache-report",
            ),
            f"{_HOLD}: each update flushes",
            _LIST,
            "one process makes the calls",
        ),
        Stack(
            "skyrl",
            "0.3.0",
            "skyrl.md",
            "SkyRLGymGenerator.agent_loop",
            "RemoteInferenceClient.generate",
            (
                "generator.batched=false",
                "generator.rate_limit off",
                "SKYRL_GENERATE_CONCURRENCY_PER_ENGINE large: it is a semaphore within calls",
            ),
            f"{_HOLD}: the cache is emptied, or has a salt of the weights' version",
            _LIST,
            "one process runs the trajectories",
        ),
        Stack(
            "prime-rl",
            "prime-rl 0.8, verifiers 0.4",
            "prime-rl.md",
            "verifiers.v1.rollout.Rollout, from open to close",
            "TrainClient.get_response, behind the interception server",
            ("orchestrator.concurrency.min_inflight = max_inflight, a large number",),
            "async with gov.hold(): the cache is kept",
            _LIST,
            f"a pool of env servers: {_SHARED}",
        ),
        Stack(
            "areal",
            "1.0.4",
            "areal.md",
            "RolloutWorkflow.arun_episode",
            "RemoteInfEngine.agenerate",
            ("rollout.max_concurrent_rollouts large",),
            _HOLD,
            "its own routing is round robin: put a router that keeps sessions in front",
            f"one for each data-parallel head: {_SHARED}",
        ),
        Stack(
            "rllm",
            "0.3.0.pre",
            "rllm.md",
            "AgentFlowEngine._run_flow_only",
            "the model engine's get_model_response, or a governed client in the flow",
            ("n_parallel_tasks large: it is a semaphore around tasks",),
            _HOLD,
            _LIST,
            "one process runs the flows",
        ),
        Stack(
            "nemo-gym",
            "0.4.0",
            "nemo-gym.md",
            "SimpleAgent.responses",
            "ServerClient.post to the model server",
            ("num_samples_in_parallel large or left out",),
            _HOLD,
            _LIST,
            f"num_workers of an agent server: {_SHARED}",
        ),
        Stack(
            "harbor",
            "0.26.0",
            "harbor.md",
            "Trial.run",
            _LITELLM,
            ("n_concurrent_trials (terminal-bench: --n-concurrent) large",),
            "none: it grades",
            _LIST,
            "agents inside of containers call through `concur gateway`",
        ),
        Stack(
            "mini-swe-agent",
            "1 and 2",
            "mini-swe-agent.md",
            "a task of gov.executor()",
            _LITELLM,
            ("workers: none, the governor bounds the threads",),
            "none: it grades",
            _LIST,
            "one process runs the instances",
        ),
        Stack(
            "inspect-ai",
            "0.3",
            "inspect-ai.md",
            "governed_solver",
            "",
            ("max_samples=500, max_connections=500",),
            "none: it grades",
            _LIST,
            "one process runs the samples",
        ),
    )
}
"""By the names that `concur doctor --stack` takes."""

ALSO = {"verifiers": "prime-rl", "terminal-bench": "harbor", "swe-bench": "mini-swe-agent"}
"""Further names: what is connected in the same way, on the same page."""
