"""The public load curve, against one draw of stand-in sessions."""

from dataclasses import replace

from concur_agents.lab.validate.curves import STEP_24, curve_points
from concur_agents.lab.validate.points import RATIO_GOAL


def test_the_public_curve_falls_where_and_as_far_as_measured() -> None:
    """One draw of stand-in sessions cannot give every point, but the shape must be there."""
    points = curve_points(replace(STEP_24, working_set=None, scale=1.5), seeds=(42,))
    first, last = points[0], points[-1]
    assert first.simulated_hit > 0.9
    assert last.simulated_hit < 0.15
    assert abs(last.ratio_error(first)) < RATIO_GOAL
    assert [point.simulated_hit for point in points] == sorted(
        (point.simulated_hit for point in points), reverse=True
    )
