"""Replaying a recording on a fresh Regulator."""

from concur_agents.core import make_law
from concur_agents.recording import (
    make_regulator,
    replay,
)


def test_a_simulated_batch_replays_to_the_bit(batch):
    assert list(replay(batch)) == []


def test_a_replay_gives_the_first_answer_that_differs(batch):
    """The test of the test: another law shows in the agents let in and in its state."""
    first = next(iter(replay(batch, make_regulator(batch, make_law("fixed", agents=1)))))
    assert first.call.name == "arrive"
    assert first.let_in == ()
    first = next(iter(replay(batch, make_regulator(batch, make_law("fixed", agents=1000)))))
    assert first.call.tick is not None
    assert first.state["limit"]["agents"] == 1000
