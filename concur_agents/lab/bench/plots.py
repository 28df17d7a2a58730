"""Pictures of a bench run: one per family of scenarios."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from concur_agents._extras import missing_extra
from concur_agents.lab.bench.arms import ArmOutcome
from concur_agents.lab.bench.figures import Report, geomean
from concur_agents.lab.bench.scenario import Scenario

__all__ = ["draw_all", "draw_family"]

_COLUMNS = 3
_CAPS = (1, 2, 3, 4, *(step * 2**power for power in range(1, 10) for step in (3, 4)))
"""Where the axis of caps may have a tick."""
_COLORS = {
    "ungoverned": "tab:red",
    "best_request": "tab:purple",
    "best_fixed": "0.35",
    "cache_aimd": "tab:orange",
    "working_set": "tab:blue",
    "free_tier": "tab:green",
}
_MORE_COLORS = ("tab:brown", "tab:pink", "tab:olive", "tab:cyan")


def draw_all(report: Report, folder: Path) -> list[Path]:
    """One PNG per family with something to compare; returns their paths.

    Raises:
        ImportError: matplotlib is not installed.
    """
    paths = []
    for family in dict.fromkeys(scenario.family for scenario in report.scenarios):
        scenarios = [s for s in report.scenarios if s.family == family and not s.alters_law]
        if scenarios:
            paths.append(folder / f"{family}.png")
            draw_family(report, family, scenarios, paths[-1])
    return paths


def draw_family(report: Report, family: str, scenarios: Sequence[Scenario], path: Path) -> None:
    """One panel per scenario: makespan over the cap that the search tried, laws as levels."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error
    columns = min(_COLUMNS, len(scenarios))
    rows = math.ceil(len(scenarios) / columns)
    figure = Figure(figsize=(1.2 + 4.0 * columns, 1.2 + 3.0 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    more = iter(_MORE_COLORS)
    colors = {arm: _COLORS.get(arm) or next(more, "k") for arm in report.arms}
    for panel, scenario in zip(panels, scenarios, strict=False):
        _draw_scenario(panel, report, scenario, colors)
    for panel in panels[len(scenarios) :]:
        panel.set_axis_off()
    for panel in panels[::columns]:
        panel.set_ylabel("makespan [s]")
    handles = [
        Line2D([], [], color=color, linestyle=_style(arm), label=_label(arm))
        for arm, color in colors.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize="small")
    figure.suptitle(f"{family}: makespan by cap on agents; levels are geometric means of the seeds")
    figure.savefig(path, dpi=110)


def _draw_scenario(panel: Any, report: Report, scenario: Scenario, colors: dict[str, str]) -> None:
    caps = report.of(scenario, "best_fixed")
    for outcome in caps:
        panel.plot(
            list(outcome.tried), list(outcome.tried.values()), color=colors["best_fixed"], lw=0.8
        )
    for arm, color in colors.items():
        outcomes = report.of(scenario, arm)
        if not outcomes:
            continue
        level = geomean(outcome.time_s for outcome in outcomes)
        if arm == "best_fixed":
            _mark_best(panel, outcomes, color)
        else:
            panel.axhline(level, color=color, linestyle=_style(arm), lw=1.4)
    panel.set_title(scenario.name, fontsize="medium")
    panel.set_xscale("log", base=2)
    first, last = panel.get_xlim()
    panel.set_xticks([cap for cap in _CAPS if first <= cap <= last], minor=False)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.set_xlabel("cap on agents")
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.3)


def _mark_best(panel: Any, outcomes: Sequence[ArmOutcome], color: str) -> None:
    for outcome in outcomes:
        panel.plot([outcome.cap], [outcome.time_s], "o", color=color, markersize=4)


def _style(arm: str) -> Literal["-", "--", "-.", ":"]:
    match arm:
        case "free_tier":
            return ":"
        case "ungoverned":
            return "--"
        case "best_request":
            return "-."
        case _:
            return "-"


def _label(arm: str) -> str:
    return {
        "best_fixed": "fixed cap, one line per seed; dot: best",
        "free_tier": "free-tier bound",
        "best_request": "best cap on calls",
    }.get(arm, arm)
