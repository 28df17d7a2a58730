"""Many processes, one decision: the protocol between them, pure on both sides.

`RemoteRegulator` stands in a client process where a `Regulator` stands otherwise, and `Hub` in
front of the Regulator that decides for all of them.  Neither reads a clock or opens a socket:
messages, losses and time are arguments.  docs/wire.md has what crosses between the two.
"""

from __future__ import annotations

from concur_agents.wire.frames import Frames, Receiver, Sender
from concur_agents.wire.hub import Hub
from concur_agents.wire.messages import (
    BEAT_S,
    MOST_BYTES,
    TTL_S,
    VERSION,
    Message,
    WireError,
)
from concur_agents.wire.remote import RemoteRegulator, SharedLaw

__all__ = [
    "BEAT_S",
    "MOST_BYTES",
    "TTL_S",
    "VERSION",
    "Frames",
    "Hub",
    "Message",
    "Receiver",
    "RemoteRegulator",
    "Sender",
    "SharedLaw",
    "WireError",
]
