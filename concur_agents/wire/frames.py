"""Frames in order, each once: what a stream gives anyway, and a lossy wire would not.

The frames of each direction of a connection are numbered from 1.  One that was seen already is
ignored, and a gap ends the connection: the next one begins with a roster, so that nothing is sent
twice and there is one way to recover, whatever happened.
"""

from __future__ import annotations

from concur_agents.wire.codec import decode, encode
from concur_agents.wire.messages import MOST_BYTES, Message, WireError


class Sender:
    """Numbers the frames of one direction."""

    def __init__(self) -> None:
        self._sent = 0

    def frame(self, message: Message) -> bytes:
        """The next frame."""
        self._sent += 1
        return encode(message, self._sent)


class Receiver:
    """Checks the numbers of one direction."""

    def __init__(self) -> None:
        self._received = 0

    def message(self, line: bytes) -> Message | None:
        """What a frame says; None: it was here before.

        Raises:
            WireError: it is no frame of ours, or one before it was lost.
        """
        n, message = decode(line)
        if n <= self._received:
            return None
        if n > self._received + 1:
            raise WireError(f"frame {n} came after frame {self._received}")
        self._received = n
        return message


class Frames:
    """Cuts a stream of bytes into frames, of at most `MOST_BYTES` each."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def cut(self, data: bytes) -> list[bytes]:
        """The lines that are complete now.

        Raises:
            WireError: a line is too long.
        """
        rest = self._rest
        rest += data
        *lines, last = bytes(rest).split(b"\n") if b"\n" in data else (rest,)
        if len(last) > MOST_BYTES or any(len(line) > MOST_BYTES for line in lines):
            raise WireError(f"a frame has at most {MOST_BYTES} bytes")
        if lines:
            self._rest = bytearray(last)
        return [bytes(line) for line in lines]
