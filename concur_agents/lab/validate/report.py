"""The page `docs/simulator.md` and its picture."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from concur_agents.lab.validate.curves import STEP_24
from concur_agents.lab.validate.points import (
    Point,
    calibration_timings,
    sweep_points,
    sweeps,
    tiny_points,
)


def table(points: Sequence[Point], reference: Point, measured_as: str) -> str:
    """A markdown table; rows outside the goals are marked."""
    head = ["arm", "hit rate measured", "simulated", "off by"]
    head += [f"{measured_as} measured", "simulated"]
    head += [f"speed vs {reference.label} measured", "simulated", "off by", ""]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for point in points:
        ratio = point.measured_speed / reference.measured_speed
        simulated_ratio = point.simulated_speed / reference.simulated_speed
        off = f"{point.ratio_error(reference):+.1%}" if point is not reference else "-"
        spread = f" ({min(point.draws):.2f}..{max(point.draws):.2f})" if point.draws else ""
        mark = "" if point.holds(reference) else "**misses**"
        lines.append(
            f"| {point.label} | {point.measured_hit:.3f} | {point.simulated_hit:.3f}{spread} "
            f"| {point.hit_error:+.3f} | {point.measured} | {point.simulated} "
            f"| {ratio:.2f} | {simulated_ratio:.2f} | {off} | {mark} |"
        )
    return "\n".join(lines)


def fast_sections() -> dict[str, str]:
    """Every section of the report that takes a second or two: CPU, H100, calibration."""
    sections = {}
    points = tiny_points()
    sections["tiny"] = table(points, points[-1], "makespan")
    for gpu in ("h100", "h200"):
        for i, sweep in enumerate(sweeps(gpu)):
            points = sweep_points(sweep)
            sections[f"{gpu}-{i}"] = table(points, _named(points, "none"), "makespan")
    lines = ["| what | measured | simulated | off by |", "|---|---|---|---|"]
    lines += [
        f"| {timing.label} | {timing.measured_s * 1e3:.2f} ms | {timing.simulated_s * 1e3:.2f} ms "
        f"| {timing.simulated_s / timing.measured_s - 1:+.1%} |"
        for timing in calibration_timings()
    ]
    sections["calibration"] = "\n".join(lines)
    return sections


def _named(points: Sequence[Point], label: str) -> Point:
    return next(point for point in points if point.label == label)


def report(curves: dict[str, list[Point]]) -> str:
    """The whole page."""
    sections = fast_sections()
    for name, points in curves.items():
        sections[name] = table(points, points[0], "output, pool in use")
    page = (resources.files("concur_agents.lab.validate") / "page.md").read_text(encoding="utf-8")
    for name, text in sections.items():
        page = page.replace(f"<{name}>", text)
    return page


def draw(path: Path, curves: dict[str, list[Point]]) -> None:
    """The picture of the page: measured as dots, simulated as lines."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ImportError('drawing needs matplotlib: pip install "concur-agents[plot]"') from error
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 8.5), layout="constrained")
    ink, line = "#c0392b", "#2c6fad"

    def curve(axis: Any, points: Sequence[Point], what: str, title: str, x: str, y: str) -> None:
        xs = [point.x for point in points]
        simulated = [getattr(point, f"simulated_{what}") for point in points]
        real = [getattr(point, f"measured_{what}") for point in points]
        axis.plot(xs, simulated, "-", color=line, lw=1.8, marker=".", label="simulated")
        axis.plot(xs, real, "o", color=ink, ms=7, mfc="none", mew=1.8, label="measured")
        axis.set(title=title, xlabel=x, ylabel=y, ylim=(0, None), xticks=xs)
        axis.grid(alpha=0.25)

    curve(
        axes[0][0],
        tiny_points(),
        "hit",
        "vLLM on a CPU: hit rate",
        "cap on active agents",
        "cached share of prompt tokens",
    )
    axes[0][0].legend(frameon=False)

    rows: list[tuple[str, float, float]] = []
    for sweep in sweeps("h100"):
        points = sweep_points(sweep)
        name = sweep["name"].split(",")[0].split()[0]
        base = _named(points, "none")
        rows += [
            (
                f"{point.label}  ({name})",
                point.measured_speed / base.measured_speed,
                point.simulated_speed / base.simulated_speed,
            )
            for point in points
            if point is not base
        ]
    axis = axes[0][1]
    for y, (_, real, simulated) in enumerate(reversed(rows)):
        axis.plot([real, simulated], [y, y], "-", color="#999999", lw=1)
        axis.plot(simulated, y, ".", color=line, ms=9)
        axis.plot(real, y, "o", color=ink, ms=7, mfc="none", mew=1.8)
    axis.axvline(1, color="#999999", lw=0.8, ls=":")
    axis.set_yticks(range(len(rows)), [row[0] for row in reversed(rows)], fontsize=8)
    axis.set(
        title="vLLM on an H100: speed of every arm vs none",
        xlabel="steps per second, none = 1 (agents in the sweep in brackets)",
        xlim=(0, None),
    )
    axis.grid(alpha=0.25, axis="x")

    step_24 = curves[STEP_24.name]
    title = "2x H100, Coder-30B, public curve"
    curve(axes[1][0], step_24, "hit", f"{title}: hit rate", "sessions", "cached share")
    curve(axes[1][1], step_24, "speed", f"{title}: output", "sessions", "output tokens/s per GPU")
    figure.savefig(path, dpi=110)
    plt.close(figure)
