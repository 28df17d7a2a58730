"""Where each agent stands, followed line by line."""

from concur_agents.core import Regulator, Usage, make_law
from concur_agents.recording import (
    RecordedCall,
    Recording,
    Tracker,
    apply,
    make_regulator,
    record,
)


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
