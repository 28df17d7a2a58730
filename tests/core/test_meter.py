"""What is heard from the engine: counters and their resets, silence, capacity, evidence."""

import math

import pytest

from concur_agents.core import LawState, Limit, Reading, Regulator, Usage, make_law

STEP = Usage(900, 100, 0)


def counters(at_s, hits, queries, **more):
    return Reading(at_s=at_s, hit_tokens_total=hits, query_tokens_total=queries, **more)


# -- silence -------------------------------------------------------------------------------------


def test_a_missed_reading_holds_the_limit(regulate):
    r = regulate(agents=50, needs_readings=True)
    r.tick(Reading(at_s=0.0), 0.0)
    for now in range(1, 30):
        r.tick(None, float(now))
    assert r.limit.agents == 50
    assert r.reason == "scripted"


def test_a_long_silence_falls_back_to_the_safe_limit_and_a_reading_ends_it(regulate):
    r = regulate(agents=50, needs_readings=True, blind_after_s=30.0, blind_agents=8)
    r.tick(Reading(at_s=100.0), 100.0)
    r.tick(None, 129.9)
    assert r.limit.agents == 50
    r.tick(None, 130.0)
    assert (r.limit.agents, r.reason) == (8, "blind")
    assert r.view(130.0).reason == "blind"
    r.tick(Reading(at_s=131.0), 131.0)
    assert (r.limit.agents, r.reason) == (50, "scripted")


def test_the_safe_limit_never_raises_a_tighter_one(regulate):
    r = regulate(agents=3, tokens=70_000, needs_readings=True, blind_agents=8)
    r.tick(None, 60.0)
    assert (r.limit.agents, r.limit.tokens) == (3, 70_000)
    r = regulate(tokens=70_000, enter=60_000, needs_readings=True, blind_agents=8)
    r.tick(None, 60.0)
    assert (r.limit.agents, r.limit.tokens) == (8, 70_000)
    assert r.limit.enter_tokens == 60_000


def test_blind_agents_still_come_and_go(regulate):
    """Never pause everyone for ever."""
    r = regulate(agents=50, needs_readings=True, blind_agents=2)
    r.tick(None, 60.0)
    for agent in "abc":
        r.arrive(agent, 60.0)
    assert r.leave("a", 61.0) == ["c"]


def test_a_law_that_needs_no_readings_is_never_blind(regulate):
    r = regulate(agents=50)
    r.tick(None, 1_000.0)
    assert (r.limit.agents, r.reason) == (50, "scripted")


def test_a_law_that_needs_readings_decides_nothing_without_one():
    class Counting:
        name, formula, needs_readings, decided = "counting", "", True, 0

        def initial(self):
            return LawState(Limit())

        def decide(self, state, snapshot):
            self.decided += 1
            return state

    law = Counting()
    r = Regulator(law)
    r.tick(None, 1.0)
    assert law.decided == 0
    r.tick(Reading(at_s=2.0), 2.0)
    assert law.decided == 1


# -- counters ------------------------------------------------------------------------------------


def test_the_first_reading_is_the_zero_of_all_counters(regulate):
    """An engine that has run for days must not open with a hit rate of its past."""
    r = regulate()
    r.tick(counters(0.0, 9e6, 1e7), 0.0)
    assert r.view(0.0).hit_rate is None
    r.tick(counters(1.0, 9e6 + 30, 1e7 + 100), 1.0)
    assert r.view(1.0).hit_rate == pytest.approx(0.3)
    assert r.last_snapshot.query_tokens_total == 100


def test_no_prompt_tokens_between_two_readings_is_no_hit_rate(regulate):
    r = regulate()
    for now in range(3):
        r.tick(counters(float(now), 50, 100), float(now))
    assert r.view(2.0).hit_rate is None


def test_a_counter_that_falls_is_a_restart_and_counts_from_zero(regulate):
    r = regulate()
    r.tick(counters(0.0, 500, 1_000), 0.0)
    r.tick(counters(1.0, 600, 1_200), 1.0)
    r.tick(counters(2.0, 10, 40), 2.0)
    assert r.last_snapshot.query_tokens_total == 200 + 40
    assert r.view(2.0).hit_rate == pytest.approx(0.25)


def test_a_reading_without_counters_in_between_starts_a_new_difference(regulate):
    r = regulate()
    r.tick(counters(0.0, 0, 0), 0.0)
    r.tick(counters(1.0, 50, 100), 1.0)
    r.tick(Reading(at_s=2.0), 2.0)
    r.tick(counters(3.0, 5_000, 6_000), 3.0)
    assert r.last_snapshot.query_tokens_total == 100


def test_an_engine_without_counters_is_judged_by_the_usage_of_its_answers(regulate):
    r = regulate()
    r.arrive("a", 0.0)
    r.begin_step("a", 0.0)
    r.end_step("a", 1.0, Usage(1_000, 0, 250))
    r.tick(Reading(at_s=1.0), 1.0)
    assert r.view(1.0).hit_rate == pytest.approx(0.25)
    assert r.last_snapshot.cached_known


def test_an_answer_that_does_not_tell_cached_tokens_is_no_miss(regulate):
    r = regulate()
    r.arrive("a", 0.0)
    r.begin_step("a", 0.0)
    r.end_step("a", 1.0, Usage(1_000, 0))
    r.tick(None, 1.0)
    assert r.view(1.0).hit_rate is None
    assert not r.last_snapshot.cached_known
    assert r.last_snapshot.query_tokens_total == 0


def test_totals_never_fall_when_the_engine_begins_to_tell(regulate):
    """Found here: on the first reading with counters, what usage had summed up fell to 0."""
    r = regulate()
    r.arrive("a", 0.0)
    r.begin_step("a", 0.0)
    r.end_step("a", 1.0, Usage(1_000, 0, 250))
    r.tick(Reading(at_s=1.0), 1.0)
    r.tick(counters(2.0, 7_000, 9_000), 2.0)
    assert r.last_snapshot.query_tokens_total == 1_000
    r.tick(counters(3.0, 7_100, 9_400), 3.0)
    assert r.last_snapshot.query_tokens_total == 1_400
    assert r.view(3.0).hit_rate == pytest.approx(0.25)


def test_capacity_is_the_last_that_was_told(regulate):
    r = regulate()
    r.tick(Reading(at_s=0.0, capacity_tokens=1_000), 0.0)
    r.tick(Reading(at_s=1.0), 1.0)
    assert r.view(1.0).capacity_tokens == 1_000
    assert r.last_snapshot.capacity_tokens == 1_000


# -- evidence ------------------------------------------------------------------------------------


def resume(regulator, agent, now, cached, usage=None):
    assert agent in regulator.begin_step(agent, now)
    regulator.end_step(agent, now + 0.5, usage or Usage(1_000, 0, cached))


def deficit(regulator):
    """The missing share of what could have been cached; None: no evidence."""
    return regulator.view(0.0).hit_deficit


def test_a_block_less_than_all_counts_as_all(regulate):
    """Engines cache whole blocks: the last few tokens of a prompt always miss."""
    r = regulate()
    r.arrive("a", 0.0)
    resume(r, "a", 0.0, 0)
    resume(r, "a", 1.0, 944)
    assert deficit(r) == 0.0


def test_a_context_that_was_cut_or_rewritten_says_nothing(regulate):
    r = regulate()
    r.arrive("a", 0.0)
    resume(r, "a", 0.0, 0, Usage(10_000, 0, 0))
    resume(r, "a", 1.0, 0, Usage(2_000, 0, 0))
    assert deficit(r) is None


def test_a_restart_empties_the_cache_and_its_misses_are_no_evidence(regulate):
    """Found here: the first returns after a restart all looked like thrashing, and taught a pool
    smaller than one agent."""
    r = regulate()
    r.tick(counters(0.0, 100, 100, capacity_tokens=1_000_000), 0.0)
    for agent in "abc":
        r.arrive(agent, 0.0)
        resume(r, agent, 0.0, 0)
    r.begin_step("c", 1.0)
    r.tick(counters(2.0, 0, 0, capacity_tokens=1_000_000), 2.0)
    for agent in "ab":
        resume(r, agent, 3.0, 0)
    r.end_step("c", 3.0, Usage(1_000, 0, 0))
    assert deficit(r) is None
    r.tick(None, 4.0)
    assert r.last_snapshot.learned_tokens is None
    resume(r, "a", 5.0, 1_000)
    assert deficit(r) == 0.0


def test_three_outcomes_it_worked_it_says_nothing_it_was_overload(regulate):
    r = regulate()
    for agent in "abcd":
        r.arrive(agent, 0.0)
        r.begin_step(agent, 0.0)
    r.end_step("a", 1.0, STEP)
    r.end_step("b", 1.0, None)
    r.end_step("c", 1.0, None, overloaded=True, retry_after_s=7.0)
    r.end_step("d", 1.0, None, overloaded=True, retry_after_s=3.0)
    r.tick(None, 2.0)
    snapshot = r.last_snapshot
    assert (snapshot.steps, snapshot.overloads) == (1, 2)
    assert snapshot.retry_after_s == 7.0
    r.tick(None, 3.0)
    assert r.last_snapshot.overloads == 0


def test_errors_that_return_fast_leave_footprint_and_price_alone(regulate):
    """They are not spare capacity."""
    r = regulate()
    r.arrive("a", 0.0)
    resume(r, "a", 0.0, 0)
    before = r.view(1.0).footprint_tokens
    r.tick(None, 1.0)
    price = r.last_snapshot.prefill_s_per_token
    for now in range(1, 50):
        r.begin_step("a", float(now))
        r.end_step("a", now + 0.001, None)
    r.tick(None, 50.0)
    assert r.view(50.0).footprint_tokens == before
    assert r.last_snapshot.prefill_s_per_token == price


def test_an_overlapping_second_call_does_not_prove_a_larger_pool(regulate):
    """Its own blocks are pinned by the first, so its hit says nothing about others' tokens.

    Found here: it was counted with the reuse distance of the first.
    """
    r = regulate()
    for agent in "ab":
        r.arrive(agent, 0.0)
        resume(r, agent, 0.0, 0)
    r.begin_step("a", 1.0)
    r.arrive("child", 1.0, parent="a")
    r.begin_step("child", 1.0)
    r.end_step("a", 2.0, Usage(1_000, 0, 0))  # b's thousand tokens had pushed it out
    r.begin_step("a", 2.0)
    r.end_step("a", 3.0, Usage(1_000, 0, 1_000))
    r.tick(None, 4.0)
    assert r.last_snapshot.learned_tokens == pytest.approx(1_000)
    assert r.last_snapshot.proven_tokens == 0


def test_the_snapshot_counts_who_is_where(regulate):
    r = regulate(agents=2)
    for agent in "abc":
        r.arrive(agent, 0.0)
    r.begin_step("a", 0.0)
    r.leave("b", 0.5)
    r.leave("c", 0.5)
    r.tick(None, 1.0)
    snapshot = r.last_snapshot
    assert (snapshot.active, snapshot.reasoning, snapshot.waiting) == (1, 1, 0)
    assert snapshot.interval_s == 1.0
    r.tick(None, 3.0)
    assert r.last_snapshot.interval_s == 2.0


def test_a_mean_is_that_of_the_time_so_far_and_not_of_time_before_it(regulate):
    r = regulate(start_s=100.0)
    r.arrive("a", 100.0)
    r.begin_step("a", 100.0, prompt_tokens=744)
    r.tick(None, 101.0)
    assert r.last_snapshot.reasoning_tokens_mean == pytest.approx(1_000)


def test_means_follow_time_not_calls(regulate):
    """One call of 1,000 tokens for 300 s, ten memories long: that is the mean."""
    r = regulate()
    r.arrive("a", 0.0)
    r.begin_step("a", 0.0, prompt_tokens=744)
    for _ in range(100):
        r.advance(0.0)
    r.tick(None, 300.0)
    assert r.last_snapshot.reasoning_tokens_mean == pytest.approx(1_000, abs=1.0)


@pytest.mark.parametrize(("seconds", "abs_"), [((0.002, 0.001, 0.004), 0.002), ((9, 4, 12), 1e-9)])
def test_means_fade_with_a_memory_of_half_a_minute_however_often_something_happens(
    regulate, seconds, abs_
):
    """Against the exact mean of the time so far; changes within a second may fade together."""
    r, now, exact = regulate(), 0.0, 0.0
    r.arrive("a", now)
    for n in range(1 + int(60 / sum(seconds))):
        for reasoning, passed in zip((1, 0, n % 3 > 0), seconds, strict=True):
            if reasoning:
                r.begin_step("a", now, prompt_tokens=744)
            now += passed
            exact += (1.0 - math.exp(-passed / 30.0)) * (reasoning - exact)
            if reasoning:
                r.end_step("a", now, None)
    r.tick(None, now)
    exact /= 1.0 - math.exp(-now / 30.0)
    assert r.last_snapshot.reasoning_tokens_mean == pytest.approx(1_000 * exact, abs=1_000 * abs_)
    assert 0.3 < exact < 0.9


# -- a page that counts in another unit, and a cache that was emptied ------------------------------


def in_one_call(capacity_tokens, kv_usage, ticks):
    """One agent of 20,000 tokens is in a call while the page is read so often."""
    r = Regulator(make_law("working_set"))
    r.arrive("a", 0.0, prompt_tokens=20_000)
    r.begin_step("a", 0.0, prompt_tokens=20_000)
    for second in range(1, ticks + 1):
        reading = Reading(at_s=second, capacity_tokens=capacity_tokens, kv_usage=kv_usage)
        r.tick(reading, float(second))
    return r.view(float(ticks)).capacity_tokens


def test_a_page_whose_own_usage_says_that_the_pool_is_far_larger_is_not_believed():
    """A hybrid model reports 1,000 blocks of 16 tokens where each holds 528: 16,000 for 528,000."""
    assert in_one_call(16_000.0, 0.04, 8) == pytest.approx(506_000, rel=0.01)


def test_a_few_readings_or_a_usage_that_fits_change_nothing():
    assert in_one_call(16_000.0, 0.04, 7) == 16_000, (
        "a prompt fills its blocks while it is prefilled"
    )
    assert in_one_call(400_000.0, 0.05, 20) == 400_000
    assert in_one_call(400_000.0, 0.001, 20) == 400_000, "too little to tell"


@pytest.mark.parametrize("flushed", [False, True])
def test_what_misses_after_a_flush_says_nothing_of_the_pool(flushed):
    r = Regulator(make_law("working_set"))
    for agent in "ab":
        r.arrive(agent, 0.0)
        r.begin_step(agent, 0.0)
        r.end_step(agent, 1.0, Usage(10_000, 100, 0))
    if flushed:
        assert r.flushed(2.0) == []
    for agent in "ab":
        r.begin_step(agent, 3.0)
        r.end_step(agent, 4.0, Usage(10_200, 100, 0))
    r.tick(Reading(at_s=5.0, capacity_tokens=500_000.0), 5.0)
    assert (r.last_snapshot.learned_tokens is None) is flushed


def hits_beyond(told, *, agents=8, first=2_000, own=8_000, shared_in_first=0):
    """Agents of 10,000 tokens return one after another and find all of it cached.

    The page says `told`; nothing else is known of the pool. Of each first prompt so many tokens
    are cached, as of a system prompt that all share.
    """
    r, now = Regulator(make_law("fixed", agents=99)), 0.0
    names = [f"a{i}" for i in range(agents)]
    for rounds in range(6):
        for name in names:
            if not rounds:
                r.arrive(name, now)
            r.begin_step(name, now)
            prompt = first + (own if rounds else 0)
            cached = shared_in_first if rounds == 0 else first if rounds == 1 else prompt
            r.end_step(name, now + 1.0, Usage(prompt, 0, cached))
            now += 2.0
        r.tick(Reading(at_s=now, capacity_tokens=told, kv_usage=0.001), now)
    return r.view(now)


def test_hits_beyond_the_reported_pool_prove_that_it_is_larger():
    """A host tier behind the GPU's pool, or blocks counted in another unit: 80,000 of 30,000."""
    view = hits_beyond(30_000.0)
    assert view.reported_tokens == 30_000
    assert view.capacity_tokens > 60_000


def test_hits_within_the_reported_pool_change_nothing():
    assert hits_beyond(70_000.0).capacity_tokens == 70_000
    assert hits_beyond(100_000.0).capacity_tokens == 100_000


def test_a_shared_system_prompt_does_not_pass_for_a_larger_pool():
    """80,000 tokens of contexts of which 8,000 are the same: the pool holds 24,000."""
    shared = hits_beyond(30_000.0, first=8_000, own=2_000, shared_in_first=8_000)
    assert shared.capacity_tokens == 30_000
    burst = hits_beyond(30_000.0, first=8_000, own=2_000, agents=7)
    assert burst.capacity_tokens == 30_000, "while few have come, first prompts may be shared"


def test_the_tokens_that_calls_may_share_count_once():
    """Four calls of 20,000 tokens, alike for all we know, fill 4 % of a pool of 500,000."""
    r = Regulator(make_law("fixed", agents=9))
    for agent in "abcd":
        r.arrive(agent, 0.0, prompt_tokens=20_000)
        r.begin_step(agent, 0.0, prompt_tokens=20_000)
    for second in range(1, 11):
        reading = Reading(at_s=second, capacity_tokens=150_000.0, kv_usage=0.04)
        r.tick(reading, float(second))
    assert r.view(10.0).capacity_tokens == 150_000


def test_a_page_that_was_proven_wrong_stays_so_while_no_call_is_in_flight():
    r = Regulator(make_law("working_set"))
    r.arrive("a", 0.0, prompt_tokens=20_000)
    r.begin_step("a", 0.0, prompt_tokens=20_000)
    for second in range(1, 10):
        reading = Reading(at_s=second, capacity_tokens=16_000.0, kv_usage=0.04)
        r.tick(reading, float(second))
    r.leave("a", 10.0)
    r.tick(Reading(at_s=11.0, capacity_tokens=16_000.0, kv_usage=0.0), 11.0)
    assert r.view(11.0).capacity_tokens > 400_000
    r.tick(Reading(at_s=12.0, capacity_tokens=32_000.0, kv_usage=0.0), 12.0)
    assert r.view(12.0).capacity_tokens == 32_000, "another page, perhaps another engine"
