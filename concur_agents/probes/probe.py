"""What a governor asks of whoever looks at an engine for it."""

from __future__ import annotations

from typing import Protocol

from concur_agents.core.types import Reading


class Probe(Protocol):
    """Reads an engine once per call; keeps nothing between calls that a reading depends on."""

    def read(self) -> Reading:
        """The endpoint as it is now; ``at_s`` is the host's monotonic clock.

        Raises:
            ProbeError: it could not be reached, read or recognised; the message says what to do.
        """
        ...  # pragma: no cover - a protocol
