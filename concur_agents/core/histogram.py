"""How many there are of each number, with few different numbers however many there are."""

from __future__ import annotations

_BITS = 6
_EXACT = 1 << _BITS


class Histogram(dict[int, int]):
    """How many there are of each number, by six binary digits; numbers nobody has are left out.

    Exact up to 64, then less by 3 % at most: at most 32 different numbers an octave, so that who
    looks at all of them is done soon.
    """

    def add(self, number: int) -> None:
        """One more of `number`."""
        key = number if number < _EXACT else coarse(number)
        self[key] = self.get(key, 0) + 1

    def remove(self, number: int) -> None:
        """One less of `number`.

        Raises:
            KeyError: there is none.
        """
        key = number if number < _EXACT else coarse(number)
        left = self[key] - 1
        if left:
            self[key] = left
        else:
            del self[key]


def coarse(number: int) -> int:
    """`number` to six binary digits, rounded down."""
    dropped = max(0, number.bit_length() - _BITS)
    return number >> dropped << dropped
