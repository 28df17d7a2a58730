"""What the pictures of a bench run show; that they are legible only a reader can say."""

from typing import Any

import pytest

from concur_agents.lab.bench.arms import ArmOutcome
from concur_agents.lab.bench.figures import Report
from concur_agents.lab.bench.plots import draw_family
from concur_agents.lab.bench.scenario import Scenario


@pytest.mark.parametrize(
    ("horizon_s", "label", "levels", "caps"),
    [
        (None, "makespan [s]", [500.0, 500.0], [1800.0, 400.0]),
        # 10 of 20 agents in 500 s are 72 per hour; a cap with which all would take 400 s: 180.
        (500.0, "agents per hour", [72.0, 72.0], [40.0, 180.0]),
    ],
)
def test_a_run_to_its_end_shows_its_makespan_and_a_cut_one_its_agents_per_hour(
    tmp_path, monkeypatch, horizon_s, label, levels, caps
):
    """The makespan of a cut run is the same whatever was done in it."""
    figure = pytest.importorskip("matplotlib.figure")
    drawn: list[Any] = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    scenario = Scenario(
        name="s", family="f", expect="", profile="h100-qwen3-8b", horizon_s=horizon_s
    )
    finished = 20 if horizon_s is None else 10
    metrics = {"agents": 20, "finished": finished, "makespan_s": 500.0}
    report = Report(
        [scenario],
        [
            ArmOutcome(
                scenario="s", seed=1, arm="best_fixed", metrics=metrics, cap=2,
                tried={1: 1800.0, 2: 400.0},
            ),
            ArmOutcome(scenario="s", seed=1, arm="law", metrics=metrics),
        ],
    )  # fmt: skip

    draw_family(report, "f", [scenario], tmp_path / "f.png")

    (panel,) = drawn[0].axes
    cap_line, _, level = panel.get_lines()
    assert panel.get_ylabel() == label
    assert list(cap_line.get_ydata()) == pytest.approx(caps)
    assert list(level.get_ydata()) == pytest.approx(levels)
