"""`concur demo`: what it decides before the run, what it counts after it, and the whole of it."""

import asyncio
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from concur_agents.cli.app import main
from concur_agents.core import Regulator, make_law
from concur_agents.errors import ConcurError, ConfigError
from concur_agents.lab.demo import Arm, Course, Texts, make_scenario, parse_arms, run_arm, summarize
from concur_agents.lab.demo.chat import Chat
from concur_agents.lab.demo.picture import draw
from concur_agents.lab.demo.report import series_of
from concur_agents.lab.replay.batch import StepRow
from concur_agents.probes.http import TIMEOUT_S
from concur_agents.sim.client_clock import ClientClock
from concur_agents.sim.profile import load_profile
from concur_agents.sim.runner import RegulatorGate, Ungoverned, simulate
from concur_agents.sim.server import EmbeddedServer
from concur_agents.sim.text import Reply, count_tokens

ROOT = Path(__file__).parents[3]
SMALL = load_profile("h100-qwen3-8b").replace(kv_blocks=640)
"""A pool of 10,240 tokens: room for two agents of five steps, not for ten."""


def small_scenario(**options):
    chosen = {"profile": SMALL, "agents": 10, "max_steps": 5, "arms": "none,fixed:2,cache_aimd"}
    return make_scenario(**{**chosen, **options})


def simulated(scenario, arm):
    """The batch in virtual time, as a Course, and the simulator's own result."""
    gate = Ungoverned() if arm.law is None else RegulatorGate(Regulator(arm.law))
    result = simulate(scenario.plans, scenario.profile, gate)
    course = Course(arm, pauses=result.pauses, makespan_s=result.makespan_s)
    for plan, row in zip(scenario.plans, result.rows, strict=True):
        sent = [0]
        for (before, step), call in zip(pairwise(plan.steps), row.calls[1:], strict=True):
            same = 0
            for one, other in zip((*before.prompt, before.output), step.prompt, strict=False):
                if one != other:
                    break
                same += one.tokens
            held = before.prompt_tokens + before.output.tokens - 1
            sent.append(min(same, held, call.prompt_tokens - 1) // 16 * 16)
        course.calls[plan.id] = [
            StepRow(
                plan.id,
                number,
                c.gate_s,
                c.start_s,
                c.end_s,
                c.prompt_tokens,
                c.cached_tokens,
                c.output_tokens,
                reusable,
            )
            for number, (c, reusable) in enumerate(zip(row.calls, sent, strict=True))
        ]
    return course, result


# --- before the run ------------------------------------------------------------------------------


def test_the_same_seed_is_the_same_batch_and_another_one_is_not():
    one, again, other = small_scenario(), small_scenario(), small_scenario(seed=1)
    assert one.plans == again.plans
    assert one.plans != other.plans


def test_the_batch_is_real_and_far_beyond_the_pool_by_default():
    """What the README shows: at least 64 recorded agents, four to six pools, nobody cut short by
    the pool itself.
    """
    scenario = make_scenario(max_steps=32)
    assert len(scenario.plans) == 64
    assert 4 <= scenario.oversubscription <= 6
    assert [arm.label for arm in scenario.arms] == ["ungoverned", "fixed cap of 14", "working_set"]


def test_the_speedups_that_the_docs_name_are_those_of_the_demo():
    """A change of a law moves them, and the pages would go on with the old ones."""

    def speedups(seed):
        scenario = make_scenario(arms="none,fixed,working_set,cache_aimd", max_steps=32, seed=seed)
        none, *governed = scenario.virtual_s
        return [f"{none / each:.2f}" for each in governed]

    cap, ours, published = speedups(seed=0)
    _, ours_again, published_again = speedups(seed=1)
    quickstart = (ROOT / "docs" / "quickstart.md").read_text("utf-8")
    assert f"| × ungoverned | **1.00** | **{cap}** | **{ours}** |" in quickstart
    assert f"{ours} times; with `--seed 1` {ours_again} |" in quickstart
    assert f"{published} times; with `--seed 1` {published_again} |" in quickstart
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    assert f"{ours} times as fast as without a limit" in readme
    assert f"the cap that fits on average gives {cap}" in readme


def test_messages_are_as_long_as_recorded_and_repeat_what_the_model_said():
    plan = next(
        plan
        for plan in small_scenario().plans
        if any(before.output in step.prompt for before, step in pairwise(plan.steps))
    )
    texts = Texts([plan], seed=0)
    chat = Chat(plan, texts)
    repeated = 0
    for number, step in enumerate(plan.steps):
        messages = chat.messages(step)
        assert sum(count_tokens(m["content"]) for m in messages) == step.prompt_tokens
        assert messages[0]["role"] == "system"
        repeated += sum(m["role"] == "assistant" for m in messages)
        assert all(m["content"].startswith("I") for m in messages if m["role"] == "assistant")
        chat.hear(step, ("I" + str(number)).ljust(4 * step.output.tokens))
    assert repeated


def test_arms_are_read_from_words():
    arms = parse_arms("none, fixed, fixed:3,cache_aimd", cap=7)
    assert [arm.label for arm in arms] == [
        "ungoverned",
        "fixed cap of 7",
        "fixed cap of 3",
        "cache_aimd",
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("none,pid", "no arm 'pid': use none, fixed:N or a law"),
        ("fixed:0", "whole number of at least 1"),
        ("none,none", "named twice"),
        ("fixed,fixed:7", "named twice"),
        (" , ", "at least one arm"),
    ],
)
def test_arms_that_make_no_sense_say_what_to_write(text, complaint):
    with pytest.raises(ConfigError, match=complaint):
        parse_arms(text, cap=7)


# --- after it ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_report_counts_what_the_simulator_counts(number):
    """Two ways to the same numbers: the table is held against the simulator's own result."""
    scenario = small_scenario()
    course, result = simulated(scenario, scenario.arms[number])
    (report,) = summarize(dataclasses.replace(scenario, arms=(course.arm,)), [course])
    for name in ("cached_share", "hit_deficit", "mean_active", "agents_per_min", "pauses"):
        wanted = getattr(result, {"cached_share": "hit_rate"}.get(name, name))
        assert getattr(report, name) == pytest.approx(wanted, abs=1e-9), name
    assert report.output_tokens_per_s == pytest.approx(result.output_tokens_per_s)
    assert report.worst_wait_s == pytest.approx(result.wait_worst_s)
    assert report.calls == result.steps


def test_curves_hold_exactly_what_the_table_sums_up():
    scenario = small_scenario()
    course, result = simulated(scenario, scenario.arms[1])
    every_s = course.makespan_s / 50
    curves = series_of(course, every_s)
    assert sum(curves.active) / 50 == pytest.approx(result.mean_active)
    assert sum(curves.output_tokens_per_s) * every_s == pytest.approx(result.output_tokens)
    assert max(curves.active) == pytest.approx(2)


def test_speedups_are_against_the_ungoverned_arm_wherever_it_stands():
    scenario = small_scenario(arms="fixed:2,none")
    row = StepRow("a", 0, 0.0, 0.0, 1.0, 10, 0, 1, 0)
    courses = [
        Course(arm, {"a": [row]}, makespan_s=makespan_s)
        for arm, makespan_s in zip(scenario.arms, (50.0, 100.0), strict=True)
    ]
    assert [report.speedup for report in summarize(scenario, courses)] == [2.0, 1.0]
    (alone,) = summarize(scenario, courses[:1])
    assert alone.speedup is None


def test_without_matplotlib_the_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    scenario = small_scenario()
    course, _ = simulated(scenario, scenario.arms[0])
    with pytest.raises(ImportError, match=r'pip install "concur-agents\[plot\]"'):
        draw(scenario, [course], [tmp_path / "a.png"])


# --- the whole of it -----------------------------------------------------------------------------


def test_the_demo_runs_every_arm_over_http_and_tells_it_all_as_json(tmp_path, capsys):
    profile = tmp_path / "small.toml"
    fields = dataclasses.asdict(SMALL)
    profile.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in fields.items()))
    words = ["demo", "--json", "--agents", "10", "--steps", "5", "--profile", str(profile)]
    with pytest.raises(SystemExit) as end:
        main([*words, "--arms", "none,fixed:2,cache_aimd", "--out", str(tmp_path / "out")])
    assert end.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert told["scenario"]["agents"] == 10
    assert told["scenario"]["oversubscription"] > 3
    free, capped, governed = told["arms"]
    assert [arm["law"] for arm in told["arms"]] == [None, "fixed", "cache_aimd"]
    work = {(arm["calls"], arm["prompt_tokens"], arm["output_tokens"]) for arm in told["arms"]}
    assert work == {(50, free["prompt_tokens"], free["output_tokens"])}
    assert free["hit_deficit"] > 0.5
    assert capped["hit_deficit"] < 0.1
    assert governed["hit_deficit"] < free["hit_deficit"]
    assert capped["mean_active"] <= 2 < governed["mean_active"] < free["mean_active"]
    assert free["pauses"] == 0
    assert len(free["series"]["at_s"]) == len(free["series"]["active"]) > 20
    for file in told["files"]:
        assert (tmp_path / "out" / file.rpartition("/")[2]).stat().st_size > 10_000


def test_an_unknown_law_is_one_line_that_lists_the_laws(capsys):
    with pytest.raises(SystemExit) as end:
        main(["demo", "--law", "pid"])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "no arm 'pid'" in said
    assert "working_set" in said


@pytest.mark.parametrize("command", ["demo", "bench"])
def test_a_folder_that_is_a_file_is_told_before_anything_runs(command, tmp_path, capsys):
    file = tmp_path / "notes.txt"
    file.touch()
    with pytest.raises(SystemExit) as end:
        main([command, "--out", str(file)])
    assert end.value.code == 2
    assert "is a file" in capsys.readouterr().err


def test_ctrl_c_ends_the_demo_and_its_server_at_once(tmp_path):
    """The terminal sends it to all; a server that goes first would turn it into a failed call."""
    program = (  # where tests run in the background, SIGINT is ignored and that is inherited
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from concur_agents.cli.app import main; main()"
    )
    words = ["demo", "--steps", "0"]
    demo = subprocess.Popen(
        [sys.executable, "-c", program, *words, "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert demo.stdout is not None
    while "waits for them" not in demo.stdout.readline():
        assert demo.poll() is None
    time.sleep(2.0)  # into the first arm, or still before it: both have to end
    os.killpg(demo.pid, signal.SIGINT)
    said, _ = demo.communicate(timeout=30)
    assert demo.returncode == 130, said
    assert "interrupted; nothing was written" in said
    assert not list(tmp_path.iterdir())


async def test_an_arm_whose_calls_are_not_counted_as_recorded_is_not_reported():
    """Else two arms could differ in the work they did, and the faster one look better for it."""
    scenario = small_scenario(agents=2)
    server = EmbeddedServer(SMALL, clock=ClientClock(), script=lambda _: Reply("too short"))
    with pytest.raises(ConcurError, match="would not do the same work"):
        async with server:
            await run_arm(Arm("none", None), scenario, [server], Texts(scenario.plans, 0))


async def ran(scenario, arm, around=None):
    async with EmbeddedServer(SMALL, clock=ClientClock(), middleware=around) as server:
        return await run_arm(arm, scenario, [server], Texts(scenario.plans, 0))


@pytest.mark.parametrize("number", [0, 1, 2])
async def test_an_arm_takes_as_long_as_in_the_simulator(number):
    """HTTP, clients and the governor's own readings cost real time, and none of the engine's."""
    scenario = small_scenario()
    course = await ran(scenario, scenario.arms[number])
    assert course.makespan_s == pytest.approx(scenario.virtual_s[number], rel=0.001)


@pytest.mark.parametrize("law", ["none", "working_set"])
async def test_slow_clients_and_a_slow_server_change_no_figure(law):
    """The clock waits for them, so the demo shows the same on a busy machine."""

    def slowly(app):
        async def slow(scope, receive, send):
            await asyncio.sleep(0.01 * (hash(scope.get("client")) % 3))
            await app(scope, receive, send)
            time.sleep(0.005)

        return slow

    scenario = small_scenario(arms=law)
    quick = await ran(scenario, scenario.arms[0])
    slow = await ran(scenario, scenario.arms[0], slowly)
    assert slow.calls == quick.calls
    assert slow.pauses == quick.pauses


async def test_a_page_that_takes_longer_than_a_reading_may_on_the_wall_changes_no_figure(caplog):
    """On a busy machine a reading took two seconds and counted as failed."""
    pages = 0

    def slow_pages(app):
        async def slow(scope, receive, send):
            nonlocal pages
            if scope.get("path") == "/metrics":
                pages += 1
                if pages == 2:
                    await asyncio.sleep(TIMEOUT_S + 0.5)
            await app(scope, receive, send)

        return slow

    scenario = small_scenario(arms="working_set")
    quick = await ran(scenario, scenario.arms[0])
    slow = await ran(scenario, scenario.arms[0], slow_pages)
    assert pages > 2
    assert "cannot read the engine" not in caplog.text
    assert slow.calls == quick.calls


async def test_a_governed_arm_lives_on_the_engines_clock():
    """A law that decides every 5 s does so every 5 s of the engine; waits are in its seconds."""
    scenario = small_scenario()
    arm = Arm("cache_aimd", make_law("cache_aimd", start=1, interval_s=5.0))
    course = await ran(scenario, arm)
    waits_s = [row.waited_s for rows in course.calls.values() for row in rows]
    assert 5 < max(waits_s) < course.makespan_s
    # One agent at a time would take the sum of all lives; the law has grown well before that.
    lives_s = sum(rows[-1].done_s - rows[0].sent_s for rows in course.calls.values())
    assert course.makespan_s < 0.8 * lives_s


# --- several replicas ----------------------------------------------------------------------------


def fleet_scenario(**options):
    return small_scenario(
        **{"replicas": 2, "agents": 14, "arms": "none,sticky,fixed:2,working_set", **options}
    )


async def ran_by_replicas(scenario, arm):
    clock = ClientClock()
    async with (
        EmbeddedServer(SMALL, clock=clock) as one,
        EmbeddedServer(SMALL, clock=clock) as two,
    ):
        course = await run_arm(arm, scenario, [one, two], Texts(scenario.plans, 0))
        return course, [one.stats.calls, two.stats.calls]


def test_with_replicas_the_ungoverned_arms_are_two_routers():
    scenario = fleet_scenario()
    labels = [arm.label for arm in scenario.arms]
    assert labels == ["round robin", "sticky", "fixed cap of 2", "working_set"]
    assert scenario.oversubscription == pytest.approx(
        scenario.final_tokens / (2 * SMALL.capacity_tokens)
    )
    with pytest.raises(ConfigError, match="no arm 'sticky'"):
        small_scenario(arms="sticky")


@pytest.mark.parametrize("number", [0, 1, 2, 3])
async def test_replicas_behind_several_ports_take_as_long_as_in_the_simulator(number):
    scenario = fleet_scenario()
    course, calls = await ran_by_replicas(scenario, scenario.arms[number])
    assert course.makespan_s == pytest.approx(scenario.virtual_s[number], rel=0.001)
    assert sum(calls) == scenario.calls
    assert min(calls) > 0.3 * scenario.calls


async def test_a_governed_agent_finds_its_history_in_its_replica():
    scenario = fleet_scenario(arms="none,fixed:2")
    courses = [(await ran_by_replicas(scenario, arm))[0] for arm in scenario.arms]
    free, capped = summarize(scenario, courses)
    assert free.hit_deficit > 0.5
    assert capped.hit_deficit < 0.02


async def test_the_same_fleet_gives_the_same_figures_twice():
    scenario = fleet_scenario(arms="working_set")
    first, again = [await ran_by_replicas(scenario, scenario.arms[0]) for _ in range(2)]
    assert first[0].calls == again[0].calls
