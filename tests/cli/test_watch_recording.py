"""`concur watch RECORDING`: a governor at work, by the file that it writes."""

import io
import json
import threading

import pytest
from rich.console import Console

from concur_agents import Governor
from concur_agents.cli.app import main
from concur_agents.cli.chart import chart
from concur_agents.cli.dashboard import dashboard, pool_bar, thinned
from concur_agents.cli.watch import is_path
from concur_agents.cli.watch_recording import Screen
from concur_agents.core import Reading, Regulator, Usage, make_law
from concur_agents.observe.frame import Frame, Point
from concur_agents.recording import Recording, record


def concur(*words):
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    code = left.value.code
    return code if isinstance(code, int) else 0


@pytest.fixture
def half_way(tmp_path):
    """One reasons, one acts with a context that has half faded, one waits for 30 s."""
    recorded, recorder = record(Regulator(make_law("fixed", agents=2)), tmp_path / "run.jsonl")
    for name in ("reasons", "acts", "waits"):
        recorded.arrive(name, 0.0)
    for name in ("reasons", "acts"):
        recorded.begin_step(name, 0.0)
        recorded.end_step(name, 5.0, Usage(4000, 0, 1000))
    recorded.begin_step("reasons", 6.0)
    recorded.tick(Reading(at_s=10.0, capacity_tokens=10_000), 10.0)
    recorded.advance(30.0)
    recorder.close()
    return Recording(recorder.path)


def screen_of(recording):
    screen = Screen(recording)
    for line in recording:
        screen.take(line)
    return screen


def test_a_frame_says_who_holds_what_and_who_waits_why(half_way):
    frame = screen_of(half_way).frame()
    assert (frame.at_s, frame.reasoning, frame.acting, frame.queued) == (30.0, 1, 1, 1)
    assert frame.capacity_tokens == 10_000
    assert 4000 <= frame.reasoning_tokens < 5000, "its context, and what the call may add"
    by_name = {row.agent: row for row in frame.active}
    assert by_name["acts"].for_s == 25.0
    assert (by_name["reasons"].state, by_name["reasons"].tokens) == ("reasoning", 4000)
    assert frame.limit_agents == 2
    assert frame.longest_wait_s == 30.0
    (waiting,) = frame.waiting
    assert (waiting.agent, waiting.state, waiting.waited_s) == ("waits", "queued", 30.0)
    assert waiting.why.startswith("2 of 2 agents active; 0 ahead")


def test_the_screen_shows_all_of_it(half_way):
    screen = screen_of(half_way)
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(dashboard(screen.frame(), screen.trail(), "run.jsonl", width=110, height=40))
    text = console.export_text()
    for piece in ("run.jsonl", "fixed", "of 10,000 tokens", "1 reasoning", "1 acting", "1 queued"):
        assert piece in text
    for piece in (
        "2 of 2 agents active",
        "waits",
        "30.0 s",
        "2.0 agents",
        "0 let in as overdue",
    ):
        assert piece in text


def test_the_bar_is_the_pool():
    """Its parts add up: what reasons, what acts, what has faded, what is free."""
    numbers = dict.fromkeys(("reasoning", "acting", "paused", "queued", "suspended"), 1)
    frame = Frame(
        **numbers, at_s=0, law="x", reason="", pressure_tokens=500, capacity_tokens=1000,
        reasoning_tokens=300, faded_tokens=100, limit_tokens=None, limit_agents=None,
        hit_rate=None, hit_deficit=None, pauses_total=0, overdue_total=0, longest_wait_s=0,
        blind=False, closed=False,
    )  # fmt: skip
    bar = str(pool_bar(frame, width=10)).splitlines()[0]
    assert bar == "███▓▓▒░░░░ 50% of 1,000 tokens"


def test_a_finished_recording_is_shown_to_its_end(batch, capsys):
    assert concur("watch", batch.path, "--json", "--count", "1") == 0
    frame = json.loads(capsys.readouterr().out)
    assert set(frame) == set(Frame.__slots__)
    assert frame["reasoning"] + frame["acting"] + frame["paused"] + frame["queued"] == 0
    assert frame["pauses_total"] > 0


def test_it_can_be_played_from_its_beginning(batch, capsys):
    assert (
        concur("watch", batch.path, "--json", "--speed", "200", "--interval", "0.1", "--count", "5")
        == 0
    )
    frames = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    times = [frame["at_s"] for frame in frames]
    assert times == sorted(times)
    assert times[0] < times[-1]
    assert any(frame["reasoning"] for frame in frames)


def test_a_living_governor_can_be_watched_and_its_end_is_the_end(tmp_path, capsys):
    path = tmp_path / "run.jsonl"
    watching = threading.Thread(
        target=concur, args=("watch", path, "--json", "--interval", "0.05"), daemon=True
    )
    with Governor(limit=1, record=path) as governor, governor.agent("a") as agent:
        watching.start()
        with agent.step():
            said = ""
            for _ in range(200):
                watching.join(0.05)
                said += capsys.readouterr().out
                if '"reasoning": 1' in said:
                    break
    watching.join(20)
    assert not watching.is_alive()
    frames = [json.loads(line) for line in (said + capsys.readouterr().out).splitlines()]
    assert any(frame["reasoning"] == 1 for frame in frames)
    assert frames[-1]["closed"] is True


def test_what_is_no_recording_is_one_line(tmp_path, capsys):
    assert concur("watch", tmp_path / "nothing.jsonl") == 2
    assert "cannot read the recording" in capsys.readouterr().err
    (tmp_path / "x").write_text("hm")
    assert concur("watch", tmp_path / "x") == 2
    assert "is not a recording" in capsys.readouterr().err


def test_addresses_and_paths_are_told_apart(tmp_path):
    (tmp_path / "run").touch()
    assert [is_path(text) for text in (str(tmp_path / "run"), "x.jsonl")] == [True, True]
    assert [is_path(text) for text in ("http://h:1", "localhost:8000", "h")] == [False] * 3


def test_a_screen_is_never_wider_or_higher_than_the_terminal(batch):
    screen = Screen(batch)
    for number, line in enumerate(batch):
        screen.take(line)
        if number == 300:
            break
    frame = screen.frame()
    assert frame.waiting
    for width, height in ((60, 24), (80, 24), (120, 40), (200, 60)):
        console = Console(width=width, file=io.StringIO())
        console.print(dashboard(frame, screen.trail(), "run.jsonl", width=width, height=height))
        lines = console.file.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        if width >= 80:
            assert len(lines) <= height


def test_the_chart_draws_the_area_and_the_line_where_they_are():
    rows = [text.plain for text in chart([0, 5, 10, None], [10, 10, 5, 5], width=5, height=2)]
    assert rows == [" ━━█ ", "  █━━"]
    assert [text.plain for text in chart([], width=3, height=1)] == ["   "]
    assert chart([0.5], width=1, height=1, most=1.0)[0].plain == "▄"


def test_a_long_trail_is_thinned_and_keeps_its_end():
    trail = [Point(float(n), None, None, 0.0, 0, None) for n in range(100)]
    shown = thinned(trail, 30)
    assert len(shown) <= 30
    assert shown[-1].at_s == 99
    assert thinned(trail[:5], 30) == trail[:5]
