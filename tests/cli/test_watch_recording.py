"""`concur watch RECORDING`: a governor at work, through its recording."""

import asyncio
import io
import json
import re
import threading
from dataclasses import asdict, replace

import pytest
from rich.console import Console

from concur_agents import Governor
from concur_agents.cli.app import main
from concur_agents.cli.dashboard import dashboard, strip
from concur_agents.cli.watch import is_path
from concur_agents.cli.watch_recording import Screen
from concur_agents.core import Reading, Usage
from concur_agents.observe.frame import Frame, frame_of
from concur_agents.recording import Recording
from concur_agents.testing import run, virtual_governor


def concur(*words):
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    code = left.value.code
    return code if isinstance(code, int) else 0


def screen_of(recording):
    screen = Screen(recording)
    for line in recording:
        screen.take(line)
    return screen


def test_a_frame_shows_claims_and_waits_with_their_reasons(half_way):
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
    assert waiting.why == "2 of 2 agents active"


def test_of_several_pools_it_shows_each_as_the_living_governor_does(tmp_path, scripted_engines):
    """Three engines, one of which is down; twelve agents with a place for two in each."""
    pools = ["http://gpu1:8000", "http://gpu2:8000", "http://gpu3:8000"]
    path = tmp_path / "run.jsonl"

    def good(now):
        return Reading(at_s=now, capacity_tokens=20_000)

    async def life(governor):
        async with governor.agent() as agent:
            while True:
                async with agent.step(prompt_tokens=3000) as step:
                    await asyncio.sleep(4)
                    step.record(None if agent.pool == pools[2] else Usage(3000, 100, 1000))

    async def main():
        urls = scripted_engines({pools[0]: good, pools[1]: good, pools[2]: lambda now: None})
        async with virtual_governor(urls, limit=2, record=path) as governor:
            agents = [asyncio.ensure_future(life(governor)) for _ in range(12)]
            await asyncio.sleep(30.5)
            frame = frame_of(governor)
            governor._recording.recorder.flush()
            recorded = screen_of(Recording(path)).frame()
            for agent in agents:
                agent.cancel()
            await asyncio.gather(*agents, return_exceptions=True)
        return frame, recorded

    living, recorded = run(main())
    assert [pool.pool for pool in living.pools] == pools
    assert [pool.reason for pool in living.pools] == ["fixed", "fixed", "down"]
    assert [pool.active for pool in living.pools] == [2, 2, 0]
    assert sum(pool.waiting for pool in living.pools) < living.queued + living.paused
    assert {row.pool for row in living.active} == set(pools[:2])
    assert any(row.pool is None for row in living.waiting)
    assert living.blind
    assert recorded.blind
    for mine, theirs in zip(living.pools, recorded.pools, strict=True):
        assert (mine.pool, mine.active, mine.waiting, mine.reason) == (
            (theirs.pool, theirs.active, theirs.waiting, theirs.reason)
        )
        assert (mine.capacity_tokens, mine.limit_agents, mine.unread) == (
            (theirs.capacity_tokens, theirs.limit_agents, theirs.unread)
        )
    rows = {row.agent: row.pool for row in recorded.waiting}
    assert rows == {row.agent: row.pool for row in living.waiting}
    assert Frame.from_dict(json.loads(json.dumps(asdict(living)))) == living
    console = Console(width=100, height=50, record=True, file=io.StringIO())
    console.print(dashboard(living, [], "fleet", width=100, height=50))
    text = console.export_text()
    assert "pools: 3, 1 down" in text
    assert re.search(r"gpu1:8000 .* 2 agents +2 ", text)
    assert re.search(r"gpu3:8000 .* down", text)
    why = "gpu3:8000 is down: the script says that this reading fails"
    assert why in text
    console.print(strip(living, "fleet", width=100))
    assert why in console.export_text()


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


def test_addresses_and_paths_are_distinguished(tmp_path):
    (tmp_path / "run").touch()
    assert [is_path(text) for text in (str(tmp_path / "run"), "x.jsonl")] == [True, True]
    assert [is_path(text) for text in ("http://h:1", "localhost:8000", "h")] == [False] * 3


def test_a_replay_that_differs_gives_way_to_the_numbers_in_the_lines(half_way):
    """This version may decide differently from the one that recorded; the screen goes on."""
    lines = list(half_way)
    arrival = lines[2]  # of the agent that waits
    screen = Screen(half_way)
    let_in = replace(arrival, let_in=("waits",), moves={"waits": "acting"}, why=None)
    for line in (*lines[:2], let_in, *lines[3:]):
        screen.take(line)
    frame = screen.frame()
    assert {row.agent for row in frame.active} == {"reasons", "acts", "waits"}
    assert frame.waiting == []
    assert frame.reasoning_tokens == 4000, "the footprint, as no Regulator knows the claim"
