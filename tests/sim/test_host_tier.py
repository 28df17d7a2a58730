"""The host tier: what comes back, what it costs, what it forgets."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from concur_agents.errors import ConfigError
from concur_agents.sim.cache import PrefixCache, Run
from concur_agents.sim.engine import Engine, Request
from concur_agents.sim.gates import Ungoverned
from concur_agents.sim.host_tier import HostWrites, TieredCache, make_cache
from concur_agents.sim.profile import Profile, load_profile
from concur_agents.sim.runner import simulate
from concur_agents.sim.timing import Uniform
from concur_agents.sim.workload import synthetic


def serve(cache: TieredCache, *runs: Run) -> tuple[int, int]:
    """One sequence from start to end, alone: tokens that the pool had, and the host behind them."""
    tokens = sum(run.tokens for run in runs)
    hit = cache.look_up(runs, tokens)
    holding = cache.hold(runs, hit.tokens)
    assert cache.grow(holding, tokens)
    cache.release(holding, tokens)
    return hit.tokens, hit.restored_tokens


@pytest.mark.parametrize("writes", ["through", "back"])
def test_what_the_pool_evicted_comes_back_from_the_host(writes: HostWrites) -> None:
    """That is what the tier is for."""
    cache = TieredCache(10, 10, 20, writes)
    assert serve(cache, Run("a", 61)) == (0, 0)
    assert serve(cache, Run("b", 81)) == (0, 0)  # needs five of the six blocks of "a"
    assert serve(cache, Run("a", 61)) == (10, 50)


def test_with_write_through_the_host_also_holds_what_the_pool_has() -> None:
    """So a tier as large as the pool adds next to nothing, as a real engine showed."""
    through, back = (TieredCache(10, 10, 10, writes) for writes in ("through", "back"))
    for cache in (through, back):
        serve(cache, Run("a", 61))
        serve(cache, Run("b", 91))
    assert serve(through, Run("a", 61)) == (0, 10)
    assert serve(back, Run("a", 61)) == (0, 60)


def test_a_run_shorter_than_a_block_does_not_end_the_copy() -> None:
    """Recorded agents send a few tokens between two long observations."""
    cache = TieredCache(10, 10, 20)
    runs = (Run("a", 31), Run("yes", 3), Run("b", 31))
    serve(cache, *runs)
    serve(cache, Run("c", 91))
    assert serve(cache, *runs) == (0, 60)


def test_the_host_forgets_the_least_recently_used_from_its_tail() -> None:
    """As the pool does, so that what is left is a beginning, which can be used."""
    cache = TieredCache(6, 10, 12)
    for name in "abc":
        serve(cache, Run(name, 51))
    assert cache.host_used_blocks == 12
    assert cache.look_up([Run("b", 51)], 51).restored_tokens == 50
    assert cache.look_up([Run("a", 51)], 51).restored_tokens == 20


def test_what_runs_is_not_forgotten_and_keeps_others_out() -> None:
    """The host holds no idle context while calls in flight fill it."""
    cache = TieredCache(20, 10, 10)
    serve(cache, Run("idle", 51))
    holding = cache.hold([Run("a", 101)], 0)
    assert cache.grow(holding, 101)
    assert cache.host_used_blocks == 10
    other = cache.hold([Run("b", 21)], 0)
    assert cache.grow(other, 21)
    cache.release(other, 21)
    cache.release(holding, 101)
    cache.reset()
    assert (cache.host_used_blocks, cache.root.children) == (0, {})


def test_a_profile_names_its_tier() -> None:
    """A tier without a rate cannot be simulated, and no tier needs none."""
    profile = load_profile("h200-qwen3-8b")
    assert type(make_cache(profile)) is PrefixCache
    tiered = profile.replace(host_tier_tokens=1_600, restore_tokens_per_s=1e5)
    cache = make_cache(tiered)
    assert isinstance(cache, TieredCache)
    assert cache.host_blocks == 100
    for wrong in (
        {"host_tier_tokens": 8},
        {"host_tier_tokens": -1},
        {"restore_tokens_per_s": 0.0},
        {"host_tier_writes": "sideways"},
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            tiered.replace(**wrong)
    with pytest.raises(ValueError, match="host block"):
        TieredCache(1, 1, 0)
    with pytest.raises(ValueError, match="sideways"):
        TieredCache(1, 1, 1, "sideways")  # type: ignore[arg-type]


def one_after_another(profile: Profile, *prompts: Run) -> list[Request]:
    engine, requests = Engine(profile), []
    for i, prompt in enumerate(prompts):
        request = Request(str(i), (prompt,), Run((i, "out"), 1), 10.0 * i)
        engine.submit(request)
        engine.advance(10.0 * (i + 1))
        requests.append(request)
    return requests


def test_a_restore_counts_as_cached_and_takes_its_time() -> None:
    """`usage` says cached, and the time to the first token says what it cost."""
    bare = load_profile("h200-qwen3-8b").replace(kv_blocks=100, request_overhead_s=0.0)
    profile = bare.replace(host_tier_tokens=6_400, restore_tokens_per_s=1_000.0)
    _, _, again = one_after_another(profile, Run("a", 1_001), Run("b", 1_585), Run("a", 1_001))
    assert (again.cached_tokens, again.restored_tokens) == (1_000 // 16 * 16, 1_000 // 16 * 16)
    assert again.first_token_s is not None
    assert again.first_token_s - again.at_s == pytest.approx(0.992 + profile.step_overhead_s, 0.01)
    _, _, cold = one_after_another(bare, Run("a", 1_001), Run("b", 1_585), Run("a", 1_001))
    assert cold.cached_tokens == 0


def test_the_counters_add_up() -> None:
    """What pages show: hits of either tier, what was copied, what the host holds."""
    bare = load_profile("h200-qwen3-8b").replace(kv_blocks=100)
    profile = bare.replace(host_tier_tokens=6_400, restore_tokens_per_s=1e5)
    engine = Engine(profile)
    for i, name in enumerate("aba"):
        engine.submit(Request(str(i), (Run(name, 1_281),), Run((i, "out"), 1), float(i)))
        engine.advance(i + 1.0)
    at = engine.counters()
    assert at.host_hit_tokens_total == at.cached_host_tokens_total == at.restored_tokens_total
    assert at.hit_tokens_total + at.host_hit_tokens_total == at.cached_tokens_total == 1_280
    assert at.computed_tokens_total == 3 * 1_281 - 1_280
    assert (at.stored_tokens_total, at.host_used_tokens) == (2_560, 2_560)
    assert at.host_capacity_tokens == 6_400
    engine.restart()
    assert engine.counters().host_used_tokens == 0


def test_agents_that_fit_into_both_tiers_compute_nothing_twice() -> None:
    """A batch of 40 without a governor: thrashing without a tier, none with a large one."""
    plans = synthetic(40, 6, tools=Uniform(0.5, 2.5), seed=1)
    bare = load_profile("h200-qwen3-8b").replace(kv_blocks=5_000)
    results = [
        simulate(
            plans,
            bare.replace(host_tier_tokens=tokens, restore_tokens_per_s=233_000.0),
            Ungoverned(),
            record_series=False,
        )
        for tokens in (0, 80_000, 800_000)
    ]
    none, small, large = results
    assert none.hit_rate <= small.hit_rate < 0.4
    assert large.hit_rate > 0.8
    assert large.makespan_s < 0.7 * none.makespan_s


SEQUENCES = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 40), st.integers(0, 5), st.integers(0, 60)),
    min_size=1,
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(SEQUENCES, st.integers(1, 30), st.sampled_from(["through", "back"]))
def test_the_books_balance_whatever_comes(
    sequences: list[tuple[int, int, int, int]], host: int, writes: HostWrites
) -> None:
    """Blocks are never lost nor counted twice, and no tier holds more than it has."""
    cache, held = TieredCache(12, 5, host, writes), []
    for shared, first, name, second in sequences:
        runs = (Run(("s", shared), first), Run((name, first), second))
        tokens = first + second
        hit = cache.look_up(runs, tokens)
        assert hit.tokens + hit.restored_tokens <= max(0, tokens - 1)
        holding = cache.hold(runs, hit.tokens)
        if cache.grow(holding, tokens):
            assert all(node.resident for node in holding.path if node.end - node.start >= 10)
            held.append((holding, tokens))
        else:
            cache.release(holding, hit.tokens)
        if len(held) > 1:
            cache.release(*held.pop(0))
        spans = cache._hosted
        assert cache.host_used_blocks == sum(map(len, spans.values())) <= host
        assert set(cache._idle) == {node for node in spans if not node.pins}
        assert all(span.stop <= math.ceil(node.end / 5) for node, span in spans.items())
    for holding, tokens in held:
        cache.release(holding, tokens)
    assert cache.used_blocks == 0
    cache.reset()
    assert not cache.root.children
