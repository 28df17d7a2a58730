"""Agents with the same first prompt, such as the samples of one: they are let in together."""

from __future__ import annotations


class Groups:
    """Each member takes the rank of the first that is here: no other agent comes between them."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, int]] = {}  # rank of the first, and how many are here

    def join(self, group: str, seq: int) -> int:
        """One that is the `seq`-th to arrive is of this group; returns its rank."""
        first, members = self._known.get(group, (seq, 0))
        self._known[group] = first, members + 1
        return first

    def part(self, group: str) -> bool:
        """A member has left; whether it was the last."""
        first, members = self._known.pop(group)
        if members > 1:
            self._known[group] = first, members - 1
        return members == 1
