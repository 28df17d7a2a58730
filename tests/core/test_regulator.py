"""Who is let in, who pauses, who waits: numbers in, names out."""

import pytest

from concur_agents.core import Reading, Regulator, Usage, make_law

STEP = Usage(900, 100, 0)  # 1,000 tokens of footprint
FIRST = 744  # prompt of a new agent: 1,000 tokens with the 256 of output assumed at first


def letters(n):
    return "abcdefghijklmnopqrstuvwxyz"[:n]


def step(regulator, agent, now, usage=STEP):
    """One whole step that takes no time; the agent must be let through."""
    assert agent in regulator.begin_step(agent, now)
    return regulator.end_step(agent, now, usage)


def states(regulator, agents):
    return [regulator.agent_state(agent) for agent in agents]


# -- agents ------------------------------------------------------------------------------------


def test_agents_are_let_in_up_to_the_limit_and_the_others_queue(regulate):
    r = regulate(agents=2)
    assert [r.arrive(agent, 0.0) for agent in "abc"] == [["a"], ["b"], []]
    assert states(r, "abc") == ["acting", "acting", "queued"]


def test_a_place_given_back_goes_to_the_next_in_the_queue(regulate):
    r = regulate(agents=1)
    for agent in "abc":
        r.arrive(agent, 0.0)
    assert r.leave("a", 1.0) == ["b"]
    assert r.leave("b", 1.0) == ["c"]


def test_an_agent_holds_its_place_between_its_calls(regulate):
    """It is agents that are limited, not requests: a tool call frees nothing."""
    r = regulate(agents=1)
    r.arrive("a", 0.0)
    r.arrive("b", 0.0)
    assert r.begin_step("a", 0.0) == ["a"]
    assert r.end_step("a", 1.0, STEP) == []
    assert states(r, "ab") == ["acting", "queued"]


def test_shrinking_evicts_nobody_and_the_surplus_leaves_at_its_boundaries(regulate, resize):
    r = regulate(agents=4)
    for agent in "abcd":
        r.arrive(agent, 0.0)
        r.begin_step(agent, 0.0)
    assert resize(r, 1.0, agents=2) == []
    assert r.view(1.0).active == 4
    for agent in "abcd":
        r.end_step(agent, 2.0, STEP)
    assert r.view(2.0).active == 4, "an agent in a tool keeps its place until it comes back"
    assert [r.begin_step(agent, 3.0) for agent in "abcd"] == [[], [], ["c"], ["d"]]
    assert states(r, "abcd") == ["paused", "paused", "reasoning", "reasoning"]


def test_wakes_go_by_occupancy_and_never_by_the_change_of_the_limit(regulate, resize):
    """Ten hold places; a limit that swings below that must let nobody in."""
    r = regulate(agents=10)
    for agent in letters(20):
        r.arrive(agent, 0.0)
    for now, agents in enumerate([4, 6] * 3, start=1):
        assert resize(r, float(now), agents=agents) == []
    assert r.view(7.0).active == 10
    assert resize(r, 8.0, agents=12) == ["k", "l"]


@pytest.mark.parametrize("limit", [{"agents": 0}, {"agents": 0.3}, {"tokens": 0}, {"tokens": 1}])
def test_at_least_one_agent_is_always_let_in(regulate, limit):
    r = regulate(**limit)
    assert r.arrive("a", 0.0, prompt_tokens=100_000) == ["a"]
    assert r.arrive("b", 0.0) == []
    step(r, "a", 1.0)
    assert r.begin_step("a", 2.0) == ["a"], "the only active agent is never paused"
    assert r.leave("a", 3.0) == ["b"]


def test_a_fractional_limit_is_rounded_down(regulate):
    r = regulate(agents=2.9)
    assert [r.arrive(agent, 0.0) for agent in "abc"] == [["a"], ["b"], []]


def test_a_paused_agent_goes_on_in_the_very_call_it_asked_for(regulate, resize):
    r = regulate(agents=2)
    for agent in "ab":
        r.arrive(agent, 0.0)
        step(r, agent, 0.0)
    resize(r, 1.0, agents=1)
    assert r.begin_step("a", 1.0) == []
    assert r.agent_state("a") == "paused"
    assert r.leave("b", 2.0) == ["a"]
    assert r.agent_state("a") == "reasoning", "its call is in flight: no second begin_step"
    r.end_step("a", 3.0, STEP)
    assert r.agent_state("a") == "acting"


def test_asking_while_queued_is_allowed_and_answered_once(regulate):
    r = regulate(agents=1)
    r.arrive("a", 0.0)
    r.arrive("b", 0.0)
    assert r.begin_step("b", 1.0) == []
    assert r.leave("a", 2.0) == ["b"]
    assert r.agent_state("b") == "reasoning"


def test_a_pause_is_counted_and_a_first_wait_is_not(regulate, resize):
    r = regulate(agents=2)
    for agent in "abc":
        r.arrive(agent, 0.0)
    for agent in "ab":
        step(r, agent, 0.0)
    resize(r, 1.0, agents=1)
    r.begin_step("a", 1.0)
    view = r.view(1.0)
    assert (view.pauses_total, view.paused, view.queued) == (1, 1, 1)


# -- tokens ------------------------------------------------------------------------------------


def test_agents_are_let_in_while_pressure_and_their_need_fit(regulate):
    r = regulate(tokens=3_000)
    assert [r.arrive(a, 0.0, prompt_tokens=FIRST) for a in "abcd"] == [["a"], ["b"], ["c"], []]
    assert r.view(0.0).pressure_tokens == 3_000


def test_both_bounds_hold_at_once(regulate):
    r = regulate(agents=2, tokens=10_000)
    assert [r.arrive(a, 0.0, prompt_tokens=FIRST) for a in "abc"] == [["a"], ["b"], []]
    r = regulate(agents=10, tokens=2_000)
    assert [r.arrive(a, 0.0, prompt_tokens=FIRST) for a in "abc"] == [["a"], ["b"], []]


def test_an_agent_that_has_grown_out_of_the_limit_pauses_at_its_boundary(regulate):
    r = regulate(tokens=3_000)
    for agent in "ab":
        r.arrive(agent, 0.0, prompt_tokens=900)
        step(r, agent, 0.0)
    step(r, "a", 1.0, Usage(1_900, 100))  # 2,000 held; b needs 1,000 + 1,000 of growth + 100
    assert r.begin_step("b", 2.0) == []
    assert r.agent_state("b") == "paused"


def test_an_idle_claim_fades_until_the_next_agent_fits(regulate):
    """1,000 tokens at 0.01 s/token fade with a time constant of 10 s; ln 2 of it halves them."""
    r = regulate(tokens=1_500, hold=0.01)
    r.arrive("a", 0.0, prompt_tokens=FIRST)
    step(r, "a", 0.0)
    assert r.arrive("b", 0.0, prompt_tokens=900) == []  # and 100 of output, as a has shown
    wake = r.next_wake(0.0)
    assert wake == pytest.approx(6.93, rel=0.09)
    assert r.advance(wake - 0.1) == []
    assert r.advance(wake) == ["b"]


def test_a_reasoning_agents_claim_does_not_fade(regulate):
    r = regulate(tokens=1_500, hold=0.01)
    r.arrive("a", 0.0, prompt_tokens=FIRST)
    r.begin_step("a", 0.0)
    assert r.arrive("b", 0.0, prompt_tokens=FIRST) == []
    assert r.next_wake(0.0) is None
    assert r.advance(1_000_000.0) == []


def test_whoever_comes_back_to_a_full_house_waits(regulate):
    r = regulate(tokens=2_000, hold=0.001)
    r.arrive("a", 0.0, prompt_tokens=FIRST)
    r.arrive("b", 0.0, prompt_tokens=900)
    step(r, "a", 0.0)
    r.advance(50.0)
    r.begin_step("b", 50.0)
    assert r.arrive("c", 100.0, prompt_tokens=900) == ["c"], "the claim of a has faded"
    r.begin_step("c", 100.0)
    assert r.begin_step("a", 101.0) == []
    assert r.agent_state("a") == "paused"
    assert r.leave("c", 111.0) == []  # a needs 1,100 now, beside the 1,000 of b
    assert r.leave("b", 112.0) == ["a"]
    assert r.agent_state("a") == "reasoning"


def test_new_agents_come_in_up_to_the_entry_bound_and_those_inside_grow_beyond_it(regulate):
    r = regulate(tokens=3_000, enter=2_000)
    assert [r.arrive(a, 0.0, prompt_tokens=FIRST) for a in "abc"] == [["a"], ["b"], []]
    assert str(r.explain("c", 0.0)) == (
        "c: queued: pressure 2000 + 1000 for its step, limit 2000 tokens; 0 ahead"
    )
    for agent in "ab":
        step(r, agent, 1.0)
    assert r.begin_step("a", 2.0, prompt_tokens=1_500) == ["a"]


def test_an_entry_bound_alone_bounds_who_comes_in(regulate):
    """Found here: with `tokens` unbounded, infinity less infinity let nobody in beside another."""
    r = regulate(enter=2_000)
    assert [r.arrive(a, 0.0, prompt_tokens=FIRST) for a in "abc"] == [["a"], ["b"], []]


@pytest.mark.parametrize(("restarts", "let_in"), [(0, ["a"]), (1, [])])
def test_an_agent_comes_back_beyond_the_entry_bound_if_its_prefix_is_still_cached(
    regulate, resize, restarts, let_in
):
    r = regulate(agents=2)
    for agent in "ab":
        r.arrive(agent, 0.0)
        step(r, agent, 0.0)
    resize(r, 1.0, agents=1)
    assert r.begin_step("a", 1.0) == []
    for n in range(restarts + 1):
        counters = Reading(at_s=2.0, hit_tokens_total=9 - n, query_tokens_total=9 - n)
        assert r.tick(counters, 2.0) == []
    assert resize(r, 3.0, tokens=2_500, enter_tokens=1_500) == let_in


def test_beyond_the_pool_itself_new_agents_enter_while_all_fit_when_grown(regulate):
    """Contexts of 1,000 are expected to come to 1,800: four fit into 8,999, a fifth would not."""
    r = regulate(tokens=8_999, enter=8_000, near=2_000)
    agents = letters(8)
    for agent in agents:
        r.arrive(agent, 0.0, prompt_tokens=900)
        if r.agent_state(agent) != "queued":
            step(r, agent, 0.0)
    assert states(r, agents).count("acting") == 4
    for agent in "abcd":
        step(r, agent, 1.0, Usage(1_900, 100, 900))
    lets_in = [r.leave(agent, 2.0) for agent in "abc"]
    assert lets_in == [[], [], ["e", "f"]], "4,000 held and 1,000 needed may come to 9,000"


def test_within_the_pool_itself_what_agents_come_to_hold_does_not_count(regulate):
    r = regulate(tokens=3_000, enter=2_500, near=2_500)
    for agent in "ab":
        r.arrive(agent, 0.0, prompt_tokens=900)
        step(r, agent, 0.0)
    assert states(r, "ab") == ["acting", "acting"]


def test_a_prefix_that_several_agents_hold_is_charged_once(regulate):
    r = regulate()
    prefix = (("system", 600.0),)
    for agent in "abcd":
        r.arrive(agent, 0.0)
        r.begin_step(agent, 0.0, prefix=prefix)
        r.end_step(agent, 0.0, STEP)
    for agent in "abcd":
        step(r, agent, 1.0)
    assert r.view(1.0).pressure_tokens == pytest.approx(600 + 4 * 400)
    assert r.view(1.0).footprint_tokens == 4_000


def test_the_last_holder_of_a_prefix_pays_for_it_alone(regulate):
    r = regulate()
    for agent in "ab":
        r.arrive(agent, 0.0)
        r.begin_step(agent, 0.0, prefix=(("system", 600.0),))
        r.end_step(agent, 0.0, STEP)
    r.leave("a", 1.0)
    step(r, "b", 2.0)
    assert r.view(2.0).pressure_tokens == pytest.approx(1_000)


def test_a_prefix_seen_cached_in_first_prompts_is_charged_once(regulate):
    """Nobody named it; the engine showed it, by hits in prompts of agents new to it."""
    r = regulate()
    for agent in "abcdef":
        r.arrive(agent, 0.0)
        step(r, agent, 0.0, Usage(900, 100, 600))
    # three come before there is a majority to speak of, and are credited after their next step
    assert r.view(0.0).pressure_tokens == pytest.approx(600 + 3 * 1_000 + 3 * 400)
    for agent in "abc":
        step(r, agent, 0.0, Usage(900, 100, 900))
    assert r.view(0.0).pressure_tokens == pytest.approx(600 + 6 * 400)


def test_found_prefixes_of_slightly_different_length_are_charged_as_one(regulate):
    """Block rounding makes newcomers find a little more or less of the same prefix.

    Found here: each length that had once been the median stayed charged beside the others.
    """
    r = regulate()
    agents = letters(20)
    for n, agent in enumerate(agents):
        r.arrive(agent, 0.0)
        step(r, agent, 0.0, Usage(900, 100, 592 + 16 * (n // 2 % 5)))
    for agent in agents:
        step(r, agent, 1.0, Usage(900, 100, 900))
    assert 20 * 1_000 - 19 * 656 <= r.view(1.0).pressure_tokens <= 20 * 1_000 - 19 * 592


# -- order -------------------------------------------------------------------------------------


def test_higher_priority_goes_first(regulate):
    r = regulate(agents=1)
    r.arrive("a", 0.0)
    r.arrive("b", 0.0)
    r.arrive("c", 0.0, priority=1)
    assert r.leave("a", 1.0) == ["c"]


def test_a_warm_agent_goes_before_a_new_one_and_a_new_one_before_a_cold_one(regulate, resize):
    """The pool of 10,000 still holds what b sent; a's prefix was pushed out by c."""
    r = regulate(agents=3)
    r.tick(Reading(at_s=0.0, capacity_tokens=10_000), 0.0)
    for agent in "abc":
        r.arrive(agent, 0.0)
    step(r, "a", 1.0, Usage(900, 100, 0))
    step(r, "c", 2.0, Usage(9_000, 600, 0))
    step(r, "b", 3.0, Usage(900, 100, 0))
    resize(r, 4.0, agents=1)
    assert r.begin_step("a", 4.0) == []
    assert r.begin_step("b", 4.0) == []
    assert r.arrive("new", 4.0) == []
    assert resize(r, 5.0, agents=2) == ["b"]
    assert resize(r, 5.0, agents=3) == ["new"]
    assert resize(r, 5.0, agents=4) == ["a"]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("warm_new_least", ["new", "a", "b"]),  # after a restart all are cold; a did least
        ("warm_cold_new", ["b", "a", "new"]),
        ("first_come", ["a", "b", "new"]),
    ],
)
def test_each_order_lets_in_by_its_own_rule(regulate, resize, order, expected):
    r = regulate(agents=3, order=order)
    for agent in "abx":
        r.arrive(agent, 0.0)
    step(r, "a", 1.0, Usage(1_000, 100, 0))
    step(r, "b", 1.0, Usage(5_000, 100, 0))
    r.tick(Reading(at_s=2.0, hit_tokens_total=9, query_tokens_total=9), 2.0)
    r.tick(Reading(at_s=3.0, hit_tokens_total=0, query_tokens_total=0), 3.0)  # restarted
    resize(r, 3.0, agents=1)
    assert r.begin_step("b", 4.0) == []
    assert r.begin_step("a", 5.0) == []
    assert r.arrive("new", 6.0) == []
    assert [resize(r, 7.0, agents=n)[0] for n in (2, 3, 4)] == expected


def test_an_order_of_ones_own_is_a_function(regulate):
    r = regulate(agents=1, order=lambda account, warm: (-account.seq,))
    for agent in "abc":
        r.arrive(agent, 0.0)
    assert r.leave("a", 1.0) == ["c"]


# -- bounds on how many are open -----------------------------------------------------------------


def test_max_open_bounds_how_many_agents_are_open_whatever_the_limit_allows(regulate):
    r = regulate(agents=10, max_open=2)
    assert [r.arrive(agent, 0.0) for agent in "abc"] == [["a"], ["b"], []]
    assert r.leave("a", 1.0) == ["c"]


def test_an_open_agent_comes_back_though_no_other_may_open(regulate, resize):
    """It was let in, then put back before its first call; it counts as open all the time.

    Found here: it stood among the new ones, who had to wait until another one left.
    """
    r = regulate(agents=2, max_open=2)
    for agent in "abc":
        r.arrive(agent, 0.0)
    resize(r, 1.0, agents=1)
    assert r.begin_step("a", 1.0) == []
    assert resize(r, 2.0, agents=2) == ["a"]


def test_waiting_for_max_open_does_not_count_as_feeling_the_limit(regulate):
    """Grow only if the limit was reached: here something else was."""
    r = regulate(agents=10, max_open=1)
    r.arrive("a", 0.0)
    r.arrive("b", 0.0)
    for now in (1.0, 2.0):
        r.tick(None, now)
        assert not r.last_snapshot.was_bound


def test_waiting_for_the_limit_counts_as_feeling_it_until_nobody_waits(regulate):
    r = regulate(agents=1)
    r.arrive("a", 0.0)
    r.tick(None, 1.0)
    assert not r.last_snapshot.was_bound
    r.arrive("b", 1.5)
    for now in (2.0, 3.0):
        r.tick(None, now)
        assert r.last_snapshot.was_bound
    r.leave("a", 3.5)
    for now, bound in ((4.0, True), (5.0, False)):
        r.tick(None, now)
        assert r.last_snapshot.was_bound is bound


# -- leaving -------------------------------------------------------------------------------------


def test_leaving_is_idempotent_and_works_wherever_the_agent_stood(regulate, resize):
    r = regulate(agents=2)
    for agent in "abc":
        r.arrive(agent, 0.0)
    step(r, "a", 0.0)
    r.begin_step("b", 0.0)
    assert r.leave("c", 1.0) == []  # queued
    assert r.leave("b", 1.0) == []  # reasoning
    assert r.leave("a", 1.0) == []  # acting
    assert r.leave("a", 1.0) == []
    assert r.leave("nobody", 1.0) == []
    view = r.view(1.0)
    assert (view.active, view.queued, view.done_total, view.pressure_tokens) == (0, 0, 3, 0.0)


def test_an_agent_cancelled_in_the_tick_it_was_let_in_gives_the_place_on(regulate):
    r = regulate(agents=1)
    for agent in "abc":
        r.arrive(agent, 0.0)
    assert r.leave("a", 1.0) == ["b"]
    assert r.leave("b", 1.0) == ["c"]


def test_an_abandoned_wait_keeps_the_agent_paused_but_in_no_call(regulate, resize):
    r = regulate(agents=2)
    for agent in "ab":
        r.arrive(agent, 0.0)
        step(r, agent, 0.0)
    resize(r, 1.0, agents=1)
    assert r.begin_step("a", 1.0) == []
    assert r.end_step("a", 2.0, None) == []  # its caller was cancelled
    assert r.agent_state("a") == "paused"
    assert r.leave("b", 3.0) == ["a"]
    assert r.agent_state("a") == "acting"
    with pytest.raises(ValueError, match="'a' has no step to end"):
        r.end_step("a", 4.0, None)


def test_an_id_can_be_used_again_once_its_agent_has_left(regulate):
    r = regulate(agents=1)
    r.arrive("a", 0.0)
    step(r, "a", 0.0)
    r.leave("a", 1.0)
    assert r.arrive("a", 2.0) == ["a"]
    assert r.view(2.0).footprint_tokens == 0


# -- bad input -----------------------------------------------------------------------------------


def test_an_id_that_is_here_is_refused_and_changes_nothing(regulate):
    r = regulate(agents=1)
    r.arrive("a", 0.0)
    with pytest.raises(ValueError, match="'a' is already here"):
        r.arrive("a", 1.0)
    assert r.view(1.0).active == 1


def test_calls_of_an_unknown_agent_say_that_it_must_arrive_first(regulate):
    r = regulate()
    with pytest.raises(KeyError, match="'a' is not here: it must arrive first"):
        r.begin_step("a", 0.0)
    with pytest.raises(KeyError, match="'a' is not here: it must arrive first"):
        r.end_step("a", 0.0, None)
    with pytest.raises(ValueError, match="parent 'p' of agent 'a' is not here"):
        r.arrive("a", 0.0, parent="p")
    assert r.view(0.0).active == 0


def test_ending_a_step_that_never_began_is_an_error(regulate):
    r = regulate()
    r.arrive("a", 0.0)
    with pytest.raises(ValueError, match="no step to end"):
        r.end_step("a", 0.0, STEP)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_wait_s", 0.0),
        ("max_wait_s", -1.0),
        ("max_open", 0),
        ("blind_after_s", 0.0),
        ("blind_agents", 0),
        ("order", "alphabetical"),
    ],
)
def test_an_option_out_of_range_is_refused_with_its_name_and_value(option, value):
    with pytest.raises(ValueError, match=f"{option} must be .*, got {value!r}"):
        Regulator(make_law("fixed"), **{option: value})


# -- for eyes ------------------------------------------------------------------------------------


def test_the_view_adds_up(regulate, resize):
    r = regulate(agents=3)
    for agent in letters(6):
        r.arrive(agent, 0.0)
    for agent in "abc":
        step(r, agent, 1.0, Usage(900, 100))
    r.leave("c", 2.0)  # d comes in
    r.begin_step("b", 2.0)
    resize(r, 3.0, agents=2)
    r.begin_step("a", 3.0)
    view = r.view(10.0)
    assert (view.active, view.reasoning, view.acting) == (2, 1, 1)
    assert (view.paused, view.queued, view.done_total) == (1, 2, 1)
    assert view.footprint_tokens == 2_000
    assert view.longest_wait_s == 10.0
    assert view.limit.agents == 2
    assert view.reason == "scripted"
    assert view.capacity_tokens is None
    assert view.hit_rate is None


def test_the_hit_deficit_is_the_missing_share_of_what_could_have_been_cached(regulate):
    r = regulate()
    r.arrive("a", 0.0)
    step(r, "a", 0.0, Usage(1_000, 0, 0))
    assert r.view(0.0).hit_deficit is None, "a first prompt always misses: no evidence"
    step(r, "a", 1.0, Usage(2_000, 0, 750))
    assert r.view(1.0).hit_deficit == pytest.approx(0.25)


def test_explain_says_in_one_line_why_an_agent_waits(regulate, resize):
    r = regulate(agents=2)
    for agent in "abcd":
        r.arrive(agent, 0.0)
    r.begin_step("b", 0.0)
    assert str(r.explain("a", 0.0)) == "a: acting: holding 2304 tokens"
    assert str(r.explain("d", 0.0)) == "d: queued: 2 of 2 agents active; 1 ahead"
    assert str(r.explain("x", 0.0)) == "x: not here"
    resize(r, 1.0, agents=0)
    r.leave("a", 1.0)
    assert str(r.explain("c", 1.0)) == "c: queued: 1 of 1 agents active; 0 ahead"


def test_explain_shows_pressure_need_and_the_next_chance(regulate):
    r = regulate(tokens=15_000, hold=0.01)
    r.arrive("a", 0.0, prompt_tokens=11_744)
    step(r, "a", 0.0, Usage(11_900, 100))
    r.arrive("b", 0.0, prompt_tokens=FIRST * 10)
    line = str(r.explain("b", 0.0))
    assert line.startswith(
        "b: queued: pressure 12k + 7540 for its step, limit 15k tokens; 0 ahead; next chance"
    )


def test_explain_names_max_open_when_that_is_what_holds_an_agent_back(regulate):
    r = regulate(tokens=100_000, max_open=1)
    r.arrive("a", 0.0)
    r.arrive("b", 0.0)
    assert str(r.explain("b", 0.0)) == "b: queued: 1 of 1 agents open; 0 ahead"


def test_looking_changes_nothing(regulate):
    r = regulate(tokens=1_500, hold=0.01)
    r.arrive("a", 0.0, prompt_tokens=FIRST)
    step(r, "a", 0.0)
    r.arrive("b", 0.0, prompt_tokens=FIRST)
    wake = r.next_wake(0.0)
    for _ in range(3):
        r.view(0.0)
        r.explain("b", 0.0)
        repr(r)
        r.agent_state("b")
        assert r.next_wake(0.0) == wake
    assert r.agent_state("b") == "queued"


def test_repr_is_a_status_line(regulate):
    r = regulate(agents=2)
    for agent in "abc":
        r.arrive(agent, 0.0)
    r.begin_step("a", 0.0)
    assert repr(r) == "<Regulator scripted [scripted]: 1 reasoning, 1 acting, 1 waiting>"


def test_of_a_burst_of_unknown_size_about_32_go_in_until_one_has_shown_its_size(regulate):
    """Found in simulation: 96 agents of 5,500 tokens, taken for 2,048 each, came in at once."""
    r = regulate(tokens=320_000)
    r.tick(Reading(at_s=0.0, capacity_tokens=320_000), 0.0)
    inside = [a for a in map(str, range(96)) if r.arrive(a, 1.0) == [a]]
    assert len(inside) == 31, "10,000 and an output of 256 each"
    r.begin_step("0", 1.0)
    let_in = r.end_step("0", 3.0, Usage(744, 256, 0))
    assert len(let_in) == 11, "where one of 10,000 was expected, as many of 1,000 fit"
    for agent in inside[1:]:
        let_in += r.begin_step(agent, 3.0)[1:]
    assert len(let_in) == 65, "the other first calls are of 1,000, too: all fit"
