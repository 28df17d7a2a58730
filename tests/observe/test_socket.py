"""Looking on: the socket of a living governor, and `concur watch` on it."""

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from concur_agents import ConfigError, Governor, WatchError, make_law
from concur_agents.cli.app import main
from concur_agents.core import Reading, Usage
from concur_agents.observe.frame import Frame
from concur_agents.observe.socket import MOST_WATCHERS, Looker, frame_of, sockets
from concur_agents.testing import ScriptedProbe, run, virtual_governor


@pytest.fixture
def folder():
    """A folder of one's own with a short name: the path of a socket has about 100 characters."""
    with tempfile.TemporaryDirectory(prefix="c", dir="/tmp") as name:
        yield Path(name)


def concur(*words):
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    code = left.value.code
    return code if isinstance(code, int) else 0


def test_nothing_listens_unless_asked_for(monkeypatch, folder):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    before = threading.active_count()
    with Governor(limit=1) as governor, governor.agent("a"):
        assert threading.active_count() == before
        assert sockets() == []
        assert not (folder / "concur-agents").exists()


def test_in_a_folder_too_long_for_a_socket_auto_takes_a_short_one(monkeypatch, tmp_path):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    for name in ("XDG_RUNTIME_DIR", "TMPDIR"):
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
        monkeypatch.setenv(name, str(long))
        monkeypatch.setattr(tempfile, "tempdir", None)  # or a former TMPDIR is remembered
        with Governor(limit=1, socket="auto"):
            mine = [path for path in sockets() if path.name.startswith(f"{os.getpid()}-")]
            assert [path.parent for path in mine] == [Path(f"/tmp/concur-agents-{os.getuid()}")]
        assert not mine[0].exists()


def test_only_the_owner_can_reach_the_socket_and_it_goes_with_the_governor(folder):
    path = folder / "own" / "gov.sock"
    with Governor(limit=1, socket=path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert path.is_socket()
    assert not path.exists()
    governor = Governor(limit=1, socket=path)
    assert path.is_socket()
    del governor
    assert not path.exists(), "one that is dropped ends by itself"


def test_a_folder_that_others_may_enter_is_refused(folder):
    shared = folder / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    with pytest.raises(ConfigError, match="others may enter"):
        Governor(limit=1, socket=shared / "gov.sock")
    (folder / "link").symlink_to(folder, target_is_directory=True)
    with pytest.raises(ConfigError, match="others may enter"):
        Governor(limit=1, socket=folder / "link" / "gov.sock")
    assert list(shared.iterdir()) == []


def test_a_name_in_use_is_refused_and_one_left_behind_is_taken_over(folder):
    path = folder / "gov.sock"
    with Governor(limit=1, socket=path):
        with pytest.raises(ConfigError, match="somebody listens"):
            Governor(limit=1, socket=path)
        with Looker(path) as looker:
            assert looker.look().law == "fixed", "the first one is as it was"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    with Governor(limit=1, socket=path), Looker(path) as looker:
        assert looker.look().limit_agents == 1
    path.write_text("a file of somebody's")
    with pytest.raises(ConfigError, match="cannot listen"):
        Governor(limit=1, socket=path)
    assert path.read_text() == "a file of somebody's"
    with pytest.raises(ConfigError, match="100 characters"):
        Governor(limit=1, socket=folder / ("x" * 120))


def test_a_frame_says_who_holds_what_and_who_waits_why():
    """In virtual time: one reasons, one acts with a context that fades, one waits."""

    def engine(now):
        return Reading(at_s=now, capacity_tokens=10_000, kv_usage=0.5)

    async def reasons(governor):
        async with governor.agent("reasons") as agent:
            async with agent.step(prompt_tokens=3000) as step:
                await asyncio.sleep(2)
                step.record(Usage(3000, 1000, 0))
            async with agent.step(prompt_tokens=4500):
                await asyncio.sleep(60)

    async def acts(governor):
        async with governor.agent("acts") as agent:
            async with agent.step(prompt_tokens=900) as step:
                await asyncio.sleep(2)
                step.record(Usage(900, 100, 0))
            await asyncio.sleep(60)

    async def waits(governor):
        await asyncio.sleep(1)
        async with governor.agent("waits"):
            pass

    async def main():
        clock = asyncio.get_running_loop().time
        probe = ScriptedProbe(engine, clock)
        async with virtual_governor(probe=probe, law=make_law("fixed", agents=2)) as governor:
            everybody = [asyncio.ensure_future(f(governor)) for f in (reasons, acts, waits)]
            await asyncio.sleep(31)
            frame, view = frame_of(governor), governor.snapshot()
            for agent in everybody:
                agent.cancel()
            await asyncio.gather(*everybody, return_exceptions=True)
        return frame, view

    frame, view = run(main())
    assert (frame.reasoning, frame.acting, frame.queued, frame.done_total) == (1, 1, 1, 0)
    assert frame.capacity_tokens == 10_000
    assert frame.pressure_tokens == view.pressure_tokens
    assert 4500 <= frame.reasoning_tokens <= frame.pressure_tokens
    total = frame.reasoning_tokens + frame.acting_tokens + frame.faded_tokens
    assert total == pytest.approx(frame.reasoning_tokens + 1000), (
        "acting and fading are its context"
    )
    (waiting,) = frame.waiting
    assert (waiting.agent, waiting.state, waiting.waited_s) == ("waits", "queued", 30.0)
    assert waiting.why.startswith("2 of 2 agents active; 0 ahead")
    by_name = {row.agent: row for row in frame.active}
    assert (by_name["acts"].for_s, by_name["acts"].tokens, by_name["acts"].steps) == (29, 1000, 1)
    assert by_name["reasons"].state == "reasoning"


def test_what_arrives_is_what_was_seen(folder):
    with Governor(limit=1, socket=folder / "s") as governor, governor.agent("a") as agent:
        with agent.step(), Looker(folder / "s") as looker:
            there = looker.look()
            here = frame_of(governor)
        assert there.active[0].agent == "a"
        same = {name: getattr(there, name) for name in Frame.__slots__} | {
            "at_s": here.at_s,
            "active": here.active,
        }
        assert Frame(**same) == here


def test_the_socket_answers_questions_and_takes_no_orders(folder):
    path = folder / "s"
    with Governor(limit=1, socket=path) as governor:
        for asked in (b"close\n", b"{}\n", b"x" * 1000 + b"\n", b"\n"):
            with socket.socket(socket.AF_UNIX) as foreign:
                foreign.settimeout(5)
                foreign.connect(str(path))
                foreign.sendall(asked)
                assert foreign.recv(100) == b""
        assert not governor.snapshot().closed
        with Looker(path) as looker:
            assert looker.look().closed is False


def test_a_watcher_who_does_not_read_keeps_nobody_waiting(folder):
    path = folder / "s"
    with Governor(limit=1, socket=path) as governor, socket.socket(socket.AF_UNIX) as idle:
        idle.connect(str(path))
        flood = threading.Thread(target=_flood, args=(idle,), daemon=True)
        flood.start()
        begun_s = time.monotonic()
        for number in range(200):
            with governor.agent(f"a{number}") as agent, agent.step():
                pass
        assert time.monotonic() - begun_s < 5
        with Looker(path) as looker:
            assert looker.look().done_total == 200
        idle.shutdown(socket.SHUT_RDWR)
        flood.join(10)


def _flood(idle):
    try:
        for _ in range(100_000):
            idle.sendall(b"look\n")
    except OSError:
        pass


def test_there_is_room_for_a_few_watchers_and_the_next_one_is_told(folder):
    path = folder / "s"
    with Governor(limit=1, socket=path):
        lookers = [Looker(path) for _ in range(MOST_WATCHERS)]
        assert all(looker.look().law == "fixed" for looker in lookers)
        with Looker(path) as late, pytest.raises(WatchError):
            late.look()
        for looker in lookers:
            looker.close()
    with pytest.raises(WatchError, match="no governor listens"):
        Looker(path)


def test_a_watcher_learns_that_the_governor_has_ended(folder):
    path = folder / "s"
    governor = Governor(limit=1, socket=path)
    with Looker(path) as looker:
        looker.look()
        governor.close()
        with pytest.raises(WatchError, match="has ended"):
            looker.look()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_leaves_the_socket_of_its_parent_alone(folder):
    code = (
        "import os, sys\n"
        "from concur_agents import Governor\n"
        "from concur_agents.observe.socket import Looker\n"
        "path = sys.argv[1]\n"
        "with Governor(limit=1, socket=path) as governor:\n"
        "    if os.fork() == 0:\n"
        "        governor.close()\n"
        "        sys.exit()\n"
        "    os.wait()\n"
        "    assert Looker(path).look().limit_agents == 1\n"
        "assert not os.path.exists(path)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, str(folder / "s")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_watch_finds_the_only_governor_and_lists_several(folder, monkeypatch, capsys):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    assert concur("watch") == 2
    assert 'socket="auto"' in capsys.readouterr().err
    with Governor(limit=3, socket="auto") as governor, governor.agent("issue-17"):
        assert concur("watch", "--count", "2", "--interval", "0.05", "--json") == 0
        frames = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [frame["acting"] for frame in frames] == [1, 1]
        assert set(frames[0]) == set(Frame.__slots__)
        assert concur("watch", "--count", "1") == 0
        shown = capsys.readouterr().out
        assert "issue-17" in shown
        assert "1 of 3" in shown
        with Governor(limit=1, socket="auto"):
            assert concur("watch") == 2
            assert capsys.readouterr().err.count(".sock") == 2
    assert concur("watch", folder / "gone.sock") == 2
    assert "no governor listens" in capsys.readouterr().err


def test_the_trail_begins_before_the_watcher_came(folder, monkeypatch):
    monkeypatch.setattr("concur_agents.observe.socket.EVERY_S", 0.02)
    with Governor(limit=2, socket=folder / "s"), Looker(folder / "s") as looker:
        deadline_s = time.monotonic() + 10
        while len(looker.trail()) < 3 and time.monotonic() < deadline_s:
            time.sleep(0.05)
        points = looker.trail()
    assert len(points) >= 3
    assert points[0].limit_agents == 2
    assert [point.at_s for point in points] == sorted(point.at_s for point in points)
