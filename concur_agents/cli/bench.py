"""`concur bench`: judge laws on a suite of simulated scenarios."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from concur_agents.bench.arms import REFERENCES, LawArm
from concur_agents.bench.figures import Report, geomean
from concur_agents.bench.scenario import Scenario, load_suite, select
from concur_agents.bench.suite import DEFAULT_ARMS, evaluate, law_arm
from concur_agents.core import ORDERS, law_names
from concur_agents.errors import ConfigError


def bench_command(
    quick: bool = typer.Option(False, "--quick", help="A few scenarios, one seed: < 2 minutes."),
    only: list[str] = typer.Option([], "--only", help="Scenarios or families, as shell patterns."),
    law: list[str] = typer.Option([], "--law", help="A law to judge besides the default ones."),
    arms: str = typer.Option("", "--arms", help="Run just these, comma-separated."),
    settings: list[str] = typer.Option(
        [], "--set", help="LAW.OPTION=VALUE or regulator.OPTION=VALUE."
    ),
    compare: str = typer.Option(
        "", "--compare", help="Values of one option side by side: order=all, hold_scale=0.5,1."
    ),
    seeds: int = typer.Option(0, min=0, help="Draws per scenario; 0: three, quick one."),
    workers: int = typer.Option(0, min=0, help="Processes; 0: one per core."),
    scenarios: Path | None = typer.Option(None, help="Folder of scenario files of your own."),
    cache: Path | None = typer.Option(None, help="Folder that keeps outcomes between calls."),
    out: Path | None = typer.Option(None, help="Folder for results.json and pictures."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object, see docs/bench.md."),
    listing: bool = typer.Option(False, "--list", help="List the scenarios and stop."),
) -> None:
    """Run a suite of scenarios under every arm, and hold the laws against their goals.

    Arms: ungoverned, best_fixed and best_request (the best caps, found by search), free_tier (a
    bound), and laws by name. The same call gives the same numbers.
    """
    suite = load_suite(scenarios)
    if quick:
        suite = [scenario for scenario in suite if scenario.quick]
    if only:
        suite = select(suite, only)
    if listing:
        _list(suite)
        return
    numbers = tuple(range(1, (seeds or (1 if quick else 3)) + 1))
    parsed = _parse_settings(settings)
    if compare:
        suite = [scenario for scenario in suite if not scenario.alters_law]
        laws = _compared(compare, parsed)
        references: list[str] = []
    else:
        names = arms.split(",") if arms else [*DEFAULT_ARMS, *law]
        references = [name for name in names if name in REFERENCES]
        laws = [_law(name, parsed) for name in dict.fromkeys(names) if name not in REFERENCES]
    console = _console()
    began_s = time.monotonic()
    with _progress() as bar:
        task = bar.add_task("runs")
        outcomes = evaluate(
            laws,
            references=references,
            scenarios=suite,
            seeds=numbers,
            workers=workers or None,
            cache_dir=cache,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    report = Report(suite, outcomes)
    if out is not None:
        _write(report, out)
    if as_json:
        print(json.dumps(report.to_dict(), indent=1))
    elif compare:
        _print_compared(console, report, laws)
    else:
        _print_scenarios(console, report)
        for name in (arm.name for arm in laws if arm.law != "cache_aimd"):
            _print_figures(console, report, name)
    took_s = time.monotonic() - began_s
    Console(stderr=True).print(f"{len(outcomes)} outcomes in {took_s:.0f} s", style="dim")


# --- options -------------------------------------------------------------------------------------


def _parse_settings(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`["working_set.step=0.1"]` -> `{"working_set": {"step": 0.1}}`."""
    parsed: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, found, value = text.partition("=")
        whose, dot, option = name.partition(".")
        if not found or not dot or whose not in (*law_names(), "regulator"):
            raise ConfigError(
                f"--set {text!r} not understood; write LAW.OPTION=VALUE with LAW one of "
                f"{', '.join(law_names())}, or regulator.OPTION=VALUE"
            )
        parsed.setdefault(whose, {})[option] = _value(value)
    return parsed


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _law(name: str, settings: Mapping[str, Mapping[str, Any]]) -> LawArm:
    if name not in law_names():
        raise ConfigError(f"no arm {name!r}; there are {', '.join((*REFERENCES, *law_names()))}")
    return law_arm(name, settings)


def _compared(text: str, settings: Mapping[str, Mapping[str, Any]]) -> list[LawArm]:
    """One arm per value of `order=a,b` or `hold_scale=0.5,1`, all of the default law."""
    option, found, values = text.partition("=")
    if not found or not values:
        raise ConfigError(
            f"--compare {text!r} not understood; write OPTION=VALUE,VALUE or order=all"
        )
    of_regulator = option in ("order", "max_wait_s", "max_started", "blind_after_s")
    given = list(ORDERS) if text == "order=all" else values.split(",")
    made = []
    for value in given:
        whose = "regulator" if of_regulator else "working_set"
        changed = {**settings, whose: {**settings.get(whose, {}), option: _value(value)}}
        arm = law_arm("working_set", changed)
        made.append(LawArm(name=value, law=arm.law, options=arm.options, regulator=arm.regulator))
    return made


# --- what is shown -------------------------------------------------------------------------------


def _console() -> Console:
    """As wide as the tables if it is no terminal, whose width nobody knows."""
    console = Console()
    if not console.is_terminal:
        console.width = 200
    return console


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def _list(suite: Sequence[Scenario]) -> None:
    table = Table("scenario", "family", "what ought to happen", box=None, pad_edge=False)
    for scenario in suite:
        table.add_row(scenario.name, scenario.family, scenario.expect)
    _console().print(table)


def _print_scenarios(console: Console, report: Report) -> None:
    """Makespans, as multiples of the best fixed cap's speed."""
    table = Table(title="times as fast as the best fixed cap (makespan \\[s])", box=None)
    table.add_column("scenario", no_wrap=True)
    table.add_column("without limit")
    for arm in report.arms:
        table.add_column(arm, justify="right", no_wrap=True)
    for scenario in report.scenarios:
        cells = []
        for arm in report.arms:
            outcomes = report.of(scenario, arm)
            if not outcomes:
                cells.append("")
                continue
            makespan_s = geomean(outcome.makespan_s for outcome in outcomes)
            speedup = report.speedup(scenario, arm, "best_fixed")
            cells.append(
                f"{makespan_s:.0f}" if speedup is None else f"{speedup:.2f} ({makespan_s:.0f})"
            )
        table.add_row(scenario.name, report.regime(scenario) or "", *cells)
    console.print(table)


def _print_figures(console: Console, report: Report, arm: str) -> None:
    table = Table(title=f"{arm} against its goals", box=None)
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("goal", justify="right")
    table.add_column("met")
    table.add_column("scenarios", justify="right")
    table.add_column("worst", no_wrap=True)
    for figure in report.figures(arm):
        if figure.value is None:
            continue
        sign = ">=" if figure.better == "higher" else "<="
        table.add_row(
            figure.text,
            f"{figure.value:.3f}",
            "" if figure.goal is None else f"{sign} {figure.goal:g}",
            {None: "", True: "yes", False: "[bold]NO[/bold]"}[figure.met],
            str(figure.scenarios),
            figure.worst or "",
        )
    console.print(table)


def _print_compared(console: Console, report: Report, laws: Sequence[LawArm]) -> None:
    """Makespans of each value over those of the first: below 1 is faster."""
    first = laws[0].name
    table = Table(title=f"makespan / makespan with {first}", box=None)
    table.add_column("scenario", no_wrap=True)
    for law in laws:
        table.add_column(law.name, justify="right", no_wrap=True)
    columns: list[list[float]] = [[] for _ in laws]
    for scenario in report.scenarios:
        ratios = [report.speedup(scenario, first, law.name) for law in laws]
        for column, ratio in zip(columns, ratios, strict=True):
            column += [] if ratio is None else [ratio]
        table.add_row(scenario.name, *("" if r is None else f"{r:.3f}" for r in ratios))
    table.add_section()
    table.add_row("geomean", *(f"{geomean(column):.3f}" for column in columns))
    table.add_row("worst", *(f"{max(column):.3f}" for column in columns))
    console.print(table)


def _write(report: Report, folder: Path) -> None:
    from concur_agents.bench.plots import draw_all

    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report.to_dict(), indent=1)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    draw_all(report, folder)
