"""The interface through which a governor reads an engine."""

from __future__ import annotations

from typing import Protocol

from concur_agents.core.types import Reading


class Probe(Protocol):
    """Reads an engine once per call; no reading depends on an earlier one."""

    def read(self) -> Reading:
        """The endpoint now; `at_s` is on the host's monotonic clock.

        Raises:
            ProbeError: the endpoint cannot be reached, read or recognised; the message says what
                to do.
        """
        ...  # pragma: no cover - a protocol
