"""Inspect AI: each sample of an evaluation is an agent, each call of its model a boundary.

    model = govern_model(gov, get_model("openai/...", base_url="http://localhost:8000/v1"))
    task = Task(dataset, solver=governed_solver(gov, react(...)), ...)
    eval(task, model=model, max_samples=500, max_connections=500)

Inspect's own limits count samples and connections; set them high, so that only the governor limits
the run. Waits are reported to Inspect, so that its working limits do not count them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from concur_agents.adapters.agents import open_agent
from concur_agents.adapters.openai_client import wrap_client
from concur_agents.errors import ConfigError
from concur_agents.runtime.agent import Governing

try:
    from inspect_ai.agent import Agent, as_solver
    from inspect_ai.agent._agent import is_agent
    from inspect_ai.solver import Generate, Solver, TaskState, chain, solver
except ModuleNotFoundError as error:
    raise ImportError("inspect-ai is not installed: pip install inspect-ai") from error

if TYPE_CHECKING:
    from inspect_ai.model import Model


def govern_model(governor: Governing, model: Model) -> Model:
    """Makes the calls of a model wait until their agent may run; returns the same model.

    Args:
        governor: decides about its calls.
        model: a model whose provider uses openai's client (`openai`, `vllm`, `sglang`,
            `openai-api`).

    Raises:
        ConfigError: the provider uses another client.
    """
    api: Any = model.api
    client = getattr(api, "client", None)
    if not hasattr(client, "with_options"):
        raise ConfigError(
            f"{model} makes its calls with {type(client).__name__}, not with a client of openai: "
            "use a provider with such a client: openai, openai-api, vllm or sglang"
        )
    api.client = wrap_client(governor, client)
    return model


@solver
def governed_solver(
    governor: Governing, inner: Solver | Agent | list[Solver], *, priority: int = 0
) -> Solver:
    """A solver whose runs are governed agents, one per sample.

    Args:
        governor: lets the samples in.
        inner: solves a sample: a solver, a chain of them, or an Inspect agent.
        priority: of the agents; higher goes first.
    """
    if isinstance(inner, list):
        steps: Solver = chain(*inner)
    elif is_agent(inner):
        steps = as_solver(inner)
    else:
        steps = cast("Solver", inner)

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        name = f"{state.sample_id}-{state.epoch}"
        agent = await open_agent(governor, name, priority=priority)
        try:
            with agent.active():
                return await steps(state, generate)
        finally:
            agent.close()

    return solve
