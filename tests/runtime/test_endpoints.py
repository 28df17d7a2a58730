"""The engines of a governor with several pools."""

from __future__ import annotations

import pytest

import concur_agents as ca
from concur_agents.testing import ManualClock

ONE, TWO = "http://127.0.0.1:1", "http://127.0.0.1:2"


def test_a_removed_address_can_be_added_again():
    with ca.Governor([ONE, TWO], background=False) as gov:
        gov.remove_pool(TWO)
        gov.add_pool(TWO)
        assert list(gov.addresses) == [ONE, TWO]
        with pytest.raises(ca.ConfigError, match="twice"):
            gov.add_pool(TWO)


def test_the_last_address_stays():
    with ca.Governor([ONE, TWO], background=False) as gov:
        gov.remove_pool(TWO)
        with pytest.raises(ca.ConfigError, match="last address"):
            gov.remove_pool(ONE)


def test_each_rank_is_a_pool():
    with ca.Governor(ONE, ranks=2, background=False) as gov:
        assert list(gov.addresses) == [f"{ONE}#0", f"{ONE}#1"]
        assert [address.rank for address in gov.addresses.values()] == [0, 1]


def test_one_address_is_no_fleet():
    with ca.Governor([ONE], background=False) as gov:
        assert gov.addresses == {}
        with pytest.raises(ca.ConfigError, match="made for one pool"):
            gov.add_pool(TWO)


def test_a_pool_that_is_removed_while_it_is_read_ends_nothing():
    """The reading comes back to a fleet that no longer has the pool."""
    clock = ManualClock()
    with ca.Governor([ONE, TWO], background=False, clock=clock) as gov:
        removed = gov._ticker.readers[1]
        gov.remove_pool(TWO)
        removed.read()
        clock.advance(60)
        removed.read()
        gov.beat()
        assert not gov.snapshot().closed, "it governs on"
        assert list(gov.snapshot().pools) == [ONE]


def test_a_flushed_pool_that_is_not_there_is_an_error_of_the_caller():
    with ca.Governor([ONE, TWO], background=False) as gov:
        gov.flushed(ONE)
        gov.flushed()
        with pytest.raises(ca.ConfigError, match="no pool 'gpu9'"):
            gov.flushed("gpu9")
        assert not gov.snapshot().closed, "it governs on"
    with ca.Governor(limit=2) as gov, pytest.raises(ca.ConfigError, match="no pool"):
        gov.flushed("gpu9")


def test_events_name_the_pool_that_the_agent_had_when_they_happened():
    """They may be delivered once the agent has left and the governor has forgotten where it was."""
    seen, forgotten = [], []

    def watch(event):
        if event.agent == "first" and event.kind == "arrived":
            with gov.agent("second") as agent, agent.step() as step:
                step.record({"prompt_tokens": 10, "completion_tokens": 1})
        elif event.agent == "second":
            forgotten.append(gov.pool_of("second"))
            seen.append((event.kind, event.pool))

    with ca.Governor([ONE, TWO], limit=2, background=False) as gov:
        gov.on_event(watch)
        with gov.agent("first"):
            pass
    assert forgotten == [None] * len(seen), "or this test shows nothing"
    assert seen == [
        ("arrived", None),
        ("admitted", TWO),
        ("step_began", TWO),
        ("step_ended", TWO),
        ("left", TWO),
    ]


def test_questions_take_an_agent_as_well_as_its_id():
    with ca.Governor([ONE, TWO], law=ca.make_law("fixed", agents=1), background=False) as gov:
        agent = gov.agent("issue-17")
        with agent:
            assert gov.pool_of(agent) == gov.pool_of("issue-17") == agent.pool is not None
            assert gov.explain(agent) == gov.explain("issue-17")
            assert gov.agent_state(agent) == gov.agent_state("issue-17") == "acting"
            assert gov.why(agent) is None
