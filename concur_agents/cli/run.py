"""`concur run -- CMD ...`: a program's agents are governed without a change to its code."""

from __future__ import annotations

import glob
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import typer

import concur_agents
from concur_agents.cli.options import with_governor_options
from concur_agents.config import Setting, environment, governor_options
from concur_agents.errors import ConfigError, RecordingError
from concur_agents.governor import Governor
from concur_agents.record import Line, Recording
from concur_agents.report.story import Story, Teller, spread
from concur_agents.running import PARENT

BOOTSTRAP = Path(concur_agents.__file__).parent / "_bootstrap"

LOOK_S = 0.2


@with_governor_options
def run_command(
    found: dict[str, Setting],
    command: list[str] = typer.Argument(help="The program and its arguments, after --."),
    every: float = typer.Option(10.0, min=0, help="Time between status lines [s]; 0: none."),
) -> None:
    """Run a program with a governor in it: no change to its code.

    Governed are the calls of `openai` clients and LangGraph graphs in every Python process below
    it. Each run of a graph, each asyncio task and each thread that calls a model is an agent. With
    --record the decisions are kept; status lines and a summary go to stderr. The exit code is the
    program's; 2: it could not be started.
    """
    options = governor_options(found) | {"record": None}
    Governor(**options).close()  # what is wrong with the options is said before anything starts
    folder = Path(tempfile.mkdtemp(prefix="concur-run-"))
    try:
        kept = found["record"].value
        record = Path(kept).absolute() if kept else folder / "{pid}.jsonl"
        watchers = _Watchers(record)
        code = _run(command, _environ(found, record), watchers, every)
        _summarise(watchers, kept=bool(kept))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    raise typer.Exit(code)


def _environ(found: dict[str, Setting], record: Path) -> dict[str, str]:
    environ = os.environ | environment(found)
    environ["CONCUR_RECORD"] = str(record)
    environ[PARENT] = str(os.getpid())
    before = environ.get("PYTHONPATH")
    environ["PYTHONPATH"] = str(BOOTSTRAP) + (os.pathsep + before if before else "")
    return environ


def _run(command: list[str], environ: dict[str, str], watchers: _Watchers, every_s: float) -> int:
    try:
        process = subprocess.Popen(command, env=environ)
    except OSError as error:
        raise ConfigError(f"cannot start {command[0]!r}: {error.strerror}") from error

    def pass_on(number: int, _: FrameType | None) -> None:
        process.send_signal(number)

    former = signal.signal(signal.SIGTERM, pass_on)
    # Ctrl-C reaches the program by itself; this one stays to give the summary.
    former_int = signal.signal(signal.SIGINT, signal.SIG_IGN)
    next_s = time.monotonic() + every_s
    try:
        while True:
            try:
                code = process.wait(LOOK_S)
                return code if code >= 0 else 128 - code
            except subprocess.TimeoutExpired:
                if every_s and time.monotonic() >= next_s:
                    next_s = time.monotonic() + every_s
                    watchers.read()
                    _say(watchers.status())
    finally:
        signal.signal(signal.SIGTERM, former)
        signal.signal(signal.SIGINT, former_int)


class _Watchers:
    """Follows the recordings of all processes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        stem = path.stem if "{pid}" in path.stem else path.stem + "{pid}"
        self._pattern = glob.escape(stem + path.suffix).replace("{pid}", "*")
        self._begun_s = time.time()
        self._tellers: dict[Path, tuple[Teller, Iterator[Line | None]]] = {}

    def read(self) -> None:
        """Takes in what has been written since."""
        for path in sorted(self._path.parent.glob(self._pattern)):
            if path not in self._tellers and path.stat().st_mtime >= self._begun_s - 1:
                try:
                    recording = Recording(path)
                except RecordingError:  # its first line is being written
                    continue
                lines = recording.follow(lambda: None)
                self._tellers[path] = (Teller(recording.header), lines)
        for teller, lines in self._tellers.values():
            for line in lines:
                if line is None:
                    break
                teller.take(line)

    def status(self) -> str:
        """One line."""
        parts = []
        for teller, _ in self._tellers.values():
            states = [who.state for who in teller.roster.agents.values()]
            told = [
                f"{states.count(state)} {state}"
                for state in ("reasoning", "acting", "paused", "queued")
                if states.count(state)
            ]
            text = ", ".join(told) or "no agents"
            if teller.samples:
                last = teller.samples[-1]
                if last.capacity_tokens:
                    share = last.pressure_tokens / last.capacity_tokens
                    text += f"; pressure {share:.0%} of the KV pool"
                if last.hit_deficit is not None:
                    text += f"; hit deficit {last.hit_deficit:.0%}"
            parts.append(text)
        return " | ".join(parts) or "no call to a model yet"

    def stories(self) -> list[tuple[Path, Story]]:
        """Of each process."""
        return [(path, teller.story()) for path, (teller, _) in self._tellers.items()]


def _summarise(watchers: _Watchers, *, kept: bool) -> None:
    watchers.read()
    stories = watchers.stories()
    if not stories:
        _say(
            "no call was governed: the program made none through openai or LangGraph in a Python "
            "that sees PYTHONPATH"
        )
    for path, story in stories:
        roots = [lane for lane in story.lanes.values() if lane.parent is None]
        waits = spread(lane.seconds("queued", "paused") for lane in roots)
        steps = sum(lane.steps for lane in roots)
        told = [lane for lane in roots if lane.cached_tokens is not None and lane.prompt_tokens]
        text = (
            f"{len(roots)} agents, {steps} steps in {story.end_s - story.start_s:.0f} s under "
            f"{story.header.law['name']}; {story.pauses} pauses; wait per agent: median "
            f"{waits.median_s:.1f} s, worst {waits.worst_s:.1f} s"
        )
        if told:
            cached = sum(lane.cached_tokens or 0 for lane in told)
            text += f"; {cached / sum(lane.prompt_tokens for lane in told):.0%} of prompts cached"
        _say(text)
        if kept:
            _say(f"look at it with: concur report {path}, or: concur explain {path}")
    if stories and not kept:
        _say("--record run.jsonl keeps the decisions, for: concur report, concur explain")


def _say(text: str) -> None:
    print(f"concur: {text}", file=sys.stderr, flush=True)
