"""The tutorials: their programs run as the page has them, and print what the page shows."""

import difflib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("tutorials", ROOT / "scripts/tutorials.py")
tutorials = sys.modules["tutorials"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tutorials)

CONCUR = [sys.executable, "-c", "from concur_agents.cli.app import main; main()"]
NEEDS = {"container": "aiohttp", "langgraph": "langchain_openai"}


def read(name):
    for module in ("typer", "uvicorn", NEEDS.get(name, "openai")):
        pytest.importorskip(module)
    return tutorials.read(name)


class Follower:
    """Runs the programs of a page in a folder, beside the servers that the page starts."""

    def __init__(self, folder):
        self.folder = folder
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        # A script, because a link would not find the packages of a virtual environment.
        (bin_folder / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (bin_folder / "python").chmod(0o755)
        self.environ = {
            **os.environ,
            "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
            "XDG_RUNTIME_DIR": str(folder),  # a daemon of its own
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "",  # so that each process writes whole lines
        }

    def start(self, command):
        return subprocess.Popen(
            command.split(),
            cwd=self.folder,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, command):
        process = self.start(command)
        try:
            out, err = process.communicate(timeout=100)
        finally:
            process.kill()
        assert process.returncode == 0, err
        return out


def assert_as_shown(output, shown):
    """The same but for its numbers, which are measured."""
    pattern = re.sub(r"\d+", r"\\d+", re.escape(shown.strip()))
    assert re.fullmatch(pattern, output.strip()), output


def share(output):
    """What was cached of the prompts, in percent."""
    found = [int(share) for share in re.findall(r"(\d+)% cached", output)]
    return sum(found) / len(found)


@pytest.fixture
def follower(tmp_path_factory):
    return Follower(tmp_path_factory.mktemp("t"))


@pytest.mark.parametrize("name", [name for name in tutorials.NAMES if name != "batch"])
def test_the_programs_run_as_shown_and_governed_ones_find_their_prompts_cached(name, follower):
    tutorial = read(name)
    with tutorials.serving(tutorial, CONCUR) as addresses:
        tutorials.write(tutorial, follower.folder, addresses)
        (command, shown), (governed, shown_governed) = tutorial.shown.items()
        output = follower.run(command)
        assert_as_shown(output, shown)
        before = share(output)
        # On a machine that stands still for seconds an engine looks stalled, and more agents run.
        for _ in range(3):
            output = follower.run(governed)
            assert_as_shown(output, shown_governed)
            if share(output) > before + 20:
                return
    assert share(output) > before + 20


def test_a_batch_that_is_interrupted_goes_on_where_it_was(follower):
    tutorial = read("batch")
    with tutorials.serving(tutorial, CONCUR) as addresses:
        tutorials.write(tutorial, follower.folder, addresses)
        journal = follower.folder / "runs.jsonl"
        process = follower.start("python after.py")
        try:
            while process.poll() is None and not (journal.exists() and lines(journal) > 100):
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=100)
        finally:
            process.kill()
        assert process.returncode == 0, err
        out += follower.run("python after.py")
    (shown,) = (text for command, text in tutorial.shown.items() if "Ctrl-C" in command)
    assert_as_shown(out, shown)
    done, _, _, rest, earlier, _ = (int(number) for number in re.findall(r"\d+", out))
    assert 100 <= done == earlier < 300
    assert rest + earlier == 300


def lines(path):
    return path.read_bytes().count(b"\n")


@pytest.mark.parametrize("name", tutorials.NAMES)
def test_exactly_the_changed_lines_are_marked_and_they_are_few(name):
    tutorial = tutorials.read(name)
    kind = "sh" if "after.sh" in tutorial.programs else "py"
    before = tutorial.programs[f"before.{kind}"].splitlines()
    after = tutorial.programs[f"after.{kind}"].splitlines()
    changed = []
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for tag, _, _, start, end in matcher.get_opcodes():
        if tag != "equal":
            changed += [n + 1 for n in range(start, end) if after[n].strip()]
    assert tutorial.marked[f"after.{kind}"] == changed
    assert 1 <= len(changed) <= 3


def test_there_are_seven():
    assert len(tutorials.NAMES) == 7
