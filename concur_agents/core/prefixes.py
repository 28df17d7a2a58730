"""Prefixes that several agents share: charged once for all of them.

Agents of one batch often begin with the same system prompt and tool list.  The engine keeps one
copy, so counting it in every footprint would make the pool look fuller than it is.  A shared part
is known in two ways: the caller names it (a chain of hashes of the leading messages), or the
engine shows it, by finding cached tokens in the very first prompt of an agent that had never sent
anything.  An agent that holds a prefix alone pays for it as part of its own footprint.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

Chain = Sequence[tuple[Hashable, float]]
"""Leading parts of a prompt, shortest first: a name and the tokens from the start up to its end."""


@dataclass(slots=True)
class _Node:
    own_tokens: float
    """Tokens of this part beyond the part before it."""
    holders: int = 0
    needed: int = 2
    """Holders from which on it counts as shared."""


@dataclass(slots=True)
class Prefixes:
    """Reference counts over named prefixes."""

    charged_tokens: float = 0.0
    """Tokens of all shared parts, each counted once."""
    _nodes: dict[Hashable, _Node] = field(default_factory=dict)

    def join(self, chain: Chain, *, seen_cached: bool = False) -> None:
        """One more agent holds `chain`.

        Args:
            chain: the parts, shortest first.
            seen_cached: the engine had them already, so one holder among us suffices.
        """
        before = 0.0
        for name, tokens in chain:
            node = self._nodes.get(name)
            if node is None:
                node = self._nodes[name] = _Node(
                    max(0.0, tokens - before), needed=1 if seen_cached else 2
                )
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

    def shared(self, chain: Chain) -> float:
        """How many tokens of `chain`, which its holder has joined, are charged once for all now."""
        shared = 0.0
        for name, _ in chain:
            node = self._nodes[name]
            if node.holders >= node.needed:
                shared += node.own_tokens
        return shared
