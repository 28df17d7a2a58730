"""Pictures of a bench run: one per family of scenarios."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from concur_agents._extras import missing_extra
from concur_agents.lab.bench.arms import ArmOutcome
from concur_agents.lab.bench.figures import Report, best_cap_of, geomean
from concur_agents.lab.bench.scenario import Scenario

__all__ = ["draw_all", "draw_family"]

_COLUMNS = 3
_TITLE_WIDTH = 9.0  # [inches] of the title and the legend, which one panel would cut off
_CAPS = (1, 2, 3, 4, *(step * 2**power for power in range(1, 10) for step in (3, 4)))
"""Where the axis of caps may have a tick."""
_MOST_TICKS = 13
"""Labels of more ticks would overlap."""
_COLORS = {
    "ungoverned": "tab:red",
    "best_request": "tab:purple",
    "best_fixed": "0.35",
    "program_gate": "tab:brown",
    "lease_gate": "tab:pink",
    "cache_aimd": "tab:orange",
    "working_set": "tab:blue",
    "free_tier": "tab:green",
    "round_robin": "tab:red",
    "sticky": "tab:orange",
    "sum": "tab:purple",
    "cap_per_replica": "0.35",
}
_MORE_COLORS = ("tab:olive", "tab:cyan")


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
    """One panel per scenario: makespan over the cap that the search tried, laws as levels.

    Where runs are cut, it shows the agents finished per hour instead.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error
    columns = min(_COLUMNS, len(scenarios))
    rows = math.ceil(len(scenarios) / columns)
    width = max(_TITLE_WIDTH, 1.2 + 4.0 * columns)
    figure = Figure(figsize=(width, 1.2 + 3.0 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    more = iter(_MORE_COLORS)
    colors = {arm: _COLORS.get(arm) or next(more, "k") for arm in report.arms}
    for panel, scenario in zip(panels, scenarios, strict=False):
        _draw_scenario(panel, report, scenario, colors)
    for panel in panels[len(scenarios) :]:
        panel.set_axis_off()
    for panel, scenario in zip(panels[::columns], scenarios[::columns], strict=True):
        panel.set_ylabel("makespan [s]" if scenario.horizon_s is None else "agents per hour")
    handles = [
        Line2D([], [], color=color, linestyle=_style(arm), label=_label(arm))
        for arm, color in colors.items()
        if any(report.of(scenario, arm) for scenario in scenarios)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize="small")
    is_cut = any(scenario.horizon_s is not None for scenario in scenarios)
    what = "agents finished per hour" if is_cut else "makespan"
    figure.suptitle(f"{family}: {what} by cap on agents; levels are geometric means of the seeds")
    figure.savefig(path, dpi=110)


def _draw_scenario(panel: Any, report: Report, scenario: Scenario, colors: dict[str, str]) -> None:
    best_cap = best_cap_of(scenario)
    for outcome in report.of(scenario, best_cap):
        heights = [_height(scenario, outcome, time_s) for time_s in outcome.tried.values()]
        panel.plot(list(outcome.tried), heights, color=colors[best_cap], lw=0.8)
    for arm, color in colors.items():
        outcomes = report.of(scenario, arm)
        if not outcomes:
            continue
        heights = [_height(scenario, outcome, outcome.time_s) for outcome in outcomes]
        if arm == best_cap:
            for outcome, height in zip(outcomes, heights, strict=True):
                panel.plot([outcome.cap], [height], "o", color=color, markersize=4)
        else:
            panel.axhline(geomean(heights), color=color, linestyle=_style(arm), lw=1.4)
    panel.set_title(scenario.name, fontsize="medium")
    panel.set_xscale("log", base=2)
    first, last = panel.get_xlim()
    ticks = [cap for cap in _CAPS if first <= cap <= last]
    panel.set_xticks(ticks[:: 1 + len(ticks) // _MOST_TICKS], minor=False)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    where = "" if scenario.replicas is None else " of each replica"
    panel.set_xlabel(f"cap on agents{where}")
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.3)


def _height(scenario: Scenario, outcome: ArmOutcome, time_s: float) -> float:
    """What is drawn of a run: its makespan [s]; of one that was cut, its agents per hour."""
    agents: int = outcome.metrics["agents"]
    return time_s if scenario.horizon_s is None else 3600 * agents / time_s


def _style(arm: str) -> Literal["-", "--", "-.", ":"]:
    match arm:
        case "free_tier":
            return ":"
        case "ungoverned" | "round_robin" | "sticky":
            return "--"
        case "best_request" | "sum" | "program_gate" | "lease_gate":
            return "-."
        case _:
            return "-"


def _label(arm: str) -> str:
    return {
        "best_fixed": "fixed cap, one line per seed; dot: best",
        "free_tier": "free-tier bound",
        "best_request": "best cap on calls",
        "cap_per_replica": "cap per replica, one line per seed; dot: best",
        "sum": "one governor on the sum",
    }.get(arm, arm)
