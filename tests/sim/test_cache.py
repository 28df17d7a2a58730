"""The KV pool: what is kept, what is evicted, and that extents behave exactly like blocks."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from concur_agents.sim.cache import Holding, Node, PrefixCache, Run


def serve(cache: PrefixCache, *runs: Run, output: int = 0) -> int:
    """One sequence from start to end, alone; what it hit. The last `output` tokens are decoded."""
    tokens = sum(run.tokens for run in runs)
    hit = cache.look_up(runs, tokens - output)
    holding = cache.hold(runs, hit.tokens)
    assert cache.grow(holding, tokens - output)
    cache.take(cache.blocks(tokens) - cache.blocks(tokens - output))
    cache.release(holding, tokens)
    return hit.tokens


def nodes(cache: PrefixCache) -> list[Node]:
    found, stack = [], [cache.root]
    while stack:
        node = stack.pop()
        found.append(node)
        stack.extend(node.children.values())
    return found[1:]


def owned(node: Node, size: int) -> int:
    return node.end // size - node.start // size


def test_only_full_blocks_are_hit_and_the_last_token_is_always_computed() -> None:
    cache = PrefixCache(100, 16)
    assert serve(cache, Run("a", 100)) == 0
    assert serve(cache, Run("a", 100)) == 96
    assert serve(cache, Run("a", 100), Run("b", 60)) == 96
    # 160 tokens are exactly ten blocks; a full hit would leave nothing to take the next token from.
    assert serve(cache, Run("a", 100), Run("b", 60)) == 144


def test_a_different_run_shares_nothing_even_if_it_is_as_long() -> None:
    cache = PrefixCache(100, 16)
    serve(cache, Run("system", 64), Run("a", 64))
    assert serve(cache, Run("system", 64), Run("b", 64)) == 64
    assert serve(cache, Run("other", 64), Run("a", 64)) == 0


def test_what_is_let_go_is_evicted_before_what_is_older() -> None:
    cache = PrefixCache(20, 16)
    old, young = (Run("system", 64), Run("old", 96)), (Run("system", 64), Run("young", 96))
    for runs in (old, young):
        serve(cache, *runs)
    cache.let_go(young)
    serve(cache, Run("other", 160))
    assert cache.look_up(old, 160).tokens == 144
    assert cache.look_up(young, 160).tokens == 64, "the shared part stays"


def test_what_is_in_use_or_goes_on_elsewhere_is_not_let_go() -> None:
    cache = PrefixCache(20, 16)
    runs = (Run("a", 64), Run("b", 64))
    serve(cache, *runs)
    holding = cache.hold(runs, 128)
    cache.let_go(runs)
    serve(cache, Run("other", 160))
    cache.release(holding, 128)
    assert cache.look_up((*runs, Run("c", 16)), 144).tokens == 128


def test_runs_shorter_than_a_block_still_tell_prefixes_apart() -> None:
    cache = PrefixCache(100, 16)
    serve(cache, Run("a", 20), Run("x", 3), Run("tail", 40))
    assert serve(cache, Run("a", 20), Run("x", 3), Run("tail", 40)) == 48
    # The block that holds the end of "a" also holds what follows, so only the first is common.
    assert serve(cache, Run("a", 20), Run("y", 3), Run("tail", 40)) == 16


def test_a_finished_sequence_is_eaten_from_its_tail() -> None:
    cache = PrefixCache(10, 10)
    serve(cache, Run("a", 60))
    serve(cache, Run("b", 70))  # needs three of the six blocks of "a"
    assert cache.evicted_blocks_total == 3
    assert cache.look_up([Run("a", 60)], 60).tokens == 30
    assert cache.look_up([Run("b", 70)], 70).tokens == 60


def test_the_least_recently_used_goes_first() -> None:
    cache = PrefixCache(9, 10)
    serve(cache, Run("a", 30))
    serve(cache, Run("b", 30))
    serve(cache, Run("c", 30))
    serve(cache, Run("a", 30))
    serve(cache, Run("d", 30))
    assert cache.look_up([Run("a", 30)], 31).tokens == 30
    assert cache.look_up([Run("b", 30)], 31).tokens == 0
    assert cache.look_up([Run("c", 30)], 31).tokens == 30


def test_a_shared_prefix_outlives_every_sequence_that_used_it() -> None:
    cache = PrefixCache(12, 10)
    shared = Run("system", 40)
    for name in "abcdef":
        serve(cache, shared, Run(name, 40))
    assert cache.look_up([shared], 41).tokens == 40
    assert cache.look_up([shared, Run("a", 40)], 81).tokens == 40


def test_held_blocks_cannot_be_taken() -> None:
    cache = PrefixCache(10, 10)
    holding = cache.hold([Run("a", 70)], 0)
    assert cache.grow(holding, 70)
    other = cache.hold([Run("b", 40)], 0)
    before = cache.free_blocks
    assert not cache.grow(other, 40)
    assert cache.free_blocks == before == 3
    assert cache.grow(other, 30)


def test_two_sequences_that_compute_the_same_run_keep_one_copy() -> None:
    cache = PrefixCache(10, 10)
    first = cache.hold([Run("a", 45)], 0)
    second = cache.hold([Run("a", 45)], 0)
    assert cache.grow(first, 45)
    assert cache.grow(second, 45)
    assert cache.used_blocks == 4 + 2  # four full blocks shared, a last one each
    cache.release(first, 45)
    assert cache.used_blocks == 4 + 1
    cache.release(second, 45)
    assert (cache.used_blocks, cache.evictable_blocks) == (0, 4)


def test_reset_forgets_all_but_what_is_held() -> None:
    cache = PrefixCache(20, 10)
    serve(cache, Run("a", 50))
    holding = cache.hold([Run("b", 50)], 0)
    assert cache.grow(holding, 50)
    cache.reset()
    assert cache.look_up([Run("a", 50)], 50).tokens == 0
    assert cache.used_blocks == 5
    cache.release(holding, 50)
    assert cache.look_up([Run("b", 50)], 50).tokens == 40


def test_the_tree_does_not_grow_with_what_was_served() -> None:
    """Would find a leak: nodes of evicted content kept for ever."""
    cache = PrefixCache(50, 16)
    for i in range(2000):
        serve(cache, Run("system", 40), Run(i, 5), Run((i, "more"), 90), output=7)
    assert len(nodes(cache)) < 50


@pytest.mark.parametrize(("blocks", "size"), [(0, 16), (4, 0), (-1, 16)])
def test_a_pool_of_nothing_is_refused(blocks: int, size: int) -> None:
    with pytest.raises(ValueError, match="at least 1 block"):
        PrefixCache(blocks, size)


class BlockByBlock:
    """The same rules for one block at a time, in the plainest way: the yardstick."""

    def __init__(self, kv_blocks: int, block_size: int) -> None:
        self.free = kv_blocks
        self.size = block_size
        self.cached: list[object] = []  # least recently used first

    def serve(self, runs: tuple[Run, ...]) -> int:
        tokens = [(run, i) for run in runs for i in range(run.tokens)]
        full = len(tokens) // self.size
        ids = [tuple(tokens[: (i + 1) * self.size]) for i in range(full)]
        hit = 0
        while hit < full and ids[hit] in self.cached:
            hit += 1
        held = ids[:hit]
        for block in held:
            self.cached.remove(block)
        need = -(-len(tokens) // self.size) - hit
        while self.free < need:
            self.cached.pop(0)
            self.free += 1
        self.free -= need
        self.cached.extend(reversed(ids))
        self.free += len(tokens) % self.size > 0  # the partly filled one has no content to keep
        return min(hit, (len(tokens) - 1) // self.size) * self.size


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(30, 80),
    st.sampled_from([1, 3, 4, 7]),
    st.booleans(),
)
def test_extents_hit_exactly_what_single_blocks_would(
    seed: int, kv_blocks: int, size: int, shared: bool
) -> None:
    rng = random.Random(seed)
    cache, plain = PrefixCache(kv_blocks, size), BlockByBlock(kv_blocks, size)
    agents: list[tuple[Run, ...]] = [(Run("system", 5 * size + 1),) * shared for _ in range(6)]
    for step in range(60):
        who = rng.randrange(len(agents))
        runs = (*agents[who], Run((who, step), rng.randint(1, 6 * size)))
        if sum(run.tokens for run in runs) > 30 * size:
            runs = (Run("system", 5 * size + 1), Run((who, step), 4))
        agents[who] = runs
        assert serve(cache, *runs) == plain.serve(runs)


class CacheMachine(RuleBasedStateMachine):
    """Sequences come, grow, decode and go in any order; blocks are neither lost nor made."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 4
        self.cache = PrefixCache(40, self.size)
        # holding, its runs, its tokens now, blocks taken for tokens after holding.tokens
        self.alive: list[tuple[Holding, list[Run], int]] = []

    @rule(
        keys=st.lists(st.sampled_from("abc"), min_size=1, max_size=4),
        length=st.integers(1, 13),
    )
    def start(self, keys: list[str], length: int) -> None:
        runs = [Run(key, length if i else 9) for i, key in enumerate(keys)]
        tokens = sum(run.tokens for run in runs)
        hit = self.cache.look_up(runs, tokens)
        assert hit.tokens < tokens
        free = self.cache.free_blocks
        holding = self.cache.hold(runs, hit.tokens)
        assert self.cache.free_blocks == free - hit.reclaimed_blocks
        self.alive.append((holding, runs, holding.tokens))

    @precondition(lambda self: self.alive)
    @rule(pick=st.randoms(use_true_random=False), more=st.integers(1, 20))
    def prefill(self, pick: random.Random, more: int) -> None:
        i = pick.randrange(len(self.alive))
        holding, runs, tokens = self.alive[i]
        if tokens != holding.tokens:
            return  # it decodes already
        goal = min(tokens + more, sum(run.tokens for run in runs))
        held = self.held()
        if self.cache.grow(holding, goal):
            self.alive[i] = (holding, runs, goal)
        for node, resident in held.items():
            assert node.resident >= resident  # what somebody held was not evicted

    @precondition(lambda self: self.alive)
    @rule(pick=st.randoms(use_true_random=False), more=st.integers(1, 9))
    def decode(self, pick: random.Random, more: int) -> None:
        i = pick.randrange(len(self.alive))
        holding, runs, tokens = self.alive[i]
        goal = min(tokens + more, sum(run.tokens for run in runs))
        need = self.cache.blocks(goal) - self.cache.blocks(tokens)
        if need <= self.cache.free_blocks:
            held = self.held()
            self.cache.take(need)
            self.alive[i] = (holding, runs, goal)
            assert all(node.resident >= resident for node, resident in held.items())

    @precondition(lambda self: self.alive)
    @rule(pick=st.randoms(use_true_random=False))
    def end(self, pick: random.Random) -> None:
        holding, runs, tokens = self.alive.pop(pick.randrange(len(self.alive)))
        self.cache.release(holding, tokens)
        assert self.cache.look_up(runs, tokens + 1).tokens >= tokens // self.size * self.size

    @rule()
    def reset(self) -> None:
        held = self.held()
        self.cache.reset()
        assert self.held() == held

    def held(self) -> dict[Node, int]:
        return {node: node.resident for node in nodes(self.cache) if node.pins}

    @invariant()
    def every_block_is_in_one_place(self) -> None:
        cache = self.cache
        resident = sum(node.resident for node in nodes(cache))
        private = sum(
            cache.blocks(tokens) - holding.tokens // self.size for holding, _, tokens in self.alive
        )
        assert cache.empty_blocks >= 0
        assert cache.empty_blocks + resident + private == cache.kv_blocks
        loose = sum(node.resident for node in nodes(cache) if not node.pins)
        assert cache.evictable_blocks == loose
        assert cache.used_blocks == private + resident - loose

    @invariant()
    def cached_content_is_always_a_prefix(self) -> None:
        for node in nodes(self.cache):
            assert 0 <= node.resident <= owned(node, self.size)
            if node.resident and node.parent is not None:
                above: Node | None = node.parent
                while above is not None and above.parent is not None:
                    if not above.pins:
                        assert above.resident == owned(above, self.size)
                    above = above.parent

    @invariant()
    def nodes_that_hold_nothing_are_gone(self) -> None:
        for node in nodes(self.cache):
            assert node.pins or node.resident or node.children

    @invariant()
    def pins_are_those_of_the_living(self) -> None:
        pins: dict[Node, int] = {}
        for holding, _, _ in self.alive:
            for node in holding.path:
                pins[node] = pins.get(node, 0) + 1
        assert {node: node.pins for node in nodes(self.cache) if node.pins} == pins


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
