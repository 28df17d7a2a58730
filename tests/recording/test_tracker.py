"""Where each agent stands, followed line by line."""

import random

import pytest

from concur_agents.core import Regulator, Usage, make_law
from concur_agents.recording import (
    RecordedCall,
    Recording,
    Tracker,
    apply,
    make_regulator,
    record,
)
from concur_agents.recording.timeline_builder import read_timeline


def test_a_roster_follows_the_regulator_agent_by_agent(batch):
    """Lanes, waits and explanations all come from it."""
    regulator, tracker = make_regulator(batch), Tracker()
    checked = 0
    for line in batch:
        assert isinstance(line, RecordedCall)
        apply(regulator, line)
        tracker.take(line)
        for who in tracker.agents.values():
            assert who.state == regulator.agent_state(who.id), (line, who)
            checked += 1
    assert checked > 1000


def test_a_roster_follows_an_agent_through_its_breaks(tmp_path):
    recorded, recorder = record(Regulator(make_law("fixed", agents=1)), tmp_path / "r.jsonl")
    with recorder:
        recorded.arrive("a", 0.0)
        recorded.begin_step("a", 1.0)
        recorded.suspend("a", 2.0)
        recorded.end_step("a", 3.0, Usage(900, 100, 0))
        recorded.arrive("b", 4.0)
        recorded.resume("a", 5.0)
        recorded.suspend("a", 6.0)
        recorded.begin_step("a", 7.0)
        recorded.withdraw_step("a", 8.0)
        recorded.suspend("a", 9.0)
        recorded.suspend("b", 10.0)
        recorded.resume("a", 11.0)
        recorded.begin_step("a", 12.0)
        recorded.withdraw_step("a", 13.0)
    regulator, tracker = make_regulator(Recording(recorder.path)), Tracker()
    states = []
    for line in Recording(recorder.path):
        apply(regulator, line)
        tracker.take(line)
        for who in tracker.agents.values():
            assert who.state == regulator.agent_state(who.id), (line, who)
        states.append(tracker.agents["a"].state)
    assert {"reasoning", "acting", "paused", "suspended"} == set(states)


def busy_families(regulator, rng, *, orphans, calls=600):
    """Families that call in parallel, suspend, and leave in any order; ids are used again."""
    now, homes, open_calls = 0.0, {}, {}

    def tell(name, agent, **options):
        getattr(regulator, name)(agent, now, **options)

    for _ in range(calls):
        now += rng.random()
        agent = rng.choice(list(homes)) if homes else None
        deed = rng.choice(("arrive", "child", "begin", "begin", "begin", "end", "leave", "away"))
        if agent is None or deed == "arrive":
            new = f"a{rng.randrange(9)}"
            if new not in homes:
                tell("arrive", new)
                homes[new], open_calls[new] = None, 0
        elif deed == "child":
            new = f"c{rng.randrange(9)}"
            if new not in homes:
                tell("arrive", new, parent=agent)
                homes[new], open_calls[new] = agent, 0
        elif deed == "begin" and regulator.agent_state(agent) != "queued":
            tell("begin_step", agent)
            open_calls[agent] += 1
        elif deed == "end" and open_calls[agent]:
            open_calls[agent] -= 1
            if rng.random() < 0.2:
                tell("withdraw_step", agent)
            else:
                tell("end_step", agent, usage=Usage(900, 100, 0))
        elif deed == "leave" and (orphans or agent not in homes.values()):
            tell("leave", agent)
            del homes[agent], open_calls[agent]
        elif deed == "away" and homes[agent] is None:
            if regulator.agent_state(agent) in ("acting", "reasoning", "paused"):
                tell("suspend", agent)
            elif regulator.agent_state(agent) == "suspended":
                tell("resume", agent)
        if rng.random() < 0.2:
            regulator.tick(None, now)


@pytest.mark.parametrize("seed", range(10))
def test_each_member_of_a_family_stands_where_the_regulator_says(tmp_path, seed):
    """Transitions name the root alone, and a root may leave before its children."""
    rotates = {"max_wait_s": 3.0}
    regulator = Regulator(make_law("fixed", agents=3), **rotates)
    recorded, recorder = record(regulator, tmp_path / "r.jsonl", **rotates)
    with recorder:
        busy_families(recorded, random.Random(seed), orphans=seed % 2 == 0)
    regulator, tracker = make_regulator(Recording(recorder.path)), Tracker()
    lines = 0
    for line in Recording(recorder.path):
        apply(regulator, line)
        tracker.take(line)
        stands = {who.agent: who.state for who in regulator.agents()}
        assert {who.id: who.state for who in tracker.agents.values()} == stands, line
        lines += 1
    assert lines > 100
    pauses = regulator.view(0.0).pauses_total
    assert seed % 2 == 0 or read_timeline(Recording(recorder.path)).pauses == pauses
