"""The mirrored LRU list: reuse distances, and what they teach about the pool."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from concur_agents.core.residency import LruEntry, Residency

moves = st.lists(
    st.tuples(
        st.sampled_from(["touch", "touch", "touch", "remove", "leave"]),
        st.integers(0, 20),
        st.integers(1, 10_000),
    ),
    max_size=60,
)


@given(moves, st.integers(0, 3))
def test_distance_is_what_was_touched_since(sequence, renumberings):
    """Against a plain list in order of last use."""
    residency = Residency()
    places = [LruEntry() for _ in range(21)]
    order: list[tuple[int | None, int]] = []
    for move, who, size in sequence:
        if move == "touch":
            order = [entry for entry in order if entry[0] != who] + [(who, size)]
            residency.touch(places[who], float(size))
        elif move == "remove":
            order = [entry for entry in order if entry[0] != who]
            residency.remove(places[who])
        else:
            order = [(None if owner == who else owner, held) for owner, held in order]
            places[who].left = True
            places[who] = LruEntry()  # of the next agent
        for _ in range(renumberings):
            residency._renumber()
        for owner, place in enumerate(places):
            at = next((i for i, entry in enumerate(order) if entry[0] == owner), None)
            expected = 0 if at is None else sum(held for _, held in order[at + 1 :])
            assert residency.distance(place) == expected
            assert bool(place.position) is (at is not None)


def test_an_agent_just_served_is_the_most_recently_used():
    residency, place = Residency(), LruEntry()
    residency.touch(place, 500.0)
    assert residency.distance(place) == 0
    residency.touch(LruEntry(), 300.0)
    assert residency.distance(place) == 300


def test_what_an_agent_left_behind_still_pushes_the_others_out():
    residency, first, second = Residency(), LruEntry(), LruEntry()
    residency.touch(first, 100.0)
    residency.touch(second, 900.0)
    second.left = True
    assert residency.distance(first) == 900


def test_numbers_are_used_again_however_long_it_runs():
    residency, places = Residency(), [LruEntry() for _ in range(10)]
    for n in range(20_000):
        residency.touch(places[n % 10], 1.0)
    assert len(residency._tree) <= 1025
    assert residency.distance(places[0]) == 9


def test_contexts_of_agents_that_are_gone_are_forgotten_far_behind_the_pool():
    residency = Residency(capacity_tokens=10_000.0)
    for _ in range(20_000):
        place = LruEntry()
        residency.touch(place, 1_000.0)
        place.left = True
    assert len(residency._entries) <= 1024


def test_with_the_pool_unknown_only_so_many_gone_contexts_are_remembered():
    residency = Residency()
    for _ in range(60_000):
        place = LruEntry()
        residency.touch(place, 1_000.0)
        place.left = True
    assert len(residency._entries) <= 4 * 4096


def test_a_restart_forgets_all_places():
    residency, place = Residency(), LruEntry()
    residency.touch(place, 500.0)
    residency.clear()
    assert place.position == 0
    residency.touch(place, 100.0)
    residency.touch(LruEntry(), 50.0)
    assert residency.distance(place) == 50


def test_a_hit_proves_that_the_pool_is_at_least_as_large():
    residency = Residency()
    residency.observe(9_000.0, 1_000.0, 1_000.0)
    assert residency.proven_tokens == 10_000
    assert residency.learned_tokens is None, "nothing has been evicted yet"


def test_a_partial_hit_says_where_the_pool_ends():
    residency = Residency()
    residency.observe(9_000.0, 1_000.0, 500.0)
    assert residency.learned_tokens == 9_500


def test_what_is_left_of_a_context_long_gone_is_shared_with_others():
    """Agents paused for minutes find their system prompt cached and nothing else. Taken for the end
    of the pool it made one of 1.4 million tokens look like 2.3 and then 3.2 million."""
    residency = Residency()
    residency.observe(99_000.0, 1_000.0, 500.0)
    residency.observe(500_000.0, 1_000.0, 200.0)
    assert residency.learned_tokens == 99_500
    residency.observe(120_000.0, 1_000.0, 200.0)
    assert residency.learned_tokens == pytest.approx(99_500 + 0.25 * 20_700), "may well be its end"


def test_one_odd_miss_is_outvoted_by_the_next_hits():
    residency = Residency()
    residency.observe(100_000.0, 1_000.0, 500.0)
    residency.observe(0.0, 1_000.0, 0.0)  # a retry on another replica, say
    assert residency.learned_tokens == pytest.approx(75_375)
    for _ in range(20):
        residency.observe(99_000.0, 1_000.0, 1_000.0)
    assert residency.learned_tokens == pytest.approx(100_000, rel=0.01)


def test_a_context_that_was_rewritten_says_nothing_of_the_pool():
    """It misses although others have survived much longer: nothing was evicted.  Taken for an
    eviction it would say 10,000 of a pool that is at least 100,000, and a pool believed to be that
    small is never filled far enough to show that it is not."""
    residency = Residency()
    residency.observe(90_000.0, 10_000.0, 10_000.0)
    residency.observe(10_000.0, 10_000.0, 0.0)
    assert residency.learned_tokens is None
    residency.observe(45_000.0, 10_000.0, 0.0)
    assert residency.learned_tokens == 45_000, "that may well be another tenant"


def test_but_what_survived_long_ago_does_not_contradict():
    """Sixteen returns in a row that say the same are believed."""
    residency = Residency()
    residency.observe(90_000.0, 10_000.0, 10_000.0)
    for _ in range(16):
        assert residency.learned_tokens is None
        residency.observe(10_000.0, 10_000.0, 0.0)
    residency.observe(10_000.0, 10_000.0, 0.0)
    assert residency.learned_tokens == 10_000


@pytest.mark.parametrize("pool", [50_000, 200_000])
def test_the_learned_pool_converges_to_that_of_a_toy_lru(pool):
    """A real little LRU cache of tokens, 40 agents of mixed sizes, returning at random."""
    rng = random.Random(7)
    residency = Residency()
    sizes = [rng.randint(2_000, 12_000) for _ in range(40)]
    places = [LruEntry() for _ in sizes]
    cache: list[tuple[int, int]] = []  # (agent, resident tokens), least recently used first
    for _ in range(4_000):
        who = min(int(rng.expovariate(0.1)), 39)
        cached = dict(cache).get(who, 0)
        if places[who].position:
            distance = residency.distance(places[who])
            residency.observe(distance, float(sizes[who]), float(cached))
        cache = [entry for entry in cache if entry[0] != who] + [(who, sizes[who])]
        excess = sum(held for _, held in cache) - pool
        while excess > 0:  # the oldest context loses its tail first
            owner, held = cache[0]
            cut = min(held, excess)
            cache[0] = (owner, held - cut)
            if cut == held:
                cache.pop(0)
            excess -= cut
        residency.touch(places[who], float(sizes[who]))
    assert residency.learned_tokens == pytest.approx(pool, rel=0.15)


def test_another_tenants_share_is_noticed_and_given_back():
    """Half the pool goes to somebody else for a while: the estimate falls and comes back."""
    residency = Residency()
    for pool in (100_000.0, 50_000.0, 100_000.0):
        for n in range(200):
            distance = (n % 12) * 10_000.0
            kept = min(10_000.0, max(0.0, pool - distance))
            residency.observe(distance, 10_000.0, kept)
        assert residency.learned_tokens == pytest.approx(pool, rel=0.2)


def near_misses(residency, times):
    """A context survived 90,000 tokens; then near ones miss, each used and back at these times."""
    residency.observe(90_000.0, 10_000.0, 10_000.0, used_s=0.0, back_s=1.0)
    return [
        residency.observe(10_000.0, 10_000.0, 0.0, used_s=used_s, back_s=back_s)
        for used_s, back_s in times
    ]


def test_near_misses_at_once_are_a_cache_that_was_emptied():
    """All had been used before the first of them came back: one moment explains them."""
    residency = Residency()
    assert near_misses(residency, [(2.0, 5.0), (3.0, 5.1), (4.0, 5.2)]) == [False, False, True]
    assert residency.generation == 1
    assert residency.learned_tokens is None


def test_near_misses_one_after_the_other_are_contexts_that_were_rewritten():
    residency = Residency()
    assert not any(near_misses(residency, [(2.0, 5.0), (6.0, 7.0), (8.0, 9.0), (10.0, 11.0)]))


def test_an_older_context_that_has_survived_shows_that_nothing_was_emptied():
    residency = Residency()
    assert not any(near_misses(residency, [(2.0, 5.0), (3.0, 5.1)]))
    residency.observe(50_000.0, 10_000.0, 10_000.0, used_s=1.0, back_s=5.2)
    assert not residency.observe(10_000.0, 10_000.0, 0.0, used_s=4.0, back_s=5.3)


def test_far_misses_beside_near_ones_take_back_what_they_taught():
    """The first to come back are the last in the list, as often as not."""
    residency = Residency()
    residency.observe(90_000.0, 10_000.0, 10_000.0, used_s=0.0, back_s=1.0)
    residency.observe(60_000.0, 10_000.0, 0.0, used_s=2.0, back_s=5.0)
    assert residency.learned_tokens == 60_000
    residency.observe(10_000.0, 10_000.0, 0.0, used_s=3.0, back_s=5.1)
    assert residency.observe(10_000.0, 10_000.0, 0.0, used_s=4.0, back_s=5.2)
    assert residency.learned_tokens is None


def test_far_misses_alone_are_a_smaller_pool_however_many_at_once():
    residency = Residency()
    residency.observe(90_000.0, 10_000.0, 10_000.0, used_s=0.0, back_s=1.0)
    for n in range(12):
        assert not residency.observe(60_000.0, 10_000.0, 0.0, used_s=2.0, back_s=5.0 + n / 10)
    assert residency.learned_tokens == 60_000


def test_with_room_in_a_reported_pool_any_miss_within_it_was_no_eviction():
    residency = Residency(capacity_tokens=400_000.0, sure_tokens=380_000.0)
    residency.observe(90_000.0, 10_000.0, 10_000.0)
    residency.observe(300_000.0, 10_000.0, 0.0)
    assert residency.learned_tokens is None
    residency.observe(380_000.0, 10_000.0, 0.0)
    assert residency.learned_tokens == 380_000, "beyond it is one"
    residency.observe(200_000.0, 10_000.0, 0.0)
    assert residency.learned_tokens < 380_000, "and then only half of it is sure"
