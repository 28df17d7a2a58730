"""The same agents under other pools: none is lost, none is stopped, and totals go on."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from concur_agents.core import Fleet, Present, Reading, Regulator, Usage, make_law, regrouped

POOLS = ["a", "b"]
ACTIVE = ("reasoning", "acting")


def make_one(law, now=0.0):
    return Regulator(law, now)


def make_two(law, now=0.0):
    return Fleet(law, POOLS, now)


def page(now, tokens=100_000):
    return Reading(at_s=now, capacity_tokens=tokens, kv_usage=0.1)


def readings_of(pools, now):
    return {pool: page(now) for pool in pools}


def one_with(agents=2, waiting=("c",)):
    """Two agents run, of which one has a call in flight, and others wait."""
    regulator = Regulator(make_law("fixed", agents=agents))
    for agent in ("a", "b", *waiting):
        regulator.arrive(agent, 0.0, prompt_tokens=500)
    for agent in "ab":
        regulator.begin_step(agent, 0.0)
    regulator.end_step("a", 1.0, Usage(4_000, 100))
    return regulator


HERE = [
    Present(agent="a", pool="b"),
    Present(agent="b", calls=(900,), group="g"),
    Present(agent="c", enters=True),
]


def test_one_pool_becomes_two():
    old = one_with()
    new, let_in = regrouped(old, make_two, HERE, 2.0, readings=readings_of(POOLS, 2.0))
    assert let_in == ["c"], "a cap of two is now one of two for each pool"
    assert [new.pool_of(agent) for agent in "ab"] == ["b", "a"]
    assert [new.agent_state(agent) for agent in "abc"] == ["acting", "reasoning", "acting"]
    view = new.view(2.0)
    assert (view.footprint_tokens, view.capacity_tokens) == (4_100, 200_000)
    assert new.law is old.law
    new.end_step("b", 3.0, Usage(900, 10))
    assert new.begin_step("a", 3.0) == ["a"]


def test_two_pools_become_one_and_totals_go_on():
    old = make_two(make_law("fixed", agents=2))
    for agent in "abcde":
        old.arrive(agent, 0.0)
    old.leave("e", 1.0)
    here = [Present(agent=agent) for agent in "abcd"]
    new, let_in = regrouped(old, make_one, here, 2.0, readings={None: page(2.0)})
    assert let_in == []
    assert new.view(2.0).done_total == 1
    assert new.view(2.0).active == 4, "no agent is thrown out, though the cap is two"
    assert new.begin_step("a", 3.0) == [], "a surplus leaves at its boundary"


def test_a_pool_that_stays_keeps_what_it_has_learned():
    old = make_two(make_law("working_set"))
    old.tick(page(0.0, 50_000), 0.0, "a")
    old.tick(page(0.0, 50_000), 0.0, "b")

    def make(law, now):
        return Fleet(law, ["a", "b#0", "b#1"], now)

    new, _ = regrouped(old, make, [], 1.0, readings=readings_of(["b#0", "b#1"], 1.0))
    assert [view.capacity_tokens for view in new.view(1.0).pools.values()] == [
        50_000,
        100_000,
        100_000,
    ]


def test_a_family_stays_together_and_a_suspended_agent_asks_for_nothing():
    old = Regulator(make_law("fixed", agents=2))
    old.arrive("root", 0.0)
    old.arrive("child", 0.0, parent="root")
    old.arrive("away", 0.0)
    old.suspend("away", 0.0)
    here = [
        Present(agent="root", pool="b"),
        Present(agent="child", parent="root", calls=(None,)),
        Present(agent="away", pool="a", is_suspended=True),
    ]
    new, _ = regrouped(old, make_two, here, 1.0, readings=readings_of(POOLS, 1.0))
    assert new.pool_of("child") == "b"
    assert new.agent_state("away") == "suspended"
    new.end_step("child", 2.0, None)
    assert new.resume("away", 2.0) == ["away"]


agents = st.lists(
    st.tuples(
        st.sampled_from(["enters", "idle", "calls", "asked", "suspended"]),
        st.sampled_from([None, "a", "b"]),
        st.integers(0, 60_000),
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("law", ["working_set", "fixed"])
@settings(max_examples=40, deadline=None)
@given(agents=agents, there=st.booleans())
def test_every_agent_is_let_in_at_last(law, agents, there):
    """Whatever they did as the pools changed; and the same calls give the same answers."""
    law = make_law("fixed", agents=2) if law == "fixed" else make_law(law)
    before, after = (make_one, make_two) if there else (make_two, make_one)
    pools = POOLS if there else [None]
    answers = []
    for _ in range(2):
        old = before(make_law("fixed", agents=math.inf))
        here = []
        for n, (stands, pool, tokens) in enumerate(agents):
            name = f"{n}"
            old.arrive(name, 0.0)
            if stands != "enters":
                old.begin_step(name, 0.0)
                old.end_step(name, 1.0, Usage(tokens, 10))
            here.append(
                Present(
                    agent=name,
                    pool=pool if there and stands != "enters" else None,
                    enters=stands == "enters",
                    is_suspended=stands == "suspended",
                    calls=(tokens,) if stands == "calls" else (),
                    asked=(tokens,) if stands == "asked" else (),
                )
            )
        old.law = law
        new, let_in = regrouped(old, after, here, 2.0, readings=readings_of(pools, 2.0))
        answers.append((let_in, [new.agent_state(who.agent) for who in here]))
    assert answers[0] == answers[1]
    assert {who for who in let_in if new.agent_state(who) not in ACTIVE} == set()
    left = {who.agent for who in here if not who.is_suspended}
    now = 3.0
    while left:
        active = sorted(who for who in left if new.agent_state(who) in ACTIVE)
        assert active, "some agent can always go on"
        new.leave(active[0], now)
        left.discard(active[0])
        now += 1.0
