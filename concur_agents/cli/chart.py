"""Numbers over time as text: an area of bars, and a line over it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

_EIGHTHS = " ▁▂▃▄▅▆▇█"


def chart(
    area: Sequence[float | None],
    line: Sequence[float | None] = (),
    *,
    width: int,
    height: int,
    most: float | None = None,
    styles: tuple[str, str] = ("blue", "green"),
) -> list[Text]:
    """Rows of text, the top one first; the last value is at the right.

    Args:
        area: values drawn as bars from below; None: a gap.
        line: values drawn over it; None: a gap.
        width: columns; fewer values leave room at the left, of more only the last are drawn.
        height: rows.
        most: value at the upper edge; None: the largest value.
        styles: styles of the area and of the line.
    """
    bars, marks = _columns(area, width), _columns(line, width)
    known = [value for value in (*bars, *marks) if value is not None]
    top = most or max(known, default=0.0) or 1.0
    rows = []
    for row in range(height - 1, -1, -1):
        text = Text()
        for bar, mark in zip(bars, marks, strict=True):
            if mark is not None and _row_of(mark / top, height) == row:
                text.append("━", styles[1])
                continue
            eighths = 0 if bar is None else round(8 * (bar / top * height - row))
            text.append(_EIGHTHS[min(8, max(0, eighths))], styles[0])
        rows.append(text)
    return rows


def _row_of(share: float, height: int) -> int:
    return min(height - 1, max(0, int(share * height - 1e-9)))


def _columns(values: Sequence[float | None], width: int) -> list[float | None]:
    shown = list(values)[-width:] if width else []
    return [None] * (width - len(shown)) + shown
