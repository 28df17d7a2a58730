"""A higher priority goes first at the door, and takes the place of a lower one at its boundary."""

from concur_agents.core import Fleet, Regulator, Usage, make_law

USAGE = Usage(1_000, 100, 900)


def step(regulator, agent, now):
    """Whether the agent may make a call; if so, it is over at once."""
    if agent not in regulator.begin_step(agent, now):
        return False
    regulator.end_step(agent, now, USAGE)
    return True


def test_an_agent_at_a_boundary_gives_its_place_to_one_of_higher_priority():
    regulator = Regulator(make_law("fixed", agents=1))
    regulator.arrive("old", 0.0)
    assert step(regulator, "old", 0.0)
    regulator.arrive("fresh", 1.0, priority=1)
    assert regulator.begin_step("old", 2.0) == ["fresh"]
    assert regulator.agent_state("old") == "paused"
    assert regulator.leave("fresh", 3.0) == ["old"]


def test_an_equal_priority_does_not():
    regulator = Regulator(make_law("fixed", agents=1))
    regulator.arrive("old", 0.0, priority=1)
    assert step(regulator, "old", 0.0)
    regulator.arrive("fresh", 1.0, priority=1)
    assert step(regulator, "old", 2.0)


def test_an_agent_that_has_just_come_in_makes_a_call_before_it_gives_way():
    """Or agents that were let in could be turned away for ever."""
    regulator = Regulator(make_law("fixed", agents=1))
    regulator.arrive("old", 0.0)
    regulator.arrive("fresh", 1.0, priority=1)
    assert step(regulator, "old", 2.0)
    assert not step(regulator, "old", 3.0)


def test_none_gives_way_to_an_agent_that_may_not_be_opened():
    regulator = Regulator(make_law("fixed", agents=1), max_open=1)
    regulator.arrive("old", 0.0)
    assert step(regulator, "old", 0.0)
    regulator.arrive("fresh", 1.0, priority=1)
    assert step(regulator, "old", 2.0)


def test_in_a_fleet_the_first_of_the_line_takes_the_place():
    fleet = Fleet(make_law("fixed", agents=1), ["left", "right"])
    for agent in ("a", "b", "c"):
        fleet.arrive(agent, 0.0)
    assert step(fleet, "a", 0.0)
    assert step(fleet, "b", 0.0)
    fleet.arrive("fresh", 1.0, priority=1)  # it waits in the pool of b, because c does in that of a
    assert step(fleet, "a", 2.0)
    assert fleet.begin_step("b", 2.0) == ["fresh"]
