"""Inspect AI: each sample of an evaluation is an agent, each call of its model a boundary.

    model = govern_model(gov, get_model("openai/...", base_url="http://localhost:8000/v1"))
    task = Task(dataset, solver=governed_solver(gov, react(...)), ...)
    eval(task, model=model, max_samples=500, max_connections=500)

Inspect's own bounds count samples and connections; set them high and leave the rest to the
governor. Waiting is reported to Inspect, so that its working limits do not count it.
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
    """Has the calls of a model wait for the agent they are made in; the same model comes back.

    Args:
        governor: whom they ask.
        model: of a provider that uses openai's client (`openai`, `vllm`, `sglang`, `openai-api`).

    Raises:
        ConfigError: its provider uses another client.
    """
    api: Any = model.api
    client = getattr(api, "client", None)
    if not hasattr(client, "with_options"):
        raise ConfigError(
            f"{model} makes its calls with {type(client).__name__}, not with a client of openai: "
            "use a provider that does, such as openai, openai-api, vllm or sglang"
        )
    api.client = wrap_client(governor, client)
    return model


@solver
def governed_solver(
    governor: Governing, inner: Solver | Agent | list[Solver], *, priority: int = 0
) -> Solver:
    """A solver, or a chain of them, or an Inspect agent, each of whose runs is an agent of ours.

    Args:
        governor: lets the samples in.
        inner: what solves a sample.
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
