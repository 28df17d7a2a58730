"""`concur run -- CMD ...`: governs the agents of a program without a change to its code."""

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
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

import concur_agents
from concur_agents.autorun.hooks import PARENT
from concur_agents.cli.damage import readable
from concur_agents.cli.dashboard import strip
from concur_agents.cli.footer import Footer
from concur_agents.cli.options import with_governor_options
from concur_agents.cli.terminal import say
from concur_agents.cli.watch_recording import Screen
from concur_agents.errors import ConfigError, RecordingError
from concur_agents.governor import Governor
from concur_agents.observe.frame import Frame
from concur_agents.recording import Line, Recording
from concur_agents.recording.spread import spread
from concur_agents.recording.timeline import Timeline
from concur_agents.runtime.config import Setting, environment, governor_options

BOOTSTRAP = Path(concur_agents.__file__).parent / "autorun" / "_bootstrap"

LOOK_S = 0.2
"""Time [s] between looks whether the program has ended."""

DRAW_S = 0.5
"""Time [s] between updates of the rows on a terminal."""

ROWS = 10
"""Rows at the bottom of a terminal."""

NO_CALL = "no call to a model yet"


class AgentPer(StrEnum):
    """What a gateway takes for an agent."""

    process = "process"
    session = "session"
    header = "header"


@with_governor_options
def run_command(
    found: dict[str, Setting],
    command: list[str] = typer.Argument(help="The program and its arguments, after --."),
    live: bool = typer.Option(
        True, help="On a terminal: show the state of the agents below the program's output."
    ),
    every: float = typer.Option(
        10.0,
        min=0,
        help="Without a terminal, or with --no-live: time between status lines [s]; 0: none.",
    ),
    gateway: bool = typer.Option(
        False,
        "--gateway",
        help="Govern the calls that the program makes to an address, in any language.",
    ),
    agent_per: AgentPer = typer.Option(
        AgentPer.process,
        help="With --gateway: each process is an agent, or each session that a client names or "
        "that is guessed, or only those that a client names.",
    ),
) -> None:
    """Run a program with a governor in it, without a change to its code.

    It governs the calls of `openai` clients and LangGraph graphs in every Python process of the
    program. Each run of a graph, each asyncio task and each thread that calls a model is an agent.
    --engine URL, given several times, names several engines: each is a pool, and the calls of an
    agent go to its own. With --gateway the program may be in any language: it finds an address and
    a key in OPENAI_BASE_URL, ANTHROPIC_BASE_URL and the variables of their keys, and its agents
    end with it. --record keeps the decisions. The state and a summary go to stderr. The
    exit code is the program's; 2: it could not be started.
    """
    options = governor_options(found) | {"record": None, "socket": None}
    Governor(**options).close()  # so that wrong options are reported before the program starts
    kept = found["record"].value
    if kept:
        _check_folder(Path(kept).absolute())
    folder = Path(tempfile.mkdtemp(prefix="concur-run-"))
    try:
        record = Path(kept).absolute() if kept else folder / "{pid}.jsonl"
        watchers = _Watchers(record)
        footer = Footer(sys.stderr, ROWS) if live and Footer.fits(sys.stderr, ROWS) else None
        with _environ(found, options, record, agent_per if gateway else None) as environ:
            code = _run(command, environ, watchers, every, footer)
        _summarise(watchers, kept=bool(kept), gateway=gateway)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    raise typer.Exit(code)


def _check_folder(record: Path) -> None:
    """Raises ConfigError where each process of the program would find that it cannot record."""
    folder = record.parent
    if "{pid}" not in str(folder) and not (folder.is_dir() and os.access(folder, os.W_OK)):
        why = "is not writable" if folder.is_dir() else "does not exist"
        raise ConfigError(f"cannot write the recording {str(record)!r}: its folder {why}")


@contextmanager
def _environ(
    found: dict[str, Setting], options: dict[str, Any], record: Path, per: AgentPer | None
) -> Iterator[dict[str, str]]:
    """The environment of the program; it is governed in its processes, or by a gateway here."""
    if per is not None:
        from concur_agents.cli.run_gateway import behind_gateway

        options = options | {"record": record}
        processes, may_guess = per is AgentPer.process, per is not AgentPer.header
        with behind_gateway(options, processes=processes, may_guess=may_guess) as environ:
            yield environ
        return
    environ = os.environ | environment(found)
    environ["CONCUR_RECORD"] = str(record)
    environ[PARENT] = str(os.getpid())
    before = environ.get("PYTHONPATH")
    paths = [str(BOOTSTRAP), *([before] if before else [])]
    if any(":" in str(found[name].value) for name in ("law", "shadow")):
        paths.append(str(Path.cwd()))  # where the law was found; a script's folder is another
    environ["PYTHONPATH"] = os.pathsep.join(paths)
    yield environ


def _run(
    command: list[str],
    environ: dict[str, str],
    watchers: _Watchers,
    every_s: float,
    footer: Footer | None,
) -> int:
    try:
        process = subprocess.Popen(command, env=environ)
    except OSError as error:
        raise ConfigError(f"cannot start {command[0]!r}: {error.strerror}") from error

    def pass_on(number: int, _: FrameType | None) -> None:
        process.send_signal(number)

    former = signal.signal(signal.SIGTERM, pass_on)
    # Ctrl-C reaches the program too; this process ignores it, to print the summary.
    former_int = signal.signal(signal.SIGINT, signal.SIG_IGN)
    every_s = DRAW_S if footer is not None else every_s
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
                    if footer is None:
                        _say(watchers.status())
                    else:
                        footer.draw(watchers.picture(shutil.get_terminal_size().columns - 1))
    finally:
        if footer is not None:
            footer.close()
        signal.signal(signal.SIGTERM, former)
        signal.signal(signal.SIGINT, former_int)


class _Watchers:
    """Follows the recordings of all processes of the program."""

    def __init__(self, path: Path) -> None:
        self._path = path
        stem = path.stem if "{pid}" in path.stem else path.stem + "{pid}"
        self._pattern = glob.escape(stem + path.suffix).replace("{pid}", "*")
        self._begun_s = time.time()
        self._screens: dict[Path, tuple[Screen, Iterator[Line | None]]] = {}

    def read(self) -> None:
        """Reads the new lines of all recordings."""
        for path in sorted(self._path.parent.glob(self._pattern)):
            if path not in self._screens and path.stat().st_mtime >= self._begun_s - 1:
                try:
                    recording = Recording(path)
                except RecordingError:  # its first line is being written
                    continue
                lines = recording.follow(lambda: None)
                self._screens[path] = (Screen(recording), lines)
        for path, (screen, lines) in self._screens.items():
            try:
                with readable(path):
                    for line in lines:
                        if line is None:
                            break
                        screen.take(line)
            except RecordingError as error:  # `lines` has ended with it, so this is said once
                say(f"concur: {error}", sys.stderr)

    def status(self) -> str:
        """The state of all processes in one line."""
        return " | ".join(_status(screen.frame()) for screen in self._living()) or NO_CALL

    def picture(self, width: int) -> RenderableType:
        """A few rows: the process with the most agents, and a line for each other one."""
        screens = self._living()
        if not screens:
            return Text(f"concur: {NO_CALL}", "dim")
        first, *others = sorted(screens, key=lambda screen: -len(screen.agents))
        rows: list[RenderableType] = [strip(first.frame(), "concur run", width=width)]
        rows += [
            Text(f"another process: {_status(screen.frame())}", "dim", no_wrap=True)
            for screen in others
        ]
        return Group(*rows)

    def _living(self) -> list[Screen]:
        screens = [screen for screen, _ in self._screens.values()]
        return [screen for screen in screens if not screen.closed] or screens[-1:]

    def timelines(self) -> list[tuple[Path, Timeline]]:
        """The recording and the timeline of each process."""
        return [(path, screen.builder.timeline()) for path, (screen, _) in self._screens.items()]


def _status(frame: Frame) -> str:
    states = ("reasoning", "acting", "paused", "queued")
    counts = [f"{getattr(frame, name)} {name}" for name in states if getattr(frame, name)]
    text = ", ".join(counts) or "no agents"
    if frame.capacity_tokens:
        text += f"; pressure {frame.pressure_tokens / frame.capacity_tokens:.0%} of the KV pool"
    if frame.hit_deficit is not None:
        text += f"; hit deficit {frame.hit_deficit:.0%}"
    return text


def _summarise(watchers: _Watchers, *, kept: bool, gateway: bool) -> None:
    watchers.read()
    timelines = watchers.timelines()
    if gateway and not any(timeline.lanes for _, timeline in timelines):
        _say(
            "no call of an agent came through the gateway: the program has to take its address "
            "from OPENAI_BASE_URL or ANTHROPIC_BASE_URL, and its key from the variable beside it"
        )
        return
    if not timelines:
        _say(
            "no call was governed: the program made none through openai or LangGraph in a Python "
            "process that reads PYTHONPATH"
        )
    for path, timeline in timelines:
        roots = [lane for lane in timeline.lanes.values() if lane.parent is None]
        if not roots:
            _say("no call was governed: the program made none, or governs them by itself")
            continue
        waits = spread(lane.seconds("queued", "paused") for lane in roots)
        steps = sum(lane.steps for lane in roots)
        known = [lane for lane in roots if lane.cached_tokens is not None and lane.prompt_tokens]
        text = (
            f"{len(roots)} agents, {steps} steps in {timeline.end_s - timeline.start_s:.0f} s "
            f"under {timeline.header.law['name']}; {timeline.pauses} pauses; wait per agent: "
            f"median {waits.median_s:.1f} s, worst {waits.worst_s:.1f} s"
        )
        if known:
            cached = sum(lane.cached_tokens or 0 for lane in known)
            text += f"; {cached / sum(lane.prompt_tokens for lane in known):.0%} of prompts cached"
        _say(text)
        if kept:
            _say(f"to read it: concur report {path}, or: concur explain {path}")
    if timelines and not kept:
        _say("--record run.jsonl keeps the decisions, for: concur report, concur explain")


def _say(text: str) -> None:
    say(f"concur: {text}", sys.stderr)
