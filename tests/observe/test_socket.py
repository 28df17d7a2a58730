"""The socket of a living governor."""

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

from concur_agents import ConfigError, Governor, WatchError
from concur_agents._sockets import sockets
from concur_agents.cli.app import main
from concur_agents.observe.frame import Frame, frame_of
from concur_agents.observe.socket import MOST_WATCHERS
from concur_agents.observe.socket_client import SocketClient


@pytest.fixture
def folder():
    """A folder of one's own with a short name: the path of a socket has about 100 characters."""
    with tempfile.TemporaryDirectory(prefix="c", dir="/tmp") as name:
        yield Path(name)


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
    with pytest.raises(ConfigError, match="other users may enter"):
        Governor(limit=1, socket=shared / "gov.sock")
    (folder / "link").symlink_to(folder, target_is_directory=True)
    with pytest.raises(ConfigError, match="other users may enter"):
        Governor(limit=1, socket=folder / "link" / "gov.sock")
    assert list(shared.iterdir()) == []


def test_a_name_in_use_is_refused_and_one_left_behind_is_taken_over(folder):
    path = folder / "gov.sock"
    with Governor(limit=1, socket=path):
        with pytest.raises(ConfigError, match="a process listens"):
            Governor(limit=1, socket=path)
        with SocketClient(path) as client:
            assert client.look().law == "fixed", "the first one is as it was"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    with Governor(limit=1, socket=path), SocketClient(path) as client:
        assert client.look().limit_agents == 1
    path.write_text("a file of another program")
    with pytest.raises(ConfigError, match="cannot listen"):
        Governor(limit=1, socket=path)
    assert path.read_text("utf-8") == "a file of another program"
    with pytest.raises(ConfigError, match="100 characters"):
        Governor(limit=1, socket=folder / ("x" * 120))


def test_what_arrives_is_what_was_seen(folder):
    with Governor(limit=1, socket=folder / "s") as governor, governor.agent("a") as agent:
        with agent.step(), SocketClient(folder / "s") as client:
            there = client.look()
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
        with SocketClient(path) as client:
            assert client.look().closed is False


def test_a_watcher_that_does_not_read_blocks_no_agent(folder):
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
        with SocketClient(path) as client:
            assert client.look().done_total == 200
        idle.shutdown(socket.SHUT_RDWR)
        flood.join(10)


def _flood(idle):
    try:
        for _ in range(100_000):
            idle.sendall(b"look\n")
    except OSError:
        pass


def test_there_is_room_for_a_few_watchers_and_the_next_one_is_refused(folder):
    path = folder / "s"
    with Governor(limit=1, socket=path):
        clients = [SocketClient(path) for _ in range(MOST_WATCHERS)]
        assert all(client.look().law == "fixed" for client in clients)
        with SocketClient(path) as late, pytest.raises(WatchError):
            late.look()
        for client in clients:
            client.close()
    with pytest.raises(WatchError, match="no governor listens"):
        SocketClient(path)


def test_a_watcher_learns_that_the_governor_has_ended(folder):
    path = folder / "s"
    governor = Governor(limit=1, socket=path)
    with SocketClient(path) as client:
        client.look()
        governor.close()
        with pytest.raises(WatchError, match="has ended"):
            client.look()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_leaves_the_socket_of_its_parent_alone(folder):
    code = (
        "import os, sys\n"
        "from concur_agents import Governor\n"
        "from concur_agents.observe.socket_client import SocketClient\n"
        "path = sys.argv[1]\n"
        "with Governor(limit=1, socket=path) as governor:\n"
        "    if os.fork() == 0:\n"
        "        governor.close()\n"
        "        sys.exit()\n"
        "    os.wait()\n"
        "    assert SocketClient(path).look().limit_agents == 1\n"
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


def test_the_trail_begins_before_the_watcher_came(folder, monkeypatch):
    monkeypatch.setattr("concur_agents.observe.socket.EVERY_S", 0.02)
    with Governor(limit=2, socket=folder / "s"), SocketClient(folder / "s") as client:
        deadline_s = time.monotonic() + 10
        while len(client.trail()) < 3 and time.monotonic() < deadline_s:
            time.sleep(0.05)
        points = client.trail()
    assert len(points) >= 3
    assert points[0].limit_agents == 2
    assert [point.at_s for point in points] == sorted(point.at_s for point in points)


def test_the_former_name_of_the_client_still_works():
    with pytest.warns(DeprecationWarning, match="SocketClient"):
        from concur_agents.observe.socket import Looker
    assert Looker is SocketClient


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_not_watched(folder, monkeypatch):
    """He may have put a socket there that says what he likes."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    own = folder / "concur-agents"
    with Governor(limit=1, socket="auto"):
        (path,) = sockets()
        os.chown(own, 12345, 12345)
        for look in (sockets, lambda: SocketClient(path)):
            with pytest.raises(WatchError, match="owned by another user"):
                look()
        with pytest.raises(SystemExit) as left:
            main(["watch"])
        assert left.value.code == 2
        os.chown(own, os.getuid(), os.getgid())
        assert sockets() == [path]


def test_a_folder_that_others_may_write_to_is_not_watched(folder):
    path = folder / "s"
    with Governor(limit=1, socket=path):
        folder.chmod(0o777)
        with pytest.raises(WatchError, match="other users may write"):
            SocketClient(path)
        folder.chmod(0o700)
        SocketClient(path).close()
        (folder / "link").symlink_to(folder)
        with pytest.raises(WatchError, match="is a link"):
            SocketClient(folder / "link" / "s")
