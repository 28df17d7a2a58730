"""Writing recordings: bounds, crashes, forks, full disks."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from concur_agents import ConfigError, Governor, RecordingError
from concur_agents.core import Regulator, Usage, make_law
from concur_agents.recording import (
    RecordedCall,
    Recording,
    Tracker,
    record,
    replay,
)


def test_a_recording_keeps_its_bound_and_says_what_is_missing(tmp_path):
    """A run of weeks must not fill the disk; the rest still shows where each agent stands."""
    bound = 128 * 1024
    recorded, recorder = record(
        Regulator(make_law("fixed", agents=2)), tmp_path / "r.jsonl", max_bytes=bound
    )
    tracker = Tracker()
    with recorder:
        for n in range(4):
            recorded.arrive(f"a{n}", float(n))
        for n in range(4000):
            for agent in ("a0", "a1"):
                recorded.begin_step(agent, 4.0 + n, prompt_tokens=n)
            for agent in ("a0", "a1"):
                recorded.end_step(agent, 4.5 + n, Usage(n, 1, 0))
            if n % 50 == 0:
                recorder.flush()
    files = sorted(tmp_path.iterdir())
    assert 2 < len(files) <= 8
    assert bound / 2 < sum(file.stat().st_size for file in files) <= bound
    recording = Recording(recorder.path)
    header = recording.header
    assert not recording.is_whole
    assert header.part > 0
    states = {who.id: who.state for who in header.agents}
    assert states.keys() == {"a0", "a1", "a2", "a3"}
    assert (states["a2"], states["a3"]) == ("queued", "queued")
    first = next(iter(recording))
    assert header.now <= first.now
    tracker = Tracker(header.agents)
    for line in recording:
        tracker.take(line)
    assert {who.id: who.steps for who in tracker.agents.values()} == {
        "a0": 4000,
        "a1": 4000,
        "a2": 0,
        "a3": 0,
    }
    with pytest.raises(RecordingError, match="its first files are gone"):
        list(replay(recording))


def test_an_earlier_recording_is_moved_aside_once(tmp_path):
    path = tmp_path / "run.jsonl"
    for agents in (1, 2):
        record(Regulator(make_law("fixed", agents=agents)), path)[1].close()
    assert Recording(path).header.law["config"]["agents"] == 2
    assert Recording(tmp_path / "run.jsonl.old").header.law["config"]["agents"] == 1


def test_a_file_that_cannot_be_written_is_an_error_at_once(tmp_path):
    with pytest.raises(ConfigError, match="does its folder exist"):
        Governor(limit=1, record=tmp_path / "no" / "run.jsonl")
    for name in ("", "a\0b", "\ud800"):
        with pytest.raises(ConfigError, match="cannot write the recording"):
            Governor(limit=1, record=name)
    with pytest.raises(ConfigError, match="at least 65,536 bytes"):
        Governor(limit=1).record(tmp_path / "run.jsonl", max_bytes=10)


def test_a_full_disk_ends_the_recording_and_nothing_else(tmp_path):
    """The file may grow to 4 KiB, as on a disk that fills up."""
    pytest.importorskip("resource")
    path = tmp_path / "run.jsonl"
    code = (
        "import resource, signal\n"
        "from concur_agents import Governor\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        f"with Governor(limit=1, record={str(path)!r}) as governor:\n"
        "    for n in range(300):\n"
        "        with governor.agent(f'a{n}') as agent, agent.step():\n"
        "            pass\n"
        "    recorder = governor._recording.recorder\n"
        "    recorder.flush()\n"
        "    recorder._thread.join(10)\n"
        "    assert governor.snapshot().done_total == 300\n"
        "    size = recorder._lines.qsize()\n"
        "    with governor.agent('b') as agent, agent.step():\n"
        "        pass\n"
        "    assert recorder._lines.qsize() == size\n"  # or they would pile up
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], timeout=60, check=False, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert f"recording to {path} ends here: " in ran.stderr
    assert list(Recording(path))


def test_what_was_decided_before_a_kill_is_on_disk(tmp_path):
    """The recording of a crash is the one that will be read."""
    path = tmp_path / "run.jsonl"
    code = (
        "import os, signal, sys\n"
        "from concur_agents import Governor\n"
        f"gov = Governor(limit=1, record={str(path)!r})\n"
        "with gov.agent('a') as agent:\n"
        "    for _ in range(100):\n"
        "        with agent.step():\n"
        "            pass\n"
        "    gov._recording.recorder.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert ran.returncode == -signal.SIGKILL
    recording = Recording(path)
    assert sum(line.name == "end_step" for line in recording) == 100
    assert list(replay(recording)) == []


def test_a_governor_that_is_never_closed_is_recorded_to_the_end_of_the_program(tmp_path):
    path = tmp_path / "run-{pid}.jsonl"
    code = (
        "from concur_agents import Governor\n"
        f"gov = Governor(limit=1, record={str(path)!r})\n"
        "for n in range(500):\n"
        "    with gov.agent(str(n)) as agent, agent.step():\n"
        "        pass\n"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        assert process.wait(60) == 0
    (written,) = tmp_path.iterdir()
    assert written.name == f"run-{process.pid}.jsonl"
    assert (
        sum(line.name == "leave" for line in Recording(written) if isinstance(line, RecordedCall))
        == 500
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_leaves_the_recording_of_its_parent_alone(tmp_path):
    path = tmp_path / "run.jsonl"
    code = (
        "import os, sys\n"
        "from concur_agents import Governor\n"
        f"gov = Governor(limit=1, record={str(path)!r}, shadow='working_set')\n"
        "with gov.agent('parent'):\n"
        "    child = os.fork()\n"
        "    with gov.agent('after', detached=False) as agent, agent.step():\n"
        "        pass\n"
        "    if child:\n"
        "        assert os.waitpid(child, 0)[1] == 0\n"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], timeout=60, check=False, capture_output=True
    )
    assert (ran.returncode, ran.stderr) == (0, b"")
    arrived = [
        line.agent
        for line in Recording(path)
        if isinstance(line, RecordedCall) and line.name == "arrive"
    ]
    assert arrived == ["parent", "after"]


@pytest.mark.parametrize("kind", ["folder", "link", "link to nothing", "pipe", "device"])
@pytest.mark.parametrize("suffix", ["", ".1", ".old"])
def test_only_a_regular_file_is_moved_out_of_the_way(kind, suffix, tmp_path):
    """`record=` on a device or a folder moved it away."""
    path = tmp_path / "run.jsonl"
    there = path.with_name(path.name + suffix)
    (tmp_path / "other").write_text("precious")
    if kind == "folder":
        there.mkdir()
    elif kind == "pipe":
        os.mkfifo(there)
    elif kind == "device":
        try:
            os.mknod(there, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root may make a device")
    else:
        there.symlink_to(tmp_path / ("other" if kind == "link" else "nothing"))
    before = there.lstat()
    with pytest.raises(ConfigError, match="not a regular file"):
        Governor(limit=1, record=path)
    assert there.lstat() == before
    assert (tmp_path / "other").read_text("utf-8") == "precious"
    assert not (tmp_path / "nothing").exists()


def test_a_device_is_not_recorded_to():
    with pytest.raises(ConfigError, match="device"):
        Governor(limit=1, record="/dev/null")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_every_file_of_a_recording_is_its_owners_alone(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_text("an earlier one")
    path.chmod(0o644)
    old = os.umask(0)
    try:
        regulator = Regulator(make_law("fixed"))
        recorded, recorder = record(regulator, path, max_bytes=65536)
        with recorder:
            for now in range(300):
                recorded.arrive(f"a{now}", float(now))
    finally:
        os.umask(old)
    files = [file for file in tmp_path.iterdir() if file.name != "run.jsonl.old"]
    assert len(files) > 1
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
