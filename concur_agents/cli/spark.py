"""A row of numbers as a row of little bars."""

from __future__ import annotations

from collections.abc import Sequence

_BARS = "▁▂▃▄▅▆▇█"


def spark(values: Sequence[float | None], width: int = 30) -> str:
    """The last `width` numbers, from the smallest to the largest; a gap where there is none."""
    shown = list(values)[-width:]
    told = [value for value in shown if value is not None]
    if not told:
        return ""
    least, most = min(told), max(told)
    span = max(most - least, 0.05 * abs(most), 1e-9)  # what hardly moves is drawn as a flat line
    top = len(_BARS) - 1
    return "".join(
        " " if value is None else _BARS[round(top * (1.0 - (most - value) / span))]
        for value in shown
    )
