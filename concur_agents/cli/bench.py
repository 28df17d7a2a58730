"""`concur bench`: judge laws on a suite of simulated scenarios."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from concur_agents.cli.console import Console
from concur_agents.cli.options import import_from_here
from concur_agents.core import ORDERS, law_names
from concur_agents.errors import ConfigError
from concur_agents.lab.bench.arms import LawArm
from concur_agents.lab.bench.figures import Report
from concur_agents.lab.bench.page import (
    cell,
    compared,
    comparison,
    finish_cell,
    page,
    verdict,
)
from concur_agents.lab.bench.scenario import Scenario, load_suite, select
from concur_agents.lab.bench.suite import (
    ALL_REFERENCES,
    DEFAULT_ARMS,
    TIER_HIDDEN,
    evaluate,
    law_arm,
)


def bench_command(
    quick: bool = typer.Option(False, "--quick", help="A few scenarios, one seed: < 2 minutes."),
    only: list[str] = typer.Option([], "--only", help="Scenarios or families, as shell patterns."),
    law: list[str] = typer.Option([], "--law", help="A law to judge too: a name, or module:Class."),
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
    cache: Path | None = typer.Option(
        None, file_okay=False, help="Folder that keeps outcomes between calls."
    ),
    out: Path | None = typer.Option(
        None, file_okay=False, help="Folder for results (.json, .md) and pictures."
    ),
    as_json: bool = typer.Option(
        False, "--json", help="Print one JSON object, see docs/bench-laws.md."
    ),
    listing: bool = typer.Option(False, "--list", help="List the scenarios and stop."),
) -> None:
    """Run a suite of scenarios under every arm, and hold the laws against their goals.

    Arms: ungoverned, best_fixed and best_request (the best caps, found by search), program_gate and
    lease_gate (after ThunderAgent and llm-d), free_tier (a bound), and laws by name. With several
    replicas: round_robin, sticky, sum (one governor on the sum), cap_per_replica, and laws. The
    same call gives the same numbers.
    """
    import_from_here()
    suite = load_suite(scenarios)
    if quick:
        suite = [scenario for scenario in suite if scenario.quick]
    if only:
        suite = select(suite, only)
    if listing:
        _list(suite, as_json)
        return
    numbers = tuple(range(1, (seeds or (1 if quick else 3)) + 1))
    parsed = _parse_settings(settings)
    if compare:
        suite = [scenario for scenario in suite if not scenario.alters_law]
        laws = _compared(compare, parsed)
        references: list[str] = []
    else:
        names = arms.split(",") if arms else [*DEFAULT_ARMS, *law]
        references = [name for name in names if name in ALL_REFERENCES]
        laws = [_law(name, parsed) for name in dict.fromkeys(names) if name not in ALL_REFERENCES]
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
        words = _command(quick, only, law, arms, settings, compare, seeds)
        _write(report, out, words, compare)
    if as_json:
        print(json.dumps(report.to_dict(), indent=1))
    elif compare:
        _print_compared(console, report)
    else:
        _print_scenarios(console, report)
        _print_finishes(console, report)
        for name in (arm.name for arm in laws if arm.law != "cache_aimd"):
            _print_figures(console, report, name)
    took_s = time.monotonic() - began_s
    Console(stderr=True).print(f"{len(outcomes)} outcomes in {took_s:.0f} s", style="dim")


def _command(
    quick: bool,
    only: Sequence[str],
    law: Sequence[str],
    arms: str,
    settings: Sequence[str],
    compare: str,
    seeds: int,
) -> str:
    """The call, as far as it decides what comes out."""
    words = ["concur bench", *(["--quick"] if quick else [])]
    several = {"--only": only, "--law": law, "--set": settings}
    words += [
        f"{option} {shlex.quote(word)}" for option, given in several.items() for word in given
    ]
    once = {"--arms": arms, "--compare": compare, "--seeds": str(seeds or "")}
    words += [f"{option} {shlex.quote(word)}" for option, word in once.items() if word]
    return " ".join(words)


# --- options -------------------------------------------------------------------------------------


def _parse_settings(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`["working_set.step=0.1"]` -> `{"working_set": {"step": 0.1}}`."""
    parsed: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, found, value = text.partition("=")
        whose, dot, option = name.rpartition(".")
        known = whose in (*law_names(), "regulator") or ":" in whose
        if not found or not dot or not known:
            raise ConfigError(
                f"--set {text!r} not understood; write LAW.OPTION=VALUE with LAW one of "
                f"{', '.join(law_names())} or module:Class, or regulator.OPTION=VALUE"
            )
        parsed.setdefault(whose, {})[option] = _value(value)
    return parsed


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _law(name: str, settings: Mapping[str, Mapping[str, Any]]) -> LawArm:
    if name.removesuffix(TIER_HIDDEN) not in law_names() and ":" not in name:
        names = ", ".join((*ALL_REFERENCES, *law_names()))
        raise ConfigError(
            f"no arm {name!r}; there are {names}, module:Class of a law, or a law with "
            f"{TIER_HIDDEN} behind its name"
        )
    return law_arm(name, settings)


def _compared(text: str, settings: Mapping[str, Mapping[str, Any]]) -> list[LawArm]:
    """One arm per value of `order=a,b` or `hold_scale=0.5,1`, all of the default law."""
    option, found, values = text.partition("=")
    if not found or not values:
        raise ConfigError(
            f"--compare {text!r} not understood; write OPTION=VALUE,VALUE or order=all"
        )
    of_regulator = option in ("order", "max_wait_s", "max_open", "blind_after_s")
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
    """As wide as the tables if it is no terminal, whose width is unknown."""
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


def _list(suite: Sequence[Scenario], as_json: bool) -> None:
    if as_json:
        keys = ("name", "family", "expect")
        print(json.dumps([{key: getattr(each, key) for key in keys} for each in suite], indent=1))
        return
    table = Table("scenario", "family", "what ought to happen", box=None, pad_edge=False)
    for scenario in suite:
        table.add_row(scenario.name, scenario.family, scenario.expect)
    _console().print(table)


def _print_scenarios(console: Console, report: Report) -> None:
    """Makespans, as multiples of the best cap's speed."""
    for scenarios, arms in report.tables():
        cap = "fixed cap" if scenarios[0].replicas is None else "cap per replica"
        title = f"times as fast as the best {cap} (makespan \\[s], or agents per hour)"
        table = Table(title=title, box=None)
        table.add_column("scenario", no_wrap=True)
        table.add_column("without limit")
        for arm in arms:
            table.add_column(arm, justify="right", no_wrap=True)
        for scenario in scenarios:
            cells = (cell(report, scenario, arm) for arm in arms)
            table.add_row(scenario.name, report.regime(scenario) or "", *cells)
        console.print(table)


def _print_finishes(console: Console, report: Report) -> None:
    for scenarios, arms in report.tables():
        title = "time to finish, mean / nine in ten \\[s] / most agents open at once"
        table = Table(title=title, box=None)
        table.add_column("scenario", no_wrap=True)
        for arm in arms:
            table.add_column(arm, justify="right", no_wrap=True)
        for scenario in scenarios:
            cells = (finish_cell(report, scenario, arm) for arm in arms)
            table.add_row(scenario.name, *cells)
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
        if figure.value is not None:
            value, goal, met = verdict(figure)
            table.add_row(
                escape(figure.text), value, goal, met, str(figure.scenarios), figure.worst or ""
            )
    console.print(table)


def _print_compared(console: Console, report: Report) -> None:
    """Makespans of each value over those of the first: below 1 is faster."""
    table = Table(title=f"makespan / makespan with {report.arms[0]}", box=None)
    table.add_column("scenario", no_wrap=True)
    for arm in report.arms:
        table.add_column(arm, justify="right", no_wrap=True)
    for row in compared(report):
        table.add_row(*row)
    console.print(table)


def _write(report: Report, folder: Path, command: str, compare: str) -> None:
    from concur_agents.lab.bench.plots import draw_all

    folder.mkdir(parents=True, exist_ok=True)
    name = f"compare-{compare.partition('=')[0]}" if compare else "results"
    if compare:
        text = comparison(report, command)
    else:
        text = page(report, command, [path.name for path in draw_all(report, folder)])
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    record = json.dumps(report.to_dict(), indent=1)
    (folder / f"{name}.json").write_text(record + "\n", encoding="utf-8")
