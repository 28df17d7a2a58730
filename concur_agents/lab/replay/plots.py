"""Pictures of a replay, drawn from its JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from concur_agents._extras import missing_extra

__all__ = ["draw"]

_PANELS = (
    ("done", "agents done"),
    ("active", "active agents"),
    ("kv_usage", "KV pool held by calls"),
    ("hit_rate", "prefix hit rate"),
    ("output_tokens_per_s", "output tokens/s"),
)


def draw(record: dict[str, Any], path: Path) -> None:
    """Write a picture: makespans, and the time series of every arm's first round.

    Args:
        record: what `concur replay` wrote to its JSON file.
        path: where to; the ending chooses the format.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error
    figure = Figure(figsize=(9, 11), layout="constrained")
    bars, *panels = figure.subplots(len(_PANELS) + 1, 1, height_ratios=[1.4] + [1.0] * len(_PANELS))
    arms = record["summary"]
    names = [arm["arm"] for arm in arms]
    colors = {name: f"C{i % 10}" for i, name in enumerate(names)}
    middles = [arm["makespan_s"] for arm in arms]
    spread = [
        [arm["makespan_s"] - arm["makespan_low_s"] for arm in arms],
        [arm["makespan_high_s"] - arm["makespan_s"] for arm in arms],
    ]
    bars.barh(names, middles, xerr=spread, color=[colors[name] for name in names], capsize=3)
    bars.invert_yaxis()
    bars.set_xlabel("makespan [s] (hatched: cut before all agents were done)")
    for bar, arm in zip(bars.patches, arms, strict=False):
        if arm["cut"]:
            bar.set_hatch("//")
    first = _first_rounds(record["rounds"])
    for panel, (key, label) in zip(panels, _PANELS, strict=True):
        for run in first:
            series = run["series"]
            points = [
                (at_s, value)
                for at_s, value in zip(series.get("at_s", []), series.get(key, []), strict=True)
                if value is not None
            ]
            if points:
                panel.plot(
                    *zip(*points, strict=True),
                    label=run["arm"],
                    color=colors[run["arm"]],
                    linewidth=1,
                )
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
    panels[-1].set_xlabel("time [s]")
    if first:
        panels[0].legend(fontsize="small", ncols=2)
    figure.savefig(path, dpi=110)


def _first_rounds(rounds: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    seen: dict[str, dict[str, Any]] = {}
    for run in rounds:
        if run["outcome"] != "skipped":
            seen.setdefault(run["arm"], run)
    return list(seen.values())
