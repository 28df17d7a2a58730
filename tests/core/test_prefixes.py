"""Shared prefixes: one copy in the engine, one charge in the sum."""

from hypothesis import given
from hypothesis import strategies as st

from concur_agents.core.prefixes import Prefixes

SYSTEM = (("system", 600.0),)
TOOLS = (("system", 600.0), ("tools", 1_000.0))


def test_a_prefix_held_by_one_agent_is_part_of_its_own_footprint():
    prefixes = Prefixes()
    prefixes.join(SYSTEM)
    assert prefixes.charged_tokens == 0
    assert prefixes.shared(SYSTEM) == 0


def test_a_prefix_held_by_several_is_charged_once():
    prefixes = Prefixes()
    for _ in range(5):
        prefixes.join(SYSTEM)
    assert prefixes.charged_tokens == 600
    assert prefixes.shared(SYSTEM) == 600


def test_a_part_of_a_chain_is_shared_as_far_as_others_hold_it():
    prefixes = Prefixes()
    prefixes.join(TOOLS)
    prefixes.join(SYSTEM)
    assert prefixes.charged_tokens == 600
    assert prefixes.shared(TOOLS) == 600
    prefixes.join(TOOLS)
    assert prefixes.charged_tokens == 1_000
    assert prefixes.shared(TOOLS) == 1_000


def test_a_prefix_that_the_engine_had_already_is_shared_from_the_first_holder_on():
    prefixes = Prefixes()
    prefixes.join(SYSTEM, seen_cached=True)
    assert prefixes.charged_tokens == 600
    assert prefixes.shared(SYSTEM) == 600
    prefixes.part(SYSTEM)
    assert prefixes.charged_tokens == 0


chains = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(
    lambda path: tuple(("".join(path[: n + 1]), 100.0 * (n + 1)) for n in range(len(path)))
)


@given(st.lists(st.one_of(chains, st.integers(0, 9)), max_size=40))
def test_the_charge_and_the_shares_are_those_of_a_plain_count(moves):
    """A chain joins; a number makes one of the holders part."""
    prefixes, holders = Prefixes(), []
    for move in moves:
        if not isinstance(move, int):
            prefixes.join(move)
            holders.append(move)
        elif holders:
            prefixes.part(holders.pop(move % len(holders)))
        names = [name for chain in holders for name, _ in chain]
        shared = {name for name in names if names.count(name) >= 2}
        assert prefixes.charged_tokens == 100 * len(shared)
        for chain in holders:
            assert prefixes.shared(chain) == 100 * sum(name in shared for name, _ in chain)
    for chain in holders:
        prefixes.part(chain)
    assert prefixes.charged_tokens == 0
    assert not prefixes._nodes
