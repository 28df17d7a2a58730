"""Prefixes that several agents share: charged once for all of them.

Agents of one batch often begin with the same system prompt and tool list, of which the engine keeps
one copy.  A shared part is known in two ways: the caller names it (a chain of hashes of the leading
messages), or the engine finds cached tokens in the very first prompt of an agent.  A prefix that
one agent alone holds counts as part of that agent's footprint.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

Chain = Sequence[tuple[Hashable, float]]
"""Leading parts of a prompt, shortest first: a name and the tokens from the start up to its end."""


@dataclass(slots=True)
class _Node:
    own_tokens: float  # beyond the part before it
    needed: int  # holders from which on it counts as shared
    holders: int = 0


@dataclass(slots=True)
class Prefixes:
    """Reference counts over named prefixes."""

    charged_tokens: float = 0.0  # all shared parts, each counted once
    _nodes: dict[Hashable, _Node] = field(default_factory=dict)

    def join(self, chain: Chain, *, seen_cached: bool = False) -> None:
        """One more agent holds `chain`; with `seen_cached` the engine had it, so one suffices."""
        needed, before = 1 if seen_cached else 2, 0.0
        for name, tokens in chain:
            node = self._nodes.setdefault(name, _Node(max(0.0, tokens - before), needed))
            node.holders += 1
            if node.holders == node.needed:
                self.charged_tokens += node.own_tokens
            before = tokens

    def part(self, chain: Chain) -> None:
        """The agent no longer holds `chain`."""
        for name, _ in chain:
            node = self._nodes[name]
            if node.holders == node.needed:
                self.charged_tokens -= node.own_tokens
            node.holders -= 1
            if not node.holders:
                del self._nodes[name]
        if not self._nodes:
            self.charged_tokens = 0.0  # what rounding left

    def held(self, name: Hashable) -> float:
        """Tokens of a part that one agent holds at least; 0: none does."""
        node = self._nodes.get(name)
        return 0.0 if node is None else node.own_tokens

    def holders(self, name: Hashable) -> int:
        """How many agents hold a part."""
        node = self._nodes.get(name)
        return 0 if node is None else node.holders

    def shared(self, chain: Chain) -> float:
        """How many tokens of `chain`, which its holder has joined, are charged once for all."""
        tokens = 0.0
        for name, _ in chain:
            node = self._nodes[name]
            if node.holders >= node.needed:
                tokens += node.own_tokens
        return tokens
