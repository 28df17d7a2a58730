"""The simulated engine against real ones, point by point: the ground under every claim."""

from dataclasses import replace
from typing import Any

import pytest

from concur_agents.lab.validate.points import (
    HIT_GOAL,
    Point,
    measured,
    sweep_points,
    sweeps,
    tiny_points,
)


def test_the_tiny_vllm_hits_as_measured_at_every_cap() -> None:
    points = tiny_points()
    assert [point.x for point in points] == [1, 2, 3, 4, 6, 8, 16]
    errors = {point.label: round(point.hit_error, 3) for point in points}
    assert {label: error for label, error in errors.items() if abs(error) > 0.05} == {}


def test_the_ceiling_is_met_to_the_token() -> None:
    """Below the knee nothing is left to chance: the workload itself has to be the measured one."""
    rows = measured()["vllm_cpu_tiny"]["points"]
    alone, total = tiny_points()[0], rows[-1]["computed_tokens"]
    assert round((1 - alone.simulated_hit) * total) == rows[0]["computed_tokens"]


@pytest.mark.parametrize(
    "sweep", [*sweeps("h100"), *sweeps("h200")], ids=lambda sweep: str(sweep["name"])
)
def test_every_arm_on_an_h100_or_h200_is_within_the_goals(sweep: dict[str, Any]) -> None:
    points = sweep_points(sweep)
    ungoverned = next(point for point in points if point.label == "none")
    missed = [point for point in points if not point.holds(ungoverned)]
    assert missed == []


def test_a_point_outside_either_goal_misses() -> None:
    reference = Point(
        label="none",
        x=0,
        measured_hit=0.5,
        simulated_hit=0.5,
        measured_speed=2.0,
        simulated_speed=4.0,
        measured="",
        simulated="",
    )
    assert reference.holds(reference)
    assert replace(reference, simulated_hit=0.5 + 0.9 * HIT_GOAL).holds(reference)
    assert not replace(reference, simulated_hit=0.5 - 1.1 * HIT_GOAL).holds(reference)
    assert replace(reference, simulated_speed=4.0 * 1.14).holds(reference)
    assert not replace(reference, simulated_speed=4.0 * 1.16).holds(reference)
    assert not replace(reference, simulated_speed=4.0 * 0.84).holds(reference)
