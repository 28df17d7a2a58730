"""Why an agent waited: the answer is what the Regulator itself decided and counted."""

import asyncio
import json
import re
from pathlib import Path
from typing import get_args

import pytest

from concur_agents.cli.advice import CAUSES, TO_DO
from concur_agents.cli.app import main
from concur_agents.cli.watch_recording import Screen
from concur_agents.core import Fleet, Reading, Regulator, Usage, make_law
from concur_agents.core.why import Cause
from concur_agents.recording import Happening, Recording, record
from concur_agents.recording.timeline_builder import read_timeline
from concur_agents.testing import run as run_virtual
from concur_agents.testing import virtual_governor


def concur(*words: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    code = left.value.code
    return code if isinstance(code, int) else 0


@pytest.fixture
def queue_of_three(tmp_path):
    """A cap of one: `first` works for 10 s, then `second` for 5 s, then `third`."""
    recorded, recorder = record(Regulator(make_law("fixed", agents=1)), tmp_path / "run.jsonl")
    with recorder:
        for name in ("first", "second", "third"):
            recorded.arrive(name, 0.0)
        recorded.begin_step("first", 0.0)
        recorded.end_step("first", 10.0, None)
        assert recorded.leave("first", 10.0) == ["second"]
        recorded.begin_step("second", 10.0)
        assert recorded.leave("second", 15.0) == ["third"]
        recorded.leave("third", 16.0)
    return Recording(recorder.path)


def test_a_wait_has_a_length_a_reason_an_end_and_agents_before_it(queue_of_three, capsys):
    assert concur("explain", queue_of_three.path, "--agent", "third", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {
        "agent": "third",
        "steps": 0,
        "queued_s": 15.0,
        "paused_s": 0,
        "running_s": 1.0,
        "waits": [
            {
                "kind": "queued",
                "from_s": 0.0,
                "waited_s": 15.0,
                "cause": "agents",
                "why": "1 of 1 agents active",
                "ended_by": "second left",
                "before_it": ["second"],
            }
        ],
        "what_to_do": "What to do: for 100% of the waiting the limit of active agents is reached: "
        + TO_DO["agents"]
        + ".",
    }


def test_the_timeline_reads_down_the_page(queue_of_three, capsys):
    assert concur("explain", queue_of_three.path, "--agent", "third") == 0
    words = " ".join(capsys.readouterr().out.split())
    pieces = [
        "third: 0 steps, queued 15.0 s and paused 0.0 s (94% of its life)",
        "0.0 s arrives",
        "0.0 s queued, because the limit of active agents is reached: 1 of 1 agents active",
        "15.0 s goes on after 15.0 s, because second left; let in before it: second",
        "16.0 s leaves",
        "What to do: for 100% of the waiting the limit of active agents is reached: if the pool",
    ]
    places = [words.index(piece) for piece in pieces]
    assert places == sorted(places)


def test_all_agents_are_listed_longest_wait_first(batch, capsys):
    assert concur("explain", batch.path, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["agents"] == 12
    waits = [row["queued_s"] + row["paused_s"] for row in said["longest"]]
    assert waits == sorted(waits, reverse=True)
    assert sum(waits) == pytest.approx(said["waits"]["total_s"])
    assert sum(said["ended_by"].values()) == said["waits"]["number"] > 10
    assert concur("explain", batch.path, "--most", "3") == 0
    assert "and 9 more" in capsys.readouterr().out


def test_each_wait_of_a_busy_batch_has_the_regulators_own_reason(batch, capsys):
    longest = max(read_timeline(batch).waits, key=lambda wait: wait.waited_s)
    assert concur("explain", batch.path, "--agent", longest.agent, "--json") == 0
    waits = json.loads(capsys.readouterr().out)["waits"]
    assert waits
    for wait in waits:
        assert wait["why"].startswith("pressure ")
        assert "for its step, limit" in wait["why"]


def test_the_sums_are_those_of_the_agents_own_stats(tmp_path):
    path = tmp_path / "run.jsonl"

    async def main():
        async with virtual_governor(limit=2, record=path) as governor:

            async def life(name):
                async with governor.agent(name) as agent:
                    for _ in range(3):
                        async with agent.step():
                            await asyncio.sleep(2)
                        async with agent.suspended():
                            await asyncio.sleep(1)
                return agent.stats

            return await asyncio.gather(*(life(f"agent {n}") for n in range(5)))

    stats = run_virtual(main())
    lanes = read_timeline(Recording(path)).lanes
    for n, stat in enumerate(stats):
        lane = lanes[f"agent {n}"]
        # After `suspended` an agent asks anew: it is queued, which its own stats count as a pause.
        assert lane.seconds("queued", "paused") + lane.seconds("suspended") == pytest.approx(
            stat.queued_s + stat.paused_s + 3.0, abs=1.1
        )
        assert lane.seconds("suspended") == pytest.approx(3.0)
        assert lane.steps == stat.steps == 3


def test_a_wait_that_never_ended_is_shown_too(tmp_path, capsys):
    """A recording is often read because its batch hangs."""
    recorded, recorder = record(Regulator(make_law("fixed", agents=1)), tmp_path / "run.jsonl")
    with recorder:
        recorded.arrive("first", 0.0)
        recorded.begin_step("first", 0.0)
        recorded.arrive("second", 1.0)
        recorded.advance(61.0)
    assert concur("explain", recorder.path, "--agent", "second") == 0
    assert "still waits after 60.0 s" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("written", [True, False])
def test_a_recording_without_its_beginning_is_explained_by_what_was_written(
    batch, tmp_path, capsys, written
):
    """The first files of a long recording go, but each wait has its numbers in its own line."""
    header, *lines = [json.loads(line) for line in batch.path.read_text("utf-8").splitlines()]
    header["from_start"] = False
    if not written:  # then the numbers of the ticks are shown
        lines = [{key: value for key, value in line.items() if key != "why"} for line in lines]
    path = tmp_path / "late.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (header, *lines)))
    agent = max(read_timeline(batch).waits, key=lambda wait: wait.waited_s).agent
    assert concur("explain", path, "--agent", agent, "--json") == 0
    waits = json.loads(capsys.readouterr().out)["waits"]
    words = "for its step, limit" if written else "at the tick before"
    assert all(words in wait["why"] for wait in waits[1:])
    screen = Screen(Recording(path))
    why = set()
    for line in Recording(path):
        screen.take(line)
        if line.agent == agent and line.now > 20:
            why |= {row.why for row in screen.frame().waiting if row.agent == agent}
    assert any("for its step, limit" in text for text in why) == written


@pytest.mark.parametrize(
    ("read_s", "parts"),
    [(0.5, {"agents": 9.5, "first_reading": 0.5}), (2.0, {"agents": 9.0, "first_reading": 1.0})],
)
def test_a_wait_that_outlasts_the_first_reading_is_not_all_of_it(read_s, parts, tmp_path, capsys):
    """The engine is read after so long; what it then allows keeps the second agent waiting."""
    options = {"first_reading_s": 1.0}
    recorded, recorder = record(
        Regulator(make_law("fixed", agents=1), **options), tmp_path / "run.jsonl", **options
    )
    with recorder:
        assert recorded.arrive("first", 0.0) == ["first"]
        recorded.arrive("second", 0.0)
        recorded.tick(Reading(at_s=read_s), read_s)
        recorded.leave("first", 10.0)
        recorded.leave("second", 11.0)
    assert concur("explain", recorder.path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["waited_s"] == parts


def test_a_misspelt_agent_gets_the_nearest_name(queue_of_three, capsys):
    assert concur("explain", queue_of_three.path, "--agent", "secnd") == 2
    assert "did you mean 'second'?" in capsys.readouterr().err


POOLS = ["http://gpu1:8000", "http://gpu2:8000"]


@pytest.fixture
def two_pools(tmp_path):
    """A cap of one each: `a` and `b` run; the pool of `b` goes down, so it waits for the other."""
    options = {"first_reading_s": 0.0}
    fleet = Fleet(make_law("fixed", agents=1), POOLS, **options)
    recorded, recorder = record(fleet, tmp_path / "run.jsonl", **options)
    with recorder:
        for name in "ab":
            recorded.arrive(name, 0.0)
        for name in "ab":
            recorded.begin_step(name, 0.0)
            recorded.end_step(name, 1.0, Usage(1000, 10, 900))
        recorder.note(
            Happening(kind="poll_failed", now=2.0, pool=POOLS[1], reason="no answer in 5 s")
        )
        for now in (2.0, 10.0):
            recorded.tick(Reading(at_s=now, capacity_tokens=9000), now, POOLS[0])
            recorded.tick(None, now, POOLS[1])
        recorded.begin_step("b", 11.0)
        recorded.leave("a", 20.0)
        recorded.end_step("b", 25.0, Usage(2000, 10, 0))
        recorded.leave("b", 26.0)
        recorded.tick(Reading(at_s=31.0), 31.0, POOLS[0])
        recorded.tick(None, 31.0, POOLS[1])
    return Recording(recorder.path)


def test_of_several_pools_it_says_which_one_and_when_an_agent_moved(two_pools, capsys):
    assert concur("explain", two_pools.path, "--agent", "b") == 0
    words = " ".join(capsys.readouterr().out.split())
    assert words.startswith("b in http://gpu1:8000: 2 steps")
    assert "11.0 s paused, because the limit of active agents is reached: 1 of 1" in words
    assert "goes on in http://gpu1:8000 after 9.0 s, because a left" in words
    concur("explain", two_pools.path, "--agent", "b", "--json")
    said = json.loads(capsys.readouterr().out)
    assert said["pools"] == [
        {"since_s": 0.0, "pool": POOLS[1]},
        {"since_s": 20.0, "pool": POOLS[0]},
    ]
    assert [wait["pool"] for wait in said["waits"]] == [POOLS[0]]


def test_of_several_pools_it_adds_up_each(two_pools, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")  # because a narrow terminal cuts cells
    assert concur("explain", two_pools.path) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "http://gpu1:8000 2 2 30% 1 agents" in words
    assert "http://gpu2:8000 1 1 90% 1 agents down for 21 s" in words
    assert "http://gpu2:8000 was down: no answer in 5 s" in words
    concur("explain", two_pools.path, "--json")
    said = json.loads(capsys.readouterr().out)
    assert [(row["pool"], row["agents"], row["steps"]) for row in said["pools"]] == [
        (POOLS[0], 2, 2),
        (POOLS[1], 1, 1),
    ]
    assert said["pools"][1]["reason"] == "down"
    assert [row["why_down"] for row in said["pools"]] == ["", "no answer in 5 s"]


def test_it_ends_with_what_to_do_about_a_full_pool(batch, capsys):
    assert concur("explain", batch.path) == 0
    last = capsys.readouterr().out.rstrip().rpartition("\n")[2]
    assert re.fullmatch(r"What to do: for \d+% of the waiting the pool is full: add a rep.*", last)
    assert concur("explain", batch.path, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["what_to_do"] == last
    assert next(iter(said["waited_s"])) == "tokens"
    assert sum(said["waited_s"].values()) == pytest.approx(said["waits"]["total_s"])


def test_where_agents_hardly_wait_nothing_is_to_be_done(tmp_path, capsys):
    """A limit that binds now and then is no trouble."""
    recorded, recorder = record(Regulator(make_law("fixed", agents=1)), tmp_path / "run.jsonl")
    with recorder:
        recorded.arrive("first", 0.0)
        recorded.arrive("second", 99.0)
        recorded.leave("first", 100.0)
        recorded.leave("second", 200.0)
    assert concur("explain", recorder.path) == 0
    assert "What to do: nothing. Waits are 0% of the agents' time." in capsys.readouterr().out
    assert concur("explain", recorder.path, "--agent", "second") == 0
    assert "What to do: nothing. Waits are 1% of its time." in capsys.readouterr().out


def test_every_cause_has_words_that_the_docs_have_too():
    """The reader of an answer should find it again, with what helps."""
    waits = {*get_args(Cause)} - {"absent", "active", "suspended"}
    assert waits <= CAUSES.keys()
    page = (Path(__file__).parents[2] / "docs/recordings.md").read_text("utf-8")
    missing = [text for text in CAUSES.values() if f"| {text} |" not in page]
    assert missing == []
