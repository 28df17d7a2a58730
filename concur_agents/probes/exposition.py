"""The text of a metrics page (Prometheus' exposition format) as samples."""

from __future__ import annotations

import re
from collections.abc import Sequence

from concur_agents.errors import ProbeError
from concur_agents.probes.table import Sample

LONGEST_LINE = 8192
"""A longer line [characters] is left out. No engine sends one, and the parser takes a time that
grows with the square of a label full of escapes: 2 MB kept it, and the GIL, for 47 s."""

_NAME = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]*(?=[{ \t])")
# Ray replaces the colon and adds a prefix of its own.
_RAY = re.compile(r"ray_(vllm|sglang)[_:]")


def sample_lines(text: str) -> list[tuple[str, str]]:
    """The sample lines of a page, each with the name of its metric."""
    short = (line for line in text.split("\n") if len(line) <= LONGEST_LINE)
    matches = ((_NAME.match(line), line) for line in short)
    return [(_plain(match.group()), line.rstrip("\r")) for match, line in matches if match]


def parse_samples(lines: Sequence[str]) -> list[Sample]:
    """The samples of these lines.

    Raises:
        ProbeError: a line cannot be read; the message quotes it.
    """
    try:
        return _parse(lines)
    except ProbeError:
        for line in lines:  # again one by one, to find the line
            try:
                _parse([line])
            except ProbeError as error:
                raise ProbeError(
                    f"a line of the metrics page cannot be read: {quote(line)}"
                ) from error.__cause__
        raise


def quote(text: str, most: int = 60) -> str:
    """The first line of a text, shortened and quoted."""
    line = text.split("\n", 1)[0].strip()
    return repr(line if len(line) <= most else line[:most] + "...")


def _parse(lines: Sequence[str]) -> list[Sample]:
    # Here, because it brings a web server, for which the start of a process need not wait.
    from prometheus_client.parser import text_string_to_metric_families

    try:
        return [
            Sample(_plain(sample.name), sample.labels, float(sample.value))
            for family in text_string_to_metric_families("\n".join(lines) + "\n")
            for sample in family.samples
        ]
    # The parser does not say what it raises on a broken page.
    except Exception as error:
        raise ProbeError(f"the metrics page cannot be read: {error}") from error


def _plain(name: str) -> str:
    return _RAY.sub(r"\1:", name, count=1) if name.startswith("ray_") else name
