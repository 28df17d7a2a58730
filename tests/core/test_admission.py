"""Breadth: beyond `Limit.open_agents` agents that have begun come before new ones."""

import itertools

from concur_agents.core import Reading, Regulator, Usage, make_law
from concur_agents.core.types import State

STEP = Usage(900, 100, 0)


def step(regulator, agent, now, usage=STEP):
    assert agent in regulator.begin_step(agent, now)
    return regulator.end_step(agent, now, usage)


def cold(regulator, resize, *, breadth):
    """`a` and `b` have begun and gone cold, `b` runs, `a` is paused and `new` waits."""
    for agent in "ab":
        regulator.arrive(agent, 0.0)
        step(regulator, agent, 0.0)
    resize(regulator, 1.0, agents=1)
    assert regulator.begin_step("b", 1.0) == []
    regulator._sizes.residency.clear()  # the engine has restarted: nothing is warm
    assert regulator.arrive("new", 1.0) == []
    return resize(regulator, 2.0, agents=2, open_agents=breadth)


def test_within_the_breadth_a_new_agent_goes_before_a_cold_one(regulate, resize):
    assert cold(regulate(agents=2), resize, breadth=3) == ["new"]


def test_beyond_it_the_one_that_has_begun_goes_first(regulate, resize):
    r = regulate(agents=2)
    assert cold(r, resize, breadth=2) == ["b"]
    assert r.agent_state("new") == "queued"


def test_new_ones_still_enter_when_none_that_has_begun_waits(regulate):
    """It orders the queue; it keeps no place empty."""
    r = regulate(breadth=1)
    assert [r.arrive(agent, 0.0) for agent in "abc"] == [["a"], ["b"], ["c"]]


def test_max_open_is_a_hard_bound_and_keeps_places_empty(regulate):
    r = regulate(breadth=100, max_open=2)
    assert [r.arrive(agent, 0.0) for agent in "abc"] == [["a"], ["b"], []]
    assert r.leave("a", 1.0) == ["c"]


def test_an_agent_in_a_long_tool_does_not_keep_new_ones_out(regulate):
    """A suspended agent has begun, but it does not wait."""
    r = regulate(agents=1, breadth=1)
    r.arrive("a", 0.0)
    step(r, "a", 0.0)
    assert r.arrive("b", 1.0) == []
    assert r.suspend("a", 1.0) == ["b"]


def endless(breadth):
    """Agents of 15 growing calls on 64,000 tokens, always five at the door, for half an hour.

    Returns how many are done, and how many were open at most.
    """
    r = Regulator(make_law("working_set", breadth=breadth))
    reading = Reading(at_s=0.0, capacity_tokens=64_000)
    r.tick(reading, 0.0)
    names, steps, most_open = itertools.count(), {}, 0
    for second in range(1, 1_800):
        now = float(second)
        while sum(r.agent_state(agent) == "queued" for agent in steps) < 5:
            agent = f"a{next(names)}"
            steps[agent] = 0
            r.arrive(agent, now, prompt_tokens=2_000)
        for agent in list(steps):
            prompt = 2_000 + 1_000 * steps[agent]
            if r.agent_state(agent) == "acting":
                r.begin_step(agent, now)
            elif r.agent_state(agent) == "reasoning":
                r.end_step(agent, now, Usage(prompt, 200, prompt // 2))
                steps[agent] += 1
                if steps[agent] == 15:
                    r.leave(agent, now)
                    del steps[agent]
        most_open = max(most_open, r._admission.open_agents)
        r.tick(reading, now)
    return r.view(now).done_total, most_open


def test_an_endless_source_does_not_starve_the_agents_that_have_begun():
    done, most_open = endless(breadth=6.0)
    done_without, most_open_without = endless(breadth=1e9)
    assert most_open < most_open_without / 2
    assert done > done_without


def test_an_agent_put_back_at_its_boundary_never_stood_in_a_call(regulate, resize):
    """Found here: the move to PAUSED came from REASONING, where no move had brought it."""
    r = regulate(agents=2)
    for agent in "ab":
        r.arrive(agent, 0.0)
        step(r, agent, 0.0)
    resize(r, 1.0, agents=1)
    moves = r.begin_step("a", 1.0).transitions
    assert [(move.before, move.after) for move in moves] == [(State.ACTING, State.PAUSED)]
    assert moves[0].reason.cause == "agents"
