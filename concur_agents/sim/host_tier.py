"""A host tier behind the KV pool: what the GPU evicts can come back without being computed again.

vLLM's `--kv-offloading-size`, LMCache and SGLang's HiCache keep copies of KV blocks in the host's
memory, least recently used first out. A prompt takes first what the GPU still has, then what the
host has of the rest; that part is *restored*, at the speed of the link, and counts as cached.

    through   a block is copied as soon as it is computed (vLLM)
    back      a block is copied when the GPU evicts it

What sequences in the batch hold is not forgotten, so with "through" the tier also holds what the
GPU is at work on, and only the rest of it is for idle contexts. The host's blocks of a node are one
span, and the host, too, eats every sequence from its tail. Copies to the host cost no time: they
run beside the computation. A copy stays when it is restored.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Literal, get_args

from concur_agents.sim.cache import Hit, Holding, Node, PrefixCache, Run
from concur_agents.sim.profile import Profile

HostWrites = Literal["through", "back"]


class TieredCache(PrefixCache):
    """A `PrefixCache` with `host_blocks` further blocks in the host's memory.

    Raises:
        ValueError: no host blocks, or an unknown way to write them.
    """

    def __init__(
        self, kv_blocks: int, block_size: int, host_blocks: int, writes: HostWrites = "through"
    ) -> None:
        super().__init__(kv_blocks, block_size)
        if host_blocks < 1:
            raise ValueError(f"need at least 1 host block, got {host_blocks}")
        if writes not in get_args(HostWrites):
            raise ValueError(f"writes must be 'through' or 'back', got {writes!r}")
        self.host_blocks = host_blocks
        self.host_used_blocks = 0
        self.host_stored_blocks_total = 0
        self._writes = writes
        self._hosted: dict[Node, range] = {}  # which blocks of a node the host has
        # Those without a holder, next victim first; what is in use is not forgotten.
        self._idle: OrderedDict[Node, None] = OrderedDict()

    def look_up(self, runs: Iterable[Run], tokens: int) -> Hit:
        """See `PrefixCache.look_up`; `restored_tokens` is what the host has behind that."""
        runs = tuple(runs)
        hit = super().look_up(runs, tokens)
        node, reach, size = self.root, 0, self.block_size
        for run in runs:
            child = node.children.get(run)
            if child is None:
                if run.tokens:
                    break
                continue
            node = child
            here = node.resident
            hosted = self._hosted.get(node)
            if hosted is not None and hosted.start <= here:
                here = max(here, hosted.stop)
            reach += here
            if here < node.end // size - node.start // size:
                break
        reach = min(reach, max(0, tokens - 1) // size)
        return hit._replace(restored_tokens=max(0, reach * size - hit.tokens))

    def hold(self, runs: Iterable[Run], hit_tokens: int) -> Holding:
        """See `PrefixCache.hold`."""
        holding = super().hold(runs, hit_tokens)
        for node in holding.path:
            self._idle.pop(node, None)
        return holding

    def grow(self, holding: Holding, tokens: int) -> bool:
        """See `PrefixCache.grow`."""
        if not super().grow(holding, tokens):
            return False
        if self._writes == "through":
            self._copy_all(holding)
        return True

    def release(self, holding: Holding, tokens: int) -> None:
        """See `PrefixCache.release`."""
        super().release(holding, tokens)
        if self._writes == "through":
            self._copy_all(holding)
        for node in reversed(holding.path):
            if not node.pins and node in self._hosted:
                self._idle[node] = None

    def let_go(self, runs: Iterable[Run]) -> None:
        """See `PrefixCache.let_go`; so it is in both tiers."""
        runs = tuple(runs)
        super().let_go(runs)
        for node in reversed(self._own(runs)):
            if node in self._idle:
                self._idle.move_to_end(node, last=False)

    def reset(self, *, tier: bool = True) -> None:
        """See `PrefixCache.reset`."""
        for node in list(self._hosted) if tier else ():
            self._drop(node, len(self._hosted[node]))
        super()._evict(self.evictable_blocks)

    def _evict(self, blocks: int) -> None:
        if self._writes == "back":
            left, victims = blocks, []
            for node in self._oldest:
                victims.append((node, max(0, node.resident - left), node.resident))
                left -= node.resident
                if left <= 0:
                    break
            for node, first, stop in victims:
                self._copy(node, first, stop)
        super()._evict(blocks)

    def _is_bare(self, node: Node) -> bool:
        return super()._is_bare(node) and node not in self._hosted

    def _copy_all(self, holding: Holding) -> None:
        """Copy what the sequence has in the pool, its beginning first."""
        for node in holding.path:
            if node.resident:
                self._copy(node, 0, node.resident)

    def _copy(self, node: Node, first: int, stop: int) -> None:
        """The host gets blocks `first` to `stop` of `node`, and what lies between its own and
        these (a span has no holes), as far as idle content can make room.
        """
        had = self._hosted.get(node, range(first, first))
        span = range(min(first, had.start), max(stop, had.stop))
        if span == had:
            return
        self._idle.pop(node, None)
        while self.host_used_blocks + len(span) - len(had) > self.host_blocks and self._idle:
            over = self.host_used_blocks + len(span) - len(had) - self.host_blocks
            self._drop(next(iter(self._idle)), over)
        room = self.host_blocks - self.host_used_blocks + len(had)
        span = span[:room]
        self.host_used_blocks += len(span) - len(had)
        self.host_stored_blocks_total += len(span) - len(had)
        if span:
            self._hosted[node] = span
            if not node.pins:
                self._idle[node] = None

    def _drop(self, node: Node, blocks: int) -> None:
        """The host forgets so many blocks of `node`, from its tail, or all it has."""
        span = self._hosted[node]
        kept = span[: max(0, len(span) - blocks)]
        self.host_used_blocks -= len(span) - len(kept)
        if kept:
            self._hosted[node] = kept
        else:
            del self._hosted[node]
            self._idle.pop(node, None)
            self._prune(node)


def make_cache(profile: Profile) -> PrefixCache:
    """The KV pool of an engine of that profile, with the host tier that it names."""
    host_blocks = profile.host_tier_tokens // profile.block_size
    if not host_blocks:
        return PrefixCache(profile.kv_blocks, profile.block_size)
    writes: HostWrites = "back" if profile.host_tier_writes == "back" else "through"
    return TieredCache(profile.kv_blocks, profile.block_size, host_blocks, writes)
