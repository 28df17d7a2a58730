"""The picture of a demo: all arms on one time axis."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from concur_agents._extras import missing_extra
from concur_agents.lab.demo.course import Course
from concur_agents.lab.demo.report import ArmReport, interval_s, series_of, summarize
from concur_agents.lab.demo.scenario import Scenario

__all__ = ["draw"]

_INK, _FAINT = "#22272e", "#d5dae1"
_UNGOVERNED = ("#c8553d", "#e0a458")
_COLORS = ("#8a94a3", "#1f6feb", "#2e9e6b", "#8957c4", "#b8860b")  # a cap is grey, a law is not
_LEFT = 0.1
_PANELS = (
    ("active", "active agents"),
    ("cached_share", "cached share\nof prompts"),
    ("output_tokens_per_s", "output tokens/s"),
)


def draw(scenario: Scenario, courses: Sequence[Course], paths: Sequence[Path]) -> None:
    """Write the picture to each path; the ending chooses the format.

    Raises:
        ImportError: the `plot` extra is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error
    style: Any = {
        "font.size": 10,
        "text.color": _INK,
        "axes.edgecolor": _FAINT,
        "axes.labelcolor": _INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "svg.hashsalt": "concur-agents",  # the same picture is the same file
    }
    with rc_context(style):
        figure = Figure(figsize=(9, 6.8))
        _fill(figure, scenario, courses)
        for path in paths:
            figure.savefig(path, dpi=130, metadata={"Date": None} if path.suffix == ".svg" else {})


def _fill(figure: Any, scenario: Scenario, courses: Sequence[Course]) -> None:
    reports = summarize(scenario, courses)
    longest_s = max(course.makespan_s for course in courses)
    unit_s, unit = (60.0, "minutes") if longest_s > 180 else (1.0, "seconds")
    every_s = interval_s(courses)
    panels = figure.subplots(len(_PANELS), 1, sharex=True)
    for report, course, color in zip(reports, courses, _colors(reports), strict=True):
        curves = series_of(course, every_s)
        for panel, (name, _) in zip(panels, _PANELS, strict=True):
            values = [math.nan if v is None else v for v in getattr(curves, name)]
            times = [at_s / unit_s for at_s in curves.at_s]
            width = 2.0 if _is_governed(report) else 1.4
            panel.plot(
                times, values, color=color, linewidth=width, label=_legend(report, unit_s, unit)
            )
            panel.axvline(course.makespan_s / unit_s, color=color, linewidth=0.8, linestyle=":")
    for panel, (_, label) in zip(panels, _PANELS, strict=True):
        panel.set_ylabel(label)
        panel.set_ylim(bottom=0)
        panel.grid(axis="y", color=_FAINT, linewidth=0.6)
    panels[1].set_ylim(0, 1.02)
    panels[-1].set_xlim(0, longest_s / unit_s * 1.01)
    panels[-1].set_xlabel(f"{unit} on the engine's clock; dotted: the last agent is done")
    figure.align_ylabels(panels)
    figure.text(_LEFT, 0.965, _title(scenario), weight="bold", size=12)
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="upper left",
        bbox_to_anchor=(_LEFT, 0.948),
        ncols=2,
        frameon=False,
        borderpad=0,
        borderaxespad=0,
    )
    lines = math.ceil(len(reports) / 2)
    figure.subplots_adjust(
        left=_LEFT, right=0.985, bottom=0.08, top=0.93 - 0.033 * lines, hspace=0.14
    )


def _title(scenario: Scenario) -> str:
    agents, model = len(scenario.plans), scenario.profile.model
    times = f"final contexts {scenario.oversubscription:.1f} times the"
    if scenario.replicas > 1:
        return f"{agents} agents on {scenario.replicas} × {model}, {times} KV caches"
    return f"{agents} recorded agents on {model}, their {times} KV cache"


def _legend(report: ArmReport, unit_s: float, unit: str) -> str:
    ratio = f", {report.speedup:.1f} × as fast" if report.speedup and report.law else ""
    return f"{report.label}: {report.makespan_s / unit_s:.0f} {unit}{ratio}"


def _is_governed(report: ArmReport) -> bool:
    return report.law not in (None, "fixed")


def _colors(reports: Sequence[ArmReport]) -> list[str]:
    others = iter(_COLORS if any(r.law == "fixed" for r in reports) else _COLORS[1:])
    ungoverned = itertools.cycle(_UNGOVERNED)
    return [next(ungoverned if report.law is None else others) for report in reports]
