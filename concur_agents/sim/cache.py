"""The KV pool of the simulated engine: blocks, prefix cache, least-recently-used eviction.

What vLLM does per block, this does per *extent*. A prompt is a tuple of `Run`s (content-addressed
spans), the tree below holds one `Node` per distinct run after a distinct prefix, and a node only
knows how many of its blocks are resident. That is enough, because the resident blocks of a node are
always a prefix of it: a sequence hands back its blocks last one first, so eviction eats every
sequence from its tail, and a child before its parent. All operations cost O(runs of the sequence)
or less, never O(blocks).

Rules kept from vLLM: only full blocks can be hit; the last token of a prompt is always computed
again; blocks in use are never evicted; freed blocks keep their content until a prompt needs the
room; blocks without content are used up first. One departure: two sequences that compute the same
block at the same time share it at once (vLLM keeps both copies until one of them is freed).

This file knows blocks and tokens. It knows nothing of time, steps or requests.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import NamedTuple


class Run(NamedTuple):
    """A span of tokens named by its content: equal runs after equal prefixes share KV."""

    key: Hashable
    tokens: int


class Node:
    """One run at one place in the tree; owns the blocks whose last token lies in it."""

    __slots__ = ("children", "end", "parent", "pins", "resident", "run", "start")

    def __init__(self, parent: Node | None, run: Run, start: int) -> None:
        self.parent = parent
        self.run = run
        self.start = start  # position of its first token in every sequence that holds it
        self.end = start + run.tokens
        self.resident = 0  # blocks of this node that are in the pool, counted from its start
        self.pins = 0  # sequences that hold it
        self.children: dict[Run, Node] = {}

    def __repr__(self) -> str:
        span = f"[{self.start}:{self.end})"
        return f"<Node {self.run.key!r} {span} {self.resident} blocks, {self.pins} pins>"


class Hit(NamedTuple):
    """What the pool still has of a prompt."""

    tokens: int
    """Tokens that need not be computed; a whole number of blocks."""
    reclaimed_blocks: int
    """Blocks that count as free now and would not any more once the sequence is held."""
    restored_tokens: int = 0
    """Tokens behind these that a host tier has; they need blocks, but need not be computed."""


class Holding:
    """A sequence's place in the pool. Made by `PrefixCache.hold`, ended by
    `PrefixCache.release`.
    """

    __slots__ = ("index", "path", "tokens")

    def __init__(self, path: list[Node], tokens: int) -> None:
        self.path = path
        self.tokens = tokens  # tokens with KV in the pool, as of the last `grow`
        self.index = 0  # no node before this one can get further blocks from this sequence


class PrefixCache:
    """A pool of `kv_blocks` blocks of `block_size` tokens.

    Every block is in one of three states: empty, evictable (content without a holder), or used.
    """

    def __init__(self, kv_blocks: int, block_size: int) -> None:
        if kv_blocks < 1 or block_size < 1:
            raise ValueError(
                f"need at least 1 block of at least 1 token, got {kv_blocks} x {block_size}"
            )
        self.kv_blocks = kv_blocks
        self.block_size = block_size
        self.empty_blocks = kv_blocks
        self.evictable_blocks = 0
        self.evicted_blocks_total = 0
        self.root = Node(None, Run(None, 0), 0)
        self._oldest: OrderedDict[Node, None] = (
            OrderedDict()
        )  # unpinned resident nodes, next victim first

    @property
    def free_blocks(self) -> int:
        """Blocks that can be taken: empty ones and those whose content has no holder."""
        return self.empty_blocks + self.evictable_blocks

    @property
    def used_blocks(self) -> int:
        """Blocks held by sequences."""
        return self.kv_blocks - self.empty_blocks - self.evictable_blocks

    def blocks(self, tokens: int) -> int:
        """Blocks that `tokens` tokens occupy."""
        return -(-tokens // self.block_size)

    def look_up(self, runs: Iterable[Run], tokens: int) -> Hit:
        """What of the first `tokens` tokens of `runs` is resident. Changes nothing."""
        node, hit, reclaimed, size = self.root, 0, 0, self.block_size
        for run in runs:
            child = node.children.get(run)
            if child is None:
                if run.tokens:
                    break
                continue
            node = child
            hit += node.resident
            if not node.pins:
                reclaimed += node.resident
            if node.resident < node.end // size - node.start // size:
                break
        return Hit(min(hit, max(0, tokens - 1) // size) * size, reclaimed)

    def hold(self, runs: Iterable[Run], hit_tokens: int) -> Holding:
        """Pin what is resident of `runs`, and make room in the tree for the rest.

        `hit_tokens` is what `look_up` said; the sequence starts with that many tokens computed.
        """
        node, path = self.root, []
        for run in runs:
            if not run.tokens:
                continue
            child = node.children.get(run)
            if child is None:
                child = node.children[run] = Node(node, run, node.end)
            elif not child.pins and child.resident:
                self.evictable_blocks -= child.resident
                del self._oldest[child]
            child.pins += 1
            path.append(child)
            node = child
        return Holding(path, hit_tokens)

    def grow(self, holding: Holding, tokens: int) -> bool:
        """Give the sequence blocks up to `tokens` tokens; False, and nothing changed, if there are
        too few.
        """
        before, size = holding.tokens, self.block_size
        need = -(-tokens // size) - -(-before // size)
        if need > self.empty_blocks + self.evictable_blocks:
            return False
        self.take(need)
        stored = self._store(holding, tokens)
        # Private are only the partly filled last block, before and after; what is neither stored
        # nor private is a copy of a block that another sequence has stored meanwhile.
        self.empty_blocks += need + (before % size > 0) - stored - (tokens % size > 0)
        holding.tokens = tokens
        return True

    def take(self, blocks: int) -> None:
        """Take blocks for a sequence that will account for them at its release; evicts if it has
        to.
        """
        if blocks > self.empty_blocks:
            self._evict(blocks - self.empty_blocks)
        self.empty_blocks -= blocks

    def release(self, holding: Holding, tokens: int) -> None:
        """Free a sequence of `tokens` computed tokens; those beyond `holding.tokens` were given
        blocks by `take`.
        """
        size = self.block_size
        private = -(-tokens // size) - holding.tokens // size
        self.empty_blocks += private - self._store(holding, tokens)
        for node in reversed(holding.path):
            node.pins -= 1
            if node.pins:
                continue
            if node.resident:
                self.evictable_blocks += node.resident
                self._oldest[node] = None
            elif not node.children:
                self._prune(node)

    def let_go(self, runs: Iterable[Run]) -> None:
        """What of a sequence is neither in use nor shared with another is evicted next."""
        for node in reversed(self._own(runs)):  # so that its end goes first
            if node in self._oldest:
                self._oldest.move_to_end(node, last=False)

    def reset(self, *, tier: bool = True) -> None:
        """Forget everything that no sequence holds; `tier`: also in a host tier behind the pool."""
        self._evict(self.evictable_blocks)

    def _store(self, holding: Holding, tokens: int) -> int:
        """Enter the full blocks of the first `tokens` tokens into the tree; how many are new
        there.
        """
        path, i, size, stored = holding.path, holding.index, self.block_size, 0
        last = len(path) - 1
        while True:
            node = path[i]
            have = min(tokens, node.end) // size - node.start // size
            if have > node.resident:
                stored += have - node.resident
                node.resident = have
            if node.end > tokens or i == last:
                break
            i += 1
        holding.index = i
        return stored

    def _evict(self, blocks: int) -> None:
        oldest = self._oldest
        self.evictable_blocks -= blocks
        self.empty_blocks += blocks
        self.evicted_blocks_total += blocks
        while blocks:
            node = next(iter(oldest))
            if node.resident > blocks:
                node.resident -= blocks
                return
            blocks -= node.resident
            node.resident = 0
            del oldest[node]
            if not node.children:
                self._prune(node)

    def _own(self, runs: Iterable[Run]) -> list[Node]:
        """The nodes of a sequence that no other one has, its end first."""
        node, path = self.root, []
        for run in runs:
            child = node.children.get(run)
            if child is not None:
                path.append(child)
                node = child
            elif run.tokens:
                break
        own: list[Node] = []
        for node in reversed(path):
            if node.pins or len(node.children) > (1 if own else 0):
                break
            own.append(node)
        return own

    def _prune(self, node: Node) -> None:
        """Drop a node that holds nothing, and every ancestor that only led to it."""
        while self._is_bare(node) and node.parent is not None:
            del node.parent.children[node.run]
            node = node.parent

    def _is_bare(self, node: Node) -> bool:
        return not (node.pins or node.resident or node.children)
