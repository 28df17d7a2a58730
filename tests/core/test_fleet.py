"""A fleet, story by story: who goes where, who waits, and what happens when a pool is lost."""

from types import SimpleNamespace

import pytest

from concur_agents.core import Fleet, LawState, Limit, Reading, State, Usage, make_law

CALL = Usage(1_000, 100)


def fleet_of(*pools, agents=2, **options):
    """Pools that each take so many agents."""
    return Fleet(make_law("fixed", agents=agents), pools, **options)


def page(now, tokens=100_000):
    return Reading(at_s=now, capacity_tokens=tokens, kv_usage=0.1)


def fail(fleet, pool, first_s, for_s=6):
    """The pool's page fails once a second."""
    answers = []
    for second in range(for_s + 1):
        answers += fleet.tick(None, first_s + second, pool)
    return answers


def enter(fleet, *agents, now=0.0, **options):
    return [name for agent in agents for name in fleet.arrive(agent, now, **options)]


def test_agents_are_spread_evenly():
    fleet = fleet_of("a", "b")
    assert enter(fleet, "1", "2", "3", "4") == ["1", "2", "3", "4"]
    assert [fleet.pool_of(agent) for agent in "1234"] == ["a", "b", "a", "b"]


def test_one_agent_waits_in_each_pool_and_the_rest_in_one_line():
    fleet = fleet_of("a", "b", agents=1)
    enter(fleet, "1", "2", "3", "4", "5")
    assert [fleet.pool_of(agent) for agent in "12345"] == ["a", "b", "a", "b", None]
    assert fleet.agent_state("5") == "queued"
    view = fleet.view(0.0)
    assert (view.active, view.queued) == (2, 3)
    assert view.pools["a"].queued == 1
    assert str(fleet.explain("5", 0.0)) == "5: queued: waits for one of 2 pools"


def test_who_waits_goes_to_whichever_pool_has_room_first():
    fleet = fleet_of("a", "b", agents=1)
    enter(fleet, "1", "2", "3")
    assert fleet.pool_of("3") == "a"
    assert fleet.leave("2", 1.0) == ["3"], "called back from where it waited"
    assert fleet.pool_of("3") == "b"


def test_an_agent_stays_in_its_pool():
    fleet = fleet_of("a", "b")
    enter(fleet, "1", "2")
    for second in range(5):
        assert fleet.begin_step("2", second, prompt_tokens=1_000) == ["2"]
        fleet.end_step("2", second + 0.5, CALL)
    assert fleet.pool_of("2") == "b"


def test_children_share_the_pool_of_their_parent():
    fleet = fleet_of("a", "b")
    enter(fleet, "1", "2")
    assert fleet.arrive("2.child", 1.0, parent="2") == ["2.child"]
    assert fleet.pool_of("2.child") == "b"


def test_whoever_gets_in_as_a_child_leaves_is_named():
    """Also if the child's root waits itself, and a stall ends at that moment."""
    fleet = fleet_of("a", "b", agents=1)
    enter(fleet, "1", "2", "3")
    for agent in "12":
        fleet.begin_step(agent, 0.0)
        fleet.end_step(agent, 1.0, CALL)
    fleet.arrive("3.child", 1.0, parent="3")
    assert fleet.leave("3.child", 200.0) == ["3"]


def test_a_group_goes_together_while_there_is_room():
    fleet = fleet_of("a", "b", agents=3)
    enter(fleet, "x")
    enter(fleet, "1", "2", "3", "4", group="g")
    assert fleet.pool_of("x") == "a"
    assert [fleet.pool_of(agent) for agent in "1234"] == ["b", "b", "b", "a"]


def test_a_pool_twice_as_large_takes_more_agents_but_not_twice_as_many():
    """Its engine is seldom twice as fast."""
    fleet = Fleet(make_law("working_set"), ["small", "large"])
    fleet.tick(page(0.0, 100_000), 0.0, "small")
    fleet.tick(page(0.0, 200_000), 0.0, "large")
    enter(fleet, *map(str, range(13)), prompt_tokens=1_000)
    pools = [fleet.pool_of(str(agent)) for agent in range(13)]
    assert pools.count("large") == 8


def test_the_first_pool_to_be_read_does_not_take_the_whole_batch():
    fleet = Fleet(make_law("working_set"), ["a", "b"], first_reading_s=1.0)
    assert enter(fleet, *map(str, range(10)), prompt_tokens=1_000) == ["0", "1"]
    assert fleet.tick(page(0.1), 0.1, "a") == ["2"]
    assert len(fleet.tick(page(0.2), 0.2, "b")) == 7
    pools = [fleet.pool_of(str(agent)) for agent in range(10)]
    assert pools.count("a") == 5


def test_a_pool_without_a_page_holds_up_the_others_for_a_second():
    fleet = Fleet(make_law("working_set"), ["a", "b"], first_reading_s=1.0)
    enter(fleet, *map(str, range(10)), prompt_tokens=1_000)
    fleet.tick(page(0.1), 0.1, "a")
    assert fleet.next_wake(0.1) == 1.0
    assert len(fleet.advance(1.0)) == 7


def test_agents_of_a_dead_pool_move_at_their_next_boundary():
    fleet = fleet_of("a", "b")
    enter(fleet, "1", "2")
    fleet.begin_step("1", 0.0)
    fail(fleet, "a", 1.0)
    assert fleet.view(7.0).reason == "down,fixed"
    assert fleet.pool_of("1") == "a", "its call is in flight"
    fleet.end_step("1", 8.0, None)
    decision = fleet.begin_step("1", 9.0)
    assert decision == ["1"]
    assert fleet.pool_of("1") == "b"
    after = [move.after for move in decision.transitions if move.agent == "1"]
    assert after == [State.PAUSED, State.ACTING, State.REASONING]


def test_a_pool_whose_page_fails_but_whose_engine_answers_is_not_down():
    fleet = fleet_of("a", "b")
    enter(fleet, "1", "2")
    fleet.begin_step("1", 0.0)
    fleet.tick(None, 1.0, "a")
    fleet.end_step("1", 2.0, CALL)
    fail(fleet, "a", 3.0)
    fleet.begin_step("1", 10.0)
    assert fleet.pool_of("1") == "a"


def test_who_waits_in_a_dead_pool_is_let_in_elsewhere():
    fleet = fleet_of("a", "b", agents=1)
    enter(fleet, "1", "2", "3")
    assert fleet.pool_of("3") == "a"
    fleet.leave("2", 0.5)
    assert fleet.pool_of("3") == "b"
    enter(fleet, "4", "5", now=1.0)
    assert (fleet.pool_of("4"), fleet.pool_of("5")) == ("a", "b")
    fail(fleet, "a", 2.0)
    assert fleet.pool_of("4") == "b", "it came before 5"
    assert fleet.leave("3", 10.0) == ["4"]
    assert fleet.leave("4", 11.0) == ["5"]


def test_a_dead_pool_that_answers_again_takes_agents_again():
    fleet = fleet_of("a", "b", agents=1)
    enter(fleet, "1", "2")
    fail(fleet, "a", 0.0)
    enter(fleet, "3", now=7.0)
    assert fleet.pool_of("3") == "b"
    fleet.leave("1", 8.0)
    assert fleet.tick(page(9.0), 9.0, "a") == ["3"]


def test_sums_leave_out_the_tokens_of_a_pool_that_is_down_but_not_its_agents():
    """Or an operator sees room in which no agent can run."""
    fleet = fleet_of("a", "b", agents=4)
    enter(fleet, "1", "2", "3")
    fleet.tick(page(0.0, 1000), 0.0, "a")
    fleet.tick(page(0.0, 3000), 0.0, "b")
    assert fleet.view(0.0).capacity_tokens == 4000
    assert fleet.view(0.0).limit.agents == fleet.limit.agents == 8
    fail(fleet, "a", 1.0)
    view = fleet.view(7.0)
    assert view.capacity_tokens == view.reported_tokens == 3000
    assert view.limit.agents == fleet.limit.agents == 4
    assert view.pressure_tokens == view.pools["b"].pressure_tokens
    assert view.active == 3
    fail(fleet, "b", 8.0)
    assert fleet.view(14.0).capacity_tokens == 4000, "all are down: each may be the first to return"


def test_if_all_pools_are_down_agents_stay_where_they_are():
    fleet = fleet_of("a", "b")
    enter(fleet, "1", "2")
    fail(fleet, "a", 0.0)
    fail(fleet, "b", 0.0)
    assert fleet.begin_step("1", 7.0) == ["1"]
    assert fleet.pool_of("1") == "a"


def two_crowded_in_a(in_b=4_000):
    """Pools of 10,000 tokens: in a, `1` is in a call and `2` holds 4,000; `3` is in b."""
    law = SimpleNamespace(
        name="scripted",
        formula="",
        needs_readings=False,
        initial=lambda: LawState(Limit(tokens=10_000)),
        decide=lambda state, snapshot: state,
    )
    fleet = Fleet(law, ["a", "b"])
    for agent, pool, tokens in (("1", "a", 4_000), ("2", "a", 4_000), ("3", "b", in_b)):
        fleet.arrive(agent, 0.0, prompt_tokens=1_000, pool=pool)
        fleet.begin_step(agent, 0.0)
        fleet.end_step(agent, 1.0, Usage(tokens, 0))
    fleet.begin_step("1", 2.0, prompt_tokens=6_000)
    return fleet


def test_a_paused_agent_goes_to_a_pool_that_is_half_empty():
    """In the tail of a batch it would wait beside an engine with nothing to do."""
    fleet = two_crowded_in_a()
    answer = fleet.begin_step("2", 3.0, prompt_tokens=6_000)
    assert answer == ["2"]
    assert fleet.pool_of("2") == "b"
    assert fleet.agent_state("2") == "reasoning"
    assert [move.after for move in answer.transitions] == [
        State.PAUSED,
        State.ACTING,
        State.REASONING,
    ]


def test_a_paused_agent_stays_while_no_other_pool_is_half_empty():
    """It leaves its prefix behind, and what is in the other pool still grows."""
    fleet = two_crowded_in_a(in_b=5_001)
    assert fleet.begin_step("2", 3.0, prompt_tokens=4_500) == []
    assert fleet.pool_of("2") == "a"
    assert fleet.leave("3", 4.0) == ["2"]
    assert fleet.pool_of("2") == "b"


def test_a_paused_agent_stays_while_an_agent_waits_to_start():
    """A new one brings no prefix that is computed again."""
    fleet = two_crowded_in_a()
    assert fleet.arrive("new", 2.0, prompt_tokens=8_000) == []
    assert fleet.begin_step("2", 3.0, prompt_tokens=6_000) == []
    assert fleet.pool_of("2") == "a"
    assert fleet.leave("new", 4.0) == ["2"]
    assert fleet.pool_of("2") == "b"


def test_a_paused_agent_whose_context_does_not_fit_elsewhere_stays():
    """Also if its prompt was not announced: what it holds is known."""
    fleet = two_crowded_in_a()
    fleet.begin_step("2", 3.0)
    fleet.end_step("2", 4.0, Usage(6_500, 0))
    assert fleet.begin_step("2", 5.0) == []
    assert fleet.pool_of("2") == "a"


def test_a_removed_pool_empties_and_is_gone():
    fleet = fleet_of("a", "b")
    enter(fleet, "1", "2")
    fleet.remove_pool("a", 1.0)
    assert fleet.begin_step("1", 2.0) == ["1"]
    assert fleet.pool_of("1") == "b"
    assert [pool.name for pool in fleet.pools] == ["b"]
    with pytest.raises(ValueError, match="last one"):
        fleet.remove_pool("b", 3.0)


def test_a_pool_that_is_added_again_while_it_empties_stays():
    fleet = fleet_of("a", "b")
    enter(fleet, "1", "2")
    fleet.remove_pool("a", 1.0)
    fleet.add_pool("a", 2.0)
    assert fleet.begin_step("1", 3.0) == ["1"]
    assert fleet.pool_of("1") == "a"
    with pytest.raises(ValueError, match="already"):
        fleet.add_pool("a", 4.0)


def test_an_added_pool_takes_who_waits():
    fleet = fleet_of("a", agents=1)
    enter(fleet, "1", "2", "3")
    assert fleet.add_pool("b", 1.0) == ["2"]
    assert fleet.pool_of("2") == "b"


def test_an_agent_past_max_wait_s_goes_first_whatever_its_priority():
    fleet = fleet_of("a", agents=1, max_wait_s=10.0)
    enter(fleet, "1")
    enter(fleet, "low", now=0.0, priority=0)
    enter(fleet, "old", now=1.0, priority=0)
    enter(fleet, "high", now=2.0, priority=5)
    assert fleet.leave("1", 3.0) == ["high"]
    assert fleet.next_wake(3.0) == 10.0
    enter(fleet, "higher", now=9.0, priority=9)
    assert fleet.advance(11.0) == []
    assert fleet.leave("high", 12.0) == ["low"]
    assert fleet.leave("low", 13.0) == ["old"]
    assert fleet.leave("old", 14.0) == ["higher"]


def test_max_open_is_of_the_whole_fleet():
    fleet = fleet_of("a", "b", max_open=2)
    assert enter(fleet, "1", "2", "3") == ["1", "2"]
    assert fleet.pool_of("3") is None
    assert str(fleet.explain("3", 0.0)) == "3: queued: 2 of 2 agents open"
    assert fleet.leave("1", 1.0) == ["3"]


def test_a_flushed_pool_is_named_or_all_are_meant():
    fleet = fleet_of("a", "b")
    assert fleet.flushed(0.0, "a") == []
    assert fleet.flushed(0.0) == []
    with pytest.raises(KeyError, match="no pool 'c'"):
        fleet.flushed(0.0, "c")


def test_two_pools_of_one_name_are_refused():
    with pytest.raises(ValueError, match="unique"):
        fleet_of("a", "a")
    with pytest.raises(ValueError, match="at least one pool"):
        fleet_of()


def test_views_add_up():
    fleet = Fleet(make_law("working_set"), ["a", "b"])
    fleet.tick(page(0.0, 100_000), 0.0, "a")
    fleet.tick(page(0.0, 300_000), 0.0, "b")
    enter(fleet, "1", "2", prompt_tokens=1_000)
    view = fleet.view(0.0)
    assert view.capacity_tokens == 400_000
    assert view.limit.tokens == pytest.approx(380_000)
    assert view.active == view.pools["a"].active + view.pools["b"].active == 2
    assert view.pressure_tokens == sum(pool.pressure_tokens for pool in view.pools.values())


def test_an_agent_is_where_it_was_served():
    """A router has picked another pool: the family goes there, and its old place is free."""
    fleet = fleet_of("a", "b", agents=1)
    enter(fleet, "1", "2", "3")
    fleet.begin_step("1", 1.0)
    fleet.arrive("1.child", 1.0, parent="1")
    assert fleet.found("1", 1.0, pool="b") == ["3"]
    assert [fleet.pool_of(agent) for agent in ("1", "1.child", "2", "3")] == ["b", "b", "b", "a"]
    assert fleet.view(1.0).active == 3, "one more than the cap, which holds at boundaries"
    fleet.end_step("1", 2.0, CALL)
    assert fleet.begin_step("1", 3.0) == [], "there are two in a pool for one"


def test_an_agent_in_no_call_is_served_nowhere():
    fleet = fleet_of("a", "b")
    enter(fleet, "1")
    assert fleet.found("1", 1.0, pool="b") == []
    assert fleet.pool_of("1") == "a"
    with pytest.raises(KeyError):
        fleet.found("1", 1.0, pool="c")


def test_behind_a_router_a_paused_agent_goes_nowhere_else():
    """Where it is, the router decides: another pool would count an agent that it never sees."""
    where = []
    for moves_paused in (True, False):
        fleet = Fleet(make_law("fixed", agents=2), ["a", "b"], moves_paused=moves_paused)
        enter(fleet, "1", "2", "3", "4")
        for agent in "1234":
            fleet.begin_step(agent, 1.0)
        for agent in "24":
            fleet.found(agent, 1.0, pool="a")
        for agent in "1234":
            fleet.end_step(agent, 2.0, CALL)
        for agent in "1234":
            fleet.begin_step(agent, 3.0)
        where.append({fleet.pool_of(agent) for agent in "1234"})
    assert where == [{"a", "b"}, {"a"}]
