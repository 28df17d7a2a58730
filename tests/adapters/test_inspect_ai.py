"""Evaluations of Inspect: each sample is an agent."""

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("inspect_ai")
pytest.importorskip("uvicorn")

from inspect_ai import Task, eval_async
from inspect_ai.agent import react
from inspect_ai.dataset import Sample
from inspect_ai.log import read_eval_log_async
from inspect_ai.model import get_model
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import Tool, tool

from concur_agents.adapters.inspect_ai import govern_model, governed_solver
from concur_agents.core import Usage
from concur_agents.errors import ConfigError
from concur_agents.governor import Governor
from concur_agents.runtime.events import Event
from concur_agents.sim.server import EmbeddedServer

TASK = 'Look twice, then say what you saw. CALL:look{"at": "1"}'


@tool
def look() -> Tool:
    async def execute(at: str) -> str:
        """Looks at something.

        Args:
            at: what to look at.
        """
        return 'CALL:look{"at": "2"}' if at == "1" else "nothing more"

    return execute


# Inspect drops streams of anyio's without closing them.
pytestmark = pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning")


@pytest.fixture(autouse=True)
def without_its_traces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("INSPECT_DISPLAY", "none")
    yield
    gc.collect()  # while the filter above holds


async def evaluate(
    gov: Governor, server: EmbeddedServer, inner: Any, folder: Path, **how: Any
) -> Any:
    model = get_model(
        "openai/looker",
        base_url=f"{server.url}/v1",
        api_key="-",
        responses_api=False,
        memoize=False,
    )
    samples = [Sample(input=TASK, id=f"issue-{n}") for n in range(8)]
    task = Task(samples, solver=governed_solver(gov, inner), **how)
    async with model:
        (log,) = await eval_async(
            task,
            model=govern_model(gov, model),
            max_samples=8,
            max_connections=8,
            log_dir=str(folder),
        )
    return log


async def test_eight_samples_at_limit_two(
    gov: Governor, server: EmbeddedServer, steps: list[Event], tmp_path: Path
) -> None:
    log = await evaluate(gov, server, [use_tools(look()), generate()], tmp_path)
    assert log.status == "success"
    assert server.stats.calls == 24
    assert server.stats.max_in_flight <= 2
    assert len(steps) == 24
    used = [step.usage or Usage(0, 0) for step in steps]
    assert sum(usage.prompt_tokens for usage in used) == server.stats.prompt_tokens
    assert sum(usage.completion_tokens for usage in used) == server.stats.output_tokens
    assert {step.agent for step in steps} == {f"issue-{n}-1" for n in range(8)}
    assert gov.snapshot().active == 0


async def test_an_evaluation_that_is_cancelled_frees_all_its_places(
    gov: Governor, server: EmbeddedServer, tmp_path: Path
) -> None:
    run = asyncio.create_task(evaluate(gov, server, [use_tools(look()), generate()], tmp_path))
    while not server.stats.in_flight:
        await asyncio.sleep(0.001)
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)
    snapshot = gov.snapshot()
    assert (snapshot.active, snapshot.paused, snapshot.queued) == (0, 0, 0)


async def test_waiting_does_not_count_as_work(server: EmbeddedServer, tmp_path: Path) -> None:
    """Under a working limit most of a large evaluation would fail, for having waited."""
    log = await evaluate(Governor(limit=1), server, [use_tools(look()), generate()], tmp_path)
    # `log.samples` would read them with a nested event loop, for which Inspect replaces asyncio's
    # tasks, futures and `run` in the whole process, and for good.
    log = await read_eval_log_async(log.location)
    last = max(log.samples, key=lambda sample: sample.total_time)
    assert last.working_time < last.total_time / 2


async def test_inspects_own_agents_are_solvers_too(
    gov: Governor, server: EmbeddedServer, steps: list[Event], tmp_path: Path
) -> None:
    inner = react(tools=[look()], submit=False)
    log = await evaluate(gov, server, inner, tmp_path)
    assert log.status == "success"
    assert server.stats.max_in_flight <= 2
    assert len(steps) == server.stats.calls


def test_asyncio_is_still_its_own_self() -> None:
    """What Inspect does to it left event loops open, which failed later tests."""
    assert not hasattr(asyncio, "_nest_patched")


def test_the_same_model_comes_back(gov: Governor) -> None:
    model = get_model("openai/looker", base_url="http://engine/v1", api_key="-", memoize=False)
    client = type(model.api.client)
    assert govern_model(gov, model) is model
    assert isinstance(model.api.client, client)


def test_a_model_with_another_client_says_so(gov: Governor) -> None:
    with pytest.raises(ConfigError, match="not with a client of openai"):
        govern_model(gov, get_model("mockllm/model"))
