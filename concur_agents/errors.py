"""Everything concur-agents raises on purpose, in one small tree.

Your own exceptions are never wrapped: what your agent raises reaches you unchanged.  `core/` knows
nothing of this file; it raises `ValueError` and `KeyError`, and its hosts translate.
"""

from __future__ import annotations


class ConcurError(Exception):
    """Root of everything concur-agents raises on purpose."""


class ConfigError(ConcurError, ValueError):
    """An option, a name or an id that cannot be used; the message holds the value and the wish."""


class ProbeError(ConcurError):
    """A metrics page could not be fetched, read or recognised."""


class ClosedError(ConcurError, RuntimeError):
    """The governor, pool or executor was closed and takes nothing new."""


class GateError(ConcurError, RuntimeError):
    """A synchronous wait was asked for on a thread that runs an event loop."""


class UngovernedError(ConcurError):
    """A call was made with no agent in context while `ungoverned="error"`."""


class JournalError(ConcurError):
    """A journal file is not one of ours, or cannot be read or written."""


class RecordingError(ConcurError):
    """A recording is not one of ours, or does not hold what was asked of it."""


class WatchError(ConcurError):
    """No governor answers on a socket, or something else does."""


class TraceError(ConcurError):
    """A trace file holds a line that is not an agent."""
