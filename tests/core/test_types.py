"""What crosses the door: numbers that cannot be meant stop there, and lists of ids are lists."""

import json
import math
import pickle
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from concur_agents.core import (
    Decision,
    Reading,
    Regulator,
    State,
    Transition,
    Usage,
    law_names,
    make_law,
)

ABSURD = [10**400, 1e300, math.inf, math.nan, -1.0, -math.inf]
READ = (
    *("hit_tokens_total", "query_tokens_total", "running", "waiting", "preemptions_total"),
    *("computed_tokens_total", "prefill_s_total", "generated_tokens_total", "decode_s_total"),
    *("host_capacity_tokens", "host_used_tokens", "host_hit_tokens_total"),
)
numbers = st.one_of(
    st.sampled_from([*ABSURD, 0, 1e-320, 1e12, 1e15]), st.integers(0, 10_000), st.floats(0.0, 1e6)
)


def assert_sane(regulator, now):
    """No NaN in any limit, and view, snapshot and reasons can be made."""
    view = regulator.view(now)
    for each in fields(view.limit):
        assert getattr(view.limit, each.name) >= 0, each.name
    for value in (view.pressure_tokens, view.footprint_tokens):
        assert math.isfinite(value)
        assert value >= 0.0
    json.dumps(regulator.state.to_dict(), allow_nan=False)
    for agent in regulator.ids():
        str(regulator.explain(agent, now))
    regulator.next_wake(now)


# -- readings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("absurd", ABSURD)
def test_a_counter_that_cannot_be_meant_is_unknown(absurd):
    for name in READ:
        assert getattr(Reading(at_s=0.0, **{name: absurd}), name) is None


@pytest.mark.parametrize("absurd", [10**400, 1e300, math.inf])
def test_a_pool_that_cannot_be_meant_is_unknown_and_the_last_one_stands(absurd):
    r = Regulator(make_law("working_set"))
    for now, capacity in enumerate((100_000.0, absurd, 50_000.0)):
        r.tick(Reading(at_s=float(now), capacity_tokens=capacity), float(now))
        expected = {0: 95_000, 1: 95_000, 2: 47_500}[now]
        assert r.limit.tokens == expected, "a page that heals, heals"


@pytest.mark.parametrize("wrong", [math.nan, 0.0, -1.0, -math.inf])
def test_a_pool_of_nothing_and_a_share_beyond_one_are_refused_where_they_are_made(wrong):
    with pytest.raises(ValueError, match="capacity_tokens must be above 0"):
        Reading(at_s=0.0, capacity_tokens=wrong)
    with pytest.raises(ValueError, match="kv_usage must be a share between 0 and 1"):
        Reading(at_s=0.0, kv_usage=wrong - 1.0)


# -- usage and sizes -----------------------------------------------------------------------------


@pytest.mark.parametrize("absurd", [10**400, 1e300, math.inf, math.nan])
def test_a_usage_that_cannot_be_meant_says_nothing_and_the_next_one_counts(absurd):
    r = Regulator(make_law("working_set"))
    r.arrive("a", 0.0)
    for usage in (Usage(absurd, 1), Usage(1, absurd), Usage(1, 1, absurd), Usage(900, 100, 0)):
        r.begin_step("a", 1.0)
        assert r.view(1.0).footprint_tokens == 0
        r.end_step("a", 2.0, usage)
        r.tick(None, 3.0)
        assert_sane(r, 3.0)
    assert r.view(3.0).footprint_tokens == 1_000


@pytest.mark.parametrize("absurd", ABSURD)
def test_an_expected_prompt_or_a_prefix_that_cannot_be_meant_is_unknown(absurd):
    r = Regulator(make_law("working_set"))
    plain = Regulator(make_law("working_set"))
    for regulator, prompt, prefix in (
        (r, absurd, (("system", 300.0), ("tools", absurd))),
        (plain, None, None),
    ):
        for agent in "ab":
            regulator.arrive(agent, 0.0, prompt_tokens=prompt)
            regulator.begin_step(agent, 0.0, prompt_tokens=prompt, prefix=prefix)
    assert r.view(0.0) == plain.view(0.0)


@pytest.mark.parametrize("absurd", [1e300, math.inf, math.nan, -1.0])
def test_an_absurd_retry_after_does_not_end_all_growth(absurd):
    r = Regulator(make_law("gradient"))
    r.arrive("a", 0.0)
    r.begin_step("a", 0.0)
    r.end_step("a", 1.0, None, overloaded=True, retry_after_s=absurd)
    r.tick(None, 2.0)
    assert 0.0 <= r.last_snapshot.retry_after_s <= 3_600.0


def test_steps_of_no_duration_are_no_division_by_zero():
    r = Regulator(make_law("gradient"))
    r.arrive("a", 0.0)
    r.tick(None, 0.0)
    for _ in range(8):
        r.begin_step("a", 1.0)
        r.end_step("a", 1.0, Usage(900, 100))
    r.tick(None, 10.0)
    assert r.reason == "no_output"


@given(
    name=st.sampled_from(law_names()),
    max_wait_s=st.sampled_from([None, 5.0]),
    events=st.lists(st.tuples(st.integers(0, 5), numbers, numbers, numbers), max_size=40),
)
def test_whatever_numbers_come_in_no_decision_fails_and_no_limit_is_nan(name, max_wait_s, events):
    r, now = Regulator(make_law(name), max_wait_s=max_wait_s), 0.0
    for n, (what, x, y, z) in enumerate(events):
        now += 0.7
        agents = r.ids()
        agent = agents[n % len(agents)] if agents else None
        match what:
            case 0:
                r.arrive(f"a{n}", now, prompt_tokens=x)
            case 1 if agent:
                r.begin_step(agent, now, prompt_tokens=x, prefix=(("s", y), ("t", z)))
            case 2 | 3 if agent and r.agent_state(agent) == "reasoning":
                try:
                    usage = Usage(x, y, z)
                except ValueError:
                    usage = None
                r.end_step(agent, now, usage, overloaded=what == 3 and x == 0, retry_after_s=y)
            case 4 if agent:
                r.leave(agent, now)
            case _:
                try:
                    reading = Reading(
                        at_s=now, capacity_tokens=x, hit_tokens_total=y, query_tokens_total=z
                    )
                except ValueError:
                    reading = None
                r.tick(reading, now)
        assert_sane(r, now)
    for agent in r.ids():
        r.leave(agent, now)
    r.tick(Reading(at_s=now, capacity_tokens=100_000), now)
    assert r.arrive("last", now) == ["last"], "and it heals"


# -- what is answered ----------------------------------------------------------------------------


def test_a_decision_is_a_list_of_ids_and_carries_the_moves():
    r = Regulator(make_law("fixed", agents=1), start_s=0.0)
    decision = r.arrive("a", 0.0)
    assert decision == ["a"]
    assert decision == ["a"]
    assert json.dumps(decision) == '["a"]'
    assert [*decision, "b"] == ["a", "b"]
    assert isinstance(decision, list)
    assert [(move.agent, move.before, move.after) for move in decision.transitions] == [
        ("a", None, State.QUEUED),
        ("a", State.QUEUED, State.ACTING),
    ]
    assert r.begin_step("a", 0.0) == ["a"], "let in by arrive, it still begins its first step"
    assert r.arrive("b", 0.0) == []
    assert not r.arrive("c", 0.0)
    assert r.end_step("a", 1.0, Usage(prompt_tokens=900, completion_tokens=12)) == []
    assert r.leave("a", 2.0) == ["b"]
    assert r.leave("a", 2.0) == []
    assert r.tick(None, 3.0) == []
    assert r.tick(Reading(at_s=3.0, kv_usage=0.4, running=1, waiting=0), 3.0) == []
    assert r.advance(4.0) == []


def test_a_decision_survives_pickling():
    decision = Decision(["a"], (Transition("a", None, State.QUEUED),))
    again = pickle.loads(pickle.dumps(decision))
    assert again == decision
    assert again.transitions == decision.transitions


def test_a_child_moves_with_its_root():
    r = Regulator(make_law("fixed", agents=1))
    r.arrive("a", 0.0)
    child = r.arrive("child", 0.0, parent="a")
    assert (list(child), child.transitions) == (["child"], ())
    moves = r.begin_step("child", 0.0).transitions
    assert moves == (Transition("a", State.ACTING, State.REASONING),)


def test_a_move_to_the_queue_says_why():
    r = Regulator(make_law("fixed", agents=1))
    r.arrive("a", 0.0)
    (move,) = r.arrive("b", 0.0).transitions
    assert (move.agent, move.after, move.reason.cause) == ("b", State.QUEUED, "agents")
    assert str(move.reason) == "b: queued: 1 of 1 agents active"
