"""What prefill costs here, from the times of ordinary steps."""

import json
from pathlib import Path

import pytest

from concur_agents.core.price import PriceEstimator


def test_before_any_step_the_price_is_unknown():
    assert PriceEstimator().prefill_s_per_token is None


def test_one_output_token_counts_as_two_hundred_prompt_tokens():
    """What cannot be told apart is split by that ratio: 10,000 + 200 x 100 + 1."""
    cost = PriceEstimator()
    for _ in range(3):
        cost.observe(10.0, 10_000, 100)
        assert cost.prefill_s_per_token == pytest.approx(10 / 30_001)


def test_a_price_that_changes_is_followed_within_a_few_hundred_steps():
    cost = PriceEstimator()
    for price in (1e-3, 1e-4):
        for _ in range(500):
            cost.observe(price * 30_001, 10_000, 100)
        assert cost.prefill_s_per_token == pytest.approx(price, rel=0.1)


def burst(cost, price, *, calls=60, uncached=5_000, output=100):
    """`calls` prompts sent at once: each waits for those before it, then decodes for 2 s."""
    ended_s = 0.0
    for number in range(1, calls + 1):
        step_s = number * uncached * price + 2.0
        cost.unseen_s += step_s - ended_s
        ended_s = step_s
        cost.observe(step_s, uncached, output)
    return cost


def test_prompts_that_wait_for_each_other_do_not_pass_for_dear_ones():
    """Seen on a real engine (8B on an H200, 60 agents started at once): 20 times the real price, so
    that idle contexts were thought worth keeping for minutes.
    """
    cost = burst(PriceEstimator(), 3e-5)
    assert 3e-5 <= cost.prefill_s_per_token <= 1.5 * 3e-5


def test_calls_that_overlap_share_the_engines_time():
    """Ten calls of 5 s at a time: the engine spent 0.5 s on each, not 5."""
    cost = PriceEstimator()
    for _ in range(300):
        cost.unseen_s += 0.5
        cost.observe(5.0, 10_000, 10)
    assert cost.prefill_s_per_token == pytest.approx(5e-5, rel=0.01)


@pytest.mark.parametrize(
    ("recording", "price"),
    [
        # 24 agents at once, ungoverned, thrashing; before the bound the price was 1.7e-3
        ("h200-qwen3-32b-none", 1.15e-4),
        # 96 agents governed; before the bound 6e-4 for the first 300 steps
        ("h200-qwen3-8b-working_set", 2.8e-5),
    ],
)
def test_on_a_real_engine_the_price_is_right_within_a_factor_of_four(recording, price):
    """Steps of vLLM 0.24 on an H200 (docs/benchmarks/history.md). The prices to find are the
    prefill rates of the engine's profiles at the mean prompt.
    """
    cost = PriceEstimator()
    found = [cost.prefill_s_per_token for _ in replay(recording, cost)][30:]
    assert price / 4 <= min(found)
    assert max(found) <= 4 * price


def test_long_prompts_that_happen_to_end_first_are_not_taken_for_free():
    """Seen on a real engine (SWE agents, 8B on an H200): after 22 calls the price fell to four
    tenths of the real one, 2.8e-5, for 2 s, and 29 agents were let in of whom most had to pause.
    """
    cost = PriceEstimator()
    found = [cost.prefill_s_per_token for _ in replay("h200-qwen3-8b-swe", cost)]
    assert min(found) >= 2.8e-5 / 2


def replay(recording, cost):
    """Show an estimator the steps of a recording as the Regulator does, one at a time."""
    columns = json.loads((Path(__file__).parent / "data" / f"{recording}.json").read_text("utf-8"))
    steps = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    events = [(step["sent_s"], 0, i) for i, step in enumerate(steps)]
    events += [(step["done_s"], 1, i) for i, step in enumerate(steps)]
    last_s, in_flight, in_calls = 0.0, 0, 0
    began_among = {}
    for at_s, is_end, i in sorted(events):
        if in_flight:
            cost.unseen_s += at_s - last_s
        last_s = at_s
        step = steps[i]
        if not is_end:
            in_flight += 1
            in_calls += step["prompt_tokens"]
            began_among[i] = in_calls
            continue
        0.5 * (began_among[i] + in_calls)
        in_flight -= 1
        in_calls -= step["prompt_tokens"]
        uncached = step["prompt_tokens"] - step["cached_tokens"]
        cost.observe(at_s - step["sent_s"], uncached, step["output_tokens"])
        yield step


def test_a_step_without_duration_says_nothing():
    cost = PriceEstimator()
    cost.observe(0.0, 10_000, 100)
    cost.observe(-1.0, 10_000, 100)
    assert cost.prefill_s_per_token is None
