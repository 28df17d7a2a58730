"""Evaluations of Inspect on several engines: each sample stays with one of them."""

import asyncio
import gc
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("inspect_ai")
pytest.importorskip("uvicorn")

from inspect_ai import Task, eval_async
from inspect_ai.dataset import Sample
from inspect_ai.log import read_eval_log_async
from inspect_ai.model import get_model
from inspect_ai.solver import Generate, Solver, TaskState, generate, solver, use_tools
from inspect_ai.tool import Tool, tool

from concur_agents.adapters.inspect_ai import govern_model, governed_solver
from concur_agents.governor import Governor
from concur_agents.runtime.events import Event
from concur_agents.sim.server import EmbeddedServer
from concur_agents.testing import assert_idle

CALLS = 3
"""of each sample: two looks and the answer"""

# Inspect drops streams of anyio's without closing them.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
    pytest.mark.timeout(600),
]


@tool
def look() -> Tool:
    async def execute(at: str) -> str:
        """Looks at something.

        Args:
            at: what to look at.
        """
        return 'CALL:look{"at": "2"}' if at == "1" else "nothing more"

    return execute


class Engine:
    """A server that remembers which samples its calls were of, and holds calls while it shall."""

    def __init__(self, **options: Any) -> None:
        self.samples: list[str] = []
        self.is_held = False
        self.held = 0
        options = {"time_scale": 30, "model": "looker", **options}
        self.server = EmbeddedServer("h100-qwen3-8b", middleware=self._remember, **options)

    def _remember(self, app: Any) -> Any:
        async def remembering(scope: Any, receive: Any, send: Any) -> None:
            body = b""

            async def received() -> Any:
                nonlocal body
                message = await receive()
                body += message.get("body", b"")
                return message

            is_call = scope.get("path", "").endswith("completions")
            self.held += is_call and self.is_held
            while is_call and self.is_held:
                await asyncio.sleep(0.01)
            await app(scope, received, send)
            if is_call and body:
                self.samples.append(json.loads(body)["messages"][0]["content"].split()[0])

        return remembering


@pytest.fixture
def engines() -> Iterator[list[Engine]]:
    pair = [Engine(), Engine()]
    with pair[0].server, pair[1].server:
        yield pair


@pytest.fixture
def gov(engines: list[Engine]) -> Iterator[Governor]:
    with Governor([engine.server.url for engine in engines], limit=2, ungoverned="error") as made:
        yield made


@pytest.fixture
def events(gov: Governor) -> list[Event]:
    seen: list[Event] = []
    gov.on_event(seen.append)
    return seen


@pytest.fixture(autouse=True)
def without_its_traces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("INSPECT_DISPLAY", "none")
    yield
    gc.collect()  # while the filter above holds


async def evaluate(
    gov: Governor, engine: Engine, folder: Path, inner: Any = None, samples: int = 6, **how: Any
) -> Any:
    """The log, with its samples, of an evaluation whose model is at one of the engines."""
    model = get_model(
        "openai/looker",
        base_url=f"{engine.server.url}/v1",
        api_key="-",
        responses_api=False,
        memoize=False,
    )
    inputs = [f'sample-{n} Look twice. CALL:look{{"at": "1"}}' for n in range(samples)]
    dataset = [Sample(input=text, id=text.split()[0]) for text in inputs]
    solver = governed_solver(gov, inner or [use_tools(look()), generate()])
    async with model:
        (log,) = await eval_async(
            Task(dataset, solver=solver),
            model=govern_model(gov, model),
            max_samples=100,
            max_connections=100,
            log_dir=str(folder),
            **how,
        )
    # `log.samples` would read them with a nested event loop, which changes asyncio for good.
    return await read_eval_log_async(log.location)


def of(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event.kind == kind]


async def test_all_calls_of_a_sample_go_to_one_engine(
    gov: Governor, engines: list[Engine], events: list[Event], tmp_path: Path
) -> None:
    log = await evaluate(gov, engines[0], tmp_path)
    assert log.status == "success"
    of_first, of_second = (Counter(engine.samples) for engine in engines)
    assert of_first
    assert of_second
    assert of_first + of_second == {f"sample-{n}": CALLS for n in range(6)}
    assert not set(of_first) & set(of_second)
    where = {event.agent: event.pool for event in of(events, "step_ended")}
    for engine in engines:
        mine = {name for name, pool in where.items() if pool == engine.server.url}
        assert mine == {f"{sample}-1" for sample in engine.samples}
        assert engine.server.stats.max_in_flight <= 2
    assert_idle(gov)


async def test_each_sample_ends_as_its_agent_leaves(
    gov: Governor, engines: list[Engine], events: list[Event], tmp_path: Path
) -> None:
    await evaluate(gov, engines[1], tmp_path)
    names = sorted(f"sample-{n}-1" for n in range(6))
    for kind in ("arrived", "admitted", "left"):
        assert sorted(event.agent or "" for event in of(events, kind)) == names
    for name in names:
        assert [event.kind for event in events if event.agent == name][-1] == "left"
    assert_idle(gov)


async def test_a_sample_in_two_epochs_is_two_agents(
    gov: Governor, engines: list[Engine], events: list[Event], tmp_path: Path
) -> None:
    log = await evaluate(gov, engines[0], tmp_path, samples=3, epochs=2)
    names = {f"sample-{n}-{epoch}" for n in range(3) for epoch in (1, 2)}
    assert {f"{sample.id}-{sample.epoch}" for sample in log.samples} == names
    assert Counter(event.agent for event in of(events, "step_ended")) == dict.fromkeys(names, CALLS)
    pools: dict[str | None, set[str | None]] = {}
    for event in of(events, "step_ended"):
        pools.setdefault(event.agent, set()).add(event.pool)
    assert all(len(where) == 1 for where in pools.values())
    assert_idle(gov)


async def test_a_sample_that_is_tried_again_keeps_its_name(
    gov: Governor, engines: list[Engine], events: list[Event], tmp_path: Path
) -> None:
    failed: list[str] = []

    @solver
    def fails_once() -> Solver:
        async def solve(state: TaskState, generate: Generate) -> TaskState:
            state = await generate(state)
            if state.sample_id not in failed:
                failed.append(str(state.sample_id))
                raise RuntimeError("the sandbox is gone")
            return state

        return solve

    log = await evaluate(gov, engines[0], tmp_path, fails_once(), samples=3, retry_on_error=1)
    assert log.status == "success"
    names = sorted(f"sample-{n}-1" for n in range(3))
    assert sorted(event.agent or "" for event in of(events, "left")) == sorted(names * 2)
    assert_idle(gov)


async def test_a_sample_that_meets_its_limit_frees_its_place(
    gov: Governor, engines: list[Engine], events: list[Event], tmp_path: Path
) -> None:
    """After its first call; so all are let in, two at a time."""
    log = await evaluate(gov, engines[0], tmp_path, message_limit=3)
    assert log.status == "success"
    assert {sample.limit.type for sample in log.samples} == {"message"}
    assert len(of(events, "left")) == 6
    assert_idle(gov)


async def test_an_evaluation_that_is_cancelled_frees_its_places_on_all_engines(
    gov: Governor, engines: list[Engine], tmp_path: Path
) -> None:
    for engine in engines:
        engine.is_held = True
    try:
        run = asyncio.create_task(evaluate(gov, engines[0], tmp_path))
        while not all(engine.held == 2 for engine in engines) and not run.done():
            await asyncio.sleep(0.01)
        snapshot = gov.snapshot()
        assert (snapshot.active, snapshot.queued) == (4, 2)
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
        assert_idle(gov)
    finally:
        for engine in engines:
            engine.is_held = False


async def test_samples_whose_time_ends_leave_the_engines_and_the_queue(
    gov: Governor, engines: list[Engine], events: list[Event], tmp_path: Path
) -> None:
    """Waiting counts for a `time_limit`: four samples meet it in a call, two in the queue."""
    for engine in engines:
        engine.is_held = True
    try:
        log = await evaluate(gov, engines[0], tmp_path, time_limit=2)
        assert {sample.limit.type for sample in log.samples} == {"time"}
        assert len(of(events, "left")) == len(of(events, "arrived"))
        assert_idle(gov)
    finally:
        for engine in engines:
            engine.is_held = False
