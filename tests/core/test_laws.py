"""The laws `fixed` and `cache_aimd`, limits, states, and how laws are made."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from concur_agents.core import (
    LawState,
    Limit,
    Reading,
    Regulator,
    Usage,
    law_formulas,
    law_names,
    make_law,
)

# -- fixed -----------------------------------------------------------------------------------------


def test_fixed_is_a_cap_that_nothing_moves():
    r = Regulator(make_law("fixed", agents=3))
    for now, usage in enumerate([0.0, 1.0, 0.5]):
        r.tick(Reading(at_s=float(now), kv_usage=usage), float(now))
        assert r.limit == Limit(agents=3)
    r.tick(None, 10_000.0)
    assert r.limit == Limit(agents=3)
    assert r.reason == "fixed"


# -- cache_aimd ------------------------------------------------------------------------------------


def aimd(window=8.0, **config):
    """A Regulator under `cache_aimd` that has had its first decision at 0 s."""
    r = Regulator(make_law("cache_aimd", start=window, **config))
    r.tick(reading(0.0, 0.4), 0.0)
    return r


def reading(at_s, usage, hits=0.0, queries=0.0):
    return Reading(at_s=at_s, kv_usage=usage, hit_tokens_total=hits, query_tokens_total=queries)


@pytest.mark.parametrize(
    ("usage", "hit_rate", "window", "reason"),
    [
        (0.10, 0.90, 10, "grow"),
        (0.10, 0.10, 10, "grow"),  # low usage grows whatever H is
        (0.19, 0.50, 10, "grow"),
        (0.20, 0.50, 8, "hold"),  # "below 0.2" is strict
        (0.35, 0.05, 8, "hold"),
        (0.50, 0.05, 8, "hold"),  # "above 0.5" is strict
        (0.51, 0.20, 8, "hold"),  # and so is H below 0.2
        (0.51, 0.19, 4, "cut"),
        (0.99, 0.00, 4, "cut"),
        (0.99, 0.90, 8, "hold"),  # a full pool that hits is a pool well used
    ],
)
def test_the_published_table(usage, hit_rate, window, reason):
    """CONCUR: alpha 2, beta 0.5, U_low 0.2, U_high 0.5, H_thresh 0.2."""
    r = aimd()
    r.tick(reading(5.0, usage, 1_000 * hit_rate, 1_000), 5.0)
    assert (r.limit.agents, r.reason) == (window, reason)


def test_one_decision_per_interval():
    r = aimd(interval_s=5.0)
    for now in (1.0, 2.0, 3.0, 4.0):
        r.tick(reading(now, 0.1, 0, 100 * now), now)
        assert r.limit.agents == 8
    r.tick(reading(5.0, 0.1, 0, 500), 5.0)
    assert r.limit.agents == 10
    r.tick(reading(6.0, 0.1, 0, 600), 6.0)
    assert r.limit.agents == 10


def test_the_hit_rate_is_over_the_interval_not_since_the_start():
    r = aimd()
    r.tick(reading(5.0, 0.9, 100_000, 100_000), 5.0)
    assert r.reason == "hold"
    r.tick(reading(10.0, 0.9, 100_000, 101_000), 10.0)
    assert r.reason == "cut"


def test_no_traffic_is_no_evidence_and_so_no_cut():
    r = aimd()
    r.tick(reading(5.0, 0.9), 5.0)
    assert (r.limit.agents, r.reason) == (8, "no_traffic")


def test_no_usage_told_holds():
    r = aimd()
    told = Reading(at_s=5.0, hit_tokens_total=0, query_tokens_total=1_000)
    r.tick(told, 5.0)
    assert (r.limit.agents, r.reason) == (8, "no_usage")


def test_a_counter_reset_is_not_taken_for_a_negative_hit_rate():
    r = aimd()
    r.tick(reading(5.0, 0.4, 9_000, 10_000), 5.0)
    r.tick(reading(10.0, 0.9, 90, 100), 10.0)  # the engine restarted and hits well
    assert (r.limit.agents, r.reason) == (8, "hold")
    r.tick(reading(15.0, 0.9, 90, 1_100), 15.0)
    assert r.reason == "cut"


def test_a_missed_poll_decides_nothing_and_the_next_one_covers_its_interval():
    r = aimd()
    r.tick(None, 5.0)
    assert r.limit.agents == 8
    r.tick(reading(6.0, 0.9, 0, 1_000), 6.0)
    assert r.reason == "cut"


def test_cuts_stop_at_one_agent():
    r = aimd(window=4.0)
    for n in range(1, 6):
        r.tick(reading(5.0 * n, 0.9, 0, 1_000 * n), 5.0 * n)
    assert r.limit.agents == 1


def test_growth_is_additive_and_does_not_ask_whether_the_window_was_full():
    """As published; that it should ask is one of our reasons for another law."""
    r = aimd(window=4.0)
    for n in range(1, 11):
        r.tick(reading(5.0 * n, 0.1), 5.0 * n)
    assert r.limit.agents == 24


def test_cache_aimd_starts_without_a_limit_and_a_batch_that_fits_is_left_alone():
    """The paper names no start. From 4 agents, a batch that fits took up to 1.7 times as long."""
    r = Regulator(make_law("cache_aimd"))
    r.tick(reading(0.0, 0.0), 0.0)
    assert all(r.arrive(f"agent-{n}", 0.0) for n in range(64))
    for n in range(1, 11):  # an empty pool, a well used one, and one that is full and hits
        r.tick(reading(5.0 * n, 0.1 * n, 900 * n, 1_000 * n), 5.0 * n)
        assert r.limit == Limit()
    assert r.view(50.0).active == 64


def test_the_first_cut_without_a_limit_starts_from_those_who_are_active():
    """Half of no limit would be no limit, for ever."""
    r = Regulator(make_law("cache_aimd"))
    r.tick(reading(0.0, 0.9), 0.0)
    for n in range(64):
        r.arrive(f"agent-{n}", 0.0)
    r.tick(reading(5.0, 0.9, 0, 1_000), 5.0)
    assert (r.limit.agents, r.reason) == (32, "cut")
    r.tick(reading(10.0, 0.9, 0, 2_000), 10.0)  # from here on as published
    assert (r.limit.agents, r.reason) == (16, "cut")
    r.tick(reading(15.0, 0.1, 0, 3_000), 15.0)
    assert (r.limit.agents, r.reason) == (18, "grow")


@pytest.mark.parametrize(("running", "waiting", "window"), [(10, 30, 20), (None, None, 1)])
def test_without_agents_of_its_own_the_first_cut_starts_from_the_engines_calls(
    running, waiting, window
):
    """In a dry run (`concur watch`) nobody of ours is active; and the window must not become 0."""
    r = Regulator(make_law("cache_aimd"))
    r.tick(reading(0.0, 0.9), 0.0)
    told = Reading(
        at_s=5.0,
        kv_usage=0.9,
        hit_tokens_total=0,
        query_tokens_total=1_000,
        running=running,
        waiting=waiting,
    )
    r.tick(told, 5.0)
    assert (r.limit.agents, r.reason) == (window, "cut")


def test_without_engine_counters_the_hit_rate_comes_from_usage():
    r = aimd()
    r = Regulator(make_law("cache_aimd", start=8))
    r.tick(Reading(at_s=0.0, kv_usage=0.9), 0.0)
    r.arrive("a", 0.0)
    for now in (1.0, 2.0):
        r.begin_step("a", now)
        r.end_step("a", now, Usage(1_000, 10, 0))
    r.tick(Reading(at_s=5.0, kv_usage=0.9), 5.0)
    assert (r.limit.agents, r.reason) == (4, "cut")


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1_000), st.integers(0, 1_000)), max_size=30)
)
def test_the_window_stays_at_or_above_one_and_moves_by_the_rule_only(readings):
    r = aimd()
    hits = queries = 0
    for n, (usage, hit, miss) in enumerate(readings, start=1):
        before = r.limit.agents
        hits, queries = hits + hit, queries + hit + miss
        r.tick(reading(5.0 * n, usage, hits, queries), 5.0 * n)
        if usage < 0.2:
            assert r.limit.agents == before + 2
        elif usage > 0.5 and hit + miss and hit / (hit + miss) < 0.2:
            assert r.limit.agents == max(1, before / 2)
        else:
            assert r.limit.agents == before


# -- making laws -----------------------------------------------------------------------------------


def test_every_law_has_a_name_and_a_formula_and_starts_with_a_state_that_is_json():
    assert set(law_names()) == set(law_formulas())
    for name in law_names():
        law = make_law(name)
        assert law.name == name
        assert law_formulas()[name] == law.formula
        state = law.initial()
        assert isinstance(state, LawState)
        text = json.dumps(state.to_dict(), allow_nan=False)
        assert json.loads(text) == state.to_dict()


def test_equal_configs_are_equal_laws():
    assert make_law("fixed", agents=8) == make_law("fixed", agents=8)
    assert make_law("fixed", agents=8) != make_law("fixed", agents=9)


def test_an_unknown_law_names_the_nearest_and_all_known():
    with pytest.raises(ValueError, match=r"no law 'fixd': did you mean 'fixed'\? known: .*fixed"):
        make_law("fixd")


def test_an_unknown_option_names_the_nearest():
    with pytest.raises(ValueError, match=r"no option 'agent': did you mean 'agents'\?"):
        make_law("fixed", agent=8)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("fixed", {"agents": -3}, "agents must be at least 0, got -3"),
        ("fixed", {"agents": math.nan}, "agents must be at least 0, got nan"),
        ("cache_aimd", {"interval_s": 0}, "interval_s must be above 0, got 0"),
        ("cache_aimd", {"decrease": 1.0}, "decrease must lie between 0 and 1, got 1.0"),
        ("cache_aimd", {"start": 0}, "start must be at least 1 agent, got 0"),
    ],
)
def test_a_config_out_of_range_says_the_value_and_the_wish(name, config, message):
    with pytest.raises(ValueError, match=message):
        make_law(name, **config)


@pytest.mark.parametrize("field", ["agents", "tokens", "hold_s_per_token"])
def test_a_limit_below_zero_or_not_a_number_is_refused(field):
    for value in (-1.0, math.nan):
        with pytest.raises(ValueError, match=f"limit on {field} must be at least 0"):
            Limit(**{field: value})


def test_a_state_as_json_has_none_for_what_is_unbounded():
    state = LawState(Limit(agents=4.0), reason="grow")
    assert state.to_dict() == {
        "limit": {
            "agents": 4.0,
            "tokens": None,
            "hold_s_per_token": None,
            "enter_tokens": None,
            "open_agents": None,
            "near_tokens": None,
        },
        "reason": "grow",
    }


def test_deciding_changes_neither_state_nor_snapshot():
    r = aimd()
    r.tick(reading(5.0, 0.9, 0, 1_000), 5.0)
    state, snapshot = r.law.initial(), r.last_snapshot
    assert r.law.decide(state, snapshot) == r.law.decide(state, snapshot)
    assert state == r.law.initial()
