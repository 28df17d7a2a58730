"""Several readings as one, for pools that are governed together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from concur_agents.core.types import Reading


def sum_of(readings: Sequence[Reading], now: float) -> Reading:
    """Several engines as one page shows them: sums, and the largest usage."""
    sums: dict[str, float | None] = {}
    for field in dataclasses.fields(Reading):
        values = [getattr(reading, field.name) for reading in readings]
        known = [value for value in values if value is not None]
        sums[field.name] = sum(known) if len(known) == len(values) else None
    usages = [reading.kv_usage for reading in readings if reading.kv_usage is not None]
    sums.update(at_s=now, kv_usage=max(usages, default=None))
    return Reading(**sums)  # type: ignore[arg-type]
