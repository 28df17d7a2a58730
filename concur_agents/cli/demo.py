"""`concur demo`: one batch of agents ungoverned, capped and governed, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.live import Live
from rich.table import Table

from concur_agents.cli.console import Console
from concur_agents.lab.demo import (
    FITS_PROFILE,
    FLEET_PROFILE,
    ArmReport,
    Course,
    Progress,
    Scenario,
    Texts,
    as_json,
    make_scenario,
    run_arm,
    summarize,
)
from concur_agents.lab.demo.picture import draw
from concur_agents.sim.client_clock import ClientClock
from concur_agents.sim.server import EmbeddedServer

ONE_PROFILE = "h200-qwen3-32b"
"""Of a single engine, unless it is to fit."""

NAME = "concur-demo"
"""Of the pictures, without their endings."""


def demo_command(
    law: str = typer.Option("working_set", help="The governed arm; `concur laws` lists them."),
    arms: str = typer.Option(
        "", help="All arms instead: none, fixed, fixed:N and laws, comma-separated."
    ),
    replicas: int = typer.Option(1, min=1, help="Engines, each on a port of its own."),
    agents: int | None = typer.Option(
        None, min=1, help="How many agents (default: 64; 24 for each of several replicas)."
    ),
    steps: int | None = typer.Option(
        None,
        min=0,
        help="End every agent after so many calls; 0: run whole (default: 32; 20 with replicas).",
    ),
    profile: str = typer.Option(
        "",
        help="Engine: a name, or a path of a .toml "
        f"(default: {ONE_PROFILE}; with replicas {FLEET_PROFILE}).",
    ),
    fits: bool = typer.Option(
        False, "--fits", help=f"An engine that holds them all ({FITS_PROFILE}): is anything lost?"
    ),
    traces: str = typer.Option("miniswe-gemini3pro", help="Recording: a bundled one, or a file."),
    seed: int = typer.Option(0, help="Of the draw of agents, tool times and texts."),
    time_scale: float = typer.Option(0.0, hidden=True),
    out: Path = typer.Option(Path(), file_okay=False, help=f"Folder for {NAME}.png and .svg."),
    as_json_: bool = typer.Option(False, "--json", help="Print one JSON object, nothing else."),
) -> None:
    """Run one batch of recorded agents ungoverned, capped and governed, and compare.

    The engine is the embedded one, on loopback; the agents are real concurrent openai clients.
    The engine's clock waits for them, so the figures do not depend on the machine; how long it
    takes does.

    The fixed cap is the KV pool over the mean final context: what fits on average.

    With --replicas 4 the arms are round robin, sticky (each agent stays where it began) and one
    governor over all four; caps and laws hold for each pool.

    With --json: scenario, machine, arms (one object each, with its series) and files.
    """
    console = Console(stderr=as_json_)
    if time_scale:
        console.print("--time-scale has no effect: the engine's clock waits for the agents.")
    with console.status("choosing agents"):
        several = replicas > 1
        usual = ("none", "sticky", law) if several else ("none", "fixed", law)
        scenario = make_scenario(
            arms=arms or ",".join(dict.fromkeys(usual)),
            replicas=replicas,
            profile=FITS_PROFILE
            if fits
            else profile or (FLEET_PROFILE if several else ONE_PROFILE),
            traces=traces,
            agents=agents or (24 * replicas if several else 64),
            max_steps=(20 if several else 32) if steps is None else steps or None,
            seed=seed,
        )
    console.print(_introduction(scenario), highlight=False, soft_wrap=True)
    try:
        with _quiet():
            courses = asyncio.run(_run(scenario, console))
    except KeyboardInterrupt:
        console.print("interrupted; nothing was written")
        raise typer.Exit(130) from None
    files = _draw(scenario, courses, out, console)
    if as_json_:
        print(json.dumps(as_json(scenario, courses, _machine(), files), indent=1))
        return
    console.print("", _table(summarize(scenario, courses)), "", sep="\n")
    console.print(_remarks(scenario, courses), highlight=False, soft_wrap=True)
    for file in files:
        console.print(f"wrote {file}", highlight=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Waits of minutes are what is shown here, not news for the log."""
    logger = logging.getLogger("concur_agents")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


async def _run(scenario: Scenario, console: Console) -> list[Course]:
    board = _Board()
    courses = []
    texts = Texts(scenario.plans, scenario.seed)
    with Live(get_renderable=board.render, console=console, transient=True):
        for arm in scenario.arms:
            clock = ClientClock()
            async with contextlib.AsyncExitStack() as stack:
                servers = [
                    await stack.enter_async_context(EmbeddedServer(scenario.profile, clock=clock))
                    for _ in range(scenario.replicas)
                ]
                course = await run_arm(arm, scenario, servers, texts, board.rows.append)
            courses.append(course)
            if not console.is_terminal:
                minutes = course.makespan_s / 60
                console.print(f"{arm.label}: {minutes:.1f} minutes on the engine's clock")
    return courses


class _Board:
    """The live view: a line per arm that has begun."""

    def __init__(self) -> None:
        self.rows: list[Progress] = []

    def render(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for heading in ("", "engine time", "done", "active", "waiting", "cached"):
            table.add_column(heading, justify="right" if heading else "left")
        for row in self.rows:
            runs = row.makespan_s is None
            elapsed_s = row.clock() if row.makespan_s is None else row.makespan_s
            table.add_row(
                row.arm.label,
                f"{int(elapsed_s) // 60}:{int(elapsed_s) % 60:02d}",
                f"{len(row.batch.done_s)}/{row.agents}",
                str(row.batch.active) if runs else "",
                str(row.batch.waiting) if runs else "",
                f"{row.cached_share:.0%}",
                style="bold" if runs else "",
            )
        return table


def _introduction(scenario: Scenario) -> str:
    profile = scenario.profile
    several = f"{scenario.replicas} replicas of " if scenario.replicas > 1 else ""
    size = f"{profile.capacity_tokens:,} tokens"
    if several:
        size = f"{scenario.replicas} times {size}"
    return (
        f"{len(scenario.plans)} agents from {scenario.traces}, {scenario.calls:,} calls, on "
        f"{several}{profile.model} ({profile.name}).\n"
        f"KV cache: {size}. All final contexts together: "
        f"{scenario.final_tokens:,}, {scenario.oversubscription:.1f} times that.\n"
        "The engine is simulated, HTTP and openai clients are real. Its clock waits for them."
    )


def _table(reports: Sequence[ArmReport]) -> Table:
    """A column per arm, so that it fits into 80 characters."""
    base = next((report.label for report in reports if report.law is None), "ungoverned")
    table = Table(box=None, pad_edge=False)
    table.add_column()
    for report in reports:
        governed = report.law not in (None, "fixed")
        table.add_column(report.label, justify="right", style="bold" if governed else "")
    rows: list[tuple[str, Callable[[ArmReport], str]]] = [
        ("makespan, s", lambda arm: f"{arm.makespan_s:,.0f}"),
        ("agents/min", lambda arm: f"{arm.agents_per_min:.2f}"),
        ("output tokens/s", lambda arm: f"{arm.output_tokens_per_s:,.0f}"),
        ("cached share", lambda arm: f"{arm.cached_share:.0%}"),
        ("hit deficit", lambda arm: f"{arm.hit_deficit:.0%}"),
        ("mean active agents", lambda arm: f"{arm.mean_active:.1f}"),
        ("pauses", lambda arm: f"{arm.pauses:,}"),
        ("worst wait, s", lambda arm: f"{arm.worst_wait_s:,.0f}"),
        (f"× {base}", lambda arm: "-" if arm.speedup is None else f"{arm.speedup:.2f}"),
    ]
    for name, cell in rows:
        table.add_row(name, *(cell(report) for report in reports))
    return table


def _remarks(scenario: Scenario, courses: Sequence[Course]) -> str:
    reports = summarize(scenario, courses)
    virtual = ", ".join(f"{row.virtual_makespan_s:,.0f}" for row in reports)
    lines = [
        "Seconds are the engine's. Hit deficit: of what agents sent once more, the share that",
        f"was not cached any more. In virtual time, without HTTP and clients: {virtual} s.",
    ]
    return "\n".join(lines)


def _draw(scenario: Scenario, courses: Sequence[Course], out: Path, console: Console) -> list[str]:
    paths = [out / f"{NAME}.{ending}" for ending in ("png", "svg")]
    out.mkdir(parents=True, exist_ok=True)
    try:
        with console.status("drawing"):
            draw(scenario, courses, paths)
    except ImportError as error:
        console.print(f"no picture: {error}", markup=False)
        return []
    return [str(path) for path in paths]


def _machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "load_1_min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "platform": sys.platform,
    }
