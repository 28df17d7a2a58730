"""The result of a bench run as a Markdown page: goals, scenarios, pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from concur_agents.lab.bench.figures import Figure, Report, best_cap_of, geomean
from concur_agents.lab.bench.scenario import Scenario
from concur_agents.lab.bench.suite import ALL_REFERENCES

__all__ = ["cell", "compared", "comparison", "finish_cell", "page", "verdict"]


def page(report: Report, command: str, pictures: Sequence[str]) -> str:
    """A page that says what was run, what came out and which goals were met."""
    laws = [arm for arm in report.arms if arm not in (*ALL_REFERENCES, "cache_aimd")]
    lines = [
        "# What `concur bench` found",
        "",
        f"Written by `{command}`, seeds {', '.join(map(str, report.seeds))}; how to read it is in",
        "bench.md. The simulator is deterministic: the same command gives the same page.",
        "",
    ]
    for law in laws:
        lines += [f"## {law} against its goals", "", *_goals(report.figures(law)), ""]
    for scenarios, arms in report.tables():
        of_what = "" if scenarios[0].replicas is None else " with several replicas"
        lines += [f"## Scenarios{of_what}", "", *_scenarios(report, scenarios, arms), ""]
        head = f"## When agents finish{of_what}, and how many are open"
        lines += [head, "", *_finishes(report, scenarios, arms), ""]
    lines += [f"![{picture}]({picture})" for picture in pictures]
    return "\n".join(lines).rstrip() + "\n"


def verdict(figure: Figure) -> tuple[str, str, str]:
    """Value, goal and whether it is met, as words."""
    value = "" if figure.value is None else f"{figure.value:.3f}"
    sign = "at least" if figure.better == "higher" else "at most"
    goal = "" if figure.goal is None else f"{sign} {figure.goal:g}"
    return value, goal, {None: "", True: "yes", False: "NO"}[figure.met]


def cell(report: Report, scenario: Scenario, arm: str) -> str:
    """How many times as fast as the best cap, and the makespan [s], or agents per hour."""
    outcomes = report.of(scenario, arm)
    if not outcomes:
        return ""
    if scenario.horizon_s is None:
        value = f"{geomean(outcome.time_s for outcome in outcomes):.0f}"
    else:
        per_hour = [outcome.agents_per_hour for outcome in outcomes]
        value = f"{sum(per_hour) / len(per_hour):.0f}/h"
    speedup = report.speedup(scenario, arm, best_cap_of(scenario))
    return value if speedup is None else f"{speedup:.2f} ({value})"


def finish_cell(report: Report, scenario: Scenario, arm: str) -> str:
    """Mean time to finish [s], when nine in ten were done [s], and most agents open at once."""
    outcomes = report.of(scenario, arm)
    if not outcomes:
        return ""
    cells = []
    for key in ("finish_mean_s", "finish_p90_s", "most_open"):
        seeds = [outcome.metrics[key] for outcome in outcomes]
        cells.append("-" if None in seeds else f"{sum(seeds) / len(seeds):.0f}")
    return " / ".join(cells)


def compared(report: Report) -> list[list[str]]:
    """Makespans of each arm over those of the first, per scenario; then the mean and the worst."""
    rows = []
    columns: list[list[float]] = [[] for _ in report.arms]
    for scenario in report.scenarios:
        cells = [scenario.name]
        for column, arm in zip(columns, report.arms, strict=True):
            ratio = report.speedup(scenario, report.arms[0], arm)
            column += [] if ratio is None else [ratio]
            cells.append("" if ratio is None else f"{ratio:.3f}")
        rows.append(cells)
    rows.append(["geomean", *(f"{geomean(column):.3f}" for column in columns)])
    rows.append(["worst", *(f"{max(column):.3f}" for column in columns)])
    return rows


def comparison(report: Report, command: str) -> str:
    """A page that lays the arms beside each other."""
    lines = [
        f"# Makespan over that with {report.arms[0]}",
        "",
        f"Written by `{command}`. Below 1 is faster; geometric means of the seeds.",
        "",
        *_table(("scenario", *report.arms), compared(report)),
    ]
    return "\n".join(lines) + "\n"


def _goals(figures: Sequence[Figure]) -> list[str]:
    rows = [
        (figure.text, *verdict(figure), str(figure.scenarios), figure.worst or "")
        for figure in figures
        if figure.value is not None
    ]
    return _table(("figure", "value", "goal", "met", "scenarios", "worst"), rows)


def _scenarios(report: Report, scenarios: Sequence[Scenario], arms: Sequence[str]) -> list[str]:
    rows = [
        (s.name, report.regime(s) or "", *(cell(report, s, arm) for arm in arms)) for s in scenarios
    ]
    cap = "fixed cap" if scenarios[0].replicas is None else "cap per replica"
    return [
        f"Times as fast as the best {cap}, and the makespan [s]; geometric means of the seeds.",
        "Of an endless source: agents finished per hour.",
        "",
        *_table(("scenario", "without limit", *arms), rows),
    ]


def _finishes(report: Report, scenarios: Sequence[Scenario], arms: Sequence[str]) -> list[str]:
    rows = [(s.name, *(finish_cell(report, s, arm) for arm in arms)) for s in scenarios]
    return [
        "Time from an agent's arrival to its finish, mean and nine in ten [s] (-: the run was cut",
        "before), and most agents open at once (let in and not finished); means of the seeds.",
        "",
        *_table(("scenario", *arms), rows),
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]
