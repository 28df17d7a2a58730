"""What ended a wait, as data and as text."""

import pytest

from concur_agents.recording import RecordedCall
from concur_agents.recording.timeline import WaitEnd
from concur_agents.recording.timeline_builder import wait_end


@pytest.mark.parametrize(
    ("call", "text", "kind"),
    [
        ({"name": "leave"}, "a left", "another agent left"),
        ({"name": "end_step"}, "a ended a step", "another agent ended a step"),
        (
            {"name": "resume"},
            "a asked for its place again",
            "another agent asked for its place again",
        ),
        ({"name": "tick", "reason": "grow"}, "the limit moved (grow)", "the limit moved"),
        ({"name": "tick"}, "a reading came", "a reading came"),
        (
            {"name": "advance"},
            "idle claims had faded or a stall ended",
            "idle claims had faded or a stall ended",
        ),
        (
            {"name": "advance", "reason": "start"},
            "the first reading took too long",
            "the first reading took too long",
        ),
    ],
)
def test_the_end_of_a_wait_follows_from_the_call_that_ended_it(call, text, kind):
    agent = None if call["name"] in ("tick", "advance") else "a"
    end = wait_end(RecordedCall(now=1.0, agent=agent, **call))
    assert str(end) == text
    assert end.kind == kind


def test_names_of_agents_do_not_decide_how_ends_are_counted():
    """An id may read like one of our own texts."""
    assert WaitEnd("leave", agent="it").kind == "another agent left"
    assert WaitEnd("left").kind == "it left"
