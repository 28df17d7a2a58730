"""Reasons are data, and their words are made from it."""

import pytest

from concur_agents.core import Reason
from concur_agents.core.why import k


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        (Reason(agent="a", cause="absent"), "a: not here"),
        (
            Reason(agent="a", state="acting", cause="active", count=2_304.0),
            "a: acting: holding 2304 tokens",
        ),
        (
            Reason(agent="a", state="suspended", cause="suspended"),
            "a: suspended: its place is free meanwhile",
        ),
        (
            Reason(agent="a", state="queued", cause="max_open", count=3, most=3, ahead=0),
            "a: queued: 3 of 3 agents open; 0 ahead",
        ),
        (
            Reason(agent="a", state="queued", cause="first_reading", most=0.7),
            "a: queued: waiting for the engine's first reading, at most 0.7 s",
        ),
        (
            Reason(agent="a", state="paused", cause="agents", count=8, most=8, wake_in_s=4.6),
            "a: paused: 8 of 8 agents active; next chance by itself in 5 s",
        ),
        (
            Reason(
                agent="a",
                state="paused",
                cause="tokens",
                pressure_tokens=92_000.0,
                need_tokens=7_540.0,
                limit_tokens=95_000.0,
                ahead=2,
                wake_in_s=12.0,
            ),
            (
                "a: paused: pressure 92k + 7540 for its step, limit 95k tokens; 2 ahead; "
                "next chance by itself in 12 s"
            ),
        ),
        (Reason(agent="a", state="queued", cause="next"), "a: queued: about to be let in"),
        (
            Reason(agent="a", state="queued", cause="pools", count=1, most=4),
            "a: queued: waits for one of 4 pools",
        ),
        (
            Reason(agent="a", state="paused", cause="pools", count=12, most=4),
            "a: paused: waits for one of 4 pools, as do 11 others",
        ),
        (
            Reason(agent="a", state="paused", pool="gpu1", cause="agents", count=8, most=8),
            "a: paused in gpu1: 8 of 8 agents active",
        ),
    ],
)
def test_each_cause_has_its_line(reason, line):
    assert str(reason) == line
    assert reason.numbers in line


def test_an_id_with_a_colon_changes_nothing_but_the_line():
    """Reasons are never parsed from words, so an id may look like them."""
    reason = Reason(agent="a: paused: 1", state="queued", cause="max_open", count=1, most=1)
    assert (reason.agent, reason.state, reason.numbers) == (
        "a: paused: 1",
        "queued",
        "1 of 1 agents open",
    )


def test_tokens_are_short():
    assert [k(n) for n in (0, 999.4, 9_999, 10_000, 1_234_567)] == [
        "0",
        "999",
        "9999",
        "10k",
        "1235k",
    ]


def test_the_state_machine_s_causes_come_from_what_binds(regulate, resize):
    r = regulate(agents=1)
    for agent in "ab":
        r.arrive(agent, 0.0)
    assert (r.why("a", 0.0), r.why("nobody", 0.0)) == (None, None)
    assert r.why("b", 0.0).cause == "agents"
    resize(r, 0.0, tokens=1_000)
    assert r.why("b", 0.0).cause == "tokens"
    assert r.explain("nobody", 0.0).cause == "absent"
