"""Commands that read a recording end in one line if it is damaged, whatever is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from concur_agents.errors import ConcurError, RecordingError

_CAUSED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What values of the wrong kind cause; a name that is missing is a bug of ours and shows as one."""


@contextmanager
def readable(recording: Path) -> Iterator[None]:
    """Turns what a damaged recording causes in the block into a `RecordingError`.

    The reader checks each line, but lines that are good one by one can still contradict each other.
    """
    try:
        yield
    except (ConcurError, typer.Exit):
        raise
    except _CAUSED as error:
        raise RecordingError(
            f"{recording} cannot be read to its end: its lines contradict each other, or it is of "
            f"another version ({type(error).__name__}: {error!s:.200}); --debug shows where"
        ) from error
