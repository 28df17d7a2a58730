"""The parts of `concur replay` without a real engine: arms, workloads, numbers, and a server that
misbehaves.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from concur_agents.core import Reading, Usage
from concur_agents.errors import ConfigError
from concur_agents.lab.replay import (
    ArmRun,
    Endpoint,
    EndpointError,
    Options,
    ReplaySample,
    StepRow,
    WorkloadOptions,
    make_plans,
    parse_arm,
    parse_arms,
    read_round,
    replay,
    round_record,
    summarize,
    table,
    work_agrees,
)
from concur_agents.lab.replay.endpoint import Vocabulary
from concur_agents.sim.engine import Run
from concur_agents.sim.workload import AgentPlan, PlanStep, synthetic

# --- arms ----------------------------------------------------------------------------------------


def test_arms_are_read_in_order_and_keep_the_name_that_was_typed() -> None:
    arms = parse_arms("none, fixed:8,requests:4,cache_aimd:2/4,working_set")
    assert [arm.name for arm in arms] == [
        "none",
        "fixed:8",
        "requests:4",
        "cache_aimd:2/4",
        "working_set",
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "at least one arm"),
        ("turbo", "is unknown"),
        ("fixed:0", "whole number of at least 1"),
        ("fixed:many", "whole number of at least 1"),
        ("requests", "whole number of at least 1"),
        ("cache_aimd:soon", "not name=number"),
        ("cache_aimd:interval_s=-1", "interval_s must be above 0"),
        ("working_set:colour=3", "colour"),
    ],
)
def test_a_wrong_arm_is_refused_before_anything_runs(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_arms(text)


# --- workload ------------------------------------------------------------------------------------


def test_overload_takes_the_fewest_agents_that_reach_it() -> None:
    plans = make_plans(WorkloadOptions("main", overload=2.0), capacity_tokens=100_000)
    total = sum(plan.peak_tokens for plan in plans)
    assert total >= 200_000 > total - plans[-1].peak_tokens


def test_a_shape_can_be_changed_in_place() -> None:
    plans = make_plans(WorkloadOptions("slow-tools:steps=5:gen=20-40", agents=3), None)
    assert [len(plan.steps) for plan in plans] == [5, 5, 5]
    assert all(20 <= step.output.tokens <= 40 for plan in plans for step in plan.steps)


def test_another_seed_draws_other_agents_of_a_shape_and_the_first_are_the_published_ones() -> None:
    first, again, other = (
        make_plans(WorkloadOptions("main", agents=20, seed=seed), None) for seed in (0, 0, 1)
    )
    assert first == again
    assert [plan.steps for plan in first] == [plan.steps for plan in synthetic(20, 8)]
    sizes, others = ({plan.peak_tokens for plan in plans} for plans in (first, other))
    assert len(sizes & others) < 3  # agents of one draw are not those of the other, moved along


def test_recorded_agents_are_cut_at_the_longest_context_and_the_most_steps() -> None:
    plans = make_plans(
        WorkloadOptions("openhands-multiswe", agents=5, max_context=12_000, max_steps=4), None
    )
    assert len(plans) == 5
    assert max(plan.peak_tokens for plan in plans) <= 12_000
    assert max(len(plan.steps) for plan in plans) == 4


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"source": "nowhere"}, "neither a shape"),
        ({"source": "main:speed=3"}, "unknown"),
        ({"source": "main:steps=fast"}, "not name=number"),
        ({"source": "main", "overload": 2.0}, "does not tell"),
        ({"source": "main", "agents": 0}, "at least 1"),
    ],
)
def test_a_wrong_workload_says_what_to_do(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        make_plans(WorkloadOptions(**options), None)


def test_the_same_key_spells_the_same_and_a_longer_spelling_begins_with_the_shorter() -> None:
    words = Vocabulary(range(1000), salt="a")
    assert words.spell(("x", 1), 50)[:20] == words.spell(("x", 1), 20)
    assert words.spell(("x", 1), 50) != words.spell(("x", 2), 50)
    assert words.spell(("x", 1), 50) != Vocabulary(range(1000), salt="b").spell(("x", 1), 50)


# --- numbers -------------------------------------------------------------------------------------


def _run(arm: str, span_s: float, *, outcome: str = "finished", cached: int = 90) -> ArmRun:
    """Two agents of two steps; the second step waited 2 s and could have reused 100 tokens."""
    run = ArmRun(arm, 0, outcome=outcome, span_s=span_s, agents=2, agents_done=2, cache_reset=True)
    for agent in ("a", "b"):
        for step in range(2):
            run.steps.append(
                StepRow(
                    agent=agent,
                    step=step,
                    at_gate_s=10.0 * step,
                    sent_s=10.0 * step + (2.0 if step else 0.0),
                    done_s=10.0 * step + 3.0,
                    prompt_tokens=100 + 50 * step,
                    cached_tokens=cached * step,
                    output_tokens=10,
                    reusable_tokens=100 * step,
                )
            )
    return run


def test_a_hold_is_part_of_every_latency_and_a_pause_is_a_hold_after_the_first_step() -> None:
    (row,) = summarize([_run("fixed:2", 20.0)])
    assert row.latency_p50_s == row.latency_p99_s == 3.0
    assert row.wait_worst_s == 2.0
    assert row.pauses == 2


def test_hit_deficit_counts_only_what_the_agent_itself_had_sent() -> None:
    (row,) = summarize([_run("none", 20.0, cached=90)])
    assert row.hit_rate == pytest.approx(180 / 500)
    assert row.hit_deficit == pytest.approx(0.1)
    assert row.recomputed_tokens == 20
    # a shared system prompt may be cached beyond that: no negative deficit
    (row,) = summarize([_run("none", 20.0, cached=120)])
    assert row.hit_deficit == 0.0


def test_ratios_are_of_throughput_against_none_and_the_best_finished_cap() -> None:
    runs = [_run("none", 60.0), _run("fixed:2", 40.0), _run("fixed:4", 30.0), _run("law", 20.0)]
    runs.append(_run("fixed:1", 10.0, outcome="cut"))
    by_arm = {row.arm: row for row in summarize(runs)}
    assert by_arm["law"].vs_none == "3.00"
    assert by_arm["law"].vs_best_fixed == "1.50"
    assert by_arm["fixed:4"].vs_best_fixed == "1.00"
    assert by_arm["fixed:1"].vs_none == "<6.00"


def test_against_a_cut_reference_there_is_only_a_bound() -> None:
    none, law = summarize([_run("none", 100.0, outcome="cut"), _run("law", 50.0)])
    assert law.vs_none == ">2.00"
    assert "cut at 100.0" in table([none, law])


def test_several_rounds_are_one_row_with_median_and_spread() -> None:
    (row,) = summarize([_run("none", span_s) for span_s in (30.0, 10.0, 20.0)])
    assert (row.rounds, row.makespan_s, row.makespan_low_s, row.makespan_high_s) == (3, 20, 10, 30)
    assert "20.0 (10.0-30.0)" in table([row])


def test_arms_whose_work_differs_by_more_than_one_percent_do_not_agree() -> None:
    same, other = _run("none", 10.0), _run("law", 10.0)
    assert work_agrees([same, other])
    other.steps.pop()
    assert not work_agrees([same, other])
    other.outcome = "cut"  # a cut arm has done less by design
    assert work_agrees([same, other])


def test_a_record_is_json_and_its_series_are_differences_of_the_counters() -> None:
    run = _run("none", 2.0)
    run.before = Reading(at_s=0.0, hit_tokens_total=10, query_tokens_total=100)
    for at_s, hits, queries in ((1.0, 10, 100), (2.0, 60, 200)):
        reading = Reading(at_s=at_s, hit_tokens_total=hits, query_tokens_total=queries)
        run.samples.append(ReplaySample(at_s, 2, 1, 0, 0, reading, {"limit_agents": float("inf")}))
    record = json.loads(json.dumps(round_record(run), allow_nan=False))
    assert record["series"]["hit_rate"] == [None, 0.5]
    assert record["series"]["limit_agents"] == [None, None]
    assert record["steps"]["waited_s"] == [0.0, 2.0, 0.0, 2.0]


def test_rounds_read_back_from_their_records_are_summarized_as_before() -> None:
    """Replicates from several files make one table: nothing a table shows may be lost on disk."""
    runs = [_run("none", 60.0), _run("fixed:2", 40.0), _run("none", 50.0)]
    for run in runs:
        run.errors["APITimeoutError"] = 1
        run.before = Reading(at_s=0.0, preemptions_total=5.0)
        run.after = Reading(at_s=60.0, preemptions_total=7.0)
        run.samples.append(
            ReplaySample(1.0, 2, 1, 1, 0, Reading(at_s=1.0, kv_usage=0.5, running=1, waiting=0), {})
        )
    again = [read_round(json.loads(json.dumps(round_record(run)))) for run in runs]
    assert summarize(again) == summarize(runs)
    assert again[0].steps == runs[0].steps


# --- a server that misbehaves --------------------------------------------------------------------


class _Engine:
    """A server without a model: counts words, answers at once, and fails as told."""

    def __init__(self) -> None:
        self.takes_ids = True
        self.overhead_tokens = 0  # what it adds to a prompt of words
        self.max_model_len = 4096
        self.failures: list[int] = []  # statuses of the next completions
        # an arm resets the cache before and after its warm-up: the second is the last thing before
        # its agents
        self.failures_later: list[int] = []  # the same, from the second reset on
        self.stall_at_reset = 0  # between this reset and the next nothing is answered
        self.prompts: list[Any] = []
        self.resets = 0
        self.can_reset = True
        self.open = threading.Event()  # set: completions are answered
        self.linger_s = 0.0  # how long an answer takes
        self.most_at_once_since_reset = 0
        self._at_once = 0
        self._lock = threading.Lock()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if path == "/reset_prefix_cache?reset_external=true":
            self.resets += 1
            self.most_at_once_since_reset = 0
            if self.resets == 2:
                self.failures = list(self.failures_later)
            if self.resets == self.stall_at_reset:
                self.open.clear()
            else:
                self.open.set()
            return (200, {}) if self.can_reset else (404, {})
        if path == "/tokenize":
            words = body["prompt"].split()
            return 200, {"tokens": [int(word[1:]) if word[0] == "t" else 0 for word in words]}
        if path != "/v1/completions":
            return 404, {}
        prompt = body["prompt"]
        if isinstance(prompt, list) and not self.takes_ids:
            return 400, {"message": "prompt must be text"}
        with self._lock:
            self._at_once += 1
            self.most_at_once_since_reset = max(self.most_at_once_since_reset, self._at_once)
        self.open.wait(30)
        time.sleep(self.linger_s)
        with self._lock:
            self._at_once -= 1
            if self.failures:
                return self.failures.pop(0), {"message": "no"}
            self.prompts.append(prompt)
        words = prompt if isinstance(prompt, list) else prompt.split()
        tokens = len(words) + (0 if isinstance(prompt, list) else self.overhead_tokens)
        choice: dict[str, Any] = {"index": 0, "text": "", "finish_reason": "length"}
        if body.get("return_token_ids"):
            choice["token_ids"] = [7] * body["max_tokens"]
        return 200, {
            "id": "x",
            "object": "text_completion",
            "created": 0,
            "model": body["model"],
            "choices": [choice],
            "usage": {
                "prompt_tokens": tokens,
                "completion_tokens": body["max_tokens"],
                "total_tokens": tokens + body["max_tokens"],
            },
        }


@contextmanager
def _serving(engine: _Engine) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            model: dict[str, Any] = {"id": "m", "object": "model", "created": 0, "owned_by": "us"}
            model["max_model_len"] = engine.max_model_len
            self._reply(200, {"object": "list", "data": [model]})

        def do_POST(self) -> None:
            size = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(size) or b"{}")
            self._reply(*engine.answer(self.path, body))

        def _reply(self, status: int, body: dict[str, Any]) -> None:
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that hung up
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    engine.open.set()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        engine.open.set()
        server.shutdown()
        thread.join()
        server.server_close()


def _plans(agents: int = 2) -> list[AgentPlan]:
    plans = []
    for number in range(agents):
        name = f"a{number}"
        first, said = (Run((name, 0), 40),), Run((name, "said"), 5)
        then = (*first, said, Run((name, 1), 10))
        last = Run((name, "last"), 5)
        plans.append(AgentPlan(name, (PlanStep(first, said, 0.0), PlanStep(then, last, 0.0))))
    return plans


async def _replay(url: str, arms: str = "none", **options: Any) -> list[ArmRun]:
    endpoint = Endpoint(url + "/v1")
    await endpoint.open()
    try:
        return await replay(
            endpoint, _plans(), parse_arms(arms), None, Options(retry_wait_s=0.0, **options)
        )
    finally:
        await endpoint.close()


async def test_the_next_prompt_repeats_what_the_model_said_when_it_tells() -> None:
    engine = _Engine()
    with _serving(engine) as url:
        (run,) = await _replay(url)
    assert run.finished
    assert [row.prompt_tokens for row in run.steps if row.step == 1] == [55, 55]
    second = next(p for p in engine.prompts if len(p) == 55)
    first = next(p for p in engine.prompts if p == second[:40])
    assert second[40:45] == [7] * 5
    assert len(first) == 40


async def test_an_endpoint_that_takes_only_text_gets_words_of_one_token_each() -> None:
    engine = _Engine()
    engine.takes_ids, engine.overhead_tokens = False, 1
    with _serving(engine) as url:
        (run,) = await _replay(url)
    # the token that the server puts before every text is left out of ours
    assert sorted(row.prompt_tokens for row in run.steps) == [40, 40, 55, 55]
    assert run.wrong_lengths == 0
    # what the model said is not known, so only the prompt itself could be reused
    assert {row.reusable_tokens for row in run.steps if row.step == 1} == {40}


async def test_an_endpoint_without_exact_counts_is_refused_with_its_own_words() -> None:
    engine = _Engine()
    engine.failures = [422] * 10
    with _serving(engine) as url, pytest.raises(EndpointError, match="no exact token counts"):
        await Endpoint(url).open()


async def test_passing_errors_are_tried_again_and_counted() -> None:
    engine = _Engine()
    engine.failures_later = [503, 429]
    with _serving(engine) as url:
        (run,) = await _replay(url)
    assert run.finished
    assert run.agents_done == 2
    assert run.errors == Counter({"InternalServerError 503": 1, "RateLimitError 429": 1})


@pytest.mark.parametrize("statuses", [[400], [500, 500, 500]], ids=["refused", "third failure"])
async def test_a_call_that_cannot_be_answered_ends_its_agent_and_no_other(
    statuses: list[int],
) -> None:
    engine = _Engine()
    engine.failures_later = statuses
    with _serving(engine) as url:
        # one agent at a time, so that all failures meet the first
        (run,) = await _replay(url, arms="fixed:1")
    assert (run.agents_failed, run.agents_done) == (1, 1)
    assert run.outcome == "finished"
    assert not run.finished
    assert run.errors.total() == len(statuses)
    (row,) = summarize([run])
    assert "1 agents lost" in table([row])


async def test_an_arm_out_of_time_is_cut_and_the_next_one_begins_afresh() -> None:
    engine = _Engine()
    engine.stall_at_reset = 2
    with _serving(engine) as url:
        cut, after = await _replay(url, arms="none,fixed:2", limit_s=0.3)
    assert cut.outcome == "cut"
    assert cut.span_s == pytest.approx(0.3, abs=0.2)
    assert after.finished


async def test_no_arm_begins_that_could_not_run_before_the_deadline() -> None:
    with _serving(_Engine()) as url:
        (run,) = await _replay(url, deadline_s=5.0)
    assert run.outcome == "skipped"
    assert summarize([run]) == []


async def test_without_a_reset_no_arm_lives_off_what_another_left_in_the_cache() -> None:
    engine = _Engine()
    engine.can_reset = False
    with _serving(engine) as url:
        runs = await _replay(url, arms="none,fixed:2")
    assert not any(run.cache_reset for run in runs)
    firsts = [tuple(prompt) for prompt in engine.prompts if len(prompt) == 40]
    assert len(set(firsts)) == len(firsts) == 4


async def test_with_a_reset_every_arm_and_round_asks_for_the_same() -> None:
    engine = _Engine()
    with _serving(engine) as url:
        runs = await _replay(url, arms="none,requests:1", repeat=2)
    assert [(run.arm, run.round) for run in runs] == [
        ("none", 0),
        ("requests:1", 0),
        ("none", 1),
        ("requests:1", 1),
    ]
    firsts = Counter(tuple(prompt) for prompt in engine.prompts if len(prompt) == 40)
    assert set(firsts.values()) == {4}
    assert work_agrees(runs)


@pytest.mark.parametrize(("arm", "at_once"), [("none", 2), ("requests:1", 1)])
async def test_a_cap_on_requests_bounds_calls_in_flight(arm: str, at_once: int) -> None:
    engine = _Engine()
    engine.linger_s = 0.1
    with _serving(engine) as url:
        await _replay(url, arms=arm)
    assert engine.most_at_once_since_reset == at_once


class _Curious:
    """Lets everybody in and keeps what it was told of prompts."""

    def __init__(self) -> None:
        self.arrivals: list[int | None] = []
        self.steps: list[dict[str, int]] = []

    @asynccontextmanager
    async def agent(
        self, agent_id: str, *, prompt_tokens: int | None = None
    ) -> AsyncIterator[_Curious]:
        self.arrivals.append(prompt_tokens)
        yield self

    @asynccontextmanager
    async def step(self, **known: int) -> AsyncIterator[_Curious]:
        self.steps.append(known)
        yield self

    @asynccontextmanager
    async def tool(self, name: str) -> AsyncIterator[None]:
        yield

    def record(self, usage: Any) -> None:
        pass

    def view(self) -> dict[str, Any]:
        return {}

    def address_of(self, agent_id: str) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("lengths", "arrivals", "steps"),
    [
        ("told", [40], [{"prompt_tokens": 40}, {"prompt_tokens": 55}]),
        ("unknown", [None], [{}, {}]),
    ],
)
async def test_gates_know_of_prompts_what_the_options_say(
    lengths: Any, arrivals: list[int | None], steps: list[dict[str, int]]
) -> None:
    gate = _Curious()
    await _through(gate, Options(lengths=lengths))
    assert (gate.arrivals, gate.steps) == (arrivals, steps)


async def test_a_gate_sees_the_size_of_a_prompt_unless_told_otherwise_as_drop_in_clients_do() -> (
    None
):
    gate = _Curious()
    await _through(gate, Options())
    assert gate.arrivals == [None]
    first, then = (known["prompt_bytes"] for known in gate.steps)
    # ids of three or four digits and a comma each; the answer repeats the one-digit id 7
    assert 160 <= first <= 200
    assert first + 5 * 2 + 10 * 4 <= then <= first + 5 * 2 + 10 * 5


async def _through(gate: _Curious, options: Options) -> None:
    arm = dataclasses.replace(parse_arm("none"), build=lambda probe: gate)
    with _serving(_Engine()) as url:
        endpoint = Endpoint(url)
        await endpoint.open()
        (run,) = await replay(endpoint, _plans(1), [arm], None, options)
        await endpoint.close()
    assert run.finished


async def test_the_second_estimate_is_scaled_by_what_the_first_prompt_took() -> None:
    """Footprints would stay a quarter off for ever if usage did not correct the estimates."""
    gate = parse_arm("fixed:2").build(None)

    def pressure_tokens() -> float:
        return float(gate.view()["pressure_tokens"] or 0)

    try:
        async with gate.agent("a") as agent:
            async with agent.step(prompt_bytes=8000) as step:
                # and room for the answer; four bytes a token before anything is known
                assert 2000 <= pressure_tokens() < 2300
                step.record(Usage(prompt_tokens=1600, completion_tokens=0))
            async with agent.step(prompt_bytes=10_000):
                assert 2000 <= pressure_tokens() < 2300  # not 2,500
    finally:
        gate.close()


async def test_a_bug_in_one_arm_does_not_take_the_others_with_it() -> None:
    broken = parse_arm("none")

    class Broken:
        def agent(self, agent_id: str, *, prompt_tokens: int | None = None) -> Any:
            raise RuntimeError("out of ideas")

        def view(self) -> dict[str, Any]:
            return {}

        def close(self) -> None:
            pass

    arms = [dataclasses.replace(broken, name="law", build=lambda probe: Broken()), broken]
    kept: list[int] = []
    with _serving(_Engine()) as url:
        endpoint = Endpoint(url)
        await endpoint.open()
        runs = await replay(
            endpoint, _plans(), arms, None, Options(), keep=lambda runs: kept.append(len(runs))
        )
        await endpoint.close()
    assert [run.outcome for run in runs] == ["broken", "finished"]
    assert "out of ideas" in runs[0].problem
    assert kept == [1, 2]


async def test_an_agent_larger_than_the_server_takes_is_refused_before_anything_runs() -> None:
    engine = _Engine()
    engine.max_model_len = 50
    with _serving(engine) as url, pytest.raises(ConfigError, match="--max-context"):
        await _replay(url)


async def test_a_long_prompt_costs_the_client_next_to_nothing() -> None:
    # the openai client's own completions.create() takes 0.4 s of CPU for 10,000 ids: with it, a
    # hundred agents would measure the client
    with _serving(_Engine()) as url:
        endpoint = Endpoint(url)
        await endpoint.open()
        prompt = endpoint.vocabulary("long").spell("long", 10_000)
        began_s = time.process_time()
        for _ in range(5):
            await endpoint.complete(prompt, 4)
        spent_s = time.process_time() - began_s
        await endpoint.close()
    assert spent_s / 5 < 0.1
