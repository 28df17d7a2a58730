"""Pages of a real vLLM with a host tier: what they tell of it, and when.

35.9 GiB of blocks of 16 tokens are 261,408 tokens there; the page has the size in GiB alone.
"""

from pathlib import Path

import pytest

from concur_agents.probes import PageReading, parse_page
from concur_agents.probes.replay import load_page

PAGES = Path(__file__).parents[1] / "fixtures" / "metrics" / "tier"
TIER_TOKENS = 261_408


def page(name: str) -> PageReading:
    return parse_page(load_page(PAGES / f"vllm-0.24.0-h200-{name}.prom.gz"), at_s=7.0)


@pytest.mark.parametrize(
    ("name", "hits"),
    [("after-boot", 0), ("first-stores", 0), ("first-loads", 14_080), ("during", 1_220_592)],
)
def test_what_came_from_the_tier_is_told_to_the_token(name: str, hits: int) -> None:
    reading = page(name).reading
    assert reading.host_hit_tokens_total == hits
    assert reading.capacity_tokens == 65_024


def test_what_came_from_the_tier_is_part_of_the_cached_tokens() -> None:
    reading = page("during").reading
    assert (reading.hit_tokens_total, reading.query_tokens_total) == (1_458_160, 1_789_406)


def test_the_size_is_unknown_until_something_was_stored() -> None:
    assert page("after-boot").reading.host_capacity_tokens is None


def test_the_size_is_too_large_while_stores_lag_behind_the_prefill() -> None:
    """A burst of 48 first prompts: so much for the first four seconds of a fresh engine."""
    size = page("first-stores").reading.host_capacity_tokens
    assert size == pytest.approx(1.44 * TIER_TOKENS, rel=0.01)


@pytest.mark.parametrize("name", ["first-loads", "during"])
def test_the_size_is_right_once_something_was_loaded(name: str) -> None:
    assert page(name).reading.host_capacity_tokens == pytest.approx(TIER_TOKENS, rel=0.01)


@pytest.mark.parametrize("name", ["first-loads", "during"])
def test_what_transfers_pin_is_not_taken_for_what_the_tier_holds(name: str) -> None:
    """`kv_offload_cpu_cache_usage_perc` read 0.0 on every page."""
    assert page(name).reading.host_used_tokens is None
