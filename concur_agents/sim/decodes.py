"""The decoding sequences of a simulated engine, as a whole.

All of them advance by one token per step (*tick*), so that a tick costs nothing per sequence: a
sequence is known by the ticks at which it joined and ends, and by the remainder of the ticks in
which it needs a further block.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from concur_agents.sim.request import Sequence


class Decodes:
    """What decodes, how much context it holds, which blocks it needs, and when it ends."""

    __slots__ = ("_block_at", "_block_size", "_ends", "context", "count", "tick")

    def __init__(self, block_size: int) -> None:
        self.tick = 0
        """Steps so far."""
        self.count = 0
        """Sequences that decode."""
        self.context = 0
        """Tokens of KV that they hold together."""
        self._block_size = block_size
        self._block_at = [0] * block_size  # sequences that need a block in ticks of this remainder
        self._ends: list[tuple[int, int, Sequence]] = []  # heap by `end_tick`; may hold stale ones

    def join(self, sequence: Sequence, tokens: int) -> None:
        """A sequence with `tokens` tokens to go decodes from the next step on."""
        sequence.joined_tick = self.tick
        sequence.end_tick = self.tick + tokens - 1
        heapq.heappush(self._ends, (sequence.end_tick, sequence.order, sequence))
        self.count += 1
        self.context += sequence.known
        self._block_at[(self.tick - sequence.known) % self._block_size] += 1

    def leave(self, sequence: Sequence) -> int:
        """A sequence decodes no longer. Returns how many tokens it got here."""
        assert sequence.joined_tick is not None
        decoded = self.tick - sequence.joined_tick
        sequence.generated += decoded
        self.count -= 1
        self.context -= sequence.known + decoded
        self._block_at[(sequence.joined_tick - sequence.known) % self._block_size] -= 1
        sequence.joined_tick = None
        sequence.end_tick = -1
        return decoded

    def advance(self, steps: int) -> None:
        """Every sequence gets `steps` tokens."""
        self.tick += steps
        self.context += self.count * steps

    def ended(self) -> Iterator[Sequence]:
        """Those whose last token has just been generated; each must `leave` before the next."""
        while self._ends and self._ends[0][0] < self.tick:
            end_tick, _, sequence = heapq.heappop(self._ends)
            if end_tick == sequence.end_tick:
                yield sequence

    @property
    def blocks_next(self) -> int:
        """Blocks that the next step takes."""
        return self._block_at[self.tick % self._block_size]

    def blocks_for(self, steps: int) -> int:
        """Blocks that the next `steps` steps take."""
        rounds, rest = divmod(steps, self._block_size)
        return rounds * self.count + sum(
            self._block_at[(self.tick + i) % self._block_size] for i in range(rest)
        )

    def most_steps(self, free_blocks: int) -> int:
        """How many steps can be taken until one ends, or until the blocks run short; at least 1.

        The next step must have its blocks.
        """
        while self._ends[0][0] != self._ends[0][2].end_tick:
            heapq.heappop(self._ends)
        steps = self._ends[0][0] - self.tick + 1
        if self.blocks_for(steps) <= free_blocks:
            return steps
        enough, too_many = 1, steps
        while too_many - enough > 1:
            middle = (enough + too_many) // 2
            if self.blocks_for(middle) > free_blocks:
                too_many = middle
            else:
                enough = middle
        return enough
