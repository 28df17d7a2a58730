"""The daemon: one governor that decides for many processes, over a socket.

It hosts a `Governor` as any program does, which reads the engines, and puts a `wire.Hub` in front
of it.  `concur serve` runs it; with `shared="auto"` the first process that needs it starts it.
"""

from __future__ import annotations

from concur_agents.daemon.server import Daemon, listen, log_to_stderr

__all__ = ["Daemon", "listen", "log_to_stderr"]
